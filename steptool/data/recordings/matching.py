"""Recordings that a playback policy names, matched to the queries that it plays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from steptool.config import Config, EvaluatedPolicy
from steptool.contracts.tables import read_records
from steptool.data.ingest_log import IngestError, IngestLog
from steptool.data.recordings.forms import read_recordings
from steptool.data.recordings.recording import Recording, make_trajectory
from steptool.data.splits import text_key
from steptool.data.tools import ToolCatalog
from steptool.records import Query, Trajectory
from steptool.storage.remote import fetch


def policy_recordings(
    policy: EvaluatedPolicy,
    queries: Sequence[Query],
    demonstrations: str | os.PathLike[str],
    config: Config,
    folder: Path,
) -> list[Trajectory]:
    """What a playback policy may play: the recordings that it names, fetched into the folder; else the demonstrations.

    Nothing for a policy of another kind. Raises IngestError where it names recordings and a query has none.
    """
    if policy.kind != "playback":
        return []
    if not policy.recordings:
        return read_records(demonstrations, Trajectory)
    places = [fetch(place, folder / str(number)) for number, place in enumerate(policy.recordings)]
    return match_recordings(queries, places, f"evaluation.policies: recordings of '{policy.name}'", config)


def match_recordings(queries: Sequence[Query], places: Sequence[str], field: str, config: Config) -> list[Trajectory]:
    """The first recording of each query in the files, as a trajectory, in the order of the queries.

    A recording belongs to the query with its text. `field` is the field of the configuration that names the `places`.
    Raises IngestError where a query has no usable recording.
    """
    log = IngestLog()
    first: dict[str, Recording] = {}
    for recording in read_recordings(places, field, ToolCatalog(config).tools, log):
        first.setdefault(text_key(recording.instruction), recording)
    missing = [query.query_id for query in queries if text_key(query.instruction) not in first]
    if missing:
        dropped = {name: count for name, count in log.counts.items() if "dropped" in name}
        raise IngestError(
            f"{field}: {len(missing)} of {len(queries)} queries have no recording in {', '.join(places)}, the first is "
            f"'{missing[0]}' (recordings that cannot be used: {dropped or 'none'}); name files that hold them, or play "
            "fewer queries with evaluation.recorded_only"
        )
    matched = [(query, first[text_key(query.instruction)]) for query in queries]
    return [make_trajectory(recording.turns, recording.solved, query, 0) for query, recording in matched]
