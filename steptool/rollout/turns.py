"""Turns: what a policy says, the tokens behind it, what it cost, and what answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from steptool.chat.formats import ParsedTurn
from steptool.records import Message, Step, StopReason, Trajectory

N = TypeVar("N", int, float)


class Decoding(StrEnum):
    """How a policy chooses its tokens."""

    GREEDY = "greedy"
    SAMPLED = "sampled"


@dataclass(frozen=True)
class TurnCost:
    """What turns cost. The sum of two costs counts what is known of either."""

    completion_tokens: int = 0
    """Tokens written."""
    prompt_tokens: int | None = None
    """Tokens read; None if the policy does not count them."""
    money: float | None = None
    """At the endpoint's prices; None if the configuration names none."""

    def __add__(self, other: TurnCost) -> TurnCost:
        return TurnCost(
            self.completion_tokens + other.completion_tokens,
            _add(self.prompt_tokens, other.prompt_tokens),
            _add(self.money, other.money),
        )


@dataclass(frozen=True)
class TurnTokens:
    """The tokens of one turn, from a policy that has them."""

    context_ids: Sequence[int]
    """Tokens between the last turn of the episode and this one: the prompt at first, later the answers."""
    ids: Sequence[int]
    """Tokens sampled, the one that ends the turn included."""
    logprobs: npt.NDArray[np.float32]
    """Log-probabilities [len(ids)] of the sampled tokens at the temperature of sampling (greedy: at 1)."""


@dataclass(frozen=True)
class Turn:
    """What a policy says in one turn."""

    parsed: ParsedTurn
    cost: TurnCost = TurnCost()
    tokens: TurnTokens | None = None
    """None where the policy has text alone."""
    message: Message | None = None
    """The message of an endpoint as it came, for the requests that follow."""


@dataclass(frozen=True)
class Refusal:
    """Why a policy makes no further turn in an episode."""

    stop: StopReason
    reason: str = ""
    """The error of the endpoint; empty where the context of the policy is full."""
    cost: TurnCost = TurnCost()


@dataclass(frozen=True)
class Exchange:
    """One turn and its answers: the environment's step, and the user's message after a final answer."""

    turn: Turn
    step: Step
    user_turn: str | None = None
    ends_episode: bool = False
    """The environment has ended the episode with this step."""


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode that has ended."""

    trajectory: Trajectory
    cost: TurnCost
    """Of all turns, those on abandoned branches of a search included."""
    refusal: str = ""
    """The error of the endpoint that ended the episode; empty if none did."""


def _add(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
