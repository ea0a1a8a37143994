"""The rule by which a challenger takes the champion's place: rows of `evaluations` in, a decision with figures out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from steptool.artifacts.contracts import Row
from steptool.config import PromotionConfig
from steptool.evaluation.compare import LEVEL, Difference, paired_bootstrap, permutation_p
from steptool.evaluation.table import MAIN
from steptool.evaluation.words import points, probability
from steptool.retraining.outcome import Criterion, Decision

CHAMPION, CHALLENGER = "base", "steptool"
"""Names of the two models in `evaluations`: training starts from the champion."""
_EXACT = 1e-9
"""Below it a difference is rounding."""


def decide(
    rows: Sequence[Row],
    categories: Mapping[str, Sequence[str]],
    rule: PromotionConfig,
    *,
    known: Collection[str] = (),
    draws: int = 10_000,
    seed: int = 0,
) -> Decision:
    """Judge the challenger by the greedy episodes of both models on the same held-out tasks.

    `categories`: of each query id; `known`: ids of queries that the champion was trained on, which are left out.
    Raises ValueError unless both models hold the same queries.
    """
    greedy = [row for row in rows if row["decoding"] == MAIN]
    fair = [row for row in greedy if row["query_id"] not in known]
    champion, challenger = ([row for row in fair if row["model"] == model] for model in (CHAMPION, CHALLENGER))
    tasks = len({row["query_id"] for row in challenger})
    criteria = [_tasks(tasks, rule)]
    if tasks:
        criteria.append(_gain(paired_bootstrap(challenger, champion, draws, seed), rule))
        criteria += _losses(challenger, champion, categories, rule, draws, seed)
        criteria.append(_invalid(paired_bootstrap(challenger, champion, draws, seed, "invalid_call_rate"), rule))
    left_out = {row["query_id"] for row in greedy} - {row["query_id"] for row in fair}
    return Decision(criteria=criteria, left_out=len(left_out))


def _tasks(tasks: int, rule: PromotionConfig) -> Criterion:
    said = f"{tasks} in the comparison; at least {rule.min_tasks} are needed"
    return Criterion(name="held-out tasks", passed=tasks >= rule.min_tasks, said=said, tasks=tasks)


def _gain(found: Difference, rule: PromotionConfig) -> Criterion:
    said = f"{_figure(found)}; its lower end has to be above {points(rule.min_gain)}"
    return _criterion("gain in pass rate", found, found.low > rule.min_gain + _EXACT, said)


def _losses(
    challenger: Sequence[Row],
    champion: Sequence[Row],
    categories: Mapping[str, Sequence[str]],
    rule: PromotionConfig,
    draws: int,
    seed: int,
) -> Iterator[Criterion]:
    """One criterion for each category. A loss counts where it is shown, by its own interval and p-value.

    So a few tasks, whose results come and go by chance, cannot stand in the way alone: four tasks lost of four have a
    p-value of 1/8. The p-values are not corrected for the number of categories, which would protect the challenger.
    """
    for name in sorted({c for row in challenger for c in categories[row["query_id"]]}):
        new, old = ([row for row in side if name in categories[row["query_id"]]] for side in (challenger, champion))
        found, p = paired_bootstrap(new, old, draws, seed), permutation_p(new, old, draws, seed)
        lost = found.mean < -rule.max_category_loss - _EXACT and found.high < 0 and p < LEVEL
        bound = f"a loss of more than {points(rule.max_category_loss)} that is shown is too much"
        yield _criterion(f"category {name}", found, not lost, f"{_figure(found)}, {probability(p)}; {bound}")


def _invalid(found: Difference, rule: PromotionConfig) -> Criterion:
    said = f"{_figure(found)}; its lower end must not be above {points(rule.max_invalid_rise)}"
    return _criterion("rise in invalid calls", found, found.low <= rule.max_invalid_rise + _EXACT, said)


def _criterion(name: str, found: Difference, passed: bool, said: str) -> Criterion:
    figures = {"mean": found.mean, "low": found.low, "high": found.high}
    return Criterion(name=name, passed=passed, said=said, tasks=found.n, measured=True, **figures)


def _figure(found: Difference) -> str:
    tasks = f"{found.n} task{'' if found.n == 1 else 's'}"
    return f"{points(found.mean)} points on {tasks} (95% interval {points(found.low)} to {points(found.high)})"
