"""One training round in a process of its own: python worker.py MODEL OUT CHECKPOINTS|- SETTINGS.json"""

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from torch import distributed

from conftest import config, scores, trajectories
from steptool.training.rounds import train_round


def main() -> None:
    model, out, checkpoints, settings = sys.argv[1:]
    expected = json.loads(Path(settings).read_text())
    rows = trajectories(expected.pop("count"))
    queries = expected.pop("queries", len(rows))
    rows = [replace(t, query_id=f"q{i % queries}") for i, t in enumerate(rows)]
    train_round(
        model,
        model,
        rows,
        scores(rows),
        config=config(**expected),
        round_index=0,
        out_dir=out,
        checkpoints=None if checkpoints == "-" else checkpoints,
        checkpoint_every=1,
    )
    if distributed.is_initialized():  # or gloo's threads may abort the process as it exits
        distributed.barrier()
        distributed.destroy_process_group()


main()
