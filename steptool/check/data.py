"""The data of a configuration, read as a run reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from steptool.config import Config
from steptool.data.ingest import Ingested, ingest
from steptool.data.sources import open_source
from steptool.storage.transfer import localize


def check_data(config: Config) -> list[str]:
    """Read all data as a run does, in a temporary folder and without a call of a tool; returns lines about it.

    A source that draws its tasks has nothing to read. A configuration that names policies to compare is read as
    `evaluate` reads it, which does without training queries.
    Raises IngestError for data that cannot be used, and FetchError for a url that cannot be read.
    """
    if open_source(config.data.source).draws_tasks and not config.data.recorded_answers:
        return []
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        config = localize(config, folder / "fetched", "data.paths", "data.recorded_answers")
        for_training = not config.evaluation.policies
        return list(describe_data(ingest(config, folder / "data", for_training, makes_demonstrations=False)))


def describe_data(data: Ingested) -> Iterator[str]:
    """How many queries are kept, and why records or files are not."""
    yield f"data        read: {data.counts['queries kept']} of {data.counts['queries read']} queries are kept"
    yield from (f"            {name} {count}" for name, count in data.counts.items() if " dropped: " in name)
