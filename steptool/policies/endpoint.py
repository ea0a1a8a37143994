"""Episodes of a model behind an OpenAI-compatible endpoint with function calling: text alone, no tokens."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from steptool.chat.calls import read_call, read_json
from steptool.chat.endpoint import Endpoint, EndpointError, EndpointRefused, Reply, RequestRefused, RequestTooLong
from steptool.chat.formats import ParsedTurn
from steptool.config import RolloutConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.local import Progress
from steptool.records import Message, Query, StopReason, Trajectory
from steptool.rollout.episode import Dialogue, opening

_RULES = "Solve the user's task with the tools: one call in each turn. When you are done, call Finish with your answer."


@dataclass(frozen=True)
class Spent:
    """What an endpoint counted for one episode, and what it said where it would not go on."""

    prompt_tokens: int
    completion_tokens: int
    money: float | None
    """At the configured prices; None where there are none."""
    refusal: str = ""


class Remote(NamedTuple):
    """Episodes, and what each took, by its trajectory's id."""

    trajectories: list[Trajectory]
    spent: dict[str, Spent]


def play_remote(
    endpoint: Endpoint,
    queries: Sequence[Query],
    environment: Environment,
    *,
    rollout: RolloutConfig,
    limits: ToolsConfig,
    policy: str,
    sample: int = 0,
    progress: Progress | None = None,
) -> Remote:
    """One episode per query, in the order of the queries, the endpoint's `concurrency` of them side by side.

    A turn makes one call: of a reply with several the first counts, the others are never shown to the model again. A
    reply without a call that can be read is a malformed step, as it is for a model of one's own. A query that is given
    several times gets the samples `sample`, `sample + 1`, .... An episode that the endpoint will not go on with ends as
    CONTEXT_LIMIT or REFUSED. Raises EndpointError where the endpoint fails, since an episode that was never played is
    not a failed one, and EndpointRefused where it takes no request or none that begins an episode.
    """
    guard, given = LimitedEnvironment(environment, limits), Counter[str]()
    one_at_a_time = nullcontext() if environment.blocking else threading.Lock()
    episodes = []
    for query in queries:
        number = sample + given[query.query_id]
        given[query.query_id] += 1
        episodes.append(_Episode(query, number, endpoint, rollout, one_at_a_time))
    _play(episodes, guard, endpoint.config.concurrency, progress)
    if episodes and not any(e.turns for e in episodes):
        raise EndpointRefused(f"no episode got an answer; {episodes[0].refusal}")
    played = [e.dialogue.trajectory(policy, -1, e.sample, endpoint.config.temperature) for e in episodes]
    return Remote(played, {t.trajectory_id: e.spent() for t, e in zip(played, episodes, strict=True)})


def _play(episodes: Sequence[_Episode], guard: LimitedEnvironment, concurrency: int, progress: Progress | None) -> None:
    pool = ThreadPoolExecutor(concurrency)
    try:
        running = [pool.submit(episode.play, guard) for episode in episodes]
        for done, future in enumerate(as_completed(running), start=1):
            future.result()
            if progress:
                progress(done, len(episodes))
    finally:
        pool.shutdown(cancel_futures=True)


class _Episode:
    """One episode: the dialogue with the environment, and the messages as the endpoint sees them."""

    def __init__(
        self,
        query: Query,
        sample: int,
        endpoint: Endpoint,
        rollout: RolloutConfig,
        one_at_a_time: nullcontext[None] | threading.Lock,
    ) -> None:
        self.dialogue, self.sample = Dialogue(query, rollout.max_steps), sample
        self._endpoint, self._turn_of = endpoint, one_at_a_time
        self._messages: list[Message] = [{"role": "system", "content": _RULES}, *opening(query)]
        self._read = self._written = 0
        self.turns, self.refusal = 0, ""

    def play(self, guard: LimitedEnvironment) -> None:
        """From the first turn to the verdict."""
        try:
            with self._turn_of:
                self.dialogue.begin(guard)
            while self.dialogue.stop is None:
                reply = self._asked()
                if reply:
                    with self._turn_of:
                        self._step(reply)
            with self._turn_of:
                self.dialogue.end()
        finally:
            self.dialogue.close()

    def spent(self) -> Spent:
        """Tokens of all turns, and their price."""
        config = self._endpoint.config
        price = (self._read * config.price_in + self._written * config.price_out) / 1e6
        known = config.price_in or config.price_out
        return Spent(self._read, self._written, price if known else None, self.refusal)

    def _asked(self) -> Reply | None:
        """The next reply; None where the endpoint will not go on, which ends the episode."""
        query = self.dialogue.query
        try:
            return self._endpoint.chat(self._messages, query.tools, vote=self.sample)
        except RequestRefused as error:
            long = isinstance(error, RequestTooLong)
            self.dialogue.stop = StopReason.CONTEXT_LIMIT if long else StopReason.REFUSED
            self.refusal = f"query '{query.query_id}': {error}"
            return None
        except EndpointError as error:
            raise type(error)(f"query '{query.query_id}': {error}") from error

    def _step(self, reply: Reply) -> None:
        self.turns += 1
        self._read += reply.prompt_tokens
        self._written += reply.completion_tokens
        turn = _turn(reply.message)
        self.dialogue.act(turn)
        self.dialogue.note(turn)
        self._messages += _heard(reply.message, turn, self.dialogue.last.observation)
        if self.dialogue.user_turn is not None:
            self._messages.append({"role": "user", "content": self.dialogue.user_turn})


def _turn(message: Message) -> ParsedTurn:
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    try:
        called = _first_call(message)
        if called is None:
            raise ValueError("no tool call")
        arguments = called["function"].get("arguments") or "{}"
        call = read_call({"name": called["function"].get("name"), "arguments": read_json(arguments)})
    except (AttributeError, LookupError, TypeError):
        return ParsedTurn(None, text, "tool call without a function")
    except ValueError as error:
        return ParsedTurn(None, text, str(error))
    return ParsedTurn(call, text, thought=text)


def _first_call(message: Message) -> Message | None:
    calls = message.get("tool_calls")
    return calls[0] if calls and isinstance(calls, list) else None


def _heard(message: Message, turn: ParsedTurn, observation: str) -> list[Message]:
    """What the endpoint is told of a turn: its first call and what came back.

    A call that cannot be read is told as text: servers refuse a history with calls that are not well formed.
    """
    called = _first_call(message)
    if turn.call is None or called is None:
        said = turn.text or json.dumps(called, ensure_ascii=False)
        return [{"role": "assistant", "content": said}, {"role": "user", "content": observation}]
    answer = {"role": "tool", "tool_call_id": called.get("id"), "content": observation}
    return [{"role": "assistant", "content": message.get("content"), "tool_calls": [called]}, answer]
