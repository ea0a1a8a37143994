"""From step rewards to advantages: arithmetic on action tokens packed end to end, and groups of tries and states.

The tokens that a policy sampled are the only time steps. Prompt and observation tokens lie between them in the text
but not in time: the last token of step t is followed by the first token of step t + 1. Every function here therefore
works on packed arrays, from which prompt and observations are already gone; `count_step_tokens` leads from the spans of
a trajectory to them.

Two steps of a round are in the same state where their queries are equal and, besides, what `credit.state` names. The
calls so far name the state of any environment that does the same after the same calls. The last observation names it
where the environment shows its whole state, as a game does, whatever led there: these are the anchor states of GiGPO
(Feng et al. 2025, arXiv 2505.10978). The digest is the environment's own name of its state: it is equal after changes
that commute, and calls that only read leave it as it is.

Letters of shapes: T steps of a trajectory; B trajectories with S steps and N action tokens in all; X is any of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from steptool.config import CreditConfig
from steptool.records import Step, Trajectory

Floats = npt.NDArray[np.floating]
"""Real numbers of any precision; results are float64."""
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Spans = Sequence[tuple[int, int]]
StateName = Literal["calls", "observation", "digest"]

_NEGLIGIBLE = 1e-20
_EPS = 1e-6
"""Added to the deviation of a group, as in GRPO."""


@dataclass(frozen=True)
class Credit:
    """What each action token is worth, trajectory after trajectory.

    `advantages_N` are not whitened; `returns_N` are the targets of the value head, to be used where `value_mask_N` is
    true: everywhere for token-level credit, at the first token of each step for step-level, nowhere where values are
    means of groups.
    """

    advantages_N: Floats
    returns_N: Floats
    value_mask_N: Bools
    values_N: Floats
    """The values that the advantages are measured against."""


def count_step_tokens(spans: Spans) -> Ints:
    """Action tokens of each step [T], from its span [start, end).

    Raises ValueError if a span is empty or the spans are out of order.
    """
    bounds = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    starts, ends = bounds[:, 0], bounds[:, 1]
    if (ends <= starts).any() or (starts[1:] < ends[:-1]).any() or (starts[:1] < 0).any():
        raise ValueError(f"spans must be ascending, disjoint and hold at least one token each, got {list(spans)}")
    lengths: Ints = ends - starts
    return lengths


def find_first_tokens(lengths_T: Ints) -> Ints:
    """Place [T] of the first token of each step."""
    starts: Ints = np.cumsum(lengths_T) - lengths_T
    return starts


def sum_by_step(packed_N: Floats, lengths_T: Ints) -> Floats:
    """Sum [T] of a packed quantity over the tokens of each step."""
    if len(lengths_T) == 0:
        return np.zeros(0)
    sums_T: Floats = np.add.reduceat(packed_N.astype(np.float64), find_first_tokens(lengths_T))
    return sums_T


def take_first_of_step(packed_N: Floats, lengths_T: Ints) -> Floats:
    """A packed quantity [T] at the first token of each step."""
    return packed_N[find_first_tokens(lengths_T)]


def token_rewards(step_rewards_T: Floats, lengths_T: Ints, kl_N: Floats, kl_coef: float) -> Floats:
    """Reward [N] of each action token: r_i = -kl_coef * kl_i, plus the step's reward on the last token of the step."""
    rewards_N = -kl_coef * kl_N.astype(np.float64)
    rewards_N[np.cumsum(lengths_T) - 1] += step_rewards_T
    return rewards_N


