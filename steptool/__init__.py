"""StepTool: step-grained reward shaping and step-grained PPO for multi-step tool use (arXiv 2410.07745).

The names below are the library's public interface; docs/notebook.md shows a round of training with them. They are
imported when they are first used, so that `import steptool` stays quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# A library for private data and models sends no telemetry unless its user asks for it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from steptool.config import Config, ConfigError, EvaluatedPolicy, load_config
    from steptool.data.ingest import ingest
    from steptool.evaluation.compare import paired_bootstrap
    from steptool.evaluation.scores import compare_scores
    from steptool.pipeline.episodes import evaluate, roll_out, view
    from steptool.pipeline.learning import annotate, compute_advantages
    from steptool.pipeline.preparation import prepare
    from steptool.records import Advantage, Evaluation, Query, StepReward, Trajectory
    from steptool.records.episodes import read_queries
    from steptool.records.tables import read_records, write_records
    from steptool.training.rounds import train_round

_PLACES = {
    "steptool.records.episodes": ("read_queries",),
    "steptool.config": ("Config", "ConfigError", "EvaluatedPolicy", "load_config"),
    "steptool.records.tables": ("read_records", "write_records"),
    "steptool.data.ingest": ("ingest",),
    "steptool.evaluation.compare": ("paired_bootstrap",),
    "steptool.evaluation.scores": ("compare_scores",),
    "steptool.pipeline.episodes": ("evaluate", "roll_out", "view"),
    "steptool.pipeline.learning": ("annotate", "compute_advantages"),
    "steptool.pipeline.preparation": ("prepare",),
    "steptool.records": ("Advantage", "Evaluation", "Query", "StepReward", "Trajectory"),
    "steptool.training.rounds": ("train_round",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Advantage",
    "Config",
    "ConfigError",
    "EvaluatedPolicy",
    "Evaluation",
    "Query",
    "StepReward",
    "Trajectory",
    "annotate",
    "compare_scores",
    "compute_advantages",
    "evaluate",
    "ingest",
    "load_config",
    "paired_bootstrap",
    "prepare",
    "read_queries",
    "read_records",
    "roll_out",
    "train_round",
    "view",
    "write_records",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'steptool' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
