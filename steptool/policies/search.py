"""DFSDT, the depth-first search of a decision tree (ToolLLM, arXiv 2307.16789): an inference strategy beside the chain.

A node is the conversation after some turns, a child one more turn. The search follows a path until it answers, gives up
or meets a limit; then it goes back, tells the model at the node what was tried there, and lets it make another turn.
The order is that of ToolBench's search without a filter (DFS_woFilter), pre-order: the first answer ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from steptool.chat.calls import write_json
from steptool.chat.codec import ChatCodec
from steptool.config import RolloutConfig, SearchConfig, ToolsConfig
from steptool.environments.base import Environment
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.generation import Turn
from steptool.policies.local import DEFAULT_LIMITS, Episode, Progress, play, prepared
from steptool.records import Query, Step, StopReason, Trajectory
from steptool.rollout.episode import opening

_HINT = """You have tried this before, and it failed. From here you made these calls, with what the tools answered:
{tried}
Look at where you are now and at what was tried, then make a call that differs from all of these."""
"""What a model is told at a node that has children: ToolBench's diversity prompt in other words."""
_GAP = "\n\n"


def search(
    model: PreTrainedModel,
    codec: ChatCodec,
    queries: Sequence[Query],
    environment: Environment,
    *,
    rollout: RolloutConfig,
    search: SearchConfig,
    max_context: int,
    greedy: bool,
    seed: int,
    policy: str,
    round: int = -1,
    sample: int = 0,
    limits: ToolsConfig = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """One search per query, in the order of the queries, `rollout.batch_size` of them side by side.

    Gives the path that ends with the answer; of a search without one, the last path, which counts as any episode that
    stopped without an answer (STEP_LIMIT where the budget ended it). `abandoned_turns` and `abandoned_tokens` count
    what the search sampled besides. With a beam of 1 it is `roll_out`, sample by sample.

    Sessions cannot be copied: to go back, a search resets the environment and makes the calls of the path again, at
    most `depth` calls for each branch. Where calls act on the real world, abandoned branches have acted on it, and the
    repeated calls act again: give such environments to `roll_out` alone. Answers to repeated calls are not looked at.

    Turns after a hint were sampled with it in sight, and the trajectory does not hold it: it is for evaluation, not for
    training on its log-probabilities. Raises ValueError as `roll_out` does.
    """
    make = partial(_Search, search=search, codec=codec, rollout=rollout, max_context=max_context)
    searches = prepared(make, codec, queries, rollout, max_context, f"{seed}/{round}", sample)
    play(model, codec, searches, LimitedEnvironment(environment, limits), rollout, greedy, progress)
    return [s.trajectory(policy, round, rollout.temperature) for s in searches]


class _Search(Episode):
    """An episode that goes back where its path ends without an answer."""

    def __init__(self, *given: Any, search: SearchConfig, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._search = search
        self._tried: list[list[Step]] = [[]]
        """The turns made so far from each node of the path."""
        self._turns = self._tokens = 0

    def prompt(self) -> list[int]:
        """The path's tokens; where calls were made from here before, with the hint if a turn has room behind it."""
        tried = [step for step in self._tried[-1] if step.call] if self._search.hints else []
        hinted = self._hinted(_hint(tried)) if tried else self.ids
        return hinted if self.has_room(len(hinted)) else self.ids

    def read(self, turn: Turn) -> None:
        """Take the tokens of a sampled turn and count them."""
        super().read(turn)
        self._turns += 1
        self._tokens += len(turn.ids)

    def goes_on(self) -> bool:
        """Write the turn down, and go back if the path ends here without an answer."""
        spent = self._turns >= self._search.max_turns
        if spent:
            self.dialogue.stop = self.dialogue.stop or StopReason.STEP_LIMIT
        going = super().goes_on()
        self._tried[-1].append(self.dialogue.last)
        if going:
            self._tried.append([])
            return True
        if spent or self.dialogue.stop is StopReason.FINISHED:
            return False
        return self._turned()

    def trajectory(self, policy: str, round: int, temperature: float) -> Trajectory:
        """The path that the search ended with."""
        path = super().trajectory(policy, round, temperature)
        turns, tokens = self._turns - len(path.steps), self._tokens - path.action_tokens
        return replace(path, abandoned_turns=turns, abandoned_tokens=tokens)

    def _turned(self) -> bool:
        """Go back to the node where the search goes on; false if none is left."""
        gave_up = self.dialogue.stop is StopReason.GAVE_UP
        depth = len(self._tried) - (self._search.give_up_levels if gave_up else 1)
        while depth >= 0 and len(self._tried[depth]) >= self._search.beam:
            depth -= 1
        if depth < 0:
            return False
        del self._tried[depth + 1 :]
        self.back_to(depth)
        return True

    def _hinted(self, hint: str) -> list[int]:
        """The path's tokens with the hint as the last that the user says."""
        if self._spans:
            said = self.dialogue.user_turn
            return self.ids[: self._spans[-1][1]] + self.answer_ids(f"{said}{_GAP}{hint}" if said else hint)
        query = self.dialogue.query
        (first,) = opening(query)
        return self.codec.prompt_ids([{**first, "content": f"{first['content']}{_GAP}{hint}"}], query.tools)


def _hint(tried: Sequence[Step]) -> str:
    calls = [{"name": s.call.name, "arguments": s.call.arguments, "answer": s.observation} for s in tried if s.call]
    return _HINT.format(tried=write_json(calls))
