"""What a source of tasks and recordings is, and the sources by name.

A configuration names a source of this package or a class of your own. Where tasks have reference solutions and
recordings are missing, the solutions are played in the environments of their tasks and become demonstrations.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import ClassVar

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.data.files import find_files
from steptool.data.parsing import IngestError, IngestLog, Record, UnusableError
from steptool.data.recordings.recording import Recording
from steptool.data.tools import ToolCatalog
from steptool.environments.base import environment_class, import_object, open_environment
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


@dataclass(frozen=True)
class SourceInputs:
    """What a source works with."""

    config: Config
    catalog: ToolCatalog
    """The tools of environments, for tasks that list none."""
    log: IngestLog
    """Receives the records that cannot be used: `log.refuse("queries", record, error)`."""

    def files(self, suffixes: tuple[str, ...]) -> Iterator[Path]:
        """The files of `data.paths`, and those with one of the suffixes below its folders, in a fixed order."""
        return find_files(self.config.data.paths, "data.paths", suffixes)


class Source:
    """Where tasks, recordings and demonstrations come from.

    A subclass overrides what it has. This one reads a task from each text file:

        class Notes(Source):
            suffixes = (".txt",)

            def read_queries(self, inputs):
                environment, tools = inputs.catalog.environment(), inputs.catalog.tools()
                for file in inputs.files(self.suffixes):
                    yield Query(file.stem, "", environment, file.read_text(), tools)

    `data.source: "notes.py:Notes"` names it. It is made without arguments.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the files that it reads below folders of `data.paths`; empty for a source without files."""
    may_leave_out_long_prompts: ClassVar[bool] = False
    """Whether tasks whose prompts do not fit the model's context are left out; else the first of them ends the run."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks in a fixed order; an empty split is drawn later. Ingest counts what is yielded as read."""
        return iter(())

    def read_recordings(self, inputs: SourceInputs) -> Iterator[Recording]:
        """Recorded trajectories; each belongs to the task with its text, or brings its own task along."""
        return iter(())

    def make_demonstrations(self, queries: Iterable[Query], inputs: SourceInputs) -> Iterator[Trajectory]:
        """Make demonstrations for the training queries that are kept, and count them in the log.

        Without an override these are the reference solutions, played in the environments of their tasks.
        """
        return play_reference_solutions(queries, inputs.config, inputs.log)


SOURCES = {
    "bfcl": "steptool.data.sources.builtin:BfclSource",
    "desk": "steptool.data.sources.builtin:DeskSource",
    "environment": "steptool.data.sources.builtin:EnvironmentSource",
    "jsonl": "steptool.data.sources.builtin:OwnTasksSource",
    "recorded": "steptool.data.sources.builtin:RecordedSource",
    "toolbench": "steptool.data.sources.builtin:ToolBenchSource",
}
"""The sources of this package: their names and the places of their classes, imported when one is opened."""


def open_source(name: str) -> Source:
    """The source of that name, or of the user's own class `package.module:Class` or `path/to/file.py:Class`.

    Raises ConfigError if there is no such class, and if the class is no source.
    """
    source = import_object(SOURCES.get(name, name), "data.source", "a class of sources")
    if not (inspect.isclass(source) and issubclass(source, Source)):
        raise ConfigError(f"data.source: expected a subclass of {Source.__module__}.Source, got {source!r}")
    return source()
