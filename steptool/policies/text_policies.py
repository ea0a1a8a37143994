"""Policies that know texts but no tokens: recorded calls, and a chat model behind an endpoint.

Recorded calls play environments, annotators and evaluation end to end without a language model. The endpoint is
OpenAI-compatible, with function calling.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from steptool.chat.call_format import (
    THINK_CLOSE,
    THINK_OPEN,
    Format,
    NoCallError,
    ParsedTurn,
    read_answer,
    strip_thinking,
)
from steptool.chat.endpoint import Endpoint, EndpointError, EndpointRefused, Reply, RequestRefused, RequestTooLong
from steptool.chat.messages import GIVE_ANSWER, GIVE_UP, read_call, read_json, read_reasoning
from steptool.config import FinishMode, RolloutConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import is_interrupted
from steptool.records import FINISH, Message, Query, StepStatus, StopReason, ToolCall, Trajectory
from steptool.rollout.episode import Decoding, Episode, Exchange, Refusal, Turn, TurnCost
from steptool.rollout.runner import EndedTurn, Policy, roll_out

PLAYBACK = "playback"
_CAPACITY = 128
_GIVE_UP = ToolCall(FINISH, {"return_type": GIVE_UP})
_SOLVE = "Solve the user's task with the tools: one call in each turn."
INSTRUCTIONS: dict[FinishMode, str] = {
    "tool": f"{_SOLVE} When you are done, call Finish with your answer.",
    "text": f"{_SOLVE} When you are done, answer without a call.",
}
"""System message of an endpoint's episodes by how they end."""


