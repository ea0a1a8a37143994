"""Write a night's tasks of the embedded world, and logs of how somebody solved them, into files.

python examples/nightly/logs.py runs/nightly monday                  # by an expert who solves every task
python examples/nightly/logs.py runs/nightly tuesday --careless 1.0  # by one who gets every task wrong
"""

import argparse
import json
import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from steptool.environments.desk.goals import PROCEDURES
from steptool.environments.desk.tasks import Expert, draw_query
from steptool.records import Query, Trajectory

_ATTEMPTS = 8
"""Tries to get a task wrong."""


def write_night(folder: Path, night: str, tasks: int = 150, careless: float = 0.0) -> None:
    """Write tasks/<night>.jsonl and logs/<night>.jsonl. They depend on the name of the night alone."""
    queries, rng = _draw_tasks(night, tasks), random.Random(night)
    attempts = [_attempt(query, rng, careless) for query in queries]
    _write(folder / "tasks" / f"{night}.jsonl", [_task(query) for query in queries])
    _write(folder / "logs" / f"{night}.jsonl", [{"messages": a.messages, "solved": a.solved} for a in attempts])


def _draw_tasks(night: str, tasks: int) -> list[Query]:
    """Tasks with one goal, each with a text of its own."""
    queries_by_text: dict[str, Query] = {}
    for query in (draw_query("train", "single", f"{night}.{number}") for number in count()):
        if len(queries_by_text) == tasks:
            break
        queries_by_text.setdefault(query.instruction, query)
    return list(queries_by_text.values())


def _attempt(query: Query, rng: random.Random, careless: float) -> Trajectory:
    """A correct attempt, or for this share of the kinds of tasks a wrong one, if a few tries bring one."""
    kind = list(PROCEDURES).index(query.reference.environment["goals"][0][0])
    if kind >= careless * len(PROCEDURES):
        return Expert(query, rng, slips=0.0, shortcuts=0.0).attempt()
    careless_attempts = [Expert(query, rng, slips=0.4, shortcuts=1.0).attempt() for _ in range(_ATTEMPTS)]
    return min(careless_attempts, key=lambda attempt: attempt.solved or 0.0)


def _task(query: Query) -> dict[str, Any]:
    """A task with its check and the tools that it needs, without its solution: only the logs show one."""
    tools = tuple(dict.fromkeys(call.name for call in query.reference.calls or ()))
    reference = replace(query.reference, calls=None, tools=tools)
    task = {"id": query.query_id, "instruction": query.instruction, "environment": "desk", "tools": query.tools}
    return task | {"reference": reference.to_json(), "tier": query.tier, "max_steps": query.max_steps}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("night")
    parser.add_argument("--tasks", type=int, default=150)
    parser.add_argument("--careless", type=float, default=0.0, help="share of the kinds of tasks that are got wrong")
    write_night(**vars(parser.parse_args()))
