"""The audit of rewards: whether they can be trusted, before anything learns from them.

Step rewards of one or several annotators on the same trajectories become figures: what is missing, how far
annotators agree, whether the reward tells solved episodes from others, whether length alone earns rewards, what each
tool earns, and how far the rewards have moved since an earlier run. The audit of files reads the rewards of a stage,
those of a second annotator and of an earlier run, and applies the thresholds.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from steptool.artifacts.metrics import average_known
from steptool.config import AuditConfig, Config, RewardConfig
from steptool.config.training import HAVE_NO_ADVANTAGES
from steptool.judge.annotator import count_reasons
from steptool.records import Query, Step, StepReward, StepStatus, Trajectory
from steptool.records.tables import iterate_records
from steptool.rewards.annotators import make_annotator, score_steps
from steptool.rewards.audit_figures import (
    COMPONENTS,
    YES,
    Agreement,
    Audit,
    Drift,
    Scores,
    Separation,
    ToolScores,
    find_disputes,
    get_tool_name,
    group_scores,
    measure_options,
    pair_scores,
    select_decided_episodes,
)
from steptool.rewards.compose import FIXED, ComponentWeights, component_mean, compose, compute_round_weights
from steptool.rewards.statistics import (
    auroc,
    collect_farming_points,
    confusion,
    difference,
    idle_share,
    kappa,
    measure_farming,
    measure_redundancy,
    stability_index,
)
from steptool.storage.sqlite import QueryTable

_EDGES = (0.0, 0.25, 0.5, 0.75)
"""Upper ends of the bins of Contribution, without that of the last bin."""


def audit(
    queries: Mapping[str, Query],
    trajectories: Sequence[Trajectory],
    rows: Iterable[StepReward],
    config: RewardConfig,
    earlier: Iterable[StepReward] = (),
    reward: Literal["step", "final"] = "step",
    disputes: int = 12,
) -> Audit:
    """Audit the rewards of trajectories, composed as `config` and `reward` say.

    `rows` may hold several annotators; the first one's are those to learn from. `earlier` are rows of another run, by
    whichever annotator. Raises ValueError where no row is about the trajectories.
    """
    by_annotator = group_scores(trajectories, rows)
    if not by_annotator:
        raise ValueError(f"no row of the rewards is about one of the {len(trajectories)} trajectories given")
    (main, scores), *_ = by_annotator.items()
    weights = (
        ComponentWeights(**compute_round_weights(list(scores.values()))) if config.weights == "calibrated" else None
    )
    composed_rewards = [compose(scores.get(t.trajectory_id, ()), config, reward, t.steps) for t in trajectories]
    step_rewards = [compose(scores.get(t.trajectory_id, ()), config, steps=t.steps) for t in trajectories]
    return Audit(
        annotator=main,
        others=list(by_annotator)[1:],
        episodes=len(trajectories),
        steps=sum(len(t.steps) for t in trajectories),
        missing={c: _measure_missing(trajectories, scores, c) for c in COMPONENTS},
        reasons=_count_missing_reasons(scores),
        left_out=sum(r is None for r in composed_rewards) / max(1, len(composed_rewards)),
        idle=idle_share(_list_call_contributions(trajectories, scores)),
        solved_calls=_count_solved_calls(trajectories, scores),
        step_rewards=reward == "step" and config.step_weight > 0,
        judged=sum(t.solved is not None for t in trajectories),
        agreements=[
            a for pair in combinations(by_annotator, 2) for a in _measure_agreements(trajectories, by_annotator, *pair)
        ],
        separations=[
            s
            for name, scores_of in by_annotator.items()
            for s in _measure_separations(trajectories, name, scores_of, config, weights)
        ],
        farming=measure_farming(collect_farming_points(trajectories, step_rewards)),
        redundancy=measure_redundancy(trajectories, step_rewards),
        tools=_summarise_tools(trajectories, scores),
        disputes=find_disputes(queries, trajectories, by_annotator, disputes),
        drifts=list(_measure_drifts(earlier, scores)),
        weights=weights,
        options=list(measure_options(trajectories, scores, config)),
    )


def _sum_before_last(
    rows: Sequence[StepReward], config: RewardConfig, steps: Sequence[Step], weights: ComponentWeights = FIXED
) -> float | None:
    rewards_T = compose(rows, config, steps=steps, weights=weights)
    return None if rewards_T is None else float(rewards_T[:-1].sum())


def _measure_missing(trajectories: Sequence[Trajectory], scores: Scores, component: str) -> float:
    """Share of missing scores. A Finish has no Contribution, and only the last step has an IsSolved."""
    due = absent = 0
    for t in trajectories:
        rows, last = scores.get(t.trajectory_id), len(t.steps) - 1
        for number, step in enumerate(t.steps):
            if component == "is_solved" and number != last:
                continue
            if component == "contribution" and (step.status is StepStatus.FINISH or number == last):
                continue
            due += 1
            absent += rows is None or getattr(rows[number], component) is None
    return absent / max(1, due)


def _count_missing_reasons(scores: Scores) -> Counter[str]:
    """The problems that a judge recorded in the votes of the last step of each episode."""
    reasons: Counter[str] = Counter()
    for rows in scores.values():
        votes = json.loads(rows[-1].votes)
        problems = votes.get("missing") if isinstance(votes, dict) else None
        if isinstance(problems, list):
            reasons.update(map(str, problems))
    return reasons


def _list_call_contributions(trajectories: Sequence[Trajectory], scores: Scores) -> Iterator[float | None]:
    for t in trajectories:
        for step, row in zip(t.steps, scores.get(t.trajectory_id, ()), strict=False):
            if step.status is not StepStatus.FINISH:
                yield row.contribution


def _count_solved_calls(trajectories: Sequence[Trajectory], scores: Scores) -> int:
    """Successful calls that have a Contribution, in episodes that the environment or the annotator calls solved."""
    count = 0
    for t in trajectories:
        rows = scores.get(t.trajectory_id, ())
        verdict = t.solved if t.solved is not None or not rows else rows[-1].is_solved
        if verdict is not None and verdict > YES:
            calls = zip(t.steps, rows, strict=False)
            count += sum(s.status is StepStatus.OK and r.contribution is not None for s, r in calls)
    return count


def _measure_agreements(
    trajectories: Sequence[Trajectory], by_annotator: Mapping[str, Scores], one: str, other: str
) -> Iterator[Agreement]:
    for component in COMPONENTS:
        pairs = [(a, b) for *_, a, b in pair_scores(trajectories, by_annotator[one], by_annotator[other], component)]
        yes = np.array(pairs, dtype=np.float64).reshape(-1, 2) >= YES
        table = confusion(yes[:, 0], yes[:, 1])
        (a, b), (c, d) = table.tolist()
        yield Agreement(one, other, component, ((a, b), (c, d)), kappa(table))


def _measure_separations(
    trajectories: Sequence[Trajectory],
    name: str,
    scores: Scores,
    config: RewardConfig,
    weights: ComponentWeights | None,
) -> Iterator[Separation]:
    """Separations by the environment's verdict; where there are no such verdicts, by the annotator's own IsSolved."""
    is_own_verdict, episodes = select_decided_episodes(trajectories, scores)
    figures: dict[str, Callable[[Sequence[StepReward], Trajectory], float | None]] = {
        "contribution": lambda rows, _: average_known(r.contribution for r in rows),
        "steps": lambda rows, t: _sum_before_last(rows, config, t.steps),
        "is_solved": lambda rows, _: rows[-1].is_solved,
    }
    if weights:
        figures["succ_calling"] = lambda rows, _: component_mean(rows, "succ_calling")
        figures["calibrated_steps"] = lambda rows, t: _sum_before_last(rows, config, t.steps, weights)
    for figure, measure in figures.items():
        if is_own_verdict and figure == "is_solved":
            continue
        points = [(value, verdict) for t, rows, verdict in episodes if (value := measure(rows, t)) is not None]
        outcomes = [is_solved for _, is_solved in points]
        yield Separation(name, figure, auroc([value for value, _ in points], outcomes), sum(outcomes))


def _summarise_tools(trajectories: Sequence[Trajectory], scores: Scores) -> list[ToolScores]:
    """Scores by tool, the most frequent tool first, without Finish."""
    rows: dict[str, list[StepReward]] = defaultdict(list)
    for t in trajectories:
        for step, row in zip(t.steps, scores.get(t.trajectory_id, ()), strict=False):
            if step.status is not StepStatus.FINISH:
                rows[get_tool_name(step)].append(row)
    return [
        _summarise_tool(tool, tool_rows)
        for tool, tool_rows in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _summarise_tool(tool: str, rows: Sequence[StepReward]) -> ToolScores:
    contributions = [r.contribution for r in rows if r.contribution is not None]
    spread = np.bincount(np.digitize(contributions, _EDGES, right=True), minlength=len(_EDGES) + 1)
    return ToolScores(
        tool,
        len(rows),
        average_known(r.succ_calling for r in rows),
        average_known(contributions),
        idle_share(contributions),
        tuple(spread.tolist()),
    )


def _measure_drifts(earlier: Iterable[StepReward], scores: Scores) -> Iterator[Drift]:
    earlier_rows = list(earlier)
    for component in COMPONENTS if earlier_rows else ():
        then = [score for r in earlier_rows if (score := getattr(r, component)) is not None]
        now = [score for rows in scores.values() for r in rows if (score := getattr(r, component)) is not None]
        yield Drift(component, difference(then, now), stability_index(then, now))


LARGEST = 20_000
"""Most trajectories that an audit reads. Of a larger file it takes as many, evenly spaced."""

File = str | os.PathLike[str]


class AuditError(ValueError):
    """Rewards that the thresholds of `rewards.audit` refuse."""


def audit_files(queries: File, trajectories: File, rewards: File, config: Config, compare: File | None = None) -> Audit:
    """Audit the rewards of a file of trajectories.

    `compare` is another file of rewards. On the same trajectories it counts as one more annotator; on others it is the
    earlier run, in place of `rewards.audit.previous`. Raises ValueError where the rewards are about other trajectories.
    """
    query_table, episodes = QueryTable(queries), list(_read_sample(trajectories))
    ids = {t.trajectory_id for t in episodes}
    rows = list(_select_rows(rewards, ids))
    other = list(_select_rows(compare, ids)) if compare else []
    if other and {r.annotator for r in other} & {r.annotator for r in rows}:
        other = [replace(r, annotator=f"{r.annotator}, compared") for r in other]
    rows += other
    second = config.rewards.audit.second
    if second and second not in {r.annotator for r in rows}:
        rows += score_steps(query_table, episodes, make_annotator(second))
    previous = compare if compare and not other else config.rewards.audit.previous
    earlier = iterate_records(previous, StepReward) if previous else ()
    reward: Literal["step", "final"] = "step"
    if config.ppo.algorithm in HAVE_NO_ADVANTAGES or config.ppo.reward == "final":
        reward = "final"
    return audit(query_table, episodes, rows, config.rewards, earlier, reward)


def _read_sample(trajectories: File) -> Iterator[Trajectory]:
    step = -(-pq.read_metadata(trajectories).num_rows // LARGEST)
    return islice(iterate_records(trajectories, Trajectory), 0, None, max(1, step))


def _select_rows(rewards: File, trajectory_ids: set[str]) -> Iterator[StepReward]:
    return (row for row in iterate_records(rewards, StepReward) if row.trajectory_id in trajectory_ids)


def check_thresholds(result: Audit, config: AuditConfig, where: str) -> None:
    """Raise AuditError naming every figure that is beyond its threshold. A figure that is not defined passes."""
    faults = list(_list_faults(result, config))
    if faults:
        first = f"{where}: the rewards by '{result.annotator}' were refused, and training did not start"
        if result.reasons:
            first += f"; votes are missing: {count_reasons(result.reasons)}"
        raise AuditError("\n  ".join([first, *faults]))


def _list_faults(result: Audit, config: AuditConfig) -> Iterator[str]:
    if result.left_out > config.max_missing:
        shares = ", ".join(f"{share:.3f} of {name}" for name, share in result.missing.items() if share)
        yield (
            f"missing scores: {result.left_out:.3f} of the episodes cannot be learned from, above "
            f"rewards.audit.max_missing {config.max_missing} (missing: {shares}); ask the annotator again for what it "
            "left out, or take another one"
        )
    area, agreement, length = result.contribution_auroc(), result.contribution_kappa(), result.farming[0].correlation
    if area and area.value < config.min_auroc:
        yield (
            f"separation: the mean Contribution ranks a solved above an unsolved episode in {area.value:.3f} of the "
            f"pairs, below rewards.audit.min_auroc {config.min_auroc}; see the disputed steps and the tools in the "
            "reward report, and take another annotator or mend its rules"
        )
    if config.require_signal and result.step_rewards:
        yield from _list_signal_faults(result)
    if agreement and agreement.value < config.min_kappa:
        yield (
            f"agreement: kappa {agreement.value:.3f} with '{result.others[0]}' on Contribution is below "
            f"rewards.audit.min_kappa {config.min_kappa}; see the disputed steps in the reward report"
        )
    if length and length.value > config.max_farming:
        yield (
            f"farming: the correlation of the step rewards with the number of steps is {length.value:.3f}, above "
            f"rewards.audit.max_farming {config.max_farming}; lower rewards.step_weight, or set "
            "rewards.succ_calling: penalty or rewards.normalisation: trajectory"
        )


def _list_signal_faults(result: Audit) -> Iterator[str]:
    """Step rewards that say nothing: no call contributes, or unsolved episodes have the higher Contribution."""
    remedy = (
        "take another annotator (docs/annotators.md), learn from the outcome alone with ppo.reward: final, or set "
        "rewards.audit.require_signal: false"
    )
    if result.idle == 1 and result.solved_calls:
        yield (
            f"no signal: every Contribution is 0, also of the {result.solved_calls} successful calls in solved "
            f"episodes; {remedy}"
        )
    separation = result.contribution_separation()
    if separation.auroc and separation.is_reversed():
        yield (
            "no signal: the mean Contribution ranks unsolved above solved episodes, more clearly than by chance (AUROC "
            f"{separation.auroc.value:.3f} over {separation.auroc.n} episodes, where chance gives .5); {remedy}"
        )
