"""The section `data`: where tasks and recordings come from."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field

from steptool.config.base import Positive, Share, StrictModel
from steptool.config.refusal import did_you_mean

SOURCE_NAMES = ("desk", "toolbench", "jsonl", "recorded", "bfcl")


def _check_source(name: str) -> str:
    if name not in SOURCE_NAMES and ":" not in name:
        raise ValueError(
            f"expected one of {', '.join(SOURCE_NAMES)}, or package.module:Class for a source of your own"
            + did_you_mean(name, SOURCE_NAMES)
        )
    return name


def _are_distinct(places: list[str]) -> list[str]:
    """Refuse a place that another one of the list contains: its records would be read twice."""
    paths = [PurePath(place) for place in places]
    for index, path in enumerate(paths):
        for other in paths[:index]:
            if path == other:
                raise ValueError(f"'{path}' is named twice: its records would count twice")
            if path.is_relative_to(other) or other.is_relative_to(path):
                inner, outer = sorted((path, other), key=lambda p: len(p.parts), reverse=True)
                raise ValueError(f"'{inner}' lies in '{outer}': its records would count twice")
    return places


Places = Annotated[list[str], AfterValidator(_are_distinct)]
"""Files, folders or urls, none within another."""


class DataConfig(StrictModel):
    """Where the tasks come from."""

    source: Annotated[str, AfterValidator(_check_source)] = "desk"
    """desk: the embedded world; toolbench: instruction files of ToolBench and StableToolBench; jsonl: files of your own
    tasks; recorded: the tasks of recorded trajectories; bfcl: the multi-turn tasks of the installed package bfcl-eval;
    path/to/file.py:Class or package.module:Class: a source of your own (docs/bring-your-own-data.md)."""
    paths: Places = Field(default_factory=list)
    """Files, folders or urls of the source; none for desk and bfcl."""
    recorded_answers: Places = Field(default_factory=list)
    """Files, folders or urls of recorded trajectories, in any form: demonstrations for the warm start and responses for
    the replay environment. Those of the source recorded need not be named again."""
    environment: str = ""
    """What answers the calls of tasks from files that name no environment; empty: replay. It also gives the tools of
    tasks and recordings that list none."""
    train_queries: Positive = 2400
    """Training queries: drawn from the world, or kept at most from the source."""
    validation_queries: Positive = 200
    """Queries to tune settings on, which training never sees."""
    heldout_queries: Positive = 400
    """Queries that the result is measured on, which training never sees."""
    exact_splits: bool = True
    """Whether tasks that name no split fill the splits exactly: as many of each as the numbers say, or in their
    proportions where there are fewer tasks. Otherwise the text of a task alone decides, so that it stays in its split
    whatever other tasks come and go; `workflows/retrain.py` always draws like that."""
    first: list[str] = Field(default_factory=list)
    """SHA-256 digests of files whose tasks and recordings come first where one of the numbers above leaves some out;
    workflows/retrain.py names the new ones."""
    keep_failing_solutions: bool = False
    """Whether reference solutions with a call that fails are demonstrations too. Ingest names each of them."""
    long_share: Share = 0.5
    """Share of queries with several goals (desk only)."""