def gae(rewards_N: Floats, values_N: Floats, lengths_B: Ints, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimates [N] of B sequences packed end to end, each of them ending in a terminal state.

    delta_i = r_i + gamma * V_{i+1} - V_i        (V = 0 after a sequence's last entry)
    A_i     = delta_i + gamma * lam * A_{i+1}    (A = 0 after a sequence's last entry)

    The recurrence is solved by doubling: when A_i covers the next d deltas, A_i + (gamma * lam)^d * A_{i+d} covers 2 d.
    """
    ends_B = np.cumsum(lengths_B)
    next_values_N = np.append(values_N[1:], 0.0).astype(np.float64)
    next_values_N[ends_B[lengths_B > 0] - 1] = 0.0
    adv_N = rewards_N + gamma * next_values_N - values_N
    left_N = np.repeat(ends_B, lengths_B) - np.arange(1, len(adv_N) + 1)  # entries that follow in the same sequence
    decay, reach, longest = gamma * lam, 1, int(lengths_B.max(initial=0))
    while reach < longest and decay**reach > _NEGLIGIBLE:
        adv_N[:-reach] += decay**reach * np.where(left_N[:-reach] >= reach, adv_N[reach:], 0.0)
        reach *= 2
    return adv_N


def assign(
    step_rewards: Sequence[Floats],
    step_lengths: Sequence[Ints],
    values_N: Floats,
    kl_N: Floats,
    kl_coef: float,
    config: CreditConfig,
    groups: Groups | None = None,
) -> Credit:
    """Credit of B trajectories, packed end to end.

    step_rewards: the composed rewards [T] of each trajectory's steps. step_lengths: their numbers of action tokens [T]
    (at least 1). values_N: value before each action token of all trajectories. kl_N: log pi - log ref of each action
    token (nats), which costs `kl_coef` per nat. groups: those of the trajectories, where config.value is group_mean.

    The value head learns from returns with a lambda of its own, config.value_lam (VAPO, Yue et al. 2025, arXiv
    2504.05118, section 4.1: lambda 1 for values, less for the policy). Raises ValueError for arrays that do not fit
    each other and for rewards that are not finite.
    """
    _check(step_rewards, step_lengths, values_N, kl_N)
    lengths_S = np.concatenate([np.zeros(0, np.int64), *step_lengths])
    rewards_N = token_rewards(np.concatenate([np.zeros(0), *step_rewards]), lengths_S, kl_N, kl_coef)
    if config.level == "token":
        tokens_B = np.array([int(x.sum()) for x in step_lengths], dtype=np.int64)
        adv_N, returns_N = _estimate_advantages(rewards_N, values_N, tokens_B, config)
        return Credit(adv_N, returns_N, np.ones(len(adv_N), dtype=np.bool_), values_N)
    # One time step per assistant step: its value stands at its first token, its reward holds its tokens' KL penalties.
    steps_B = np.array([len(x) for x in step_lengths], dtype=np.int64)
    rewards_S, values_S = sum_by_step(rewards_N, lengths_S), take_first_of_step(values_N, lengths_S)
    mask_N = np.zeros(len(values_N), dtype=np.bool_)
    if config.value == "group_mean":
        values_S = state_values(discounted_returns(rewards_S, steps_B, config.gamma), _expect_groups(groups, lengths_S))
    else:
        mask_N[find_first_tokens(lengths_S)] = True
    adv_S, returns_S = _estimate_advantages(rewards_S, values_S, steps_B, config)
    adv_N, returns_N, values_N = (np.repeat(x_S, lengths_S) for x_S in (adv_S, returns_S, values_S))
    return Credit(adv_N, returns_N, mask_N, values_N)


@dataclass(frozen=True)
class Groups:
    """What belongs together among the trajectories of a round. Equal numbers mean the same group."""

    queries_B: Ints
    """The query of each trajectory."""
    query_of_S: Ints
    """The query of each step, trajectory after trajectory."""
    states_S: Ints
    """The state before each step."""


def group_trajectories(trajectories: Sequence[Trajectory], state: StateName = "calls") -> Groups:
    """Number the queries of trajectories and the states before their steps, named as `state` says.

    Raises ValueError for `digest` where a step has none.
    """
    states = _STATES[state]
    queries_B = _number(t.query_id for t in trajectories)
    steps_B = [len(t.steps) for t in trajectories]
    states_S = _number(key for t in trajectories for key in states(t))
    return Groups(queries_B, np.repeat(queries_B, steps_B), states_S)


def compute_group_means(values_X: Floats, groups_X: Ints) -> Floats:
    """The mean of its group, for each value."""
    counts = np.bincount(groups_X)
    means: Floats = np.bincount(groups_X, weights=values_X)[groups_X] / counts[groups_X]
    return means


def count_group_sizes(groups_X: Ints) -> Ints:
    """The number of values in its group, for each value."""
    sizes: Ints = np.bincount(groups_X)[groups_X]
    return sizes


def compare_with_group(values_X: Floats, groups_X: Ints, scale: bool) -> Floats:
    """x - mean of the group and, with `scale`, that divided by the deviation of the group (1e-6 added).

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2); without the division Dr. GRPO (Liu et al.
    2025, arXiv 2503.20783). A value alone in its group, or equal to all others of it, gets 0.
    """
    gaps_X = values_X - compute_group_means(values_X, groups_X)
    if not scale:
        return gaps_X
    deviations_X = np.sqrt(compute_group_means(gaps_X**2, groups_X))
    scaled: Floats = gaps_X / (deviations_X + _EPS)
    return scaled


def state_values(returns_S: Floats, groups: Groups) -> Floats:
    """The value of the state before each step: the mean return of the steps that were taken in it.

    A state in which one step alone was taken would explain its own return; it gets the mean over all steps of its
    query.
    """
    by_state_S, by_query_S = (compute_group_means(returns_S, g) for g in (groups.states_S, groups.query_of_S))
    values_S: Floats = np.where(count_group_sizes(groups.states_S) > 1, by_state_S, by_query_S)
    return values_S


def discounted_returns(rewards_S: Floats, steps_B: Ints, gamma: float) -> Floats:
    """Return [S] of each step: G_t = r_t + gamma * G_{t+1}, 0 after the last step of a trajectory."""
    return gae(rewards_S, np.zeros(len(rewards_S)), steps_B, gamma, 1.0)


def episode_advantages(step_rewards: Sequence[Floats], groups: Groups, scale: bool) -> Floats:
    """Advantage [S] of each step by its episode: the sum of its rewards relative to the tries at the same query.

    A_b = (R_b - mean R) / (std R + 1e-6) over the group; all steps of a trajectory share it (GRPO with the reward of
    outcomes, see `compare_with_group`).
    """
    sums_B = np.array([float(rewards_T.sum()) for rewards_T in step_rewards])
    steps_B = [len(rewards_T) for rewards_T in step_rewards]
    return np.repeat(compare_with_group(sums_B, groups.queries_B, scale), steps_B)


def state_advantages(step_rewards: Sequence[Floats], groups: Groups, gamma: float, scale: bool) -> Floats:
    """Advantage [S] of each step by its state: its discounted return relative to the steps taken in the same state.

    The advantages of steps of GiGPO (Feng et al. 2025, arXiv 2505.10978). A state in which one step alone was taken
    gives 0.
    """
    steps_B = np.array([len(rewards_T) for rewards_T in step_rewards], dtype=np.int64)
    returns_S = discounted_returns(np.concatenate([np.zeros(0), *step_rewards]), steps_B, gamma)
    return compare_with_group(returns_S, groups.states_S, scale)


def shape(advantages_N: Floats, lengths_S: Ints, log_probs_N: Floats, config: CreditConfig) -> Floats:
    """The advantages [N] that the loss takes: whitened and with less weight on negative ones, as configured.

    whiten_by "step" counts each step once in mean and deviation, however many tokens it has. negative_weight scales
    negative advantages (Zhu et al. 2025, arXiv 2506.01347, weigh positive and negative samples apart). A negative
    advantage becomes 0 where the policy gave the token a probability below negative_min_probability: the gradient of
    such a token is the largest there is and pushes all others up at random (Yang et al. 2025, arXiv 2505.12929).
    """
    if config.whiten:
        counted = take_first_of_step(advantages_N, lengths_S) if config.whiten_by == "step" else None
        advantages_N = whiten(advantages_N, counted)
    if config.negative_weight < 1:
        advantages_N = np.where(advantages_N < 0, config.negative_weight * advantages_N, advantages_N)
    if config.negative_min_probability > 0:
        unlikely_N = np.exp(log_probs_N) < config.negative_min_probability
        advantages_N = np.where((advantages_N < 0) & unlikely_N, 0.0, advantages_N)
    return advantages_N


def whiten(packed_N: Floats, counted: Floats | None = None, eps: float = 1e-8) -> Floats:
    """(x - mean) / sqrt(var + eps), with mean and variance of x or of the values `counted`.

    Over tokens, an average token weighs the same in a long trajectory as in a short one.
    """
    counted = packed_N if counted is None else counted
    whitened_N: Floats = (packed_N - counted.mean()) / math.sqrt(counted.var() + eps)
    return whitened_N


def _estimate_advantages(
    rewards_X: Floats, values_X: Floats, lengths_B: Ints, config: CreditConfig
) -> tuple[Floats, Floats]:
    adv_X = gae(rewards_X, values_X, lengths_B, config.gamma, config.lam)
    if config.value_lam < 0:
        return adv_X, adv_X + values_X
    return adv_X, gae(rewards_X, values_X, lengths_B, config.gamma, config.value_lam) + values_X


def _expect_groups(groups: Groups | None, lengths_S: Ints) -> Groups:
    if groups is None or len(groups.states_S) != len(lengths_S):
        count = "none" if groups is None else len(groups.states_S)
        raise ValueError(f"credit.value: group_mean needs the state of each of {len(lengths_S)} steps, got {count}")
    return groups


def _check(step_rewards: Sequence[Floats], step_lengths: Sequence[Ints], values_N: Floats, kl_N: Floats) -> None:
    if len(step_rewards) != len(step_lengths):
        raise ValueError(
            "expected rewards and step lengths of the same trajectories, got "
            f"{len(step_rewards)} of the one and {len(step_lengths)} of the other"
        )
    for b, (rewards_T, lengths_T) in enumerate(zip(step_rewards, step_lengths, strict=True)):
        if (lengths_T < 1).any():
            raise ValueError(f"trajectory {b}: each step needs an action token, got lengths {lengths_T.tolist()}")
        _expect(f"trajectory {b}: step_rewards_T", rewards_T, len(lengths_T), "steps")
        if not np.isfinite(rewards_T).all():
            raise ValueError(
                f"trajectory {b}: step rewards must be finite, got {rewards_T.tolist()}; leave out trajectories with a "
                "missing score"
            )
    tokens = int(sum(lengths_T.sum() for lengths_T in step_lengths))
    _expect("values_N", values_N, tokens, "action tokens")
    _expect("kl_N", kl_N, tokens, "action tokens")


def _expect(name: str, array: Floats, size: int, unit: str) -> None:
    if array.shape != (size,):
        raise ValueError(f"{name} should have shape ({size},) for {size} {unit}, has {array.shape}")


def _name_states_by_observation(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """The query and the last observation, before each step; the first step has none."""
    observations = ["", *(step.observation for step in trajectory.steps[:-1])]
    yield from ((trajectory.query_id, observation) for observation in observations[: len(trajectory.steps)])


def _name_states_by_calls(trajectory: Trajectory) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The query and the calls so far, before each step."""
    calls: list[str] = []
    for step in trajectory.steps:
        yield trajectory.query_id, tuple(calls)
        calls.append(_make_call_key(step))


def _name_states_by_digest(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """The query and the environment's own digest, before each step."""
    for number, step in enumerate(trajectory.steps, start=1):
        if step.state is None:
            raise ValueError(
                f"credit.state: digest: step {number} of {trajectory.trajectory_id} has no digest of the environment's "
                "state; play the round with this setting, or set credit.state to calls"
            )
        yield trajectory.query_id, step.state


_STATES: dict[StateName, Callable[[Trajectory], Iterator[Hashable]]] = {
    "calls": _name_states_by_calls,
    "observation": _name_states_by_observation,
    "digest": _name_states_by_digest,
}


def _make_call_key(step: Step) -> str:
    """A call as text that does not depend on the order of its arguments; all texts that are no call are alike."""
    if step.call is None:
        return str(step.status)
    return json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True)


def _number(keys: Iterable[Hashable]) -> Ints:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
