"""What several annotators say of the same steps, and where they differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from steptool.records import Query, Step, StepReward, Trajectory
from steptool.rewards.compose import annotator_label

COMPONENTS = ("succ_calling", "contribution", "is_solved")
YES = 0.5
"""Score from which a component counts as a yes; an IsSolved of exactly this is unsure and compared with nothing."""
NO_CALL = "(no call)"
SHOWN = 400
"""Characters of an observation that a dispute quotes."""

Opinion = Mapping[str, Sequence[StepReward]]
"""The rows of one annotator by trajectory, in the order of the steps."""


@dataclass(frozen=True)
class Dispute:
    """A step on which two annotators differ."""

    trajectory_id: str
    step: int
    component: str
    instruction: str
    tool: str
    arguments: str
    """JSON."""
    observation: str
    """Its beginning."""
    answer: str
    scores: Mapping[str, float]
    """The score by each annotator."""
    rationales: Mapping[str, str]


_Case = tuple[Trajectory, int, str, str, float]
"""Trajectory, step, component, the other annotator, and by how much the first gives more."""


def opinions_on(
    trajectories: Sequence[Trajectory], rows: Iterable[StepReward]
) -> dict[str, dict[str, list[StepReward]]]:
    """Rows by annotator and trajectory; trajectories that an annotator did not score whole count as not scored."""
    lengths = {t.trajectory_id: len(t.steps) for t in trajectories}
    found: dict[str, dict[str, list[StepReward]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.step < lengths.get(row.trajectory_id, 0):
            found[annotator_label(row)][row.trajectory_id].append(row)
    return {
        name: {t: sorted(own, key=lambda r: r.step) for t, own in scores.items() if len(own) == lengths[t]}
        for name, scores in found.items()
    }


def both(
    trajectories: Sequence[Trajectory], one: Opinion, other: Opinion, component: str
) -> Iterator[tuple[Trajectory, int, float, float]]:
    """Scores of steps that both annotators gave one."""
    for t in trajectories:
        mine, theirs = one.get(t.trajectory_id, ()), other.get(t.trajectory_id, ())
        for number, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            pair = getattr(a, component), getattr(b, component)
            if None not in pair and not (component == "is_solved" and YES in pair):
                yield t, number, *pair


def find_disputes(
    queries: Mapping[str, Query], trajectories: Sequence[Trajectory], opinions: Mapping[str, Opinion], wanted: int
) -> list[Dispute]:
    """The widest differences of the first annotator to another; kinds of them and episodes take turns."""
    main, *others = opinions
    found = [
        (t, number, component, other, a - b)
        for other in others
        for component in COMPONENTS
        for t, number, a, b in both(trajectories, opinions[main], opinions[other], component)
        if a != b
    ]
    turns: dict[object, int] = defaultdict(int)
    ranked: list[tuple[int, float, int, _Case]] = []
    for case in sorted(found, key=lambda case: -abs(case[-1])):
        t, number, component, _, gap = case
        kinds = (tool_of(t.steps[number]), component, gap > 0), t.trajectory_id
        ranked.append((sum(turns[kind] for kind in kinds), -abs(gap), len(ranked), case))
        for kind in kinds:
            turns[kind] += 1
    chosen = [case for *_, case in sorted(ranked, key=lambda r: r[:3])[:wanted]]
    return [
        _dispute(queries, t, number, component, {name: opinions[name] for name in (main, other)})
        for t, number, component, other, _ in chosen
    ]


def _dispute(
    queries: Mapping[str, Query], t: Trajectory, number: int, component: str, opinions: Mapping[str, Opinion]
) -> Dispute:
    step, query = t.steps[number], queries.get(t.query_id)
    rows = {name: scores[t.trajectory_id][number] for name, scores in opinions.items()}
    return Dispute(
        trajectory_id=t.trajectory_id,
        step=number,
        component=component,
        instruction=query.instruction if query else "",
        tool=tool_of(step),
        arguments=json.dumps(dict(step.call.arguments), ensure_ascii=False) if step.call else "",
        observation=step.observation[:SHOWN],
        answer=t.final_answer or "",
        scores={name: float(getattr(row, component)) for name, row in rows.items()},
        rationales={name: row.rationale for name, row in rows.items()},
    )


def tool_of(step: Step) -> str:
    """Name of the called tool."""
    return step.call.name if step.call else NO_CALL
