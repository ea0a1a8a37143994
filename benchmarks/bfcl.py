"""BFCL multi-turn without a model: its solutions played back through our environment, and how fast that goes.

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
from steptool.environments.bfcl.environment import BfclEnvironment
from steptool.environments.bfcl.tasks import CATEGORIES, bfcl_queries
from steptool.environments.limits import LimitedEnvironment
from steptool.policies.scripted import play_back, reference_calls, without_last_call
from steptool.records import Query, ToolCall

REPEATS = 3
PADDED = "long_context"
Seconds = dict[str, float]


def solved(queries: Sequence[Query], cut: Callable[[Sequence[ToolCall]], Sequence[ToolCall]]) -> Counter[str]:
    """Solved tasks by category."""
    recordings = [(query, cut(reference_calls(query))) for query in queries]
    played = play_back(recordings, BfclEnvironment(), limits=ToolsConfig())
    return Counter(t.tier for t in played if t.solved == 1)


def shown(name: str, found: Counter[str], queries: Sequence[Query]) -> str:
    """One line of counts."""
    parts = ", ".join(f"{category} {found[category]}" for category in CATEGORIES)
    return f"bfcl {name}: {found.total()} of {len(queries)} solved ({parts})"


def ours(queries: Sequence[Query]) -> Seconds:
    """Seconds inside the calls of our sessions, by category."""
    guard, spent = LimitedEnvironment(BfclEnvironment(), ToolsConfig()), dict.fromkeys(CATEGORIES, 0.0)
    for query in queries:
        session = guard.reset(query)
        for calls in query.reference.turns or ():
            started = time.thread_time()
            for call in calls:
                session.call(call)
            spent[query.tier] += time.thread_time() - started
            session.next_turn("")
    return spent


def entry(query: Query) -> dict[str, Any]:
    """The task as the benchmark's own functions take it."""
    task = query.reference.environment["bfcl"]
    return {"id": query.query_id, "initial_config": task["config"], "involved_classes": task["classes"]}


def written(query: Query) -> list[list[str]]:
    """The solution as the benchmark writes it: calls in Python, by turn."""
    return [
        [f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in turn]
        for turn in query.reference.turns or ()
    ]


def theirs(queries: Sequence[Query], run: str) -> Seconds:
    """Seconds inside the benchmark's executor, by category. It keeps its instances under the name of the run."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

    spent = dict.fromkeys(CATEGORIES, 0.0)
    for query in queries:
        task = entry(query)
        state = (task["initial_config"], task["involved_classes"], run, task["id"], query.tier == PADDED)
        execute_multi_turn_func_call([], *state)
        for turn in written(query):
            started = time.thread_time()
            for call in turn:
                execute_multi_turn_func_call([call], *state)
            spent[query.tier] += time.thread_time() - started
    return spent


def checked(queries: Sequence[Query], run: str) -> int:
    """Tasks that the benchmark's own checker takes for solved."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    solutions = [(query, written(query)) for query in queries]
    return sum(
        multi_turn_checker([[[call] for call in turn] for turn in calls], calls, entry(query), query.tier, run)["valid"]
        for query, calls in solutions
    )


def seconds(work: Callable[[int], object]) -> float:
    """The fastest of several runs."""
    spent = []
    for number in range(REPEATS):
        started = time.thread_time()
        work(number)
        spent.append(time.thread_time() - started)
    return min(spent)


def best(runs: Sequence[Seconds]) -> Seconds:
    """The fastest run of each category."""
    return {category: min(run[category] for run in runs) for category in CATEGORIES}


def line(name: str, count: int, fast: float, slow: float) -> str:
    """How much a second on both sides, and the ratio."""
    return f"bfcl {name}: {count / fast:.0f} {count / slow:.0f} {slow / fast:.2f}"


def main() -> None:
    """Count, then time."""
    try:
        queries = bfcl_queries()
    except ConfigError as missing:
        print(f"bfcl: left out. {missing}")
        return
    whole, cut = solved(queries, list), solved(queries, without_last_call)
    print(shown("ground truth", whole, queries))
    print(shown("last call dropped", cut, queries))
    calls = {c: sum(len(q.reference.calls or ()) for q in queries if q.tier == c) for c in CATEGORIES}
    fast = best([ours(queries) for _ in range(REPEATS)])
    slow = best([theirs(queries, f"calls{number}") for number in range(REPEATS)])
    groups = {c: [c] for c in CATEGORIES}
    groups |= {f"all but {PADDED}": [c for c in CATEGORIES if c != PADDED], "all": list(CATEGORIES)}
    for name, group in groups.items():
        count, *spent = (sum(part[c] for c in group) for part in (calls, fast, slow))
        print(line(f"calls/s, {name}", int(count), *spent))
    episodes = seconds(lambda _: solved(queries, list)), seconds(lambda n: checked(queries, f"episodes{n}"))
    print(line("episodes/s, all", len(queries), *episodes))
    if (whole.total(), cut.total()) != (len(queries), 0):
        sys.exit(1)


if __name__ == "__main__":
    main()
