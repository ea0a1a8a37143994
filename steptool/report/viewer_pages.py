"""The pages of the viewer: which tasks each page shows, and its episodes.

All attempts at a task stand on one page, whatever file they come from, in the order in which tasks first appear. A page
ends with the task that makes it full. Memory holds four bytes for each row of each file, and the rows of one page.
"""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from steptool.records import Advantage, Evaluation, Query, StepReward, Trajectory
from steptool.records.columns import Row, from_row, get_schema
from steptool.records.tables import iterate_rows
from steptool.report.run_inputs import ScoredEpisode
from steptool.storage.sqlite import open_scratch_database

S = TypeVar("S", StepReward, Advantage)
Place = str | os.PathLike[str]

_TABLES = """
CREATE TABLE tasks (number INTEGER PRIMARY KEY, query_id TEXT NOT NULL UNIQUE, episodes INTEGER NOT NULL DEFAULT 1,
    example TEXT NOT NULL);
CREATE TABLE episodes (source INTEGER NOT NULL, trajectory_id TEXT NOT NULL, task INTEGER NOT NULL,
    PRIMARY KEY (source, trajectory_id)) WITHOUT ROWID;
"""
_COUNT_EPISODE = """
INSERT INTO tasks (query_id, example) VALUES (?, ?)
    ON CONFLICT (query_id) DO UPDATE SET episodes = episodes + 1 RETURNING number
"""
_QUERY_COLUMNS = ("query_id", "split", "tier", "instruction", "reference")
_NO_TASK = -1
"""Stands in place of a task's number for a query or a trajectory that no page shows."""


@dataclass(frozen=True)
class EpisodeFiles:
    """A file of trajectories, and the files of their scores where there are any."""

    trajectories: Path
    rewards: Path | None = None
    """Rewards by one annotator."""
    advantages: Path | None = None
    evaluations: Path | None = None
    """Verdicts that count in place of the environment's own and the annotator's."""


@dataclass(frozen=True)
class _PagedFile:
    """A file, and the page of each of its rows."""

    path: Path
    pages: npt.NDArray[np.int32]

    def select(self, page: int) -> npt.NDArray[np.bool_]:
        """The mask [rows] of a page."""
        mask: npt.NDArray[np.bool_] = self.pages == page
        return mask


@dataclass(frozen=True)
class _PagedSource:
    """The files of one model."""

    trajectories: _PagedFile
    rewards: _PagedFile | None
    advantages: _PagedFile | None
    evaluations: _PagedFile | None

    def episodes(self, page: int) -> Iterator[ScoredEpisode]:
        """The episodes of a page in the order of their file, without their tokens."""
        rewards, advantages = (
            _group_by_trajectory(self.rewards, StepReward, page),
            _group_by_trajectory(self.advantages, Advantage, page),
        )
        verdicts = _read_verdicts(self.evaluations, page)
        columns = [n for n in get_schema(Trajectory).names if n not in {"input_ids", "logprobs"}]
        file = self.trajectories
        for row in iterate_rows(file.path, Trajectory, batch_size=256, columns=columns, mask=file.select(page)):
            trajectory = from_row({**row, "input_ids": (), "logprobs": ()}, Trajectory)
            name = trajectory.trajectory_id
            is_solved = next((r.is_solved for r in rewards.get(name, ()) if r.is_solved is not None), None)
            verdict = verdicts.get(name, is_solved if trajectory.solved is None else None)
            yield ScoredEpisode(trajectory, rewards.get(name, ()), advantages.get(name, ()), verdict)


class PagePlan:
    """The episodes of some files of trajectories, cut into pages of about `size` episodes."""

    def __init__(self, queries: Place, sources: Sequence[EpisodeFiles], size: int) -> None:
        """Read the ids of all files.

        Raises ContractError for a file of another contract and ValueError for a trajectory whose query is not in
        `queries` or for scores by several annotators.
        """
        with closing(open_scratch_database(None, _TABLES)) as database:
            numbers = [_number_episodes(database, place, source) for place, source in enumerate(sources)]
            starts = _cut_pages(database, size)
            self.count = len(starts)
            self._queries = _store_queries(database, queries, starts)
            self._sources = [
                _store_source(database, place, source, task_numbers, starts)
                for place, (source, task_numbers) in enumerate(zip(sources, numbers, strict=True))
            ]

    def queries(self, page: int) -> Mapping[str, Row]:
        """The queries of a page, by their ids."""
        file = self._queries
        rows = iterate_rows(file.path, Query, columns=_QUERY_COLUMNS, mask=file.select(page))
        return {row["query_id"]: row for row in rows}

    def episodes(self, page: int) -> Iterator[tuple[int, ScoredEpisode]]:
        """The episodes of a page, each after the number of its source."""
        for place, source in enumerate(self._sources):
            for episode in source.episodes(page):
                yield place, episode


