"""1,000 promotions by two processes at once, in a registry and with a pointer file that is read, changed and written.

Prints lines `name: OURS OTHER RATIO` of the promotions per second, and lines `name: OURS OTHER` of what went wrong: a
promotion is lost if its process was told that it was made and the history does not hold it; a pointer is torn if a
reader, which looks all the time, finds something that is no pointer. Exits with 1 unless ours loses and tears none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steptool.registry import Registry, RegistryError

PROMOTIONS, PROCESSES = 1_000, 2
OURS = """
import sys
from steptool.registry import Conflict, Registry

place, run, times, *versions = sys.argv[1:]
registry, after, done = Registry(place), 0, 0
while done < int(times):
    try:
        after = registry.promote(versions[done % 2], after=after, reason=f"{run} {done}").sequence
        print(f"{run} {done}")
        done += 1
    except Conflict as conflict:
        after = conflict.champion.sequence
"""
NAIVE = """
import json, sys, time
from pathlib import Path

file, run, times, *versions = sys.argv[1:]
pointer = Path(file)
for done in range(int(times)):
    history = []  # if it stays torn, there is nothing to go on from
    for attempt in range(100):
        try:
            history = json.loads(pointer.read_text())["history"]
            break
        except ValueError:
            time.sleep(0.001)
    history.append(f"{run} {done}")
    pointer.write_text(json.dumps({"champion": versions[done % 2], "history": history}))
    print(f"{run} {done}")
"""


@dataclass(frozen=True)
class Outcome:
    """What became of the promotions of all processes."""

    rate: float
    """Promotions that were confirmed, per second."""
    lost: int
    torn: int
    looks: int
    """Times that the pointer was read meanwhile."""


def measure(program: str, place: Path, versions: list[str], read: Callable[[], list[str] | None]) -> Outcome:
    """Run the program in two processes and read its history meanwhile; `read` gives None for what is torn."""
    share = str(PROMOTIONS // PROCESSES)
    command = [
        [sys.executable, "-c", program, str(place), f"p{n}", share, *versions[2 * n :][:2]] for n in range(PROCESSES)
    ]
    began, torn, looks = time.perf_counter(), 0, 0
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in command]
    while any(process.poll() is None for process in running):
        torn, looks = torn + (read() is None), looks + 1
        time.sleep(0.002)
    seconds = time.perf_counter() - began
    confirmed = [line for process in running for line in process.communicate()[0].splitlines()]
    versions_left = read() or []
    return Outcome(len(confirmed) / seconds, len(set(confirmed) - set(versions_left)), torn, looks)


def measure_ours(folder: Path) -> Outcome:
    """The registry."""
    registry = Registry(folder / "registry")
    versions = [registry.publish(model(folder / name), {}).version_id for name in "abcd"]

    def read() -> list[str] | None:
        try:
            champion = registry.champion()
            history = registry.history() if champion and champion.sequence == PROMOTIONS else []
        except RegistryError:
            return None
        return [entry.reason for entry in history]

    return measure(OURS, folder / "registry", versions, read)


def naive(folder: Path) -> Outcome:
    """One file that holds the champion and the history."""
    pointer = folder / "champion.json"
    pointer.write_text(json.dumps({"champion": "", "history": []}))

    def read() -> list[str] | None:
        try:
            history: list[str] = json.loads(pointer.read_text())["history"]
        except ValueError:
            return None
        return history

    return measure(NAIVE, pointer, list("abcd"), read)


def model(folder: Path) -> Path:
    """The files of a model, of the least content."""
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).write_text(folder.name)
    return folder


def main() -> None:
    """Promote, and count what is left of it."""
    with tempfile.TemporaryDirectory() as folder:
        one, other = measure_ours(Path(folder)), naive(Path(folder))
    print(f"registry promotions/s, two processes at once: {one.rate:.0f} {other.rate:.0f} {one.rate / other.rate:.2f}")
    print(f"registry promotions lost of {PROMOTIONS}: {one.lost} {other.lost}")
    print(f"registry torn pointers, read {one.looks} and {other.looks} times: {one.torn} {other.torn}")
    print(f"registry: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if one.lost or one.torn:
        sys.exit(1)


if __name__ == "__main__":
    main()
