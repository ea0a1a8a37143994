"""Make TextWorld games of five kinds, and their tasks with the walkthroughs as reference solutions.

    python examples/textworld/make_tasks.py games --seeds 4

writes games/*.z8 and games/tasks.jsonl. A game takes a few seconds. Needs the package: pip install textworld.
"""

import argparse
import json
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import textworld

KINDS = {
    "simple": ["tw-simple", "--rewards", "balanced", "--goal", "detailed"],
    "treasure": ["tw-treasure_hunter", "--level", "12"],
    "coin": ["tw-coin_collector", "--level", "8"],
    "cooking": ["tw-cooking", "--recipe", "2", "--take", "2", "--go", "6", "--open", "--cook", "--cut"],
    "custom": ["custom", "--world-size", "4", "--nb-objects", "8", "--quest-length", "5"],
}
"""Arguments of tw-make by kind of game."""


def make_tasks(folder: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """Make the games and yield their tasks."""
    program = Path(sysconfig.get_path("scripts")) / "tw-make"
    for kind, arguments in KINDS.items():
        for seed in range(1, seeds + 1):
            game = folder / f"{kind}-{seed}.z8"
            options = ["--seed", str(seed), "--output", str(game), "--silent", "-f"]
            subprocess.run([str(program), *arguments, *options], check=True)
            yield read_task(game, kind)


def read_task(game: Path, kind: str) -> dict[str, Any]:
    """The task of a game: its objective, and its walkthrough as the reference solution."""
    with_walkthrough = textworld.EnvInfos(objective=True, extras=["walkthrough"])
    played = textworld.start(str(game), with_walkthrough)
    start = played.reset()
    played.close()
    calls = [{"name": "act", "arguments": {"command": command}} for command in start["extra.walkthrough"]]
    reference = {"game": game.name, "calls": calls}
    return {"id": game.stem, "tier": kind, "instruction": start.objective, "reference": reference}


def main() -> None:
    """Make games and write tasks.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default=4, type=int, help="games of each kind")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(task) for task in make_tasks(args.folder, args.seeds)]
    (args.folder / "tasks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} games in {args.folder}")


if __name__ == "__main__":
    main()