def _number_episodes(database: Connection, place: int, source: EpisodeFiles) -> npt.NDArray[np.int32]:
    """The number of the task of each trajectory [rows]; tasks are numbered from 1 as they first appear."""
    numbers = array("i")
    for row in iterate_rows(source.trajectories, Trajectory, columns=["trajectory_id", "query_id"]):
        (number,) = database.execute(_COUNT_EPISODE, (row["query_id"], row["trajectory_id"])).fetchone()
        database.execute("INSERT OR IGNORE INTO episodes VALUES (?, ?, ?)", (place, row["trajectory_id"], number))
        numbers.append(number)
    return np.array(numbers, np.int32)


def _cut_pages(database: Connection, size: int) -> npt.NDArray[np.int32]:
    """The number of the first task of each page [pages]; there is one page at least."""
    starts, on_page = array("i", [1]), 0
    for number, episodes in database.execute("SELECT number, episodes FROM tasks ORDER BY number"):
        if on_page >= size:
            starts.append(number)
            on_page = 0
        on_page += episodes
    return np.array(starts, np.int32)


def _find_pages(numbers: npt.NDArray[np.int32], starts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The page of each row [rows] by the number of its task, from 0; -1 for a row without a task."""
    pages = np.searchsorted(starts, numbers, side="right") - 1
    return np.where(numbers == _NO_TASK, -1, pages).astype(np.int32)


def _store_queries(database: Connection, path: Place, starts: npt.NDArray[np.int32]) -> _PagedFile:
    rows = iterate_rows(path, Query, columns=["query_id"])
    numbers = _number_rows((row["query_id"] for row in rows), database, "SELECT number FROM tasks WHERE query_id = ?")
    _require_queries(database, path, numbers)
    return _PagedFile(Path(path), _find_pages(numbers, starts))


def _require_queries(database: Connection, path: Place, numbers: npt.NDArray[np.int32]) -> None:
    (tasks,) = database.execute("SELECT count(*) FROM tasks").fetchone()
    missing = np.setdiff1d(np.arange(1, tasks + 1), numbers)
    if missing.size:
        task = "SELECT example, query_id FROM tasks WHERE number = ?"
        example, query_id = database.execute(task, (int(missing[0]),)).fetchone()
        raise ValueError(
            f"trajectory '{example}' is of the query '{query_id}', which is not in {path}: give the file of queries "
            "that the trajectories were made for"
        )


def _store_source(
    database: Connection,
    place: int,
    source: EpisodeFiles,
    numbers: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int32],
) -> _PagedSource:
    def page_scores(path: Path | None, cls: type) -> _PagedFile | None:
        if path is None:
            return None
        rows = iterate_rows(path, cls, columns=["trajectory_id"])
        find = f"SELECT task FROM episodes WHERE source = {place} AND trajectory_id = ?"
        return _PagedFile(path, _find_pages(_number_rows((r["trajectory_id"] for r in rows), database, find), starts))

    _check_annotator(source.rewards)
    return _PagedSource(
        _PagedFile(source.trajectories, _find_pages(numbers, starts)),
        page_scores(source.rewards, StepReward),
        page_scores(source.advantages, Advantage),
        page_scores(source.evaluations, Evaluation),
    )


def _number_rows(names: Iterable[str], database: Connection, find: str) -> npt.NDArray[np.int32]:
    """The number of the task of each name [rows]."""

    @lru_cache(1)  # the steps of a trajectory follow each other
    def number(name: str) -> int:
        row = database.execute(find, (name,)).fetchone()
        return row[0] if row else _NO_TASK

    return np.array(array("i", map(number, names)), np.int32)


def _group_by_trajectory(file: _PagedFile | None, cls: type[S], page: int) -> dict[str, list[S]]:
    records: dict[str, list[S]] = defaultdict(list)
    if file:
        for row in iterate_rows(file.path, cls, mask=file.select(page)):
            records[row["trajectory_id"]].append(from_row(row, cls))
    return dict(records)


def _read_verdicts(file: _PagedFile | None, page: int) -> dict[str, float]:
    columns = ["trajectory_id", "passed"]
    rows = iterate_rows(file.path, Evaluation, columns=columns, mask=file.select(page)) if file else ()
    return {row["trajectory_id"]: row["passed"] for row in rows}


def _check_annotator(path: Path | None) -> None:
    rows = iterate_rows(path, StepReward, columns=["annotator", "annotator_version"]) if path else ()
    annotators = {(row["annotator"], row["annotator_version"]) for row in rows}
    if len(annotators) > 1:
        raise ValueError(
            f"{path}: expected the scores of one annotator, got those of {sorted(annotators)}; give a file with one"
        )
