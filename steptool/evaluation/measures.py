"""The evaluation of a policy: it plays the queries, greedily and sampled, and its episodes are measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from statistics import fmean
from typing import NamedTuple

from steptool.config import ToolsConfig
from steptool.environments.base import Environment
from steptool.judge.verdicts import STATUS_SCORE, Status
from steptool.records import Evaluation, Query, StepStatus, StopReason, Trajectory, Verdict, VerdictSource
from steptool.rewards.observations import matches_reference
from steptool.rewards.statistics import find_redundant_steps
from steptool.rollout.episode import Decoding, TurnCost
from steptool.rollout.runner import DEFAULT_LIMITS, Policy, Progress, roll_out

_NO_COUNTS: Mapping[str, TurnCost] = {}
_VALID = frozenset({StepStatus.OK, StepStatus.FINISH})


def measure_episodes(
    queries: Iterable[Query],
    trajectories: Iterable[Trajectory],
    model: str,
    decoding: str,
    repeat: int = 0,
    spent: Mapping[str, TurnCost] = _NO_COUNTS,
) -> list[Evaluation]:
    """The evaluation of each trajectory. Raises ValueError for a trajectory whose query is not among the queries.

    passed: see `find_verdict`. recall: see `tool_recall`. calls: steps that are not a well-formed Finish.
    invalid_calls: the calls whose status is not OK, unreadable ones included. redundant_calls: see
    `find_redundant_steps`. tokens: the sampled tokens, those on abandoned branches of a search included; for a
    trajectory in `spent` (by id) the endpoint's own count, with the tokens that it read and the price.
    """
    by_id = {q.query_id: q for q in queries}
    rows = []
    for t in trajectories:
        if t.query_id not in by_id:
            raise ValueError(
                f"trajectory '{t.trajectory_id}' answers the query '{t.query_id}', which is not among the "
                f"{len(by_id)} queries given; evaluate trajectories with the queries they were rolled out on"
            )
        rows.append(_measure(by_id[t.query_id], t, model, str(decoding), repeat, spent.get(t.trajectory_id)))
    return rows


def _measure(
    query: Query, trajectory: Trajectory, model: str, decoding: str, repeat: int, cost: TurnCost | None
) -> Evaluation:
    statuses = [step.status for step in trajectory.steps]
    passed, source = find_verdict(query, trajectory)
    return Evaluation(
        query_id=query.query_id,
        split=query.split,
        tier=query.tier,
        model=model,
        decoding=decoding,
        repeat=repeat,
        trajectory_id=trajectory.trajectory_id,
        passed=passed,
        verdict_source=str(source),
        recall=tool_recall(query, trajectory),
        steps=len(statuses),
        calls=sum(status is not StepStatus.FINISH for status in statuses),
        invalid_calls=sum(status not in _VALID for status in statuses),
        redundant_calls=sum(find_redundant_steps(trajectory.steps)),
        tokens=trajectory.sampled_tokens if cost is None else cost.completion_tokens,
        prompt_tokens=None if cost is None else cost.prompt_tokens,
        money=None if cost is None else cost.money,
        seconds=trajectory.seconds,
        stop_reason=str(trajectory.stop_reason),
    )


def find_verdict(query: Query, trajectory: Trajectory) -> tuple[float | None, VerdictSource]:
    """How far the episode solved its task, in [0, 1], and where that verdict comes from; None without a verdict.

    The environment's own verdict comes first, then the comparison with the reference answer. Where the environment's
    check failed the verdict is missing.
    """
    if trajectory.check_error:
        return None, VerdictSource.FAILED
    if trajectory.solved is not None:
        return trajectory.solved, VerdictSource.ENVIRONMENT
    matches = matches_reference(query, trajectory)
    return (None, VerdictSource.NONE) if matches is None else (matches, VerdictSource.REFERENCE)


def apply_verdicts(rows: Iterable[Evaluation], verdicts: Iterable[Verdict]) -> list[Evaluation]:
    """The rows, with a judge's verdicts on greedy episodes that had no verdict of their own.

    `passed` becomes the mean over the repeats of the judgement. Where the model has verdicts but not on this query, an
    episode without an answer is unsolved by rule.
    """
    scores: dict[tuple[str, str], list[float]] = {}
    for v in verdicts:
        score_list = [] if v.status is None else [STATUS_SCORE[Status(v.status)]]
        scores.setdefault((v.model, v.query_id), []).extend(score_list)
    judged_models = {model for model, _ in scores}
    return [_apply_verdict(r, scores.get((r.model, r.query_id)), judged_models) for r in rows]


def _apply_verdict(row: Evaluation, scores: Sequence[float] | None, judged_models: set[str]) -> Evaluation:
    if row.verdict_source != VerdictSource.NONE or row.decoding != Decoding.GREEDY:
        return row
    if scores:
        return replace(row, passed=fmean(scores), verdict_source=str(VerdictSource.JUDGE))
    if row.model in judged_models and row.stop_reason != StopReason.FINISHED:
        return replace(row, passed=0.0, verdict_source=str(VerdictSource.RULE))
    return row


def tool_recall(query: Query, trajectory: Trajectory) -> float | None:
    """Share of the reference's tools that were called with success, in [0, 1]; None without such tools.

    A tool that reference.calls lists twice has to be called twice; reference.tools is a set.
    """
    calls = query.reference.calls
    names = [call.name for call in calls] if calls is not None else set(query.reference.tools or ())
    expected = Counter(names)
    if not expected:
        return None
    successes = Counter(s.call.name for s in trajectory.steps if s.call is not None and s.status is StepStatus.OK)
    return (expected & successes).total() / expected.total()


class CostPerSolved(NamedTuple):
    """Cost of all episodes, failed ones included, for each solved task; None where nothing is solved or known."""

    tokens: float | None
    """Written by the model; None where no tokens were counted."""
    seconds: float | None
    """Wall-clock time of the episodes; those of a batch overlap."""
    money: float | None


def cost_per_solved(rows: Sequence[Evaluation]) -> CostPerSolved:
    """The cost of these evaluations over the sum of their verdicts."""
    solved_tasks = sum(row.passed or 0.0 for row in rows)
    if not solved_tasks:
        return CostPerSolved(None, None, None)
    prices = [row.money for row in rows if row.money is not None]
    price = sum(prices) / solved_tasks if len(prices) == len(rows) else None
    tokens = sum(row.tokens for row in rows) / solved_tasks
    return CostPerSolved(tokens or None, sum(row.seconds for row in rows) / solved_tasks, price)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k tries solves a task that c of n did: 1 - C(n-c, k) / C(n, k), unbiased.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    _check_counts(n, c, k)
    return 1 - comb(n - c, k) / comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Chance that all of k tries solve a task that c of n did: C(c, k) / C(n, k), unbiased.

    Source: Yao et al. 2024 (tau-bench, arXiv 2406.12045), section 3. Raises ValueError as `pass_at_k` does.
    """
    _check_counts(n, c, k)
    return comb(c, k) / comb(n, k)


