"""The tasks of recorded trajectories."""

from __future__ import annotations

from collections.abc import Iterator

from steptool.data.readers.files import SUFFIXES
from steptool.data.recordings.forms import read_recordings
from steptool.data.recordings.recording import Recording
from steptool.data.sources.base import Source, SourceInputs


class RecordedSource(Source):
    """Recordings of any form, each of which brings its own task."""

    suffixes = SUFFIXES
    may_leave_out_long_prompts = True

    def read_recordings(self, inputs: SourceInputs) -> Iterator[Recording]:
        """The recordings of `data.paths`."""
        return read_recordings(inputs.config.data.paths, "data.paths", inputs.catalog.tools, inputs.log)
