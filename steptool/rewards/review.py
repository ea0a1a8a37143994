"""An audit of files: the rewards of a stage, a second opinion on them, and what an earlier run was given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Literal

import pyarrow.parquet as pq

from steptool.artifacts.contracts import REWARDS, Row, iter_rows
from steptool.artifacts.rows import iter_trajectories
from steptool.config import Config
from steptool.records import Trajectory
from steptool.rewards.annotators import annotator, score_steps
from steptool.rewards.audit import Audit, audit
from steptool.rewards.stream import QueryTable

LARGEST = 20_000
"""Trajectories that an audit looks at, evenly out of a file that has more."""

File = str | os.PathLike[str]


def review(queries: File, trajectories: File, rewards: File, config: Config, compare: File | None = None) -> Audit:
    """Audit the rewards of a file of trajectories.

    `compare` is another file of rewards: on the same trajectories it is one more opinion, else an earlier run in place
    of `rewards.audit.previous`. Raises ValueError where the rewards are about other trajectories.
    """
    known, episodes = QueryTable(queries), list(_some(trajectories))
    ids = {t.trajectory_id for t in episodes}
    rows = list(_about(rewards, ids))
    other = list(_about(compare, ids)) if compare else []
    if other and {r["annotator"] for r in other} & {r["annotator"] for r in rows}:
        other = [{**r, "annotator": f"{r['annotator']}, compared"} for r in other]
    rows += other
    second = config.rewards.audit.second
    if second and second not in {r["annotator"] for r in rows}:
        rows += score_steps(known, episodes, annotator(second))
    earlier = compare if compare and not other else config.rewards.audit.previous
    before = iter_rows(earlier, REWARDS) if earlier else ()
    reward: Literal["step", "final"] = "final" if config.ppo.algorithm == "rft" else config.ppo.reward
    return audit(known, episodes, rows, config.rewards, before, reward)


def _some(trajectories: File) -> Iterator[Trajectory]:
    step = -(-pq.read_metadata(trajectories).num_rows // LARGEST)
    return islice(iter_trajectories(trajectories), 0, None, max(1, step))


def _about(rewards: File, trajectory_ids: set[str]) -> Iterator[Row]:
    return (row for row in iter_rows(rewards, REWARDS) if row["trajectory_id"] in trajectory_ids)
