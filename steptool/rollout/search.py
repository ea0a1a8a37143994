"""DFSDT, the depth-first search of a decision tree (ToolLLM, arXiv 2307.16789): an inference strategy beside the chain.

A node is the conversation after some turns, a child one more turn. The search follows a path until it answers, gives up
or meets a limit; then it goes back, gives the policy a hint with the calls tried at that node, and lets it make another
turn. The order is that of ToolBench's search without a filter (DFS_woFilter), pre-order: the first answer ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steptool.chat.calls import write_json
from steptool.config import SearchConfig
from steptool.records import Step, StopReason
from steptool.rollout.episode import Episode
from steptool.rollout.turns import Exchange, Refusal

_HINT = """You have tried this before, and it failed. From here you made these calls, with what the tools answered:
{tried}
Look at where you are now and at what was tried, then make a call that differs from all of these."""
"""The hint at a node that has children: ToolBench's diversity prompt in other words."""


class SearchEpisode(Episode):
    """An episode that goes back where its path ends without an answer.

    It ends with the path of the answer; without one, with the last path, which counts as any episode that stopped
    without an answer (STEP_LIMIT where the budget ended it). `abandoned_turns` and `abandoned_tokens` of the trajectory
    count what was made besides. With a beam of 1 it is the chain, sample by sample.

    Sessions cannot be copied: to go back, an episode resets the environment and makes the calls of the path again, at
    most `depth` calls for each branch. Where calls act on the real world, abandoned branches have acted on it, and the
    repeated calls act again: play such environments with chains alone. The results of repeated calls are ignored.

    The trajectory does not hold the hints, though turns were sampled after them: use it for evaluation, and never train
    on its log-probabilities.
    """

    def __init__(self, *args: Any, search: SearchConfig, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._search = search
        self._branches: list[list[Step]] = [[]]
        """The turns made so far from each node of the path."""

    def record(self, exchange: Exchange) -> None:
        """Add a turn to the path, and go back if the path ends here without an answer."""
        super().record(exchange)
        self._branches[-1].append(exchange.step)
        if self._turns >= self._search.max_turns:
            self.stop = self.stop or StopReason.STEP_LIMIT
        elif self.stop is None:
            self._branches.append([])
            self.hint = ""
        elif self.stop not in (StopReason.FINISHED, StopReason.ENDED):
            self._turn_back()

    def refuse(self, refusal: Refusal) -> None:
        """Go back: the policy makes no further turn on this path."""
        super().refuse(refusal)
        self._branches.pop()
        self._turn_back()

    def _turn_back(self) -> None:
        """Go back to the node where the search goes on, if one is left."""
        gave_up = self.stop is StopReason.GAVE_UP
        depth = len(self._branches) - (self._search.give_up_levels if gave_up else 1)
        while depth >= 0 and len(self._branches[depth]) >= self._search.beam:
            depth -= 1
        if depth < 0:
            return
        del self._branches[depth + 1 :]
        self.back_to(depth)
        self.hint = _hint(self._branches[-1]) if self._search.hints else ""


def _hint(steps: Sequence[Step]) -> str:
    """What was tried, in the steps that made a call; empty if none did."""
    calls = [{"name": s.call.name, "arguments": s.call.arguments, "answer": s.observation} for s in steps if s.call]
    return _HINT.format(tried=write_json(calls)) if calls else ""
