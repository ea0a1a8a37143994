"""The names of the files in the folder of a run."""

from __future__ import annotations

CONFIG, QUERIES, DEMONSTRATIONS = "config.yaml", "queries.parquet", "demonstrations.parquet"
LESSONS = "lessons.parquet"
METRICS, COSTS, EVALUATED = "metrics.parquet", "costs.parquet", "evaluations.parquet"
MODEL, WARM_START = "model", "warm_start"
REPORT, FIGURES, QUARANTINE = "report.html", "metrics.json", "quarantine.jsonl"
VERDICTS, PREFERENCES = "verdicts.parquet", "preferences.parquet"
PAGE, TABLE, CSV, LATEX = "evaluation.html", "table.md", "table.csv", "table.tex"
VIEWER, RECORDED_REWARDS = "viewer.html", "recorded_rewards.parquet"
TRAINING, EVALUATION = "training", "evaluation"
"""What is published into a folder; one kind does not take the place of the other."""


def of_round(kind: str, round_index: int) -> str:
    """Name of a round's file; kind: trajectories, rewards or advantages."""
    return f"{kind}_round_{round_index:02d}.parquet"


def of_evaluation(kind: str, episodes: str) -> str:
    """Name of an evaluation's file; kind: trajectories or rewards; episodes: model and decoding, as in base_greedy."""
    return f"evaluation_{kind}_{episodes}.parquet"


def of_policy(name: str) -> str:
    """Name of the file of the episodes of a policy in an evaluation."""
    return f"trajectories_{name}.parquet"
