"""Recordings of any known form: what a record holds says which form it has; and the recordings that a
playback names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from steptool.config import Config, EvaluatedPolicy
from steptool.data.ingest_log import IngestError, IngestLog, Record, UnusableError
from steptool.data.parsing import excerpt
from steptool.data.readers.files import SUFFIXES, find_files, parse_records
from steptool.data.recordings.conversation import DefaultTools, read_conversation
from steptool.data.recordings.dialects import translate_record
from steptool.data.recordings.recording import Recording, make_trajectory
from steptool.data.recordings.toolbench import COLUMNS, read_converted_answer, read_raw_answer, read_released
from steptool.data.splits import text_key
from steptool.data.tools import ToolCatalog
from steptool.records import Query, Trajectory
from steptool.storage.remote import fetch

_KNOWN = (
    "the fields messages; conversations; contents; input and output; chat and system; answer_generation; query, "
    "available_tools and answer; or prompt, response and reward"
)


def read_recordings(
    paths: Sequence[str], field: str, default_tools: DefaultTools, log: IngestLog
) -> Iterator[Recording]:
    """The recordings of files and of those below folders. What cannot be used goes to the log.

    `field` is the field of the configuration that names the paths; `default_tools` gives the tools of a conversation
    that lists none.
    """
    files = find_files(paths, field, SUFFIXES)
    return parse_records(files, lambda record: read_recording(record, default_tools), "demonstrations", log)


def read_recording(record: Record, default_tools: DefaultTools) -> Recording:
    """The recording in a record of any form. Raises UnusableError naming the field that is wrong."""
    value = record.value
    if not isinstance(value, dict):
        raise UnusableError("not an object", f"expected a JSON object, got {excerpt(value)}")
    if (conversation := translate_record(value)) is not None:
        return read_conversation(replace(record, value=conversation), default_tools)
    if value.keys() >= COLUMNS:
        return read_released(record)
    try:
        if {"answer_generation", "tree", "trys"} & value.keys():
            return read_raw_answer(record)
        if "answer" in value:
            return read_converted_answer(record)
    except (AttributeError, KeyError, TypeError) as error:
        raise UnusableError("a path of another shape", f"{type(error).__name__}: {error}") from None
    raise UnusableError("no known form of recording", f"expected {_KNOWN}; there are {sorted(value)[:20]}")


def policy_recordings(
    policy: EvaluatedPolicy, queries: Sequence[Query], config: Config, folder: Path
) -> list[Trajectory]:
    """The recordings that a playback policy names, fetched into the folder, one for each query; none if it names none.

    Raises IngestError where it names recordings and a query has none.
    """
    if not policy.recordings:
        return []
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
        unusable = {name: count for name, count in log.counts.items() if "dropped" in name}
        raise IngestError(
            f"{field}: {len(missing)} of {len(queries)} queries have no recording in {', '.join(places)}, the first is "
            f"'{missing[0]}' (unusable recordings: {unusable or 'none'}); name files that hold them, or play "
            "fewer queries with evaluation.recorded_only"
        )
    matched = [(query, first[text_key(query.instruction)]) for query in queries]
    return [make_trajectory(recording.turns, recording.solved, query, 0) for query, recording in matched]
