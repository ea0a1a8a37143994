"""The tasks that are played, and which of them a shard of a round and an evaluation take.

The queries of a shard follow from the configuration's seed, so that a shard that is run again draws the same.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from steptool.artifacts.lineage import QUERIES
from steptool.config import Config, EvaluationConfig
from steptool.environments.base import environment_class
from steptool.records import Query, Trajectory
from steptool.records.columns import from_row
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, read_table

_RECORDINGS = "recordings.parquet"


class TaskSet:
    """A folder with the queries that are played and, where something answers from them, with recorded trajectories.

    An environment that replays, a policy that plays back and an evaluation of recorded queries alone need recordings.
    Without any of these the folder holds the queries alone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def write(cls, folder: str | Path, queries: Path, demonstrations: Path, config: Config) -> TaskSet:
        """Copy the file of queries into a new folder and, if the configuration needs them, that of demonstrations."""
        tasks = cls(folder)
        tasks.folder.mkdir(parents=True)
        shutil.copyfile(queries, tasks.folder / QUERIES)
        if _needs_recordings(queries, config):
            shutil.copyfile(demonstrations, tasks.folder / _RECORDINGS)
        return tasks

    def recordings(self) -> list[Trajectory]:
        """The recorded trajectories; empty where nothing needs them."""
        path = self.folder / _RECORDINGS
        return read_records(path, Trajectory) if path.exists() else []

    def evaluation_queries(self, settings: EvaluationConfig) -> list[Query]:
        """The queries that an evaluation plays. Raises ValueError if no query is left."""
        queries = read_queries(self.folder / QUERIES, None if settings.split == "all" else settings.split)
        if settings.recorded_only:
            recorded_ids = {t.query_id for t in self.recordings()}
            queries = [q for q in queries if q.query_id in recorded_ids]
        if not queries:
            raise ValueError(
                f"evaluation.recorded_only: no query of the split '{settings.split}' has a recorded answer; "
                "name recordings in data.recorded_answers"
            )
        return queries

    def round_queries(self, config: Config, round_index: int, shard: int) -> list[Query]:
        """The training queries of one shard of a round, one for each episode. Only these are parsed.

        With `rollout.samples_per_query` each query comes that many times in a row, all in one shard.
        """
        table = read_table(self.folder / QUERIES, Query)
        train = table.filter(pc.equal(table["split"], "train"))
        rollout, tries = config.rollout, config.rollout.samples_per_query
        positions = shard_positions(
            train.num_rows, rollout.episodes // tries, round_index, config.seed, shard=shard, shards=rollout.shards
        )
        return [query for row in train.take(positions).to_pylist() for query in [from_row(row, Query)] * tries]


def round_positions(total: int, episodes: int, round_index: int, seed: int) -> list[int]:
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


def shard_positions(total: int, episodes: int, round_index: int, seed: int, *, shard: int, shards: int) -> list[int]:
    """The part of a round's positions that falls to one shard.

    The shards of a round hold each of its positions once. A position that the round holds several times stays in one
    shard, which can then number its samples. Raises ValueError for a shard that would stay empty.
    """
    if not 0 <= shard < shards:
        raise ValueError(f"expected a shard from 0 to {shards - 1}, got {shard}")
    positions = round_positions(total, episodes, round_index, seed)
    of_shard = set(list(dict.fromkeys(positions))[shard::shards])
    if not of_shard:
        raise ValueError(
            f"a round of {episodes} episodes on {total} training queries does not fill {shards} shards; "
            "lower rollout.shards"
        )
    return [p for p in positions if p in of_shard]


def _needs_recordings(queries: Path, config: Config) -> bool:
    """Whether anything answers from recorded trajectories: an environment of the queries, or the evaluation."""
    evaluation = config.evaluation
    if evaluation.recorded_only or any(p.kind == "playback" and not p.recordings for p in evaluation.policies):
        return True
    names = pq.read_table(queries, columns=["environment"])["environment"].unique().to_pylist()
    return any(environment_class(name, config).needs_recordings for name in names)


def _shuffle(total: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(total), total)
