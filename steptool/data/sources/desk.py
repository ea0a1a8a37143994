"""The embedded world: tasks drawn from a seed, and the attempts of a scripted expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from steptool.data.sources.base import Source, SourceInputs
from steptool.environments.desk.expert import desk_demonstrations
from steptool.environments.desk.tasks import desk_queries
from steptool.records import Query, Trajectory


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
