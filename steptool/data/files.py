"""What the sources of a configuration hold: which files, and with what content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict

from steptool.artifacts.lineage import sha256
from steptool.config import DataConfig
from steptool.data.intake import IngestError
from steptool.data.readers import SUFFIXES, files

_SUFFIXES = {"jsonl": (".jsonl",), "toolbench": (".json",), "recorded": SUFFIXES}
"""Suffixes of the files below a folder, by source."""

_List = tuple[Sequence[str], str, Sequence[str]]


class Source(BaseModel):
    """One file, or a source without files."""

    model_config = ConfigDict(frozen=True)

    place: str
    """Path or url; the name of a source without files."""
    size: int
    """Bytes; 0 without a file."""
    sha256: str
    """Of the content; without a file of the section `data`, which is all that such a source depends on."""


def sources(data: DataConfig) -> list[Source]:
    """Every file that ingest would read, with its digest. Urls are read as a stream.

    Raises IngestError for a path that does not exist and for a folder without such a file.
    """
    found = [source for listed in _lists(data) for source in _found(*listed)]
    if data.source in _SUFFIXES:
        return found
    settings = data.model_dump_json(exclude={"first"})
    return [Source(place=data.source, size=0, sha256=hashlib.sha256(settings.encode()).hexdigest()), *found]


def narrowed(data: DataConfig) -> DataConfig:
    """The same section with only those of its files, on this machine, that `data.first` names."""
    first = set(data.first)
    paths, answers = ([str(file) for file in files(*listed) if sha256(file) in first] for listed in _lists(data))
    return data.model_copy(update={"paths": paths, "recorded_answers": answers})


def _lists(data: DataConfig) -> tuple[_List, _List]:
    """Tasks and recordings: the places, the field that names them, the suffixes of files below a folder."""
    suffixes = _SUFFIXES.get(data.source)
    return (
        (data.paths if suffixes else [], "data.paths", suffixes or ()),
        (data.recorded_answers, "data.recorded_answers", SUFFIXES),
    )


def _found(places: Sequence[str], field: str, suffixes: Sequence[str]) -> Iterator[Source]:
    for place in places:
        if "://" in place:
            yield from _remote(place, field, suffixes)
        else:
            for file in files([place], field, suffixes):
                yield Source(place=str(file), size=file.stat().st_size, sha256=sha256(file))


def _remote(place: str, field: str, suffixes: Sequence[str]) -> Iterator[Source]:
    fs, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    inside = [root] if fs.isfile(root) else [f for f in sorted(fs.find(root)) if Path(f).suffix.lower() in suffixes]
    if not inside:
        raise IngestError(f"{field}: '{place}' does not exist or has no {', '.join(suffixes)} file below it")
    for path in inside:
        with fs.open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield Source(place=fs.unstrip_protocol(path), size=fs.size(path), sha256=digest)
