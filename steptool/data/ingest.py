"""From a source of tasks to the files that every run starts from: queries, demonstrations and counts.

The files that a configuration makes a run read have digests, which change with their content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict

from steptool.artifacts.errors import describe_error
from steptool.artifacts.lineage import hash_file
from steptool.chat.call_format import offer_tools
from steptool.config import Config, ConfigError, DataConfig
from steptool.data.files import SUFFIXES, find_content_suffix, find_files
from steptool.data.parsing import IngestError, IngestLog
from steptool.data.recordings.forms import read_recordings
from steptool.data.recordings.recording import Recording, make_query
from steptool.data.sources import SOURCES, Source, SourceInputs, open_source
from steptool.data.splits import SPLITS, StagingDatabase, describe_missing_split
from steptool.data.tools import ToolCatalog
from steptool.environments.base import describe_with_line
from steptool.records import Query, StepReward, Trajectory
from steptool.records.columns import to_row
from steptool.records.tables import open_scratch_folder, write_records, write_rows, write_text
from steptool.storage.transfer import digest_content, is_remote

T = TypeVar("T")
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


def keep_first_files(data: DataConfig) -> DataConfig:
    """The same section with only those of its files, on this machine, that `data.first` names."""
    first = set(data.first)
    paths, recorded_answers = (
        [str(file) for file in find_files(*listing) if hash_file(file) in first] for listing in _list_places(data)
    )
    return data.model_copy(update={"paths": paths, "recorded_answers": recorded_answers})


def fingerprint_sources(config: Config) -> str:
    """Digest of all that the configuration names, which changes with the content of a file under the same name.

    Raises IngestError for data that is not there.
    """
    files = [file.model_dump() for file in list_files(config.data)]
    digests = {place: digest_content(place) for place in list_inputs(config)}
    return hashlib.sha256(json.dumps([files, digests], sort_keys=True).encode()).hexdigest()


def list_inputs(config: Config) -> list[str]:
    """The places that a run reads besides its data: models, recordings, programs of tools, and files of this machine
    that `tools.settings` names."""
    places = [
        config.policy.base,
        _find_program(config.data.source),
        _find_program(config.data.environment),
        _find_program(config.tools.functions),
        *config.tools.mcp.command,
        config.tools.toolbench.cache,
        config.rewards.audit.previous,
        *config.evaluation.verdicts,
        *(policy.model for policy in config.evaluation.policies),
        *(place for policy in config.evaluation.policies for place in policy.recordings),
    ]
    known_places = [place for place in places if is_remote(place) or (place and Path(place).exists())]
    return known_places + [file for text in _find_texts(config.tools.settings) if (file := _find_file(text))]


def _find_texts(value: Any) -> Iterator[str]:
    """The texts in a value of JSON's types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_find_texts, value.values()))
    elif isinstance(value, Sequence):
        yield from chain.from_iterable(map(_find_texts, value))


def _find_file(text: str) -> str:
    """The file that a setting names, such as data/train.jsonl or tasks.py:Tasks; empty if it names none."""
    try:
        return next((place for place in (text, text.rpartition(":")[0]) if place and Path(place).is_file()), "")
    except OSError:  # too long for a path
        return ""


def _find_program(name: str) -> str:
    """The file behind `package.module:name` or `path/to/file.py:name`; empty without one."""
    place, _, _ = name.rpartition(":")
    if not place or place.endswith(".py"):
        return place
    try:
        spec = importlib.util.find_spec(place)
    except ImportError:
        return ""
    return (spec and spec.origin) or ""


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
                yield SourceFile(place=str(file), size=file.stat().st_size, sha256=hash_file(file))


def _describe_url(url: str, field: str, suffixes: Sequence[str]) -> Iterator[SourceFile]:
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        is_file = fs.isfile(root)
        paths = [root] if is_file else [f for f in sorted(fs.find(root)) if find_content_suffix(Path(f)) in suffixes]
    except Exception as error:  # of any class, since each kind of store has its own
        raise IngestError(
            f"{field}: '{url}' cannot be read ({describe_error(error)}); expected a url that this machine can read"
        ) from error
    if not paths:
        raise IngestError(f"{field}: '{url}' does not exist or has no {', '.join(suffixes)} file below it")
    for path in paths:
        with fs.open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield SourceFile(place=fs.unstrip_protocol(path), size=fs.size(path), sha256=digest)


QUERIES_FILE = "queries.parquet"
DEMONSTRATIONS_FILE = "demonstrations.parquet"
REWARDS_FILE = "recorded_rewards.parquet"
QUARANTINE_FILE = "quarantine.jsonl"
COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Ingested:
    """What was written.

    `counts` holds "queries read", "queries kept", "queries dropped: <reason>", and the same for "demonstrations", which
    were recorded, and "reference solutions", which were played; read is kept and dropped together. Files that cannot be
    read to their end stand under "files dropped: <reason>". The quarantine file holds what was dropped for a fault, one
    JSON object per line.
    """

    queries_path: Path
    demonstrations_path: Path
    rewards_path: Path
    quarantine_path: Path
    counts_path: Path
    counts: dict[str, int]