class ScriptedPolicy(Policy):
    """Makes the calls that `calls_of` gives for a query and the number of a sample, then gives up.

    It plays all of them, unless a step limit of the query itself ends the episode earlier.
    """

    capacity, max_steps, search, patience = _CAPACITY, None, None, 0.0

    def __init__(
        self,
        calls_of: Callable[[Query, int], Sequence[ToolCall]],
        name: str = PLAYBACK,
        finish: FinishMode = "tool",
    ) -> None:
        self.name, self.finish, self._calls_of = name, finish, calls_of
        self._calls: dict[Episode, Iterator[ToolCall]] = {}
        self._waiting: list[Episode] = []

    def temperature(self, decoding: Decoding) -> float:
        """0: nothing is sampled."""
        return 0.0

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> Sequence[Episode]:
        """Look up the calls of every episode. Raises what `calls_of` raises where there is nothing to play."""
        self._waiting = []
        self._calls = {episode: iter(self._calls_of(episode.query, episode.sample)) for episode in episodes}
        return episodes

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Take in episodes that wait for their next call."""
        self._waiting += episodes

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """The next call of every episode that waits."""
        if not self._waiting:
            wait(until, return_when=FIRST_COMPLETED)
        waiting, self._waiting = self._waiting, []
        return [(episode, self._make_turn(next(self._calls[episode], _GIVE_UP))) for episode in waiting]

    def release(self, episode: Episode) -> None:
        """Forget the rest of the calls."""
        del self._calls[episode]

    def close(self) -> None:
        """Do nothing, because the policy holds no resources."""

    def _make_turn(self, call: ToolCall) -> Turn:
        answer = read_answer(call) if self.finish == "text" and call.name == FINISH else None
        return Turn(ParsedTurn(call, "") if answer is None else ParsedTurn(None, answer, answer=answer))


def play_back(
    recordings: Iterable[tuple[Query, Sequence[ToolCall]]],
    environment: Environment,
    *,
    limits: ToolsConfig,
    policy: str = PLAYBACK,
) -> list[Trajectory]:
    """One episode per recording, in their order. The recordings of one query become its samples 0, 1 and so on."""
    queries, calls = [], defaultdict(list)
    for query, recorded in recordings:
        queries.append(query)
        calls[query.query_id].append(recorded)
    scripted = ScriptedPolicy(lambda query, sample: calls[query.query_id][sample], policy)
    episodes = roll_out(scripted, queries, environment, decoding=Decoding.GREEDY, limits=limits)
    return [episode.trajectory for episode in episodes]


def has_reference_calls(query: Query) -> bool:
    """Whether the query has a reference solution. An empty list of calls counts: the solution is to do nothing."""
    return query.reference.turns is not None or query.reference.calls is not None


def list_reference_calls(query: Query) -> list[ToolCall]:
    """The calls of the reference solution, each turn of the user closed by a Finish with the reference's answer.

    `reference.turns` holds the calls of each turn, `reference.calls` those of the only one. Raises ValueError for a
    query with neither.
    """
    reference = query.reference
    if not has_reference_calls(query):
        raise ValueError(f"query '{query.query_id}' has no reference.turns or reference.calls to play back")
    turns = (reference.calls or (),) if reference.turns is None else reference.turns
    finish = ToolCall(FINISH, {"return_type": GIVE_ANSWER, "final_answer": reference.answer or ""})
    return [call for turn in turns for call in (*turn, finish)]


def list_recorded_calls(trajectory: Trajectory) -> list[ToolCall]:
    """The calls of a trajectory, its Finish included; steps without a readable call are left out."""
    return [step.call for step in trajectory.steps if step.call]


def drop_last_call(calls: Sequence[ToolCall]) -> list[ToolCall]:
    """The calls without the last one before Finish. They should no longer solve the task."""
    numbers = [number for number, call in enumerate(calls) if call.name != FINISH]
    return [call for number, call in enumerate(calls) if number not in numbers[-1:]]


class EndpointPolicy(Policy):
    """A chat model behind one endpoint for greedy turns and one for sampled turns: the same server, two temperatures.

    A turn makes one call. If a reply holds several calls, the first one counts, and later requests leave the others
    out. A reply without a readable call is a malformed step; with `rollout.finish: text` it is the answer, as for a
    local model. If the endpoint refuses to continue an episode, the episode ends as CONTEXT_LIMIT or REFUSED. `poll`
    raises EndpointError if the endpoint fails, because an episode that was never played is not a failed one. It raises
    EndpointRefused if the endpoint accepts no request, or none that begins an episode.
    """

    search, patience = None, 0.0

    def __init__(
        self,
        endpoints: Mapping[Decoding, Endpoint],
        *,
        name: str,
        rollout: RolloutConfig,
        instructions: str = "",
        form: Format | None = None,
    ) -> None:
        """`instructions` are the system message of every episode; without them an episode has no system message.

        `form` is the format in which the model writes calls, if it is known. A text that tries to make a call in it
        is not an answer.
        """
        self.name, self.max_steps, self.finish = name, rollout.max_steps, rollout.finish
        self._form = form
        self.capacity = min(endpoint.config.concurrency for endpoint in endpoints.values())
        self._endpoints, self._instructions = endpoints, instructions
        self._pool = ThreadPoolExecutor(self.capacity)
        self._requests: dict[Future[Reply], Episode] = {}
        self._episodes: Sequence[Episode] = ()
        self._has_reply = False
        self._refusals: dict[Episode, str] = {}

    def temperature(self, decoding: Decoding) -> float:
        """The temperature of the endpoint for this decoding."""
        return self._endpoints[decoding].config.temperature

    def begin(self, episodes: Sequence[Episode], decoding: Decoding) -> Sequence[Episode]:
        """Return the episodes in the order in which they came."""
        self._episodes, self._has_reply, self._refusals = episodes, False, {}
        return episodes

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Send the requests for the next turns."""
        for episode in episodes:
            chat = self._endpoints[episode.decoding].chat
            messages = _write_conversation(episode, self._instructions)
            request = self._pool.submit(chat, messages, episode.tools, vote=episode.sample)
            self._requests[request] = episode

    def poll(self, until: Collection[Future[Any]]) -> list[EndedTurn]:
        """Wait for a reply."""
        wait([*self._requests, *until], return_when=FIRST_COMPLETED)
        finished_requests = [request for request in self._requests if request.done()]
        return [self._read(self._requests.pop(request), request) for request in finished_requests]

    def release(self, episode: Episode) -> None:
        """Do nothing, because the policy holds nothing for an episode."""

    def close(self) -> None:
        """Drop the requests that were not sent, wait for the others and close the endpoints.

        Where Ctrl-C ends the run, those in flight end with the endpoints.
        """
        self._pool.shutdown(wait=not is_interrupted(), cancel_futures=True)
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _read(self, episode: Episode, request: Future[Reply]) -> EndedTurn:
        try:
            reply = request.result()
        except RequestRefused as error:
            return episode, self._refuse(episode, error)
        except EndpointError as error:
            raise type(error)(f"query '{episode.query.query_id}': {error}") from error
        self._has_reply = True
        cost = self._price(episode, reply.prompt_tokens, reply.completion_tokens)
        return episode, Turn(_parse(reply, self._form), cost, message=reply.message)

    def _refuse(self, episode: Episode, error: RequestRefused) -> Refusal:
        reason = f"query '{episode.query.query_id}': {error}"
        self._refusals[episode] = reason
        if not self._has_reply and len(self._refusals) == len(self._episodes):
            raise EndpointRefused(f"no episode got an answer; {self._refusals[self._episodes[0]]}")
        stop = StopReason.CONTEXT_LIMIT if isinstance(error, RequestTooLong) else StopReason.REFUSED
        return Refusal(stop, reason, self._price(episode, 0, 0))

    def _price(self, episode: Episode, prompt_tokens: int, completion_tokens: int) -> TurnCost:
        config = self._endpoints[episode.decoding].config
        money = (prompt_tokens * config.price_in + completion_tokens * config.price_out) / 1e6
        return TurnCost(completion_tokens, prompt_tokens, money if config.price_in or config.price_out else None)


