"""What several tries at a task are worth: pass@k, that one of k solves it, and pass^k, that all of them do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import comb

from steptool.contracts.columns import Row


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k tries solves a task that c of n did: 1 - C(n-c, k) / C(n, k), unbiased.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    _check(n, c, k)
    return 1 - comb(n - c, k) / comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Chance that all of k tries solve a task that c of n did: C(c, k) / C(n, k), unbiased.

    Source: Yao et al. 2024 (tau-bench, arXiv 2406.12045), section 3. Raises ValueError as `pass_at_k` does.
    """
    _check(n, c, k)
    return comb(c, k) / comb(n, k)


def over_tries(rows: Iterable[Row]) -> dict[int, tuple[float, float]]:
    """(pass@k, pass^k), means over tasks, of one model's sampled rows: {k: both} for 1, 2, 4, ... and all tries.

    A try solves its task if `passed` is 1: unsure is not enough here. The number of tries is that of the task with the
    fewest. Empty without rows.
    """
    solved: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        solved[row["query_id"]].append(row["passed"] >= 1)
    counts = [(len(tries), sum(tries)) for tries in solved.values()]
    return {k: (_mean([pass_at_k(n, c, k) for n, c in counts]), _mean([pass_hat_k(n, c, k) for n, c in counts]))
            for k in _sizes(min((n for n, _ in counts), default=0))}  # fmt: skip


def _sizes(n: int) -> list[int]:
    return sorted({*(1 << i for i in range(n.bit_length()) if 1 << i <= n), n} - {0})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check(n: int, c: int, k: int) -> None:
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n = {n} tries, c = {c} solved, k = {k}")
