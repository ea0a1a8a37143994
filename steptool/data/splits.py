"""Which queries are trained on, tuned on and held out, and in which order rounds play the training queries.

The text of a query decides its split, and the numbers are exact where the configuration asks for it. What is kept can
be decided only when everything has been read. Until then it waits in a temporary database.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from types import TracebackType

from steptool.artifacts.metrics import LOST_GROUP
from steptool.config import DataConfig
from steptool.data.parsing import IngestError, IngestLog
from steptool.data.recordings.recording import (
    RecordedTurn,
    Recording,
    collect_recorded_rewards,
    make_trajectory,
    make_trajectory_id,
)
from steptool.records import Query, StepReward, Trajectory
from steptool.records.columns import Row, from_row, to_row
from steptool.storage.sqlite import open_scratch_database

SPLITS = ("train", "validation", "heldout")


def make_text_key(instruction: str) -> str:
    """What makes two instructions the same: the text without regard to white space."""
    return " ".join(instruction.split())


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(text.encode()).digest()[:16]


def split_sizes(data: DataConfig) -> dict[str, int]:
    """Queries kept at most, by split."""
    return dict(zip(SPLITS, (data.train_queries, data.validation_queries, data.heldout_queries), strict=True))


def draw_split(text: bytes, sizes: Mapping[str, int]) -> str:
    """The split of a text, by its digest, in the proportions of the sizes."""
    point = int.from_bytes(text[:8], "big") / 2**64 * sum(sizes.values())
    for split, size in sizes.items():
        point -= size
        if point < 0:
            return split
    return SPLITS[-1]


def compute_target_sizes(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Exact numbers of tasks by split: the sizes, or where there are fewer tasks their proportions of the total.

    Each split gets the whole part of its share; what is left goes to the largest remainders, the first of equals first.
    """
    requested_tasks = sum(sizes.values())
    if total >= requested_tasks:
        return dict(sizes)
    targets = {split: total * size // requested_tasks for split, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda split: -(total * sizes[split] % requested_tasks))
    for split in by_remainder[: total - sum(targets.values())]:
        targets[split] += 1
    return targets


def describe_missing_split(counts: Mapping[str, int], needed: int) -> str:
    """What is wrong where fewer than `needed` of the splits have a query; empty where enough of them have."""
    numbers = {split: counts.get(split, 0) for split in SPLITS}
    empty = [split for split, number in numbers.items() if not number]
    if len(SPLITS) - len(empty) >= needed:
        return ""
    return (
        f"the split '{empty[0]}' is empty (queries: {numbers}); give more tasks, give each task a split, or change the "
        "proportions data.train_queries : validation_queries : heldout_queries"
    )


_TABLES = """
CREATE TABLE queries (row INTEGER PRIMARY KEY, query_id TEXT NOT NULL UNIQUE, split TEXT NOT NULL,
    text BLOB NOT NULL, family BLOB NOT NULL, draw BLOB NOT NULL, kept INTEGER NOT NULL DEFAULT 0);
CREATE INDEX by_text ON queries (text);
CREATE TABLE fields (row INTEGER PRIMARY KEY, environment TEXT, instruction TEXT, tools TEXT, reference TEXT,
    source TEXT, tier TEXT, max_steps INTEGER, opening TEXT);
CREATE TABLE recordings (row INTEGER PRIMARY KEY, text BLOB NOT NULL, turns TEXT, solved REAL, rewards TEXT);
CREATE TABLE preferred (text BLOB PRIMARY KEY);
"""
_FIXED = """
CREATE TABLE fixed AS SELECT family, min(split) AS split, max(split) AS other FROM queries WHERE split <> ''
    GROUP BY family;
CREATE INDEX by_fixed ON fixed (family);
UPDATE queries SET split = fixed.split FROM fixed WHERE fixed.family = queries.family AND queries.split = '';
"""
_MOVABLE = """
SELECT family, count(*) FROM queries WHERE split = ? AND family NOT IN (SELECT family FROM fixed) GROUP BY family
    ORDER BY max(text IN (SELECT text FROM preferred)), max(text IN (SELECT text FROM recordings)), max(draw) DESC
"""
"""Families that may change their split, those first that a limit would leave out first."""
_PREFERRED = "queries.text IN (SELECT text FROM preferred)"
_KEEP = f"""
UPDATE queries SET kept = 1 WHERE row IN (SELECT row FROM queries WHERE split = ?
    ORDER BY {_PREFERRED} DESC, text IN (SELECT text FROM recordings) DESC, draw, query_id LIMIT ?)
"""
_DROPPED = """
SELECT iif(tier IN (SELECT tier FROM queries JOIN fields USING (row) WHERE kept), '', tier) AS lost, count(*)
    FROM queries JOIN fields USING (row) WHERE split = ? AND NOT kept GROUP BY lost ORDER BY lost
"""
"""Queries of a split that are not kept, by their tier where no query of that tier is kept in any split."""
_CHOOSE = f"""
CREATE TABLE chosen AS SELECT row AS query FROM queries WHERE kept ORDER BY {_PREFERRED} DESC, row
"""
_MATCH = """
CREATE TABLE samples AS SELECT recordings.row AS recording, query,
    row_number() OVER (PARTITION BY query ORDER BY recordings.row) - 1 AS sample
    FROM recordings JOIN (SELECT text, min(row) AS query FROM queries WHERE kept GROUP BY text) USING (text)
    ORDER BY recordings.row
"""
_SAMPLES = """
FROM samples CROSS JOIN recordings ON recordings.row = samples.recording
    CROSS JOIN queries ON queries.row = samples.query CROSS JOIN fields ON fields.row = samples.query
"""
_IN_ORDER = "ORDER BY samples.rowid"
_FIELDS = ("environment", "instruction", "tools", "reference", "source", "tier", "max_steps", "opening")


class StagingDatabase:
    """Queries and recordings in the order of reading. `draw` decides which are kept, and after it only these are read.

    Memory does not grow with what is in it. Queries get distinct ids: files of the same name in different folders may
    number alike.
    """

    def __init__(self, folder: Path) -> None:
        self._db = open_scratch_database(folder, _TABLES)
        self._repeats: dict[str, int] = {}
        """How often each repeated id has come."""

    def __enter__(self) -> StagingDatabase:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def add_query(self, query: Query) -> None:
        """Add a query; an empty split is to be drawn. Queries of one `reference.family` share a split."""
        row, key = to_row(query), make_text_key(query.instruction)
        family = make_text_key(query.reference.family or key)
        numbers = (digest(key), digest(family), digest(f"draw {key}"))
        number = self._insert(query.query_id, query.split, *numbers)
        fields = [row[name] for name in _FIELDS]
        self._db.execute("INSERT INTO fields VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (number, *fields))

    def _insert(self, query_id: str, *rest: str | bytes) -> int | None:
        """Insert a row under the id, or under the id with a number where the id is taken; the number of the row."""
        insert = "INSERT OR IGNORE INTO queries (query_id, split, text, family, draw) VALUES (?, ?, ?, ?, ?)"
        cursor = self._db.execute(insert, (query_id, *rest))
        while not cursor.rowcount:
            self._repeats[query_id] = self._repeats.get(query_id, 1) + 1
            cursor = self._db.execute(insert, (f"{query_id}~{self._repeats[query_id]}", *rest))
        return cursor.lastrowid

    def has_query(self, text: str) -> bool:
        """Whether a query of this text is there."""
        row = self._db.execute("SELECT 1 FROM queries WHERE text = ?", (digest(make_text_key(text)),)).fetchone()
        return row is not None

    def add_recording(self, recording: Recording) -> None:
        """Add a recording; it belongs to the query with its text."""
        turns = json.dumps(recording.turns, ensure_ascii=False)
        rewards = json.dumps(recording.rewards) if recording.rewards else None
        self._db.execute(
            "INSERT INTO recordings (text, turns, solved, rewards) VALUES (?, ?, ?, ?)",
            (digest(make_text_key(recording.instruction)), turns, recording.solved, rewards),
        )

    def prefer(self, text: str) -> None:
        """Keep and write the queries of this text before others. Their split does not change."""
        self._db.execute("INSERT OR IGNORE INTO preferred VALUES (?)", (digest(make_text_key(text)),))

    def draw(self, data: DataConfig, log: IngestLog) -> dict[str, int]:
        """Decide what is kept, and count what is dropped. Returns the number of queries kept of each split.

        A query without a split gets that of its family where the source names one for the family; else one is drawn by
        the hash of the text, in the proportions of the configured numbers. With `exact_splits`, families then move from
        splits with too many queries to those with too few. At most the configured number of each split is kept: those
        that are preferred first, then those with a recording, then a draw by the hash of the text. A tier of which no
        query is kept is counted by its name. Raises IngestError if the source names two splits for one family.
        """
        self._db.executescript(_FIXED)
        self._check_families()
        sizes = split_sizes(data)
        self._db.create_function("draw_split", 1, lambda family: draw_split(family, sizes), deterministic=True)
        self._db.execute("UPDATE queries SET split = draw_split(family) WHERE split = ''")
        self._db.execute("CREATE INDEX recorded ON recordings (text)")
        if data.exact_splits:
            self._fill(sizes)
        kept_counts = {split: self._db.execute(_KEEP, (split, limit)).rowcount for split, limit in sizes.items()}
        for split in sizes:
            for tier, number in self._db.execute(_DROPPED, (split,)).fetchall():
                tier_text = f", {LOST_GROUP} '{tier}'" if tier else ""
                log.count(f"queries dropped: more than data.{split}_queries{tier_text}", number)
        self._db.execute(_CHOOSE)
        self._match(log)
        return kept_counts

    def _fill(self, sizes: Mapping[str, int]) -> None:
        """Move families out of splits that have too many queries into those that have too few."""
        counts = {split: self._count("SELECT count(*) FROM queries WHERE split = ?", split) for split in sizes}
        targets = compute_target_sizes(sizes, sum(counts.values()))
        for target, origin in permutations(sizes, 2):
            room = min(targets[target] - counts[target], counts[origin] - targets[origin])
            if room <= 0:
                continue
            for family, size in self._db.execute(_MOVABLE, (origin,)).fetchall():
                if size <= room:
                    self._db.execute("UPDATE queries SET split = ? WHERE family = ?", (target, family))
                    room, counts[target], counts[origin] = room - size, counts[target] + size, counts[origin] - size
                if not room:
                    break

    def _check_families(self) -> None:
        """Raise IngestError where the source names two splits for one family."""
        row = self._db.execute("SELECT family, split, other FROM fixed WHERE split <> other LIMIT 1").fetchone()
        if row is None:
            return
        family, *splits = row
        first = "SELECT query_id FROM queries WHERE family = ? AND split = ? ORDER BY row LIMIT 1"
        ids = [self._db.execute(first, (family, split)).fetchone()[0] for split in splits]
        raise IngestError(
            f"the tasks '{ids[0]}' ({splits[0]}) and '{ids[1]}' ({splits[1]}) have the same instruction or "
            "reference.family in two splits; what is held out must not be trained on"
        )

    def _match(self, log: IngestLog) -> None:
        self._db.execute(_MATCH)
        kept_count, read_count = (self._count(f"SELECT count(*) FROM {table}") for table in ("samples", "recordings"))
        if read_count:
            log.count("demonstrations kept", kept_count)
        if dropped_count := read_count - kept_count:
            log.count("demonstrations dropped: their query was not kept", dropped_count)

    def _count(self, sql: str, *values: str) -> int:
        return int(self._db.execute(sql, values).fetchone()[0])

    def query_rows(self) -> Iterator[Row]:
        """Rows of the queries that are kept: preferred ones first, otherwise in the order of reading."""
        return self._iterate_rows()

    def training_queries(self) -> Iterator[Query]:
        """The training queries among them, in the same order."""
        return (from_row(row, Query) for row in self._iterate_rows("WHERE split = 'train'"))

    def _iterate_rows(self, condition: str = "") -> Iterator[Row]:
        columns = ("query_id", "split", *_FIELDS)
        rows = self._db.execute(
            f"SELECT {', '.join(columns)} FROM chosen CROSS JOIN queries ON queries.row = query "
            f"CROSS JOIN fields ON fields.row = query {condition} ORDER BY chosen.rowid"
        )
        return (dict(zip(columns, values, strict=True)) for values in rows)

    def demonstrations(self) -> Iterator[Trajectory]:
        """The recordings of the kept queries as trajectories, in the order of reading."""
        columns = "query_id, environment, instruction, tier, opening, sample, turns, solved"
        for query_id, environment, instruction, tier, opening, sample, turns, solved in self._db.execute(
            f"SELECT {columns} {_SAMPLES} {_IN_ORDER}"
        ):
            messages = tuple(json.loads(opening))
            query = Query(query_id, "", environment, instruction, (), tier=tier, opening=messages)
            yield make_trajectory([RecordedTurn(*turn) for turn in json.loads(turns)], solved, query, sample)

    def step_rewards(self) -> Iterator[StepReward]:
        """The step rewards of the recordings that bring rewards along."""
        for query_id, sample, rewards in self._db.execute(
            f"SELECT query_id, sample, rewards {_SAMPLES} WHERE rewards IS NOT NULL {_IN_ORDER}"
        ):
            yield from collect_recorded_rewards(make_trajectory_id(query_id, sample), json.loads(rewards))


def draw_round_positions(total: int, episodes: int, round_index: int, seed: int) -> list[int]:
    """Positions in [0, total) of the queries of a round, one for each episode.

    Rounds read on in one endless sequence: all positions in a shuffled order, then all of them in another one, and so
    on. No position comes a second time before every other has come once. Raises ValueError for an empty set.
    """
    if total < 1:
        raise ValueError("there is nothing to draw a round from: expected at least one training query")
    positions: list[int] = []
    start = round_index * episodes
    while len(positions) < episodes:
        epoch, offset = divmod(start + len(positions), total)
        positions += _shuffle(total, seed, epoch)[offset : offset + episodes - len(positions)]
    return positions


def select_shard_positions(
    total: int, episodes: int, round_index: int, seed: int, *, shard: int, shards: int
) -> list[int]:
    """The part of a round's positions that falls to one shard.

    The shards of a round hold each of its positions once. A position that the round holds several times stays in one
    shard, which can then number its samples. Raises ValueError for a shard that would stay empty.
    """
    if not 0 <= shard < shards:
        raise ValueError(f"expected a shard from 0 to {shards - 1}, got {shard}")
    positions = draw_round_positions(total, episodes, round_index, seed)
    of_shard = set(list(dict.fromkeys(positions))[shard::shards])
    if not of_shard:
        raise ValueError(
            f"a round of {episodes} episodes on {total} training queries does not fill {shards} shards; "
            "lower rollout.shards"
        )
    return [p for p in positions if p in of_shard]


def _shuffle(total: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(total), total)
