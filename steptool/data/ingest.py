"""From a source of tasks to the two files that every run starts from: queries and demonstrations."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steptool.config import Config
from steptool.contracts import Cost
from steptool.data.intake import IngestError, Ledger
from steptool.data.own_tasks import read_tasks
from steptool.data.recorded import Answer, answer_query, demonstration, read_answers
from steptool.data.splits import check_splits, limited, text_key, with_splits
from steptool.data.toolbench import read_instructions
from steptool.records import write_queries, write_trajectories
from steptool.trajectory import Query, Trajectory

QUERIES_FILE = "queries.parquet"
DEMONSTRATIONS_FILE = "demonstrations.parquet"
QUARANTINE_FILE = "quarantine.jsonl"


@dataclass(frozen=True)
class Ingested:
    """What was written. `counts` holds "queries read", "queries kept", "queries dropped: <reason>" and the same for
    "demonstrations"; the records dropped for a fault stand in the quarantine file, one JSON object a line."""

    queries_path: Path
    demonstrations_path: Path
    quarantine_path: Path
    counts: dict[str, int]


def ingest(config: Config, out_dir: str | Path) -> Ingested:
    """Read the source, check every record, assign splits and write queries, demonstrations and what was set aside.

    Raises IngestError, before anything is written, for input that cannot be used and for a split that stays empty.
    """
    started, out, ledger = time.perf_counter(), Path(out_dir), Ledger()
    queries, demonstrations = _desk(config, ledger) if config.data.source == "desk" else _files(config, ledger)
    check_splits(queries, ", ".join(config.data.paths) or config.data.source, ledger)
    ledger.count("queries kept", len(queries))
    ledger.count("demonstrations kept", len(demonstrations))
    out.mkdir(parents=True, exist_ok=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cost = Cost("ingest", seconds=time.perf_counter() - started, peak_memory_mb=memory)
    return Ingested(
        write_queries(out / QUERIES_FILE, queries, cost),
        write_trajectories(out / DEMONSTRATIONS_FILE, demonstrations),
        ledger.write(out / QUARANTINE_FILE),
        dict(ledger.counts),
    )


def _desk(config: Config, ledger: Ledger) -> tuple[list[Query], list[Trajectory]]:
    from steptool.tools.desk.expert import desk_demonstrations
    from steptool.tools.desk.tasks import desk_queries

    queries = desk_queries(config)
    demonstrations = desk_demonstrations(config, queries)
    ledger.count("queries read", len(queries))
    ledger.count("demonstrations read", len(demonstrations))
    return queries, demonstrations


def _files(config: Config, ledger: Ledger) -> tuple[list[Query], list[Trajectory]]:
    if not config.data.paths:
        raise IngestError(f"data.paths: the source '{config.data.source}' needs at least one file or folder")
    read = read_tasks if config.data.source == "jsonl" else read_instructions
    found = list(read(config.data.paths, ledger))
    answers = list(read_answers(config.data.recorded_answers, ledger))
    carried = list(_carried(answers, found))
    ledger.count("queries read", len(carried))
    queries = with_splits(list(_with_ids([*found, *carried])), config.data)
    queries = limited(queries, {text_key(a.query) for a in answers}, config.data, ledger)
    return queries, list(_demonstrations(queries, answers, ledger))


def _carried(answers: Iterable[Answer], queries: Iterable[Query]) -> Iterator[Query]:
    """The queries of those recorded answers whose text no instruction has."""
    known = {text_key(q.instruction) for q in queries}
    for answer in answers:
        key = text_key(answer.query)
        if key not in known:
            known.add(key)
            yield answer_query(answer)


def _with_ids(queries: Iterable[Query]) -> Iterator[Query]:
    """Queries with distinct ids: files of the same name in different folders may number alike."""
    seen: set[str] = set()
    for query in queries:
        number, query_id = 1, query.query_id
        while query_id in seen:
            number += 1
            query_id = f"{query.query_id}~{number}"
        seen.add(query_id)
        yield replace(query, query_id=query_id)


def _demonstrations(queries: Sequence[Query], answers: Iterable[Answer], ledger: Ledger) -> Iterator[Trajectory]:
    by_text = {text_key(q.instruction): q for q in reversed(queries)}
    samples: dict[str, int] = {}
    for answer in answers:
        query = by_text.get(text_key(answer.query))
        if query is None:
            ledger.count("demonstrations dropped: their query was not kept")
            continue
        sample = samples[query.query_id] = samples.get(query.query_id, -1) + 1
        yield demonstration(answer, query, sample)
