"""Why models fail tasks of the desk: by their calls, or by what they report after all the right calls.

    python -m benchmarks.failures runs/demo

Reads the evaluation of a training run. A line for each model, way of decoding and tier counts the failed episodes by
kind; the last column is the share of those with every call right. A model whose share is high fails by copying values,
which no credit for its calls can mend.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from steptool.evaluation.compare import ALL
from steptool.evaluation.measures import find_verdict
from steptool.records import Query, Step, StepStatus, ToolCall, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records

REPORT = "report"
"""The desk's tool that takes results. Its values are the answer; all other tools look or act."""
_PREFIX = "evaluation_trajectories_"


class Failure(StrEnum):
    """What the calls of a failed episode were, those of `report` left out unless they failed."""

    MISSING = "call missing"
    """A call of the reference was never made, or not as often."""
    UNNEEDED = "call unneeded"
    """A call worked that the reference does not have."""
    FAILED = "failed try"
    """Besides the right calls there is one that failed, such as a try to act on the wrong branch."""
    REPORTED = "calls right"
    """Every call is right, so that what was reported is wrong."""


def classify(query: Query, trajectory: Trajectory) -> Failure:
    """The kind of a failed episode. The order of its calls does not count: ids lead from one to the next.

    Raises ValueError for a task without reference calls.
    """
    if query.reference.calls is None:
        raise ValueError(
            f"task '{query.query_id}': expected the calls of a solution, got none; the desk's tasks have them"
        )
    needed = Counter(_key(call) for call in query.reference.calls if call.name != REPORT)
    tried = Counter(_select_calls(trajectory.steps))
    worked = Counter(_select_calls(step for step in trajectory.steps if step.status is StepStatus.OK))
    if needed - tried:
        return Failure.MISSING
    if worked - needed:
        return Failure.UNNEEDED
    failed = any(step.status not in (StepStatus.OK, StepStatus.FINISH) for step in trajectory.steps)
    return Failure.FAILED if failed else Failure.REPORTED


def count_failures(queries: Mapping[str, Query], trajectories: Iterable[Trajectory]) -> dict[str, Counter[Failure]]:
    """Failed episodes by tier, `all` first, and kind. Episodes that nothing could check are left out."""
    counts: dict[str, Counter[Failure]] = {ALL: Counter()}
    for trajectory in trajectories:
        query = queries[trajectory.query_id]
        verdict, _ = find_verdict(query, trajectory)
        if verdict is not None and verdict < 1:
            failure = classify(query, trajectory)
            counts[ALL][failure] += 1
            counts.setdefault(query.tier, Counter())[failure] += 1
    return counts


def table(run: Path) -> str:
    """The failures of all models of a run as text. Raises FileNotFoundError for a folder without an evaluation."""
    paths = sorted(run.glob(f"{_PREFIX}*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{run}: expected {_PREFIX}MODEL_DECODING.parquet; name the folder of a training run")
    queries = {query.query_id: query for query in read_queries(run / "queries.parquet")}
    lines = [f"{'':36}{'failures':>10}{''.join(f'{kind:>15}' for kind in Failure)}{'share right':>13}"]
    for path in paths:
        counts = count_failures(queries, read_records(path, Trajectory))
        for tier, own in sorted(counts.items()):
            name = f"{path.stem.removeprefix(_PREFIX).replace('_', ' ')}, {tier}"
            kinds = "".join(f"{own[kind]:>15}" for kind in Failure)
            share = own[Failure.REPORTED] / max(1, own.total())
            lines.append(f"{name:36}{own.total():>10}{kinds}{share:>13.1%}")
    return "\n".join(lines)


def _select_calls(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        if step.call is not None and step.status is not StepStatus.FINISH and step.call.name != REPORT:
            yield _key(step.call)


def _key(call: ToolCall) -> str:
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True)


def main() -> None:
    """Print the failures of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of a training run on the desk")
    print(table(parser.parse_args().run))


if __name__ == "__main__":
    main()
