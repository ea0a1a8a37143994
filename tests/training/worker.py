"""One training round in a process of its own: python worker.py MODEL OUT CHECKPOINTS|- SETTINGS.json"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import config, rewards_for, trajectories

from steptool.training.rounds import train_round


def main() -> None:
    model, out, *rest = sys.argv[1:]
    wanted = json.load(open(rest[1])) if len(rest) > 1 else {}
    rows = trajectories(wanted.pop("count", 10))
    train_round(
        model,
        model,
        rows,
        rewards_for(rows),
        config=config(**wanted),
        round=0,
        out_dir=out,
        checkpoints=rest[0] if rest and rest[0] != "-" else None,
        checkpoint_every=1,
    )


main()
