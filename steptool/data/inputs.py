"""The files that a configuration makes a run read, and digests that change with their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict

from steptool.artifacts.lineage import sha256
from steptool.config import Config, DataConfig
from steptool.data.ingest_log import IngestError
from steptool.data.readers.files import SUFFIXES, find_files
from steptool.data.readers.text import content_suffix
from steptool.data.sources.base import open_source
from steptool.storage.remote import digest_content, list_inputs

_Listing = tuple[Sequence[str], str, Sequence[str]]
"""Paths, the field of the configuration that names them, and the suffixes of files below a folder."""


class SourceFile(BaseModel):
    """One file that ingest reads, or a source without files."""

    model_config = ConfigDict(frozen=True)

    place: str
    """Path or url; the name of a source without files."""
    size: int
    """Bytes; 0 without a file."""
    sha256: str
    """Of the content; without a file of the section `data`, which is all that such a source depends on."""


def list_files(data: DataConfig) -> list[SourceFile]:
    """Every file that ingest would read, with its digest. Urls are read as a stream.

    Raises IngestError for a path that does not exist and for a folder without such a file.
    """
    files = [file for listing in _list_places(data) for file in _describe(*listing)]
    if open_source(data.source).suffixes:
        return files
    settings = data.model_dump_json(exclude={"first"})
    return [SourceFile(place=data.source, size=0, sha256=hashlib.sha256(settings.encode()).hexdigest()), *files]


def only_first(data: DataConfig) -> DataConfig:
    """The same section with only those of its files, on this machine, that `data.first` names."""
    first = set(data.first)
    paths, recorded = (
        [str(file) for file in find_files(*listing) if sha256(file) in first] for listing in _list_places(data)
    )
    return data.model_copy(update={"paths": paths, "recorded_answers": recorded})


def fingerprint(config: Config) -> str:
    """Digest of all that the configuration names, which changes with the content of a file under the same name.

    Raises IngestError for data that is not there.
    """
    files = [file.model_dump() for file in list_files(config.data)]
    others = {place: digest_content(place) for place in list_inputs(config)}
    return hashlib.sha256(json.dumps([files, others], sort_keys=True).encode()).hexdigest()


def _list_places(data: DataConfig) -> tuple[_Listing, _Listing]:
    """The files of tasks and those of recordings."""
    suffixes = open_source(data.source).suffixes
    return (
        (data.paths if suffixes else [], "data.paths", suffixes),
        (data.recorded_answers, "data.recorded_answers", SUFFIXES),
    )


def _describe(paths: Sequence[str], field: str, suffixes: Sequence[str]) -> Iterator[SourceFile]:
    for path in paths:
        if "://" in path:
            yield from _describe_url(path, field, suffixes)
        else:
            for file in find_files([path], field, suffixes):
                yield SourceFile(place=str(file), size=file.stat().st_size, sha256=sha256(file))


def _describe_url(url: str, field: str, suffixes: Sequence[str]) -> Iterator[SourceFile]:
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    paths = [root] if fs.isfile(root) else [f for f in sorted(fs.find(root)) if content_suffix(Path(f)) in suffixes]
    if not paths:
        raise IngestError(f"{field}: '{url}' does not exist or has no {', '.join(suffixes)} file below it")
    for path in paths:
        with fs.open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield SourceFile(place=fs.unstrip_protocol(path), size=fs.size(path), sha256=digest)
