"""The rule by which a challenger replaces the champion: held-out rows in, a decision with its figures out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from steptool.config import PromotionConfig
from steptool.data.splits import digest, text_key
from steptool.environments.toolbench.protocol import endpoints
from steptool.evaluation.compare import (
    GREEDY,
    LEVEL,
    Difference,
    measurable_queries,
    paired_bootstrap,
    permutation_p,
    points,
    probability,
)
from steptool.records import Evaluation, Query
from steptool.retraining.plan import Criterion, Decision

FILE = "trained_on.txt"
"""File in the model folder with the digest of each training task's text, one a line."""


def read_trained_on(place: str) -> frozenset[str]:
    """Digests of the training tasks of a model folder or url; empty where the model has no such list."""
    fs, path = fsspec.core.url_to_fs(f"{place}/{FILE}")
    return frozenset(fs.cat_file(path).decode().split()) if fs.exists(path) else frozenset()


def write_trained_on(folder: Path, queries: Iterable[Query], before: frozenset[str]) -> None:
    """Write the list of a model: its training queries, and the digests `before` of the model that it was made from."""
    digests = before | {_digest(query) for query in queries if query.split == "train"}
    (folder / FILE).unlink(missing_ok=True)  # the file may be a hard link into the folder of another model
    (folder / FILE).write_text("".join(f"{digest}\n" for digest in sorted(digests)), encoding="utf-8")


def find_contaminated(queries: Iterable[Query], trained_on: frozenset[str]) -> set[str]:
    """Ids of the queries that are among the training tasks."""
    return {query.query_id for query in queries if _digest(query) in trained_on}


def _digest(query: Query) -> str:
    return digest(text_key(query.instruction)).hex()


CHAMPION, CHALLENGER = "base", "steptool"
"""Names of the two models in `evaluations`: training starts from the champion."""
_TOLERANCE = 1e-9
"""Differences up to this size are rounding errors."""


def categories(query: Query) -> tuple[str, ...]:
    """The groups that a task counts in, sorted. A challenger must not become worse in any of them.

    These are ToolBench's categories of the tools that the task offers. A task without such tools has its tier as its
    only category, and without a tier its environment. Raises ValueError for a reference that names ToolBench's
    categories in another form.
    """
    names = {category for category, _, _ in endpoints(query).values()}
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
    counted = [row for row in greedy if row.query_id not in contaminated]
    champion, challenger = ([row for row in counted if row.model == model] for model in (CHAMPION, CHALLENGER))
    measurable = measurable_queries(challenger, champion)
    unmeasurable = {row.query_id for row in counted} - measurable
    criteria = [_judge_tasks(len(measurable), len(unmeasurable), rule)]
    if measurable:
        criteria.append(_judge_gain(paired_bootstrap(challenger, champion, draws, seed), rule))
        criteria += _judge_categories(challenger, champion, categories, rule, draws, seed)
        rise = paired_bootstrap(challenger, champion, draws, seed, "invalid_call_rate")
        criteria.append(_judge_invalid_calls(rise, rule))
    left_out = {row.query_id for row in greedy} - {row.query_id for row in counted}
    return Decision(criteria=criteria, left_out=len(left_out))


def _judge_tasks(tasks: int, unmeasurable: int, rule: PromotionConfig) -> Criterion:
    statement = f"{tasks} in the comparison; at least {rule.min_tasks} are needed"
    if unmeasurable:
        statement += f" ({unmeasurable} more have no verdict on both sides: their pass rate is not measurable)"
    return Criterion(name="held-out tasks", passed=tasks >= rule.min_tasks, statement=statement, tasks=tasks)


def _judge_gain(gain: Difference, rule: PromotionConfig) -> Criterion:
    statement = f"{_describe(gain)}; its lower end has to be above {points(rule.min_gain)}"
    return _criterion("gain in pass rate", gain, gain.low > rule.min_gain + _TOLERANCE, statement)


def _judge_categories(
    challenger: Sequence[Evaluation],
    champion: Sequence[Evaluation],
    categories: Mapping[str, Sequence[str]],
    rule: PromotionConfig,
    draws: int,
    seed: int,
) -> Iterator[Criterion]:
    """One criterion for each category. A loss counts where its own interval and p-value show it.

    A few tasks, whose results change by chance, can therefore not block a promotion alone: four tasks lost of four have
    a p-value of 1/8. The p-values are not corrected for the number of categories, since a correction would protect the
    challenger.
    """
    for name in sorted({c for row in challenger for c in categories[row.query_id]}):
        new, old = ([row for row in side if name in categories[row.query_id]] for side in (challenger, champion))
        if not measurable_queries(new, old):
            statement = "not measurable: no task has a verdict on both sides"
            yield Criterion(name=f"category {name}", passed=True, statement=statement, tasks=0)
            continue
        change, p = paired_bootstrap(new, old, draws, seed), permutation_p(new, old, draws, seed)
        is_worse = change.mean < -rule.max_category_loss - _TOLERANCE and change.high < 0 and p < LEVEL
        bound = f"a loss of more than {points(rule.max_category_loss)} that is shown is too much"
        yield _criterion(f"category {name}", change, not is_worse, f"{_describe(change)}, {probability(p)}; {bound}")


def _judge_invalid_calls(rise: Difference, rule: PromotionConfig) -> Criterion:
    statement = f"{_describe(rise)}; its lower end must not be above {points(rule.max_invalid_rise)}"
    return _criterion("rise in invalid calls", rise, rise.low <= rule.max_invalid_rise + _TOLERANCE, statement)


def _criterion(name: str, change: Difference, passed: bool, statement: str) -> Criterion:
    figures = {"mean": change.mean, "low": change.low, "high": change.high}
    return Criterion(name=name, passed=passed, statement=statement, tasks=change.n, measured=True, **figures)


def _describe(change: Difference) -> str:
    tasks = f"{change.n} task{'' if change.n == 1 else 's'}"
    return f"{points(change.mean)} points on {tasks} (95% interval {points(change.low)} to {points(change.high)})"
