"""Write the table of memory in docs/run-on-a-cluster.md: what models of several sizes need on GPUs of 80 GB.

python -m scripts.memory_table           writes it
python -m scripts.memory_table --check   ends with 1 if the page is not what the estimate says
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from steptool.check.memory import GIB, StageMemory, estimate_memory, read_shape
from steptool.config import Config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "run-on-a-cluster.md"
MARKS = re.compile(r"(<!-- memory: written by make docs-config -->\n).*?(<!-- /memory -->)", re.DOTALL)
GPU = 80 * GIB
SIZES = {  # hidden, intermediate, layers, heads, key-value heads, tied embeddings
    "0.5B": (896, 4864, 24, 14, 2, True),
    "1.5B": (1536, 8960, 28, 12, 2, True),
    "3B": (2048, 11008, 36, 16, 2, True),
    "7B": (3584, 18944, 28, 28, 4, False),
    "14B": (5120, 13824, 48, 40, 8, False),
    "32B": (5120, 27648, 64, 40, 8, False),
}
"""Shapes of Qwen2.5's models."""
SETTINGS: dict[str, Any] = {
    "policy": {"max_context": 8192, "dtype": "bfloat16"},
    "rollout": {"episodes": 256, "shards": 8, "batch_size": 32},
    "ppo": {"tokens_per_pass": 16384, "gradient_checkpointing": True, "sharding": "fsdp"},
}
LORA_RANK = 16


def write_table() -> str:
    """The table in Markdown."""
    lines = [
        "| model | tuning | rollout | PPO on one GPU | on each of 4, fsdp | of 8, fsdp | fewest GPUs | disk of PPO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SIZES:
        for rank in (0, LORA_RANK):
            lines.append(_write_row(name, rank))
    return "\n".join(lines) + "\n"


def _estimate(name: str, rank: int, gpus: int) -> dict[str, StageMemory]:
    from transformers import Qwen2Config

    hidden, intermediate, layers, heads, key_heads, tied = SIZES[name]
    model_config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=151_936,
        tie_word_embeddings=tied,
    )
    settings = {**SETTINGS, "policy": {**SETTINGS["policy"], "lora_rank": rank}}
    config, shape = Config.model_validate(settings), read_shape(model_config, "bfloat16")
    return {stage.stage: stage for stage in estimate_memory(shape, config, has_gpu=True, processes=gpus)}


def _write_row(name: str, rank: int) -> str:
    stages = {gpus: _estimate(name, rank, gpus) for gpus in (1, 4, 8)}
    totals = {gpus: of_stage["ppo"].total for gpus, of_stage in stages.items()}
    fewest = next((str(gpus) for gpus, total in totals.items() if total <= GPU), "more than 8")
    cells = [
        name,
        f"LoRA {rank}" if rank else "full",
        f"{stages[1]['rollout'].total / GIB:.0f} GiB",
        *(f"{total / GIB:.0f} GiB" for total in totals.values()),
        fewest,
        f"{stages[1]['ppo'].disk / GIB:.0f} GiB",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the table into the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is out of date")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    fresh = MARKS.sub(lambda match: f"{match[1]}{write_table()}{match[2]}", page)
    if check and fresh != page:
        sys.exit(f"{PAGE.relative_to(ROOT)}: out of date, run make docs-config")
    if not check:
        PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
