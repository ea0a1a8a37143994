"""The end of a run of retraining: the challenger is refused or put in service.

A rule decides from the evaluations on held-out tasks, and gives its figures. The registry keeps the outcome.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]

from steptool.config import Config, PromotionConfig
from steptool.data.splits import digest, make_text_key
from steptool.environments.toolbench import list_endpoints
from steptool.evaluation.compare import (
    GREEDY,
    LEVEL,
    Difference,
    average_by_query,
    find_measurable_queries,
    format_p,
    format_points,
    paired_bootstrap,
    permutation_p,
    wilson,
)
from steptool.records import Evaluation, Query
from steptool.records.tables import write_text
from steptool.registry import Conflict, Registry
from steptool.retraining.plan import Criterion, Decision, Result, RetrainingPlan, RunOutcome

FILE = "trained_on.txt"
"""File in the model folder with the digest of each training task's text, one per line."""


def read_trained_on(place: str) -> frozenset[str]:
    """Digests of the training tasks of a model folder or url; empty where the model has no such list."""
    fs, path = fsspec.core.url_to_fs(f"{place}/{FILE}")
    return frozenset(fs.cat_file(path).decode().split()) if fs.exists(path) else frozenset()


def write_trained_on(folder: Path, queries: Iterable[Query], before: frozenset[str]) -> None:
    """Write the list of a model: its training queries, and the digests `before` of the model that it was made from."""
    digests = before | {_digest(query) for query in queries if query.split == "train"}
    # The file may be a hard link into the folder of another model: write_text replaces it and leaves that one alone.
    write_text(folder / FILE, "".join(f"{digest}\n" for digest in sorted(digests)))


def find_contaminated(queries: Iterable[Query], trained_on: frozenset[str]) -> set[str]:
    """Ids of the queries that are among the training tasks."""
    return {query.query_id for query in queries if _digest(query) in trained_on}


def _digest(query: Query) -> str:
    return digest(make_text_key(query.instruction)).hex()


CHAMPION, CHALLENGER = "base", "steptool"
"""Names of the two models in `evaluations`: training starts from the champion."""
_TOLERANCE = 1e-9
"""Differences up to this size are rounding errors."""


def list_categories(query: Query) -> tuple[str, ...]:
    """The groups that a task counts in, sorted. A challenger must not become worse in any of them.

    These are ToolBench's categories of the tools that the task offers. A task without such tools has its tier as its
    only category, and without a tier its environment. Raises ValueError for a reference that names ToolBench's
    categories in another form.
    """
    names = {category for category, _, _ in list_endpoints(query).values()}
    return tuple(sorted(names)) or (query.tier or query.environment,)


def decide(
    rows: Sequence[Evaluation],
    categories: Mapping[str, Sequence[str]],
    rule: PromotionConfig,
    *,
    contaminated: Collection[str] = (),
    draws: int = 10_000,
    seed: int = 0,
) -> Decision:
    """Judge the challenger by the greedy episodes of both models on the same held-out tasks.

    `categories` are those of each query id. `contaminated` are ids of queries that the champion was trained on; they
    are left out. Raises ValueError unless both models played the same queries.
    """
    greedy = [row for row in rows if row.decoding == GREEDY]
    counted_rows = [row for row in greedy if row.query_id not in contaminated]
    champion, challenger = ([row for row in counted_rows if row.model == model] for model in (CHAMPION, CHALLENGER))
    measurable = find_measurable_queries(challenger, champion)
    unmeasurable = {row.query_id for row in counted_rows} - measurable
    criteria = [_judge_tasks(len(measurable), len(unmeasurable), rule)]
    if measurable:
        criteria.append(_judge_gain(paired_bootstrap(challenger, champion, draws, seed), rule))
        criteria += _judge_categories(challenger, champion, categories, rule, draws, seed)
        rise = paired_bootstrap(challenger, champion, draws, seed, "invalid_call_rate")
        criteria.append(_judge_invalid_calls(rise, rule))
    left_out = {row.query_id for row in greedy} - {row.query_id for row in counted_rows}
    return Decision(criteria=criteria, left_out=len(left_out))


def _judge_tasks(tasks: int, unmeasurable: int, rule: PromotionConfig) -> Criterion:
    statement = f"{tasks} in the comparison; at least {rule.min_tasks} are needed"
    if unmeasurable:
        statement += f" ({unmeasurable} more have no verdict on both sides: their pass rate is not measurable)"
    return Criterion(name="held-out tasks", passed=tasks >= rule.min_tasks, statement=statement, tasks=tasks)


def _judge_gain(gain: Difference, rule: PromotionConfig) -> Criterion:
    statement = f"{_describe(gain)}; its lower end has to be above {format_points(rule.min_gain)}"
    return _make_criterion("gain in pass rate", gain, gain.low > rule.min_gain + _TOLERANCE, statement)


def _judge_categories(
    challenger: Sequence[Evaluation],
    champion: Sequence[Evaluation],
    categories: Mapping[str, Sequence[str]],
    rule: PromotionConfig,
    draws: int,
    seed: int,
) -> Iterator[Criterion]:
    """One criterion for each category. A loss counts if both its interval and its p-value show it.

    A few tasks whose results change by chance can therefore not block a promotion: a loss of four tasks out of four has
    a p-value of 1/8. The p-values are not corrected for the number of categories, since a correction would protect the
    challenger.
    """
    for name in sorted({c for row in challenger for c in categories[row.query_id]}):
        new, old = ([row for row in side if name in categories[row.query_id]] for side in (challenger, champion))
        if not find_measurable_queries(new, old):
            statement = "not measurable: no task has a verdict on both sides"
            yield Criterion(name=f"category {name}", passed=True, statement=statement, tasks=0)
            continue
        change, p = paired_bootstrap(new, old, draws, seed), permutation_p(new, old, draws, seed)
        is_worse = change.mean < -rule.max_category_loss - _TOLERANCE and change.high < 0 and p < LEVEL
        bound = f"a loss of more than {format_points(rule.max_category_loss)} that is shown is too much"
        yield _make_criterion(f"category {name}", change, not is_worse, f"{_describe(change)}, {format_p(p)}; {bound}")


