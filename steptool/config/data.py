"""The section `data`: where tasks and recordings come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from steptool.config.base import Positive, Share, StrictModel

SOURCE_NAMES = ("desk", "toolbench", "jsonl", "recorded", "bfcl")


def _check_source(name: str) -> str:
    if name not in SOURCE_NAMES and ":" not in name:
        raise ValueError(f"expected one of {', '.join(SOURCE_NAMES)}, or package.module:Class for a source of your own")
    return name


class DataConfig(StrictModel):
    """Where the tasks come from."""

    source: Annotated[str, AfterValidator(_check_source)] = "desk"
    """desk: the embedded world; toolbench: instruction files of ToolBench and StableToolBench; jsonl: own tasks;
    recorded: the tasks of recorded trajectories; bfcl: the multi-turn tasks of the installed package bfcl-eval;
    path/to/file.py:Class or package.module:Class: a source of your own."""
    paths: list[str] = Field(default_factory=list)
    """Files, folders or urls of the source (none for desk and bfcl)."""
    recorded_answers: list[str] = Field(default_factory=list)
    """Files, folders or urls of recorded trajectories, in any form: demonstrations for the warm start and responses for
    the replay environment. Those of the source `recorded` need not be named again."""
    environment: str = ""
    """What answers the calls of tasks from files that name no environment; empty: replay. It also gives the tools of
    tasks and recordings that list none."""
    train_queries: Positive = 2400
    """Training queries: drawn from the world, or kept at most from the source."""
    validation_queries: Positive = 200
    heldout_queries: Positive = 400
    first: list[str] = Field(default_factory=list)
    """SHA-256 of files whose tasks and recordings come first where a limit leaves some out; `workflows/retrain.py`
    names the new ones."""
    long_share: Share = 0.5
    """Share of queries with several goals (desk only)."""