def pass_rates_by_tries(rows: Iterable[Evaluation]) -> dict[int, tuple[float, float]]:
    """pass@k and pass^k of one model's sampled rows, means over tasks: {k: (pass@k, pass^k)}; k is 1, 2, 4, ..., all.

    A try solves its task if `passed` is 1: a verdict of unsure does not count. Tries without a verdict are left out.
    The number of tries is that of the task with the fewest. Empty without rows.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row.passed is not None:
            outcomes[row.query_id].append(row.passed >= 1)
    counts = [(len(tries), sum(tries)) for tries in outcomes.values()]
    rates: dict[int, tuple[float, float]] = {}
    for k in _list_sizes(min((n for n, _ in counts), default=0)):
        at_k, hat_k = ([rate(n, c, k) for n, c in counts] for rate in (pass_at_k, pass_hat_k))
        rates[k] = fmean(at_k), fmean(hat_k)
    return rates


def _list_sizes(n: int) -> list[int]:
    """The powers of two up to n, and n itself; empty for 0."""
    return sorted({*(1 << i for i in range(n.bit_length()) if 1 << i <= n), n} - {0})


def _check_counts(n: int, c: int, k: int) -> None:
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n = {n} tries, c = {c} solved, k = {k}")


@dataclass(frozen=True)
class PolicyEvaluation:
    """The episodes of one policy and their measures."""

    rows: list[Evaluation] = field(default_factory=list)
    """Rows of Evaluation, one for each episode."""
    greedy: list[Trajectory] = field(default_factory=list)
    sampled: list[Trajectory] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """What the endpoint said in each episode that it did not continue."""

    @property
    def check_errors(self) -> list[str]:
        """Why the environment's check failed, for each episode in which it failed."""
        return [t.check_error for t in (*self.greedy, *self.sampled) if t.check_error]

    @property
    def tokens(self) -> int:
        """Tokens that the policy wrote."""
        return sum(row.tokens for row in self.rows)

    @property
    def greedy_verdicts(self) -> list[float | None]:
        """The verdicts on the greedy episodes."""
        return [row.passed for row in self.rows if row.decoding == Decoding.GREEDY]


def evaluate_policy(
    policy: Policy,
    queries: Sequence[Query],
    environment: Environment,
    *,
    sampled_repeats: int = 0,
    limits: ToolsConfig = DEFAULT_LIMITS,
    progress: Callable[[Decoding], Progress] | None = None,
) -> PolicyEvaluation:
    """Play every query greedily once and sampled `sampled_repeats` times, and measure the episodes.

    `progress` gives the callback for one pass over the queries. Raises what `roll_out` raises.
    """
    result = PolicyEvaluation()
    passes = [(Decoding.GREEDY, 0), *((Decoding.SAMPLED, repeat) for repeat in range(sampled_repeats))]
    for decoding, repeat in passes:
        episodes = roll_out(
            policy,
            queries,
            environment,
            decoding=decoding,
            sample=repeat,
            limits=limits,
            progress=progress(decoding) if progress else None,
        )
        trajectories = [episode.trajectory for episode in episodes]
        costs = {episode.trajectory.trajectory_id: episode.cost for episode in episodes}
        result.rows.extend(measure_episodes(queries, trajectories, policy.name, decoding, repeat, costs))
        (result.greedy if decoding is Decoding.GREEDY else result.sampled).extend(trajectories)
        result.refusals.extend(episode.refusal for episode in episodes if episode.refusal)
    return result
