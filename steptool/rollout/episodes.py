"""Episodes: a policy and an environment take turns until something ends them."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec, call_message
from steptool.chat.finish import GIVE_ANSWER, GIVE_UP
from steptool.chat.formats import ParsedTurn
from steptool.config import RolloutConfig, ToolsConfig
from steptool.rollout.generation import BatchSampler, Feed, Turn
from steptool.tools.environment import Environment
from steptool.tools.guard import Guard, GuardedSession
from steptool.trajectory import FINISH, Message, Query, Step, StepStatus, StopReason, ToolCall, Trajectory

DEFAULT_LIMITS = ToolsConfig()
MAX_MALFORMED = 3
"""Malformed steps in a row that end an episode."""
_WAITING_SHARE = 0.2
"""Share of the running episodes whose turns must have ended before the environment answers them together."""
_SHRINK_SHARE = 0.75
"""Share of rows in use below which the batch is made smaller."""

Progress = Callable[[int, int], None]
"""Called with the number of finished episodes and of all."""


def roll_out(
    model: PreTrainedModel,
    codec: ChatCodec,
    queries: Sequence[Query],
    environment: Environment,
    *,
    rollout: RolloutConfig,
    max_context: int,
    greedy: bool,
    seed: int,
    policy: str,
    round: int = -1,
    sample: int = 0,
    limits: ToolsConfig = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """One episode per query, in the order of the queries. Calls keep to the `limits`.

    What an episode samples depends on the seed, the round, its query and its sample alone, not on the batch or shard
    that it runs in (up to rounding). A query that is given several times gets the samples `sample`, `sample + 1`, ....
    Raises ValueError, before anything is sampled, if a prompt leaves no room for a turn in `max_context` tokens.
    """
    prompts = [codec.prompt_ids(_opening(q), q.tools) for q in queries]
    _check_room(queries, prompts, rollout, max_context)
    given: Counter[str] = Counter()
    episodes = []
    for query, prompt in zip(queries, prompts, strict=True):
        number = sample + given[query.query_id]
        given[query.query_id] += 1
        key = f"{seed}/{round}/{query.query_id}/{number}"
        episodes.append(_Episode(query, prompt, codec, rollout, max_context, key, number))
    training = model.training
    model.eval()
    try:
        _run(model, codec, episodes, Guard(environment, limits), rollout, greedy, progress)
    finally:
        model.train(training)
        for episode in episodes:
            episode.close()
    return [e.trajectory(policy, round, rollout.temperature) for e in episodes]


def _run(
    model: PreTrainedModel,
    codec: ChatCodec,
    episodes: Sequence[_Episode],
    guard: Guard,
    rollout: RolloutConfig,
    greedy: bool,
    progress: Progress | None,
) -> None:
    waiting = deque(sorted(episodes, key=lambda e: len(e.ids), reverse=True))
    rows: list[_Episode | None] = [None] * min(rollout.batch_size, len(episodes))
    sampler = BatchSampler(
        model,
        len(rows),
        codec.end_ids,
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        greedy=greedy,
    )
    turns: list[Turn] = []
    done = 0
    while True:
        feeds = []
        acting = [(turn.row, episode) for turn in turns if (episode := rows[turn.row])]
        for turn, (_, episode) in zip(turns, acting, strict=True):
            episode.read(turn)
        guard.map(_Episode.act, [episode for _, episode in acting])
        stopped = []
        for row, episode in acting:
            if episode.goes_on():
                feeds.append(episode.feed(row))
            else:
                stopped.append(episode)
                rows[row] = None
        guard.map(_Episode.end, stopped)
        done += len(stopped)
        if progress and stopped:
            progress(done, len(episodes))
        for row, running in enumerate(rows):
            if running is None and waiting:
                fresh = rows[row] = waiting.popleft()
                fresh.begin(guard)
                feeds.append(fresh.feed(row))
        sampler.feed(feeds)
        live = [row for row, running in enumerate(rows) if running]
        if not live:
            return
        if len(live) < _SHRINK_SHARE * len(rows):
            sampler.keep(live)
            rows = [rows[row] for row in live]
        enough = ceil(_WAITING_SHARE * len(live))
        while sampler.ended < enough:
            sampler.step()
        turns = sampler.take()


class _Episode:
    """One episode in the making."""

    def __init__(
        self,
        query: Query,
        prompt: Sequence[int],
        codec: ChatCodec,
        rollout: RolloutConfig,
        max_context: int,
        key: str,
        sample: int,
    ) -> None:
        self.query, self.sample = query, sample
        self.ids = list(prompt)
        self._codec, self._max_context, self._max_new = codec, max_context, rollout.max_new_tokens
        self._max_steps = query.max_steps or rollout.max_steps
        self._offered = {FINISH, *(tool["function"]["name"] for tool in query.tools)}
        self._random = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))
        self._in_cache = 0
        self._messages: list[Message] = _opening(query)
        self._spans: list[tuple[int, int]] = []
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._steps: list[Step] = []
        self._stop: StopReason | None = None
        self._answer: str | None = None
        self._solved: float | None = None
        self._session: GuardedSession | None = None
        self._turn = Turn(0, [], np.zeros(0, dtype=np.float32))
        self._parsed = ParsedTurn(None, "")
        self._user_turn: str | None = None
        self._started = self._seconds = 0.0

    @property
    def session(self) -> GuardedSession:
        """The environment's session of this episode."""
        assert self._session is not None
        return self._session

    def begin(self, guard: Guard) -> None:
        """Reset the environment for this episode's query."""
        self._started = time.perf_counter()
        self._session = guard.reset(self.query)

    def feed(self, row: int) -> Feed:
        """The tokens that the model has not seen yet."""
        start, self._in_cache = self._in_cache, len(self.ids)
        uniforms = torch.rand(self._max_new, generator=self._random).numpy()
        return Feed(row, start, self.ids[start:], uniforms)

    def read(self, turn: Turn) -> None:
        """Take the tokens of a sampled turn and read its call."""
        start = len(self.ids)
        self.ids += turn.ids
        # The last sampled token was not fed back: its keys and values are not in the cache.
        self._in_cache = len(self.ids) - 1
        self._spans.append((start, len(self.ids)))
        self._logprobs.append(turn.logprobs)
        self._turn, self._parsed = turn, self._codec.parse(turn.ids)

    def act(self) -> None:
        """Let the environment, and after a final answer the user, answer the turn."""
        step = self._answered(self._parsed)
        self._steps.append(step)
        if step.status is StepStatus.FINISH and self._answer is not None:
            self._user_turn = self.session.next_turn(self._answer)
            if self._user_turn is None:
                self._stop = StopReason.FINISHED

    def goes_on(self) -> bool:
        """Write the turn and what answers it down, and say whether the episode goes on."""
        step, user_turn = self._steps[-1], self._user_turn
        self._note(self._parsed, step, user_turn)
        self._stop = self._stop or self._limit(step, user_turn)
        if user_turn is not None:
            self._answer = self._user_turn = None
        return self._stop is None

    def end(self) -> None:
        """Ask for the verdict and close the session."""
        self._solved = self.session.solved(self._answer)
        self._seconds = time.perf_counter() - self._started
        self.close()

    def close(self) -> None:
        """Close the session if it is open."""
        session, self._session = self._session, None
        if session:
            session.close()

    def trajectory(self, policy: str, round: int, temperature: float) -> Trajectory:
        """The episode as it ended."""
        assert self._stop is not None
        return Trajectory(
            trajectory_id=f"{policy}-r{round}-{self.query.query_id}-s{self.sample}",
            query_id=self.query.query_id,
            environment=self.query.environment,
            tier=self.query.tier,
            policy=policy,
            round=round,
            sample=self.sample,
            temperature=temperature,
            messages=self._messages,
            input_ids=np.asarray(self.ids, dtype=np.int32),
            spans=self._spans,
            logprobs=np.concatenate(self._logprobs),
            steps=self._steps,
            stop_reason=self._stop,
            final_answer=self._answer,
            solved=self._solved,
            seconds=self._seconds,
        )

    def _answered(self, parsed: ParsedTurn) -> Step:
        """What becomes of a turn."""
        call = parsed.call
        if call is None:
            return Step(None, StepStatus.MALFORMED, _error(parsed.problem))
        if call.name not in self._offered:
            return Step(call, StepStatus.UNKNOWN_TOOL, _error(f"unknown tool {call.name}"))
        if call.name == FINISH:
            return self._finish(call)
        result = self.session.call(call)
        return Step(call, result.status, result.observation)

    def _finish(self, call: ToolCall) -> Step:
        kind, answer = call.arguments.get("return_type"), call.arguments.get("final_answer")
        if isinstance(kind, str) and kind.startswith("give_up"):
            self._stop = StopReason.GAVE_UP
        elif kind != GIVE_ANSWER:
            return Step(call, StepStatus.INVALID_ARGUMENTS, _error(f"return_type must be {GIVE_ANSWER} or {GIVE_UP}"))
        elif not isinstance(answer, str):
            return Step(call, StepStatus.INVALID_ARGUMENTS, _error("final_answer is missing"))
        else:
            self._answer = answer
        return Step(call, StepStatus.FINISH, "")

    def _note(self, parsed: ParsedTurn, step: Step, user_turn: str | None) -> None:
        """Write the turn and its answer down as messages."""
        plain: Message = {"role": "assistant", "content": parsed.text}
        self._messages.append(call_message(parsed.call, parsed.thought) if parsed.call else plain)
        if step.status is not StepStatus.FINISH or user_turn is not None:
            self._messages.append({"role": "tool", "name": _name(step), "content": step.observation})
        if user_turn is not None:
            self._messages.append({"role": "user", "content": user_turn})

    def _limit(self, step: Step, user_turn: str | None) -> StopReason | None:
        """Append the observation, or say which limit ends the episode here."""
        last = [s.status for s in self._steps[-MAX_MALFORMED:]]
        if last == [StepStatus.MALFORMED] * MAX_MALFORMED:
            return StopReason.MALFORMED
        if len(self._steps) >= self._max_steps:
            return StopReason.STEP_LIMIT
        closed = self._turn.ids[-1] in self._codec.end_ids
        observation = self._codec.observation_ids(step.observation, _name(step), user_turn=user_turn, closed=closed)
        if len(self.ids) + len(observation) + self._max_new > self._max_context:
            return StopReason.CONTEXT_LIMIT
        self.ids += observation
        return None


def _opening(query: Query) -> list[Message]:
    return [{"role": "user", "content": query.instruction}]


def _name(step: Step) -> str:
    """Name under which a step's observation is shown to the model."""
    return step.call.name if step.call else "error"


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)


def _check_room(
    queries: Sequence[Query], prompts: Sequence[Sequence[int]], rollout: RolloutConfig, max_context: int
) -> None:
    for query, prompt in zip(queries, prompts, strict=True):
        if len(prompt) + rollout.max_new_tokens > max_context:
            raise ValueError(
                f"query '{query.query_id}': its prompt of {len(prompt)} tokens and a turn of {rollout.max_new_tokens} "
                f"tokens (rollout.max_new_tokens) do not fit policy.max_context = {max_context}; raise max_context or "
                "leave the query out"
            )
