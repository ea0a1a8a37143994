"""Which queries are played: by a shard of a round, and by an evaluation.

The queries of a shard follow from the configuration's seed, so that a shard that is run again draws the same.
"""

from __future__ import annotations

import os
import random

import pyarrow.compute as pc

from steptool.config import Config, EvaluationConfig
from steptool.records import Query, Trajectory
from steptool.records.columns import from_row
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, read_table


def evaluation_queries(
    queries: str | os.PathLike[str], demonstrations: str | os.PathLike[str], settings: EvaluationConfig
) -> list[Query]:
    """The queries of a file that an evaluation plays. Raises ValueError if there is none."""
    chosen = read_queries(queries, None if settings.split == "all" else settings.split)
    if settings.recorded_only:
        recorded = {t.query_id for t in read_records(demonstrations, Trajectory)}
        chosen = [q for q in chosen if q.query_id in recorded]
    if not chosen:
        raise ValueError(
            f"evaluation.recorded_only: no query of the split '{settings.split}' has a recorded answer; "
            "name recordings in data.recorded_answers"
        )
    return chosen


def round_queries(path: str | os.PathLike[str], config: Config, round_index: int, shard: int) -> list[Query]:
    """The training queries of one shard of a round, one for each episode. Only these are parsed."""
    table = read_table(path, Query)
    train = table.filter(pc.equal(table["split"], "train"))
    rollout = config.rollout
    positions = shard_positions(
        train.num_rows, rollout.episodes, round_index, config.seed, shard=shard, shards=rollout.shards
    )
    return [from_row(row, Query) for row in train.take(positions).to_pylist()]


def round_positions(total: int, episodes: int, round_index: int, seed: int) -> list[int]:
    """Positions in [0, total) of the queries of a round, one for each episode.

    Rounds read on in one endless sequence: all positions in a shuffled order, then all of them in another one, and so
    on. None comes twice before every other came once. Raises ValueError where there is nothing to draw from.
    """
    if total < 1:
        raise ValueError("there is nothing to draw a round from: expected at least one training query")
    drawn: list[int] = []
    start = round_index * episodes
    while len(drawn) < episodes:
        epoch, offset = divmod(start + len(drawn), total)
        drawn += _shuffle(total, seed, epoch)[offset : offset + episodes - len(drawn)]
    return drawn


def shard_positions(total: int, episodes: int, round_index: int, seed: int, *, shard: int, shards: int) -> list[int]:
    """The part of a round's positions that falls to one shard.

    The shards of a round hold each of its positions once. A position that the round holds several times stays in one
    shard, which can then number its samples. Raises ValueError for a shard that would stay empty.
    """
    if not 0 <= shard < shards:
        raise ValueError(f"expected a shard from 0 to {shards - 1}, got {shard}")
    drawn = round_positions(total, episodes, round_index, seed)
    kept = set(list(dict.fromkeys(drawn))[shard::shards])
    if not kept:
        raise ValueError(
            f"a round of {episodes} episodes on {total} training queries does not fill {shards} shards; "
            "lower rollout.shards"
        )
    return [p for p in drawn if p in kept]


def _shuffle(total: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(total), total)
