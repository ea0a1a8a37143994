"""Sources by name: those of this package in a table, and a class that the configuration names."""

from __future__ import annotations

import inspect

from steptool.config.base import ConfigError
from steptool.data.sources.base import Source
from steptool.environments.catalog import import_object

SOURCES = {
    "bfcl": "steptool.data.sources.bfcl:BfclSource",
    "desk": "steptool.data.sources.desk:DeskSource",
    "jsonl": "steptool.data.sources.own_tasks:OwnTasksSource",
    "recorded": "steptool.data.sources.recorded:RecordedSource",
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
