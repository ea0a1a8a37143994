"""Sources of tasks and recordings: what a source is, the sources by name, and those that come with StepTool.

A configuration names a source of this module or a class of your own. Those of this module read own tasks, those of an
environment, instruction files of ToolBench, the embedded world, the installed package bfcl-eval, and recorded
trajectories. Where tasks have reference solutions and recordings are missing, the solutions are played in the
environments of their tasks and become demonstrations.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar

from steptool.config import Config
from steptool.config.base import ConfigError, suggest_spelling
from steptool.data.files import SUFFIXES, find_files, parse_records, read_file, strip_suffixes
from steptool.data.parsing import (
    IngestError,
    IngestLog,
    Record,
    UnusableError,
    cut_excerpt,
    get_optional,
    require,
    require_text,
)
from steptool.data.recordings.forms import read_recordings
from steptool.data.recordings.recording import Recording
from steptool.data.splits import SPLITS
from steptool.data.tools import (
    ToolCatalog,
    add_finish,
    check_and_add_finish,
    make_tool_schemas,
)
from steptool.environments.base import (
    TransportError,
    describe_with_line,
    find_environment_class,
    import_object,
    open_environment,
)
from steptool.environments.bfcl_tasks import read_bfcl_queries
from steptool.environments.desk.tasks import draw_desk_queries, make_desk_demonstrations
from steptool.environments.toolbench import REFERENCE, make_endpoint
from steptool.policies.text_policies import has_reference_calls, list_reference_calls, play_back
from steptool.records import Query, Reference, StepStatus, StopReason, ToolSchema, Trajectory

KIND = "reference solutions"
"""The kind under which they are counted, apart from recorded demonstrations."""
_TASKS = Path("queries.parquet")
_SHOWN = 300
"""Characters of a failing call's answer that an error shows."""
_FIELDS = ("instruction", "tools", "environment", "id", "split", "reference", "tier", "max_steps")
_MOST_STEPS = 2**31 - 1
"""The largest number that the column of queries holds."""


def play_reference_solutions(queries: Iterable[Query], config: Config, log: IngestLog) -> Iterator[Trajectory]:
    """The reference solutions of the first queries that have one, as many as the warm start takes.

    Queries of an environment that knows only recordings are passed over. A solution is set aside if one of its calls
    fails (unless `data.keep_failing_solutions`), if the query's own `max_steps` cuts it short, or if the environment
    says that it does not solve its task. Raises IngestError where the environment's check fails.
    """
    solvable = (query for query in queries if _is_playable(query, config))
    limit = config.warm_start.demonstrations if config.warm_start.steps else 0
    for name, group in groupby(islice(solvable, limit), key=lambda query: query.environment):
        recordings = [(query, list_reference_calls(query)) for query in group]
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
    failed_episodes = [episode for episode in episodes if episode.check_error]
    if failed_episodes:
        raise IngestError(
            f"the check of the task '{failed_episodes[0].query_id}' failed on its reference solution: "
            f"{failed_episodes[0].check_error} ({len(failed_episodes)} of {len(episodes)} reference solutions); "
            "mend the check, since its verdicts decide what is learned and measured"
        )


def _is_playable(query: Query, config: Config) -> bool:
    """Whether the query has a reference solution and an environment that can execute it."""
    return has_reference_calls(query) and not find_environment_class(query.environment, config).needs_recordings


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
    draws_tasks: ClassVar[bool] = False
    """Whether it reads nothing, and draws as many tasks as the configuration asks for."""
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