def ingest(
    config: Config,
    out_dir: str | Path,
    for_training: bool = True,
    may_be_empty: bool = False,
    *,
    makes_demonstrations: bool = True,
) -> Ingested:
    """Read the source, check every record, assign splits and write what is kept and what was set aside.

    Files are streamed: neither their number nor their size is limited by memory. What was read waits in a temporary
    folder beside `out_dir`. Without `makes_demonstrations` only recorded demonstrations are read. The source makes
    none, as by playing reference solutions, so that no tool is called.

    Raises IngestError for input that cannot be used. Raises it too if there is no query at all (unless `may_be_empty`)
    and, for training, if a split has no query or the evaluation is on training queries; then the counts and the
    quarantine are written all the same, and the message holds the counts by reason.
    """
    if for_training and config.evaluation.split == "all":
        raise IngestError(
            "evaluation.split is all: a model that is trained here is measured on heldout or validation queries only; "
            "all is for workflows/evaluate.py"
        )
    out = Path(out_dir).absolute()
    source, inputs = open_source(config.data.source), SourceInputs(config, ToolCatalog(config), IngestLog())
    if source.suffixes and not config.data.paths:
        raise IngestError(f"data.paths: the source '{config.data.source}' needs at least one file or folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_scratch_folder(out.parent, "ingest") as folder,
        StagingDatabase(folder) as staging,
    ):
        _read(source, inputs, staging)
        splits = staging.draw(config.data, inputs.log)
        inputs.log.count("queries kept", sum(splits.values()))
        minimum = len(SPLITS) if for_training else 0 if may_be_empty else 1
        if problem := describe_missing_split(splits, minimum):
            _write_log(inputs.log, out)
            where, summary = ", ".join(config.data.paths) or config.data.source, inputs.log.summary()
            parts = (problem, summary) if any(splits.values()) else (summary, "No query is left")
            raise IngestError(f"{where}: {'. '.join(parts)}")
        out.mkdir(exist_ok=True)
        demonstrations = staging.demonstrations()
        if makes_demonstrations:
            demonstrations = chain(demonstrations, source.make_demonstrations(staging.training_queries(), inputs))
        demonstrations_path = write_rows(out / DEMONSTRATIONS_FILE, map(to_row, demonstrations), Trajectory)
        rewards_path = write_records(out / REWARDS_FILE, staging.step_rewards(), StepReward)
        queries_path = write_rows(out / QUERIES_FILE, staging.query_rows(), Query)
    quarantine_path, counts_path = _write_log(inputs.log, out)
    return Ingested(
        queries_path, demonstrations_path, rewards_path, quarantine_path, counts_path, dict(inputs.log.counts)
    )


def _write_log(log: IngestLog, out: Path) -> tuple[Path, Path]:
    """Write the records set aside, and the counts."""
    out.mkdir(exist_ok=True)
    counts = json.dumps(log.counts, indent=1) + "\n"
    return log.write(out / QUARANTINE_FILE), write_text(out / COUNTS_FILE, counts)


def _read(source: Source, inputs: SourceInputs, staging: StagingDatabase) -> None:
    """Put the tasks and recordings of the configuration into the staging database."""
    for query in _run_source(source.read_queries, Query, inputs):
        inputs.log.count("queries read")
        staging.add_query(_offer(query, inputs.config))
    for recording in _read_recordings(source, inputs):
        inputs.log.count("demonstrations read")
        if not staging.has_query(recording.instruction):
            inputs.log.count("queries read")
            query = replace(make_query(recording), environment=inputs.catalog.environment())
            staging.add_query(_offer(query, inputs.config))
        staging.add_recording(recording)
    if inputs.config.data.first:
        for text in _read_first_texts(source, inputs):
            staging.prefer(text)


def _run_source(read: Callable[[SourceInputs], Iterable[T]], kind: type[T], inputs: SourceInputs) -> Iterator[T]:
    """What a source yields. Raises IngestError where a source of the user's own fails or yields something else."""
    name = inputs.config.data.source
    try:
        for item in read(inputs):
            if not isinstance(item, kind):
                raise IngestError(f"data.source: '{name}' yields {item!r}; expected a {kind.__name__}")
            yield item
    except Exception as error:
        if name in SOURCES or isinstance(error, (IngestError, ConfigError)):
            raise
        raise IngestError(f"data.source: '{name}' failed: {describe_with_line(error)}") from error


def _offer(query: Query, config: Config) -> Query:
    """The query with the tools that a model of this configuration sees."""
    return replace(query, tools=tuple(offer_tools(query.tools, config.rollout.finish)))


def _read_recordings(source: Source, inputs: SourceInputs) -> Iterator[Recording]:
    """The recordings of the source, and those that stand beside it."""
    yield from _run_source(source.read_recordings, Recording, inputs)
    places = inputs.config.data.recorded_answers
    yield from read_recordings(places, "data.recorded_answers", inputs.catalog.tools, inputs.log)


def _read_first_texts(source: Source, inputs: SourceInputs) -> Iterator[str]:
    """Texts of the tasks and recordings in the files that `data.first` names."""
    config = inputs.config.model_copy(update={"data": keep_first_files(inputs.config.data)})
    first = SourceInputs(config, inputs.catalog, IngestLog())
    if config.data.paths:
        yield from (query.instruction for query in source.read_queries(first))
    yield from (recording.instruction for recording in _read_recordings(source, first))
