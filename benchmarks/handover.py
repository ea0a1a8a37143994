"""What a round of LoRA hands over to the next, in bytes: the adapter, its training state and its card.

python -m benchmarks.handover [FOLDER] [--rank 8]

FOLDER is a model folder, by default the embedded model. A round of one update on two short sequences stands for any
other, because the size of what it hands over depends on the model and the rank alone. Prints a line for each file, and
in MB the line `handed over by a round: OURS OTHER RATIO`, where OTHER is the policy as a whole model with its moments
in float32. Exits with 1 if OURS is 30 MB or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from steptool.artifacts import lineage
from steptool.config import Config
from steptool.models.adapter import read_base_name, write_whole_model
from steptool.models.load import EMBEDDED, load_tokenizer
from steptool.records import Step, StepReward, StepStatus, StopReason, Trajectory
from steptool.training.rounds import train_round

MOST = 30.0
MB = 1e6
SEQUENCES, PROMPT, TURN = 2, 8, 4
"""How many sequences are trained on, and the tokens of their prompt and of their one step."""


def main() -> int:
    """Print the lines; 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED, help="model folder")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="steptool-benchmark-") as scratch:
        adapter, whole = Path(scratch) / "round", Path(scratch) / "whole"
        train(arguments.folder, arguments.rank, adapter)
        for file in sorted(f for f in adapter.rglob("*") if f.is_file()):
            print(f"  {file.relative_to(adapter).as_posix()}: {file.stat().st_size / MB:.2f} MB")
        write_whole_model(adapter, arguments.folder, whole)
        ours = size(adapter)
        other = size(whole) + size(adapter, "optimizer.safetensors")  # moments of twice the bytes
    print(f"handed over by a round: {ours:.2f} {other:.2f} {ours / other:.3f}")
    return int(ours >= MOST)


def train(folder: Path, rank: int, target: Path) -> None:
    """One round with one update, and its card."""
    vocabulary = len(load_tokenizer(folder))
    config = Config.model_validate(
        {
            "policy": {"base": str(folder), "lora_rank": rank},
            "ppo": {"rounds": 1, "epochs": 1, "batch_size": SEQUENCES, "value_warmup_rounds": 0},
        }
    )
    episodes = [make_episode(number, vocabulary) for number in range(SEQUENCES)]
    rewards = [
        StepReward(e.trajectory_id, 0, "rules", "1", succ_calling=1.0, contribution=1.0, is_solved=float(number))
        for number, e in enumerate(episodes)
    ]
    train_round(folder, folder, episodes, rewards, config=config, round_index=0, out_dir=target)
    lineage.sign(target, None, "step_ppo", [], round_index=0, base=read_base_name(target))


def make_episode(number: int, vocabulary: int) -> Trajectory:
    """Random tokens, which no engine has sampled: a prompt and one step."""
    ids = np.random.default_rng(number).integers(0, vocabulary, PROMPT + TURN).astype(np.int32)
    return Trajectory(
        trajectory_id=f"t{number}", query_id=f"q{number}", environment="none", tier="", policy="p", round=0, sample=0,
        temperature=1.0, messages=[], input_ids=ids, spans=[(PROMPT, PROMPT + TURN)],
        logprobs=np.zeros(0, np.float32), steps=[Step(None, StepStatus.MALFORMED, "")],
        stop_reason=StopReason.STEP_LIMIT, final_answer=None, solved=None, seconds=0.0,
    )  # fmt: skip


def size(folder: Path, name: str = "*") -> float:
    """MB of the files of this name in a folder."""
    return sum(f.stat().st_size for f in folder.rglob(name) if f.is_file()) / MB


if __name__ == "__main__":
    sys.exit(main())
