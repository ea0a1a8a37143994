"""BFCL multi-turn without a model: plays the solutions back through our environment and measures the speed.

Prints how many of the 800 tasks the solutions solve, how many they still solve without their last call, then lines
`name: OURS OTHER RATIO`, per second of one core's time: calls in the session (limits, check of the arguments, the call,
the text of its result) against the benchmark's own executor, which checks nothing; and episodes, from the reset to the
verdict, against the benchmark's own checker. Exits with 1 unless the counts are 800 and 0.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from steptool.config import ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.bfcl import BfclEnvironment
from steptool.environments.bfcl_tasks import CATEGORIES, read_bfcl_queries
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.text_policies import drop_last_call, list_reference_calls, play_back
from steptool.records import Query, ToolCall

REPEATS = 3
PADDED = "long_context"
Seconds = dict[str, float]


def count_solved(queries: Sequence[Query], cut: Callable[[Sequence[ToolCall]], Sequence[ToolCall]]) -> Counter[str]:
    """The numbers of solved tasks by category."""
    recordings = [(query, cut(list_reference_calls(query))) for query in queries]
    trajectories = play_back(recordings, BfclEnvironment(), limits=ToolsConfig())
    return Counter(t.tier for t in trajectories if t.solved == 1)


def summarize(name: str, solved: Counter[str], queries: Sequence[Query]) -> str:
    """One line of counts."""
    parts = ", ".join(f"{category} {solved[category]}" for category in CATEGORIES)
    return f"bfcl {name}: {solved.total()} of {len(queries)} solved ({parts})"


def time_our_calls(queries: Sequence[Query]) -> Seconds:
    """Seconds inside the calls of our sessions, by category."""
    environment, seconds = LimitedEnvironment(BfclEnvironment(), ToolsConfig()), dict.fromkeys(CATEGORIES, 0.0)
    for query in queries:
        session = environment.reset(query)
        for calls in query.reference.turns or ():
            start = time.thread_time()
            for call in calls:
                session.call(call)
            seconds[query.tier] += time.thread_time() - start
            session.next_turn("")
    return seconds


def benchmark_entry(query: Query) -> dict[str, Any]:
    """The task in the form that the benchmark's own functions take."""
    task = query.reference.environment["bfcl"]
    return {"id": query.query_id, "initial_config": task["config"], "involved_classes": task["classes"]}


def as_python(query: Query) -> list[list[str]]:
    """The solution as the benchmark writes it: calls in Python, by turn."""
    return [
        [f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in turn]
        for turn in query.reference.turns or ()
    ]


def time_their_calls(queries: Sequence[Query], run: str) -> Seconds:
    """Seconds inside the benchmark's executor, by category. It keeps its instances under the name of the run."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

    seconds = dict.fromkeys(CATEGORIES, 0.0)
    for query in queries:
        task = benchmark_entry(query)
        state = (task["initial_config"], task["involved_classes"], run, task["id"], query.tier == PADDED)
        execute_multi_turn_func_call([], *state)
        for turn in as_python(query):
            start = time.thread_time()
            for call in turn:
                execute_multi_turn_func_call([call], *state)
            seconds[query.tier] += time.thread_time() - start
    return seconds


def count_valid(queries: Sequence[Query], run: str) -> int:
    """The number of tasks that the benchmark's own checker accepts as solved."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    solutions = [(as_python(query), benchmark_entry(query), query.tier) for query in queries]
    return sum(
        multi_turn_checker([[[call] for call in turn] for turn in calls], calls, entry, tier, run)["valid"]
        for calls, entry, tier in solutions
    )


def shortest_time(work: Callable[[int], object]) -> float:
    """The fastest of several runs."""
    seconds = []
    for number in range(REPEATS):
        start = time.thread_time()
        work(number)
        seconds.append(time.thread_time() - start)
    return min(seconds)


def fastest_runs(runs: Sequence[Seconds]) -> Seconds:
    """The fastest run of each category."""
    return {category: min(run[category] for run in runs) for category in CATEGORIES}


def ratio_line(name: str, count: int, fast: float, slow: float) -> str:
    """Numbers per second on both sides, and their ratio."""
    return f"bfcl {name}: {count / fast:.0f} {count / slow:.0f} {slow / fast:.2f}"


def main() -> None:
    """Count, then time."""
    try:
        queries = read_bfcl_queries()
    except ConfigError as missing:
        print(f"bfcl: left out. {missing}")
        return
    whole, cut = count_solved(queries, list), count_solved(queries, drop_last_call)
    print(summarize("ground truth", whole, queries))
    print(summarize("last call dropped", cut, queries))
    calls = {c: sum(len(q.reference.calls or ()) for q in queries if q.tier == c) for c in CATEGORIES}
    fast = fastest_runs([time_our_calls(queries) for _ in range(REPEATS)])
    slow = fastest_runs([time_their_calls(queries, f"calls{number}") for number in range(REPEATS)])
    groups = {c: [c] for c in CATEGORIES}
    groups |= {f"all but {PADDED}": [c for c in CATEGORIES if c != PADDED], "all": list(CATEGORIES)}
    for name, group in groups.items():
        count, *seconds = (sum(part[c] for c in group) for part in (calls, fast, slow))
        print(ratio_line(f"calls/s, {name}", int(count), *seconds))
    episodes = (
        shortest_time(lambda _: count_solved(queries, list)),
        shortest_time(lambda n: count_valid(queries, f"episodes{n}")),
    )
    print(ratio_line("episodes/s, all", len(queries), *episodes))
    if (whole.total(), cut.total()) != (len(queries), 0):
        sys.exit(1)


if __name__ == "__main__":
    main()