def _parse(reply: Reply, form: Format | None) -> ParsedTurn:
    """The turn of a reply. Reasoning in a field of its own stands before the words, between <think> and </think>."""
    message, text = reply.message, _write_text(reply)
    first = _find_first_call(message)
    if first is None:
        return _read_answer(text, form)
    try:
        arguments = first["function"].get("arguments") or "{}"
        values = arguments if isinstance(arguments, Mapping) else read_json(arguments)
        call = read_call({"name": first["function"].get("name"), "arguments": values})
    except (AttributeError, LookupError, TypeError):
        return ParsedTurn(None, text, "tool call without a function")
    except ValueError as error:
        return ParsedTurn(None, text, str(error))
    return ParsedTurn(call, text, thought=text)


def _write_text(reply: Reply) -> str:
    """The reply as a model writes it, with its thinking. A server may leave out <think>, which the prompt has opened.

    Reasoning without words in a reply that is cut is thinking that does not end.
    """
    words, reasoning = _read_words(reply.message), read_reasoning(reply.message)
    if reasoning and not words and reply.is_cut:
        return f"{THINK_OPEN}\n{reasoning}"
    if reasoning:
        return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n{words}".rstrip("\n")
    return f"{THINK_OPEN}{words}" if THINK_CLOSE in words and THINK_OPEN not in words else words


def _read_answer(text: str, form: Format | None) -> ParsedTurn:
    """A turn without a call: an answer, unless it tries to make one in the model's format, or is still thinking."""
    turn = form.parse(text) if form else ParsedTurn(None, text)
    no_call = str(NoCallError())
    if turn.call or turn.problem not in ("", no_call):
        return ParsedTurn(None, text, turn.problem or no_call)
    try:
        return ParsedTurn(None, text, no_call, answer=turn.answer or strip_thinking(text))
    except ValueError as error:
        return ParsedTurn(None, text, str(error))


def _read_words(message: Message) -> str:
    """The text of the model, or of its refusal; parts of text are joined."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "".join(part for part in parts if isinstance(part, str))
    return next((text for text in (content, message.get("refusal")) if isinstance(text, str)), "")


def _find_first_call(message: Message) -> Message | None:
    calls = message.get("tool_calls")
    return calls[0] if calls and isinstance(calls, list) else None


def _write_conversation(episode: Episode, instructions: str) -> list[Message]:
    """The messages of the next request."""
    messages = episode.query.first_messages
    if instructions and messages[0]["role"] == "system":
        messages[0]["content"] = f"{instructions}\n\n{messages[0]['content']}"
    elif instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    for exchange in episode.exchanges:
        messages += _retell(exchange)
        if exchange.user_turn is not None:
            messages.append({"role": "user", "content": exchange.user_turn})
    return messages


def _retell(exchange: Exchange) -> list[Message]:
    """The messages about an earlier turn: its first call and the answer.

    A call that cannot be read is sent as text: servers refuse a history with calls that are not well formed.
    """
    message, parsed, observation = exchange.turn.message or {}, exchange.turn.parsed, exchange.step.observation
    first = _find_first_call(message)
    if exchange.step.status is StepStatus.FINISH and parsed.call is None:
        return [{"role": "assistant", "content": _read_words(message)}]
    if parsed.call is None or first is None:
        text = _read_words(message) or (json.dumps(first, ensure_ascii=False) if first else "(no reply)")
        return [{"role": "assistant", "content": text}, {"role": "user", "content": observation}]
    answer = {"role": "tool", "tool_call_id": first.get("id"), "content": observation}
    return [{"role": "assistant", "content": message.get("content"), "tool_calls": [first]}, answer]