class OwnTasksSource(Source):
    """Tasks of the user's own, in JSONL files.

    A task without a split is drawn one later; a task without tools has those of its environment. The first task that is
    not well formed ends the reading: users mend their own tasks.
    """

    suffixes = (".jsonl",)

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks. Raises IngestError naming the file, the line and the field of one that is not well formed."""
        places: dict[str, tuple[Path, int | str | None]] = {}
        for file in inputs.files(self.suffixes):
            for record in read_file(file):
                query, place = _read_query(record, inputs.catalog), (record.file, record.row)
                if query.query_id and places.setdefault(query.query_id, place) != place:
                    first, line = places[query.query_id]
                    detail = f"'{query.query_id}' is also the id of {first}, line {line}"
                    raise IngestError(f"{_describe_place(record)}: field 'id': {detail}")
                yield query if query.query_id else replace(query, query_id=f"{strip_suffixes(file)}-{record.row}")


class EnvironmentSource(Source):
    """The tasks that the environment `data.environment` itself lists, such as those of a taskset or of a server."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks. Raises IngestError for an environment without tasks, and for one that is not well formed."""
        name = inputs.catalog.environment()
        with closing(open_environment(name, inputs.config)) as environment:
            try:
                for number, task in enumerate(environment.tasks()):
                    query = _parse(dict(task), inputs.catalog)
                    yield replace(query, query_id=query.query_id or f"task-{number}", source=name)
            except UnusableError as error:
                raise IngestError(f"task {number} of the environment '{name}': {error.detail}") from None
            except ValueError as error:
                raise IngestError(f"data.source: {error}") from error
            except (ConfigError, IngestError, TransportError):
                raise
            except Exception as error:  # of any class: the code behind the environment is not ours
                raise IngestError(
                    f"data.source: '{name}' cannot list its tasks: {describe_with_line(error)}"
                ) from error


def _describe_place(record: Record) -> str:
    return f"{record.file}" if record.row is None else f"{record.file}, line {record.row}"


def _read_query(record: Record, catalog: ToolCatalog) -> Query:
    if record.fault:
        raise IngestError(f"{_describe_place(record)}: {record.fault}")
    try:
        return _parse(record.value, catalog)
    except UnusableError as error:
        raise IngestError(f"{_describe_place(record)}: {error.detail}") from None


def _parse(task: Any, catalog: ToolCatalog) -> Query:
    instruction = require_text(task, "instruction")
    if unknown := [name for name in task if name not in _FIELDS]:
        closest = suggest_spelling(unknown[0], _FIELDS)
        raise UnusableError("unknown field", f"unknown field '{unknown[0]}'; known are {', '.join(_FIELDS)}{closest}")
    environment = _read_environment(get_optional(task, "environment", str, ""), catalog)
    if "tools" in task:
        tools = catalog.add_hints(check_and_add_finish(require(task, "tools", list), "tools"), environment)
    else:
        tools = catalog.tools(environment)
    split = get_optional(task, "split", str, "")
    if split and split not in SPLITS:
        detail = f"field 'split': expected one of {', '.join(SPLITS)}, got {cut_excerpt(split)}"
        raise UnusableError("unknown split", detail)
    max_steps = get_optional(task, "max_steps", int, 0)
    if isinstance(max_steps, bool) or not 0 <= max_steps <= _MOST_STEPS:
        expected = f"expected a number of steps from 0 to {_MOST_STEPS}"
        raise UnusableError("ill-typed field", f"field 'max_steps': {expected}, got {cut_excerpt(max_steps)}")
    return Query(
        query_id=get_optional(task, "id", str, ""),
        split=split,
        environment=environment,
        instruction=instruction,
        tools=tools,
        reference=_read_reference(get_optional(task, "reference", dict, {}), [t["function"]["name"] for t in tools]),
        source="jsonl",
        tier=get_optional(task, "tier", str, ""),
        max_steps=max_steps,
    )


def _read_environment(name: str, catalog: ToolCatalog) -> str:
    try:
        return catalog.environment(name)
    except UnusableError as error:
        raise UnusableError(error.reason, f"field 'environment': {error.detail}") from None


def _read_call_names(fields: dict[str, Any], field: str, where: str) -> list[str]:
    """The names of the calls in a list, each with its arguments."""
    names = []
    for number, call in enumerate(get_optional(fields, field, list, [], where)):
        names.append(require_text(call, "name", f"{where}.{field}[{number}]"))
        require(call, "arguments", dict, f"{where}.{field}[{number}]")
    return names


