"""Real processes that use one registry at the same time, and that are killed while they do."""

import random
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta

import fsspec

from steptool.registry import Registry

Start = Callable[..., subprocess.Popen[str]]

LOOP = """
import sys, tempfile
from pathlib import Path
from steptool.registry import Registry

registry, run = Registry(sys.argv[1]), sys.argv[2]
for number in range(1000):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "tokenizer_config.json", *(f"model-{part}.safetensors" for part in range(8))):
            Path(folder, name).write_text(f"{run} {number} {name}" * 1000)
        version = registry.publish(Path(folder), {"code_version": run})
    champion = registry.champion()
    print("before", version.version_id, flush=True)
    registry.promote(version.version_id, after=champion.sequence if champion else 0, reason=run)
    print("after", version.version_id, flush=True)
"""
PROMOTE = """
import sys
from steptool.registry import Conflict, Registry

place, times, run, *versions = sys.argv[1:]
registry, done, after = Registry(place), 0, 0
while done < int(times):
    try:
        entry = registry.promote(versions[done % len(versions)], after=after, reason=f"{run} {done}")
        print(entry.sequence, entry.reason)
        done, after = done + 1, entry.sequence
    except Conflict as conflict:
        after = conflict.champion.sequence
"""
PUBLISH = """
import sys
from pathlib import Path
from steptool.registry import Registry
print(Registry(sys.argv[1]).publish(Path(sys.argv[2]), {"code_version": sys.argv[3]}).version_id)
"""


def killed_in_mid_work(process: subprocess.Popen[str], seconds: float) -> list[str]:
    """What a process said that was killed some time after its first word."""
    first = process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    return [first, *process.communicate()[0].splitlines()]


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_champion(place: str, start: Start) -> None:
    moments, output, unfinished, registry = random.Random(5), [], 0, Registry(place)
    least = 12 if "://" not in place else 4
    for kill in range(5 * least):
        if kill >= least and unfinished:  # some kill has hit an upload
            break
        output += killed_in_mid_work(start(LOOP, place, f"run {kill}"), moments.uniform(0.0, 0.4))
        event, version_id = output[-1].split()
        promoted = [line.split()[1] for line in output if line.startswith("after")]
        allowed = {promoted[-1]} if event == "after" else {version_id, *promoted[-1:]}
        champion = registry.champion()
        assert (champion.version_id if champion else None) in (allowed if promoted else {version_id, None})
        assert registry.verify() == []
        fs, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
        unfinished = len(fs.ls(f"{root}/versions", detail=False)) - len(registry.versions())

    history = [entry.version_id for entry in registry.history()]
    assert [version for version in history if version in promoted] == promoted  # nothing was lost that was confirmed
    assert unfinished > 0
    removed = registry.prune(timedelta(0))
    assert sum(path.startswith("versions/") for path in removed) == unfinished
    assert registry.verify() == []
    assert registry.prune(timedelta(0)) == []


def test_no_promotion_is_lost_or_torn_when_two_processes_promote(
    place: str, start: Start, make_model: Callable[..., object]
) -> None:
    registry, times = Registry(place), 100 if "://" not in place else 10
    one, two, three, four = (registry.publish(make_model(f"m{n}", f"m{n}"), {}).version_id for n in range(4))
    processes = [start(PROMOTE, place, times, "a", one, two), start(PROMOTE, place, times, "b", three, four)]
    latest = [0]
    while any(process.poll() is None for process in processes):
        champion = registry.champion()  # raises for a torn entry
        latest.append(champion.sequence if champion else 0)
    confirmed = [line.split(" ", 1) for process in processes for line in process.stdout]
    history = registry.history()
    assert [entry.sequence for entry in history] == list(range(1, 2 * times + 1))
    assert {(str(entry.sequence), entry.reason) for entry in history} == {(n, r.strip()) for n, r in confirmed}
    assert latest == sorted(latest)
    assert len(set(latest)) > 2  # it was read in mid-work
    assert registry.verify() == []


def test_the_same_content_published_at_once_is_one_version(
    place: str, start: Start, make_model: Callable[..., object]
) -> None:
    model = make_model("one", "weights" * 50_000)
    processes = [start(PUBLISH, place, model, f"attempt {number}") for number in range(3)]
    output = [process.communicate()[0].strip() for process in processes]
    versions = Registry(place).versions()
    assert output == [versions[0].version_id] * 3
    assert len(versions) == 1
    assert Registry(place).verify() == []
