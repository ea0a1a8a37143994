"""BFCL's multi-turn tasks and tools, from the installed package bfcl-eval."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steptool.chat.messages import FINISH_SCHEMA
from steptool.config.base import ConfigError
from steptool.environments.schema import prepare_arguments_check
from steptool.records import Query, Reference, ToolCall, ToolSchema

CLASSES = (
    "GorillaFileSystem",
    "MathAPI",
    "MessageAPI",
    "TicketAPI",
    "TradingBot",
    "TravelAPI",
    "TwitterAPI",
    "VehicleControlAPI",
)
"""The classes of the multi-turn categories. The package's other classes use the network or keep files."""
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""Type names of the function docs and what JSON Schema calls them."""


def is_installed() -> bool:
    """Whether the package is installed."""
    return find_spec("bfcl_eval") is not None


def find_data_folder() -> Path:
    """The folder of the benchmark's data. Raises ConfigError where the package is missing."""
    spec = find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "BFCL's tools and tasks are in the package bfcl-eval, which is not installed: run `make bfcl`, which "
            "installs it without its dependencies (they clash with ours, and none is needed)"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_bfcl_records(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file in the data folder."""
    with (find_data_folder() / path).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@cache
def load_class(name: str) -> type[Any]:
    """A class of the benchmark. Raises ValueError for a name that is not in CLASSES."""
    if name not in CLASSES:
        raise ValueError(
            f"'{name}' is not a class of BFCL's multi-turn categories; expected one of {', '.join(CLASSES)}"
        )
    find_data_folder()
    cls: type[Any] = getattr(import_module(_read_constants("CLASS_FILE_PATH_MAPPING")[name]), name)
    return cls


@cache
def list_schemas(name: str) -> Mapping[str, ToolSchema]:
    """Schemas of the documented functions of a class, by name. Its other methods cannot be called."""
    docs = read_bfcl_records(f"multi_turn_func_doc/{_read_constants('MULTI_TURN_FUNC_DOC_FILE_MAPPING')[name]}")
    return {doc["name"]: _make_schema(doc) for doc in docs}


@cache
def list_checks(name: str) -> Mapping[str, Callable[[Mapping[str, Any]], str | None]]:
    """For each documented function of a class, the check of its arguments: what is wrong with them, or None."""
    return {
        key: prepare_arguments_check(schema["function"]["parameters"]) for key, schema in list_schemas(name).items()
    }


@cache
def list_parameters(name: str, function: str) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function of a class as Python has them, in their order."""
    every = inspect.signature(getattr(load_class(name), function)).parameters
    return {key: value for key, value in every.items() if key != "self"}


def _read_constants(name: str) -> Mapping[str, str]:
    table: Mapping[str, str] = getattr(import_module("bfcl_eval.constants.executable_backend_config"), name)
    return table


def _make_schema(doc: Mapping[str, Any]) -> ToolSchema:
    function = {key: doc[key] for key in ("name", "description")}
    return {"type": "function", "function": {**function, "parameters": _make_json_schema(doc["parameters"])}}


def _make_json_schema(node: Any) -> Any:
    if isinstance(node, list):
        return [_make_json_schema(child) for child in node]
    if not isinstance(node, dict):
        return node
    # A property may itself be named "type". Its value is an object then, and only text is translated.
    return {
        k: _JSON_TYPES.get(v, v) if k == "type" and isinstance(v, str) else _make_json_schema(v)
        for k, v in node.items()
    }


CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
"""Each has 200 tasks; the last three vary the tasks of `base`."""
STEPS_PER_TURN = 20
"""Steps that the benchmark allows in a turn, before the one that answers it."""

Entry = Mapping[str, Any]


def read_bfcl_queries() -> list[Query]:
    """All tasks of the four categories, without splits. Raises ConfigError where the package is missing.

    The family of a task is the text of the task that it varies. `reference.environment["bfcl"]` holds what the
    environment needs.
    """
    families = {
        _read_task_number(entry): _read_user_text(entry["question"][0])
        for entry in read_bfcl_records("BFCL_v4_multi_turn_base.json")
    }
    queries = []
    for category in CATEGORIES:
        file = f"BFCL_v4_multi_turn_{category}.json"
        answers = {answer["id"]: answer["ground_truth"] for answer in read_bfcl_records(f"possible_answer/{file}")}
        queries += [
            _make_query(entry, answers[entry["id"]], category, families[_read_task_number(entry)])
            for entry in read_bfcl_records(file)
        ]
    return queries


def _make_query(entry: Entry, solution: Sequence[Sequence[str]], category: str, family: str) -> Query:
    tools = {name: schema for owner in entry["involved_classes"] for name, schema in list_schemas(owner).items()}
    later = {turn: [tools.pop(name) for name in names] for turn, names in entry.get("missed_function", {}).items()}
    turns = [tuple(parse_call(text, entry["involved_classes"]) for text in turn) for turn in solution]
    user_turns = [_write_turn(turn, later.get(str(number), ())) for number, turn in enumerate(entry["question"])]
    return Query(
        query_id=entry["id"],
        split="",
        environment="bfcl",
        instruction=user_turns[0],
        tools=(*tools.values(), FINISH_SCHEMA),
        reference=Reference(
            calls=tuple(call for turn in turns for call in turn),
            turns=tuple(turns),
            family=family,
            environment={
                "bfcl": {
                    "classes": entry["involved_classes"],
                    "config": entry["initial_config"],
                    "long_context": category == "long_context",
                    "messages": user_turns[1:],
                    "later_tools": later,
                }
            },
        ),
        source="bfcl",
        tier=category,
        # A step of the benchmark may make several calls, ours makes one: one reference makes 34 calls in a turn.
        max_steps=sum(max(STEPS_PER_TURN, len(turn)) + 1 for turn in turns),
    )


def parse_call(text: str, classes: Sequence[str]) -> ToolCall:
    """A call in Python's syntax. Nothing is executed: arguments are literals.

    Raises ValueError for other text, and for a function that none of the classes has.
    """
    name, positional, keywords = _split_call(text)
    owner = next((c for c in classes if name in list_schemas(c)), None)
    if owner is None:
        raise ValueError(f"none of the classes {', '.join(classes)} has the function of {text!r}")
    names = list(list_parameters(owner, name))[: len(positional)]
    values = dict(zip(names, positional, strict=True)) | keywords
    return ToolCall(name, {key: ast.literal_eval(value) for key, value in values.items()})


def _split_call(text: str) -> tuple[str, list[ast.expr], dict[str, ast.expr]]:
    """Name, positional and named arguments of a call."""
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"expected a call in Python's syntax, got {text!r}: {error}") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or None in {k.arg for k in call.keywords}:
        raise ValueError(f"expected a call of a function with literals, such as cd(folder='x'), got {text!r}")
    return call.func.id, call.args, {str(k.arg): k.value for k in call.keywords}


def _write_turn(turn: Sequence[Entry], tools: Sequence[ToolSchema]) -> str:
    """What the user says in a turn. If the turn adds tools, these are their schemas and the benchmark's sentence."""
    if not tools:
        return _read_user_text(turn)
    sentence = import_module("bfcl_eval.constants.default_prompts").DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
    return f"{json.dumps(tools, ensure_ascii=False)}\n{sentence}"


def _read_user_text(turn: Sequence[Entry]) -> str:
    return "\n".join(message["content"] for message in turn)


def _read_task_number(entry: Entry) -> str:
    return str(entry["id"]).rpartition("_")[2]