def _read_reference(reference: dict[str, Any], tool_names: Sequence[str]) -> Reference:
    get_optional(reference, "answer", str, "")
    get_optional(reference, "family", str, "")
    mentioned_tools = [*get_optional(reference, "tools", list, []), *_read_call_names(reference, "calls", "reference")]
    for number, turn in enumerate(get_optional(reference, "turns", list, [])):
        mentioned_tools += _read_call_names({"turn": turn}, "turn", f"reference.turns[{number}]")
    for name in mentioned_tools:
        if name not in tool_names:
            closest = suggest_spelling(str(name), tool_names)
            raise UnusableError(
                "unknown tool", f"field 'reference': {cut_excerpt(name)} is not among the task's tools{closest}"
            )
    return Reference.from_json(reference)


class ToolBenchSource(Source):
    """Instruction files: JSON lists of tasks. Tasks that cannot be used are set aside."""

    suffixes = (".json",)
    may_leave_out_long_prompts = True

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks of the files, for the environment of the configuration."""
        for query in parse_records(inputs.files(self.suffixes), _read_instruction, "queries", inputs.log):
            yield replace(query, environment=inputs.catalog.environment())


def _read_instruction(record: Record) -> Query:
    if record.row is None:
        raise UnusableError("not a list of instructions", f"expected a list, got {cut_excerpt(record.value)}")
    return read_instruction(record.value, record.file, record.row)


def read_instruction(record: Any, file: Path, row: int | str | None) -> Query:
    """A record of an instruction file as a query, without a split. Raises UnusableError naming the field."""
    instruction = require_text(record, "query")
    schemas = make_tool_schemas(require(record, "api_list", list))
    relevant = get_optional(record, "relevant APIs", list, [])
    return Query(
        query_id=f"{strip_suffixes(file)}-{record.get('query_id', row)}",
        split="",
        environment="replay",
        instruction=instruction,
        tools=add_finish(list(schemas.values())),
        reference=Reference(
            tools=tuple(schema["function"]["name"] for key, schema in schemas.items() if list(key) in relevant),
            environment={REFERENCE: _find_endpoints(record["api_list"], schemas)},
        ),
        source="toolbench",
        tier=strip_suffixes(file),
    )


def _find_endpoints(api_list: Sequence[Any], schemas: Mapping[tuple[str, str], ToolSchema]) -> dict[str, list[str]]:
    """What a request names for each function; functions of an API without a category are left out."""
    endpoints: dict[str, list[str]] = {}
    for api in api_list:
        key, category = (api["tool_name"], api["api_name"]), api.get("category_name")
        if isinstance(category, str):
            endpoints.setdefault(schemas[key]["function"]["name"], list(make_endpoint(category, *key)))
    return endpoints


class BfclSource(Source):
    """BFCL's tasks with their reference solutions."""

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks, in the order of the package."""
        return iter(read_bfcl_queries())


class DeskSource(Source):
    """As many tasks of each split as the configuration names."""

    draws_tasks = True

    def read_queries(self, inputs: SourceInputs) -> Iterator[Query]:
        """The tasks of all splits."""
        return iter(draw_desk_queries(inputs.config))

    def make_demonstrations(self, queries: Iterable[Query], inputs: SourceInputs) -> Iterator[Trajectory]:
        """The expert's attempts at training tasks, as many as the warm start takes."""
        demonstrations = make_desk_demonstrations(inputs.config, list(queries))
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


SOURCES: Mapping[str, type[Source]] = {
    "bfcl": BfclSource,
    "desk": DeskSource,
    "environment": EnvironmentSource,
    "jsonl": OwnTasksSource,
    "recorded": RecordedSource,
    "toolbench": ToolBenchSource,
}
"""The sources of this module by name."""


def open_source(name: str) -> Source:
    """The source of that name, or of the user's own class `package.module:Class` or `path/to/file.py:Class`.

    Raises ConfigError if there is no such class, and if the class is no source.
    """
    source = SOURCES.get(name) or import_object(name, "data.source", "a class of sources")
    if not (inspect.isclass(source) and issubclass(source, Source)):
        raise ConfigError(f"data.source: expected a subclass of {Source.__module__}.Source, got {source!r}")
    return source()
