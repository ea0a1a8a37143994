"""What stages measure and count, as records, and lines of progress."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from steptool.records import Cost, Metric

LOG_VARIABLE = "STEPTOOL_LOG"
"""Environment variable that says how progress is printed: json, or lines for people."""


def update_metrics(log: Iterable[Mapping[str, float]], stage: str, round_index: int) -> list[Metric]:
    """The figures of each optimizer step as metrics; `update` counts the steps from 0."""
    return [
        Metric(stage, round_index, update, name, float(value))
        for update, figures in enumerate(log)
        for name, value in figures.items()
    ]


def count_metrics(stage: str, counts: Mapping[str, Any], round_index: int = -1) -> list[Metric]:
    """Counts of a whole stage, nested or not, as metrics: {"queries": {"kept": 3}} becomes queries/kept."""
    return [Metric(stage, round_index, -1, name, float(value)) for name, value in _flatten(counts)]


def counts_of(metrics: Iterable[Metric], stage: str) -> dict[str, int]:
    """The counts that `count_metrics` made of a stage."""
    return {m.name: int(m.value) for m in metrics if m.stage == stage and m.update == -1}


def name_lost_groups(metrics: Iterable[Metric]) -> Iterator[str]:
    """A sentence for each group of tasks of which ingest has kept none."""
    for name, number in counts_of(metrics, "ingest").items():
        if "which leaves no task of the group" in name:
            yield f"{number} queries were dropped: {name.partition(': ')[2]}."


def total_counts(costs: Iterable[Cost]) -> dict[str, float]:
    """What several stages or shards counted, summed by name."""
    totals: dict[str, float] = {}
    for cost in costs:
        for name, count in cost.counts.items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


def _flatten(counts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


class Stopwatch:
    """Measures one stage from the moment it is made."""

    def __init__(self, stage: str, round_index: int = -1) -> None:
        self.stage = stage
        self.round_index = round_index
        self._start = time.perf_counter()

    def cost(self, tokens: int = 0, counts: Mapping[str, float] | None = None) -> Cost:
        """What the stage took until now."""
        seconds = time.perf_counter() - self._start
        return Cost(self.stage, self.round_index, seconds, tokens, peak_memory_mb(), counts or {})


def first_process() -> bool:
    """Whether this process prints and writes for all of those that torch's launcher started."""
    return os.environ.get("RANK", "0") == "0"


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def format_line(stage: str, text: str, *, seconds: float | None = None, round_index: int = -1, rounds: int = 0) -> str:
    """One line: the stage, the round (counted from 0) of how many, the text, the time taken and the time left.

    `seconds` is the time that the stage took, or the whole round where it ends one; the time left counts the rounds to
    come as long as this one.
    """
    place = f"round {round_index + 1:>{len(str(rounds))}} of {rounds}" if round_index >= 0 else ""
    clock = "" if seconds is None else format_duration(seconds)
    if seconds is not None and round_index >= 0:
        remaining = seconds * (rounds - round_index - 1)
        clock = f"{format_duration(seconds)} this round, {format_duration(remaining)} left in rounds"
    return "  ".join(part for part in (f"{stage:<10}", place, text, clock) if part)


def say(stage: str, text: str, *, seconds: float | None = None, round_index: int = -1, rounds: int = 0) -> None:
    """Print the line at once, or a JSON object where STEPTOOL_LOG is json; of several processes, the first alone."""
    if not first_process():
        return
    if os.environ.get(LOG_VARIABLE) == "json":
        place = {"round": round_index, "rounds": rounds} if round_index >= 0 else {}
        print_record("info", stage, text, place | ({} if seconds is None else {"seconds": seconds}))
    else:
        print(printable(format_line(stage, text, seconds=seconds, round_index=round_index, rounds=rounds)), flush=True)


def say_error(stage: str, text: str) -> None:
    """Print why a stage failed, in the same form as its progress."""
    if os.environ.get(LOG_VARIABLE) == "json":
        print_record("error", stage, text, {})
    else:
        print(f"{stage}: {text}", flush=True)


def print_record(level: str, stage: str, text: str, fields: Mapping[str, Any]) -> None:
    """Print one line of a structured log: time (UTC), level, stage, message and what else is known."""
    record = {"time": datetime.now(UTC).isoformat(), "level": level, "stage": stage, "message": text, **fields}
    print(json.dumps(record), flush=True)


def printable(text: str) -> str:
    """The text with control characters written as escapes, so that no data, tool or server controls the terminal."""
    return "".join(c.encode("unicode_escape").decode() if _controls(c) else c for c in text)


def describe_error(error: BaseException, limit: int = 1000) -> str:
    """An error in one line that a terminal can show; with its class unless the text is one of ours and says enough."""
    if isinstance(error, SystemExit):
        return f"the code of the run called sys.exit({error.code!r})"
    text = printable("; ".join(line.strip() for line in str(error).splitlines() if line.strip()))[:limit]
    is_explained = type(error).__module__.startswith(("steptool.", "tasks.")) or type(error) is ValueError
    return text if is_explained and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def _controls(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character)[0] == "C"


class Ticker:
    """A callback that says, from time to time, how far a long stage is."""

    def __init__(self, stage: str, total: int, unit: str, every_seconds: float = 15.0) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._every = every_seconds
        self._start = self._last = time.perf_counter()

    def __call__(self, done: int, *_: float) -> None:
        """Say that `done` of the total are done, with the time that the rest will take at the pace until now."""
        now = time.perf_counter()
        if done < 1 or now - self._last < self._every:
            return
        self._last = now
        remaining = (now - self._start) / done * (self._total - done)
        say(self._stage, f"{done} of {self._total} {self._unit}, {format_duration(remaining)} left here")


def format_rate(values: Sequence[float | None]) -> str:
    """The mean of the known verdicts in words."""
    verdicts = [v for v in values if v is not None]
    return f"pass rate {sum(verdicts) / len(verdicts):.3f}" if verdicts else "pass rate unknown"


def format_duration(seconds: float) -> str:
    """A time for people: seconds below two minutes, else minutes and seconds."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"
