"""Recordings of any known form: what a record holds says which form it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from steptool.data.ingest_log import IngestLog, Record, UnusableError
from steptool.data.parsing import excerpt
from steptool.data.readers.files import SUFFIXES, find_files, parse_records
from steptool.data.recordings.conversation import DefaultTools, read_conversation
from steptool.data.recordings.dialects import translate_record
from steptool.data.recordings.recording import Recording
from steptool.data.recordings.released import COLUMNS, read_released
from steptool.data.recordings.toolbench import read_converted_answer, read_raw_answer

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
