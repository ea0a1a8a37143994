"""Demonstrations that nobody recorded: reference solutions, played in the environments of their tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import groupby, islice

from steptool.config import Config
from steptool.data.intake import IngestLog
from steptool.environments.catalog import environment_class, open_environment
from steptool.policies.scripted import play_back, reference_calls
from steptool.records import Query, Trajectory

_UNSOLVED = "demonstrations dropped: the reference solution does not solve its task"


def played(queries: Iterable[Query], config: Config, ledger: IngestLog) -> Iterator[Trajectory]:
    """The reference solutions of the first training queries that have one, as many as the warm start takes.

    Queries of an environment that knows only recordings are passed over. A solution that does not solve
    its task, by the environment's verdict, is counted and left out.
    """
    solvable = (q for q in queries if q.split == "train" and _is_playable(q, config))
    wanted = config.warm_start.demonstrations if config.warm_start.steps else 0
    for name, group in groupby(islice(solvable, wanted), key=lambda query: query.environment):
        recordings = [(query, reference_calls(query)) for query in group]
        ledger.count("demonstrations read", len(recordings))
        with closing(open_environment(name, config)) as environment:
            episodes = play_back(
                recordings, environment, rollout=config.rollout, limits=config.tools, policy="reference"
            )
        good = [t for t in episodes if t.solved is None or t.solved > 0]
        ledger.count("demonstrations kept", len(good))
        if len(good) < len(episodes):
            ledger.count(_UNSOLVED, len(episodes) - len(good))
        yield from good


def _is_playable(query: Query, config: Config) -> bool:
    """Whether the query has a reference solution and an environment that can execute it."""
    executable = not environment_class(query.environment, config).needs_recordings
    return executable and bool(query.reference.get("calls") or query.reference.get("turns"))
