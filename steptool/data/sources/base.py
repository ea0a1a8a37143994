"""What a source of tasks and recordings is, and the sources by name: those of this package and a class of your own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.data.ingest_log import IngestLog
from steptool.data.readers.files import find_files
from steptool.data.recordings.recording import Recording
from steptool.data.reference_solutions import play_reference_solutions
from steptool.data.tools import ToolCatalog
from steptool.environments.catalog import import_object
from steptool.records import Query, Trajectory


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
    "jsonl": "steptool.data.sources.own_tasks:OwnTasksSource",
    "recorded": "steptool.data.sources.builtin:RecordedSource",
    "toolbench": "steptool.data.sources.toolbench:ToolBenchSource",
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