def _judge_invalid_calls(rise: Difference, rule: PromotionConfig) -> Criterion:
    statement = f"{_describe(rise)}; its lower end must not be above {format_points(rule.max_invalid_rise)}"
    return _make_criterion("rise in invalid calls", rise, rise.low <= rule.max_invalid_rise + _TOLERANCE, statement)


def _make_criterion(name: str, change: Difference, passed: bool, statement: str) -> Criterion:
    figures = {"mean": change.mean, "low": change.low, "high": change.high}
    return Criterion(name=name, passed=passed, statement=statement, tasks=change.n, measured=True, **figures)


def _describe(change: Difference) -> str:
    tasks = f"{change.n} task{'' if change.n == 1 else 's'}"
    interval = f"95% interval {format_points(change.low)} to {format_points(change.high)}"
    return f"{format_points(change.mean)} points on {tasks} ({interval})"


_NO_CAUSE = "the error has no message"
_MESSAGE_HEADING, _LOCAL_PREFIX = "\nMessage:\n", "Error encountered while executing"
"""What Flyte puts before an exception's own message: on a cluster after the traceback, and in a local run."""


def copy_model(model: Path, folder: Path) -> None:
    """Put the files of a model into a folder: as links where both are on one file system, else as copies."""
    shutil.copytree(model, folder, dirs_exist_ok=True, copy_function=_link_or_copy)


def settle(
    registry: Registry,
    plan: RetrainingPlan,
    decision: Decision,
    approved: bool,
    model: Path,
    metadata: Mapping[str, Any],
) -> RunOutcome:
    """Promote the model if the rule and the person allow it, and if the champion is still the one it was compared with.

    A second call after an interruption completes what the first one began, and returns the same outcome.
    """
    if not decision.promote:
        return RunOutcome(result=Result.REFUSED, reasons=decision.reasons, decision=decision)
    if not approved:
        return RunOutcome(result=Result.REFUSED, reasons=["approval: a person said no"], decision=decision)
    version, gain = registry.publish(model, metadata).version_id, _state_gain(decision)
    try:
        registry.promote(version, after=plan.sequence, reason=f"run {plan.run_id}: {gain}")
    except Conflict as conflict:
        reasons = [f"stale comparison: {conflict}"]
        return RunOutcome(result=Result.REFUSED, reasons=reasons, version=version, stale=True, decision=decision)
    return RunOutcome(result=Result.PROMOTED, reasons=[gain], version=version, decision=decision)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def describe_version(
    config: Config, plan: RetrainingPlan, decision: Decision, rows: Sequence[Evaluation], code_version: str
) -> dict[str, Any]:
    """The metadata of the challenger's version: what made it, from what, and its results."""
    greedy = [row for row in rows if row.decoding == GREEDY]
    models = {"champion": CHAMPION, "challenger": CHALLENGER}
    by_model = {name: [row for row in greedy if row.model == model] for name, model in models.items()}
    return {
        "run_id": plan.run_id,
        "trained_from": plan.champion or plan.base,
        "new_data": [source.model_dump(mode="json") for source in plan.new],
        "decision": decision.model_dump(mode="json"),
        "results": {name: _describe_pass_rate(rows_of) for name, rows_of in by_model.items()},
        "config": plan.configure(config).model_dump(mode="json"),
        "code_version": code_version,
    }


def describe_run(plan: RetrainingPlan, outcome: RunOutcome, page: str) -> dict[str, Any]:
    """A finished run as plain data: champion, new data, figures, result, and the place of its page."""
    return {**plan.model_dump(mode="json"), **outcome.model_dump(mode="json"), "page": page}


def describe_failure(kickoff: datetime, message: str) -> dict[str, Any]:
    """A failed run as plain data, with the cause in one line. It counts as having seen no data."""
    reasons = [find_cause(message)]
    return {"kickoff": kickoff.isoformat(), "result": str(Result.FAILED), "reasons": reasons, "new": []}


def find_cause(message: str) -> str:
    """The line of an error's message that names the cause, without the lines that Flyte puts around it."""
    own_message = message.rpartition(_MESSAGE_HEADING)[2]
    lines = [line.strip() for line in own_message.splitlines()]
    return next((line for line in lines if line and not line.startswith(_LOCAL_PREFIX)), _NO_CAUSE)


def _describe_pass_rate(rows: Sequence[Evaluation]) -> dict[str, float | None]:
    """The pass rate over the tasks with a verdict, with Wilson's 95% interval; None where no task has one."""
    pass_rates = average_by_query(rows, "pass_rate")
    rate, tasks = pass_rates.estimate(), len(pass_rates.queries)
    low, high = (None, None) if rate is None else wilson(rate, tasks)
    return {"pass_rate": rate, "low": low, "high": high, "tasks": tasks}


def _state_gain(decision: Decision) -> str:
    return next(f"{c.name}: {c.statement}" for c in decision.criteria if c.measured)
