"""Demonstrations that nobody recorded: reference solutions, played in the environments of their tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby, islice
from pathlib import Path

from steptool.config import Config
from steptool.data.ingest_log import IngestError, IngestLog, Record, UnusableError
from steptool.environments.catalog import environment_class, open_environment
from steptool.policies.scripted import has_reference_calls, play_back, reference_calls
from steptool.records import Query, StepStatus, StopReason, Trajectory

KIND = "reference solutions"
"""The kind under which they are counted, apart from recorded demonstrations."""
_TASKS = Path("queries.parquet")
_SHOWN = 300
"""Characters of a failing call's answer that an error shows."""


def play_reference_solutions(queries: Iterable[Query], config: Config, log: IngestLog) -> Iterator[Trajectory]:
    """The reference solutions of the first queries that have one, as many as the warm start takes.

    Queries of an environment that knows only recordings are passed over. A solution is set aside if one of its calls
    fails (unless `data.keep_failing_solutions`), if the query's own `max_steps` cuts it short, or if the environment
    says that it does not solve its task. Raises IngestError where the environment's check fails.
    """
    solvable = (query for query in queries if _is_playable(query, config))
    limit = config.warm_start.demonstrations if config.warm_start.steps else 0
    for name, group in groupby(islice(solvable, limit), key=lambda query: query.environment):
        recordings = [(query, reference_calls(query)) for query in group]
        with closing(open_environment(name, config)) as environment:
            episodes = play_back(recordings, environment, limits=config.tools, policy="reference")
        _refuse_failed_checks(episodes)
        for episode in episodes:
            fault = _find_fault(episode, config.data.keep_failing_solutions)
            if fault:
                log.refuse(KIND, Record(_TASKS, episode.query_id, episode.messages), fault)
                continue
            log.count(f"{KIND} read")
            log.count(f"{KIND} kept")
            yield episode


def _find_fault(episode: Trajectory, keep_failing: bool) -> UnusableError | None:
    """Why a reference solution is no demonstration."""
    query = f"query '{episode.query_id}'"
    if episode.stop_reason is StopReason.STEP_LIMIT:
        detail = f"{query}: its max_steps ends it after {len(episode.steps)} steps; raise max_steps"
        return UnusableError("the reference solution takes more steps than its task's max_steps", detail)
    if not keep_failing:
        for number, step in enumerate(episode.steps):
            if step.status not in (StepStatus.OK, StepStatus.FINISH):
                call_text = f"{step.call.name}({json.dumps(dict(step.call.arguments))})" if step.call else "no call"
                detail = f"{query}: call {number}, {call_text}: {step.status}: {step.observation[:_SHOWN]}"
                return UnusableError("a call of the reference solution fails", detail)
    if episode.solved is not None and episode.solved <= 0:
        detail = f"{query}: the environment's verdict after the reference calls is {episode.solved}"
        return UnusableError("the reference solution does not solve its task", detail)
    return None


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
    return has_reference_calls(query) and not environment_class(query.environment, config).needs_recordings
