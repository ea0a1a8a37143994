"""Configurations of runs that take seconds, and the model that is in service before the first retraining."""

from pathlib import Path
from typing import Any

from steptool.config import Config

SMALL_TRAINING: dict[str, Any] = {
    "data": {"train_queries": 8, "validation_queries": 2, "heldout_queries": 4},
    "policy": {"base": "scratch", "max_context": 1600},
    "warm_start": {"demonstrations": 8, "steps": 2, "batch_size": 4},
    "rollout": {"episodes": 5, "shards": 2, "max_steps": 3, "max_new_tokens": 16},
    "ppo": {"rounds": 2, "epochs": 1, "batch_size": 3, "micro_batch_size": 3, "value_warmup_rounds": 1},
    "evaluation": {"bootstrap": 200},
}
"""A training from scratch, of two rounds."""


def retraining_settings(place: Path | str, base: Path | str) -> dict[str, Any]:
    """A retraining from the tasks and logs below a folder or url."""
    return {
        "data": {
            "source": "jsonl",
            "paths": [f"{place}/tasks"],
            "recorded_answers": [f"{place}/logs"],
            "environment": "desk",
            "train_queries": 70,
            "validation_queries": 4,
            "heldout_queries": 50,
        },
        "policy": {"base": str(base)},
        "warm_start": {"steps": 24, "batch_size": 16},
        "rollout": {"episodes": 8, "shards": 1, "max_steps": 8},
        "ppo": {"rounds": 1, "epochs": 1, "batch_size": 8, "value_warmup_rounds": 0},
        "evaluation": {"sampled_repeats": 0, "bootstrap": 1000},
    }


def train_on_logs(config: Config, folder: Path, steps: int) -> Path:
    """Fine-tune the embedded model on the logs that a configuration names, and return its folder."""
    import torch

    from steptool.chat.codec import ChatCodec
    from steptool.data.ingest import ingest
    from steptool.models.load import EMBEDDED, load_tokenizer
    from steptool.records import Trajectory
    from steptool.records.episodes import read_queries
    from steptool.records.tables import read_records
    from steptool.training.warm_start import encode_demonstrations, warm_start

    torch.set_num_threads(1)
    data = ingest(config, folder / "read")
    queries, demonstrations = read_queries(data.queries_path), read_records(data.demonstrations_path, Trajectory)
    codec = ChatCodec(load_tokenizer(EMBEDDED), "auto")
    lessons = encode_demonstrations(queries, demonstrations, codec, config.policy.max_context).encoded
    settings = config.warm_start.model_copy(update={"steps": steps})
    warm_start(EMBEDDED, lessons, settings, config.policy, 0, folder / "model")
    return folder / "model"
