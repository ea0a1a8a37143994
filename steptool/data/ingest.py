"""From a source of tasks to the files that every run starts from: queries, demonstrations and what is known of them."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from steptool.config import Config
from steptool.contracts.columns import Row, to_row
from steptool.contracts.tables import write_rows
from steptool.data.files import narrowed
from steptool.data.intake import IngestError, IngestLog
from steptool.data.pool import Pool
from steptool.data.reference_solutions import played
from steptool.data.sources.answers import Answer, answer_query
from steptool.data.sources.own_tasks import read_tasks
from steptool.data.sources.recorded import read_answers
from steptool.data.sources.toolbench import read_instructions
from steptool.data.splits import SPLITS, check_splits
from steptool.data.tool_catalog import ToolCatalog
from steptool.records import Cost, Query, StepReward, Trajectory

QUERIES_FILE = "queries.parquet"
DEMONSTRATIONS_FILE = "demonstrations.parquet"
REWARDS_FILE = "recorded_rewards.parquet"
QUARANTINE_FILE = "quarantine.jsonl"
COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Ingested:
    """What was written.

    `counts` holds "queries read", "queries kept", "queries dropped: <reason>" and the same for "demonstrations"; read
    is kept and dropped together. Files that cannot be read (on) stand under "files dropped: <reason>". What was dropped
    for a fault is in the quarantine file, one JSON object a line.
    """

    queries_path: Path
    demonstrations_path: Path
    rewards_path: Path
    quarantine_path: Path
    counts_path: Path
    counts: dict[str, int]


@dataclass(frozen=True)
class _Material:
    """Rows of the three contracts, and the number of queries of each split."""

    splits: Mapping[str, int]
    queries: Iterable[Row]
    demonstrations: Iterable[Row]
    rewards: Iterable[Row] = ()


def ingest(config: Config, out_dir: str | Path, for_training: bool = True) -> Ingested:
    """Read the source, check every record, assign splits and write what is kept and what was set aside.

    Files are streamed: neither their number nor their size is limited by memory. What was read waits in a temporary
    folder beside `out_dir`. Raises IngestError, before anything is written, for input that cannot be used, and if there
    is no query at all or, for training, none of one of the splits or an evaluation on training queries.
    """
    if for_training and config.evaluation.split == "all":
        raise IngestError(
            "evaluation.split is all: a model that is trained here is measured on heldout or validation queries only; "
            "all is for workflows/evaluate.py"
        )
    started, out, ledger = time.perf_counter(), Path(out_dir).absolute(), IngestLog()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ingest-", dir=out.parent) as folder, Pool(Path(folder)) as pool:
        material = _desk(config, ledger) if config.data.source == "desk" else _files(config, pool, ledger)
        where = ", ".join(config.data.paths) or config.data.source
        check_splits(material.splits, len(SPLITS) if for_training else 1, where, ledger)
        ledger.count("queries kept", sum(material.splits.values()))
        out.mkdir(exist_ok=True)
        demonstrations = write_rows(out / DEMONSTRATIONS_FILE, material.demonstrations, Trajectory)
        rewards = write_rows(out / REWARDS_FILE, material.rewards, StepReward)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cost = Cost("ingest", seconds=time.perf_counter() - started, peak_memory_mb=memory)
        queries = write_rows(out / QUERIES_FILE, material.queries, Query, cost)
    quarantine, counts = ledger.write(out / QUARANTINE_FILE), dict(ledger.counts)
    (out / COUNTS_FILE).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return Ingested(queries, demonstrations, rewards, quarantine, out / COUNTS_FILE, counts)


def _desk(config: Config, ledger: IngestLog) -> _Material:
    from steptool.environments.desk.expert import desk_demonstrations
    from steptool.environments.desk.tasks import desk_queries

    queries = desk_queries(config)
    demonstrations = desk_demonstrations(config, queries)
    ledger.count("queries read", len(queries))
    for what in ("demonstrations read", "demonstrations kept"):
        ledger.count(what, len(demonstrations))
    splits = Counter(q.split for q in queries)
    return _Material(splits, map(to_row, queries), map(to_row, demonstrations))


def _files(config: Config, pool: Pool, ledger: IngestLog) -> _Material:
    offers = ToolCatalog(config)
    for query in _tasks(config, offers, ledger):
        pool.add_query(query)
    for answer in _answers(config, offers, ledger):
        if not pool.has_query(answer.query):
            ledger.count("queries read")
            pool.add_query(replace(answer_query(answer), environment=offers.environment()))
        pool.add_answer(answer)
    for text in _first(config, offers):
        pool.prefer(text)
    splits = pool.draw(config.data, ledger)
    recorded = config.data.source == "recorded" or config.data.recorded_answers
    shown = pool.demonstrations() if recorded else played(pool.playable_queries(), config, ledger)
    return _Material(splits, pool.query_rows(), map(to_row, shown), pool.reward_rows())


def _first(config: Config, offers: ToolCatalog) -> Iterator[str]:
    """Texts of the tasks and recordings in the files that `data.first` names."""
    if not config.data.first:
        return
    few = config.model_copy(update={"data": narrowed(config.data)})
    if few.data.paths and config.data.source != "recorded":
        yield from (query.instruction for query in _tasks(few, offers, IngestLog()))
    yield from (answer.query for answer in _answers(few, offers, IngestLog()))


def _tasks(config: Config, offers: ToolCatalog, ledger: IngestLog) -> Iterator[Query]:
    """Tasks of the source, apart from those of recordings."""
    data = config.data
    if data.source == "bfcl":
        yield from _bfcl(ledger)
        return
    if not data.paths:
        raise IngestError(f"data.paths: the source '{data.source}' needs at least one file or folder")
    if data.source == "jsonl":
        yield from read_tasks(data.paths, offers, ledger)
    elif data.source == "toolbench":
        for query in read_instructions(data.paths, ledger):
            yield replace(query, environment=offers.environment())


def _bfcl(ledger: IngestLog) -> list[Query]:
    from steptool.environments.bfcl.tasks import bfcl_queries

    queries = bfcl_queries()
    ledger.count("queries read", len(queries))
    return queries


def _answers(config: Config, offers: ToolCatalog, ledger: IngestLog) -> Iterator[Answer]:
    data = config.data
    if data.source == "recorded":
        yield from read_answers(data.paths, "data.paths", offers.tools, ledger)
    yield from read_answers(data.recorded_answers, "data.recorded_answers", offers.tools, ledger)
