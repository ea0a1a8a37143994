"""Sources without task files: the embedded world, the installed package bfcl-eval, and recorded trajectories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from steptool.data.readers.files import SUFFIXES
from steptool.data.recordings.forms import read_recordings
from steptool.data.recordings.recording import Recording
from steptool.data.sources.base import Source, SourceInputs
from steptool.environments.bfcl.tasks import bfcl_queries
from steptool.environments.desk.expert import desk_demonstrations
from steptool.environments.desk.tasks import desk_queries
from steptool.records import Query, Trajectory


class BfclSource(Source):
    """BFCL's tasks with their reference solutions."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks, in the order of the package."""
        return iter(bfcl_queries())


class DeskSource(Source):
    """As many tasks of each split as the configuration names."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks of all splits."""
        return iter(desk_queries(inputs.config))

    def make_demonstrations(self, queries: Iterable[Query], inputs: SourceInputs) -> Iterator[Trajectory]:
        """The expert's attempts at training tasks, as many as the warm start takes."""
        demonstrations = desk_demonstrations(inputs.config, list(queries))
        for name in ("demonstrations read", "demonstrations kept"):
            inputs.log.count(name, len(demonstrations))
        return iter(demonstrations)


class RecordedSource(Source):
    """Recordings of any form, each of which brings its own task."""

    suffixes = SUFFIXES
    may_leave_out_long_prompts = True

    def read_recordings(self, inputs: SourceInputs) -> Iterator[Recording]:
        """The recordings of `data.paths`."""
        return read_recordings(inputs.config.data.paths, "data.paths", inputs.catalog.tools, inputs.log)
