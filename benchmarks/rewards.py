"""Annotation by rules: steps a second and memory on one core from file to file, and the overlap against a plain loop.

Prints lines `name: OURS OTHER RATIO`. A sample of 50,000 steps is annotated; with --full it is 1,000,000, which have to
take less than ten minutes and two gigabytes. Each annotation is a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from steptool.records import FINISH, Query, Step, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.columns import to_row
from steptool.records.tables import write_rows
from steptool.rewards.annotators import overlap

SAMPLE, FULL = 50_000, 1_000_000
LIMIT_S, LIMIT_GIB = 600.0, 2.0
STEPS, TOKENS, SAMPLES = 5, 600, 8
"""Steps of a trajectory, its tokens, and the trajectories of one query."""
OBSERVATION, ANSWER = 1500, 1000
"""Characters of the texts that the overlap is timed on."""
TEXT = "the order parcel with of town was sent by light rain and will arrive in a blue box on monday morning"
WORDS = TEXT.split()

ANNOTATE = """
import sys, time, resource
from steptool.rewards.annotators import annotate_file, make_annotator
import pyarrow.parquet as pq
start = time.process_time()
rewards = annotate_file(sys.argv[1], sys.argv[2], make_annotator(sys.argv[4]), sys.argv[3])
spent, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(pq.read_metadata(rewards).num_rows, spent, peak)
"""
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look. " * 40, "parameters": {"type": "object"}},
}


def trajectories(steps: int) -> Iterator[Trajectory]:
    """Episodes of four calls and a Finish; what calls return is structured or prose, of 50 to 1,500 characters."""
    rng = random.Random(0)
    for number in range(steps // STEPS):
        yield trajectory(number, rng)


def trajectory(number: int, rng: random.Random) -> Trajectory:
    """A chain of calls, each of which takes a value from the one before."""
    key, steps = f"usr_{number:06d}", []
    for _ in range(STEPS - 1):
        call, key = ToolCall("look", {"id": key}), f"key_{rng.randrange(10**6)}"
        steps.append(Step(call, StepStatus.OK, observation(key, rng)))
    answer = f"It is {key}, and the total is {number % 977}."
    steps.append(Step(ToolCall(FINISH, {"return_type": "give_answer", "final_answer": answer}), StepStatus.FINISH, ""))
    return Trajectory(
        trajectory_id=f"t{number}",
        query_id=f"q{number // SAMPLES}",
        environment="desk",
        tier="single",
        policy="p",
        round=0,
        sample=number % SAMPLES,
        temperature=1.0,
        messages=[{"role": "user", "content": "Where is it?"}],
        input_ids=np.arange(TOKENS, dtype=np.int32),
        spans=[(100 * n, 100 * n + 20) for n in range(1, STEPS + 1)],
        logprobs=np.full(20 * STEPS, -0.5, dtype=np.float32),
        steps=steps,
        stop_reason=StopReason.FINISHED,
        final_answer=answer,
        solved=1.0,
        seconds=0.1,
    )


def observation(key: str, rng: random.Random) -> str:
    """Half of them short and structured, half an envelope around prose."""
    if rng.random() < 0.5:
        return json.dumps({"id": key, "status": rng.choice(["open", "sent"]), "total": rng.randrange(999)})
    prose = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(20, 280)))
    return json.dumps({"error": "", "response": f"{prose}. Reference {key}."})


def queries(steps: int) -> Iterator[Query]:
    """A query for every eight episodes."""
    for number in range(-(-steps // STEPS // SAMPLES)):
        yield Query(f"q{number}", "train", "desk", f"Where is usr_{number:06d}, and what is the total?", (TOOL,) * 10)


def annotate(steps: int, name: str, work: Path) -> None:
    """Annotate so many steps in a process of its own, and print what it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    files = [str(work / f"{part}.parquet") for part in ("queries", "trajectories", "rewards")]
    command = [sys.executable, "-c", ANNOTATE, *files, name]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows, seconds, kilobytes = (float(word) for word in result.stdout.split())
    assert rows == steps, f"expected {steps} rows, got {rows}"
    minimum, peak = FULL / LIMIT_S, kilobytes / 2**20
    print(
        f"rewards {name}, {steps} steps/s (needed): {rows / seconds:.0f} {minimum:.0f} {rows / seconds / minimum:.2f}"
    )
    print(f"rewards {name}, {steps} steps, peak GiB (limit): {peak:.2f} {LIMIT_GIB:.2f} {peak / LIMIT_GIB:.2f}")


def plain_overlap(one: str, other: str) -> float:
    """The longest common subsequence as the textbook writes it, by rows."""
    before = [0] * (len(other) + 1)
    for a in one:
        row = [0]
        for place, b in enumerate(other):
            row.append(before[place] + 1 if a == b else max(before[place + 1], row[place]))
        before = row
    return before[-1] / len(one)


def compare_overlap() -> None:
    """The published rule's measure on a long observation and answer."""
    rng = random.Random(0)
    text = " ".join(rng.choice(WORDS) for _ in range(2000))
    one, other = text[:OBSERVATION], text[-ANSWER:]
    start = time.perf_counter()
    expected = plain_overlap(one, other)
    slow = time.perf_counter() - start
    assert overlap(one, other) == expected
    fast, repeats = float("inf"), 200
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            overlap(one, other)
        fast = min(fast, (time.perf_counter() - start) / repeats)
    print(f"rewards LCS of {ANSWER} x {OBSERVATION} characters/s: {1 / fast:.0f} {1 / slow:.1f} {slow / fast:.0f}")


def main() -> None:
    """Everything in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"annotate {FULL} steps instead of {SAMPLE}")
    steps = FULL if parser.parse_args().full else SAMPLE
    compare_overlap()
    with tempfile.TemporaryDirectory(prefix="rewards-") as folder:
        work = Path(folder)
        write_rows(work / "queries.parquet", map(to_row, queries(steps)), Query)
        write_rows(work / "trajectories.parquet", map(to_row, trajectories(steps)), Trajectory)
        for name in ("rules", "lcs"):
            annotate(steps, name, work)


if __name__ == "__main__":
    main()
