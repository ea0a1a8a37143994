"""Everything that a run does before anything expensive: read the data, start the tools, load and try the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from steptool.artifacts.queries import read_queries
from steptool.config import Config
from steptool.contracts.tables import read_records
from steptool.data.ingest import ingest
from steptool.environments.catalog import check_queries
from steptool.pipeline.learning import prepare
from steptool.policies.catalog import open_environment_of
from steptool.records import Trajectory
from steptool.storage.remote import localize

_FETCHED = ("data.paths", "data.recorded_answers", "policy.base", "tools.toolbench.cache")
"""Fields that may name urls."""


def rehearse(config: Config, *, for_training: bool) -> Iterator[str]:
    """Do it in a temporary folder, and yield a line for each part that went well.

    Raises what the stages of the run would raise: IngestError for data, ModelError and ValueError for the model and its
    prompts, and errors of the environment.
    """
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        config = localize(config, folder / "fetched", *_FETCHED)
        data = ingest(config, folder / "data", for_training)
        yield f"data        read: {data.counts['queries kept']} of {data.counts['queries read']} queries are kept"
        queries = read_queries(data.queries_path)
        with open_environment_of(queries, data.demonstrations_path, config) as environment:
            check_queries(environment, queries)
            yield f"tools       {environment.name}: a session starts for each of {len(queries)} queries"
        if for_training:
            recorded = read_records(data.demonstrations_path, Trajectory)
            prepared = prepare(queries, recorded, config, folder / "base")
            yield f"model       {config.policy.base}: loaded and tried, {len(prepared.queries)} prompts fit its context"
