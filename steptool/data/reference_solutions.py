"""Demonstrations that nobody recorded: reference solutions, played in the environments of their tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby, islice

from steptool.config import Config
from steptool.data.ingest_log import IngestError, IngestLog
from steptool.environments.catalog import environment_class, open_environment
from steptool.policies.scripted import play_back, reference_calls
from steptool.records import Query, StopReason, Trajectory

_UNSOLVED = "demonstrations dropped: the reference solution does not solve its task"
_TOO_LONG = "demonstrations dropped: the reference solution takes more steps than its task's max_steps"


def play_reference_solutions(queries: Iterable[Query], config: Config, log: IngestLog) -> Iterator[Trajectory]:
    """The reference solutions of the first queries that have one, as many as the warm start takes.

    Queries of an environment that knows only recordings are passed over. A solution that does not solve
    its task, by the environment's verdict, is counted and left out. Raises IngestError where the environment's check
    fails.
    """
    solvable = (query for query in queries if _is_playable(query, config))
    limit = config.warm_start.demonstrations if config.warm_start.steps else 0
    for name, group in groupby(islice(solvable, limit), key=lambda query: query.environment):
        recordings = [(query, reference_calls(query)) for query in group]
        log.count("demonstrations read", len(recordings))
        with closing(open_environment(name, config)) as environment:
            episodes = play_back(recordings, environment, limits=config.tools, policy="reference")
        _refuse_failed_checks(episodes)
        whole = [episode for episode in episodes if episode.stop_reason is not StopReason.STEP_LIMIT]
        solved = [episode for episode in whole if episode.solved is None or episode.solved > 0]
        log.count("demonstrations kept", len(solved))
        if len(whole) < len(episodes):
            log.count(_TOO_LONG, len(episodes) - len(whole))
        if len(solved) < len(whole):
            log.count(_UNSOLVED, len(whole) - len(solved))
        yield from solved


def _refuse_failed_checks(episodes: Sequence[Trajectory]) -> None:
    """Raise IngestError where the environment's check fails on a reference solution, since it would on others too."""
    failed = [episode for episode in episodes if episode.check_error]
    if failed:
        raise IngestError(
            f"the check of the task '{failed[0].query_id}' failed on its reference solution: {failed[0].check_error} "
            f"({len(failed)} of {len(episodes)} reference solutions); mend the check, since its verdicts decide what "
            "is learned and measured"
        )


def _is_playable(query: Query, config: Config) -> bool:
    """Whether the query has a reference solution and an environment that can execute it."""
    executable = not environment_class(query.environment, config).needs_recordings
    return executable and bool(query.reference.calls or query.reference.turns)
