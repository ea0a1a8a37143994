"""The multi-turn tasks of the installed package bfcl-eval."""

from __future__ import annotations

from collections.abc import Iterator

from steptool.data.sources.base import Source, SourceInputs
from steptool.environments.bfcl.tasks import bfcl_queries
from steptool.records import Query


class BfclSource(Source):
    """BFCL's tasks with their reference solutions."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks, in the order of the package."""
        return iter(bfcl_queries())
