"""The installed package bfcl-eval: where its data lies, what its functions look like, and its executable classes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steptool.config.base import ConfigError
from steptool.environments.schema import arguments_check
from steptool.records import ToolSchema

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
    """Whether the package is there."""
    return find_spec("bfcl_eval") is not None


def data_folder() -> Path:
    """The folder of the benchmark's data. Raises ConfigError where the package is missing."""
    spec = find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "BFCL's tools and tasks are in the package bfcl-eval, which is not installed: run `make bfcl`, which "
            "installs it without its dependencies (they clash with ours, and none is needed)"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_records(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file in the data folder."""
    with (data_folder() / path).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@cache
def executable(name: str) -> type[Any]:
    """A class of the benchmark. Raises ValueError for a name that is not in CLASSES."""
    if name not in CLASSES:
        raise ValueError(
            f"'{name}' is not a class of BFCL's multi-turn categories; expected one of {', '.join(CLASSES)}"
        )
    data_folder()
    loaded: type[Any] = getattr(import_module(_constants("CLASS_FILE_PATH_MAPPING")[name]), name)
    return loaded


@cache
def schemas(name: str) -> Mapping[str, ToolSchema]:
    """Schemas of the documented functions of a class, by name. Its other methods cannot be called."""
    docs = read_records(f"multi_turn_func_doc/{_constants('MULTI_TURN_FUNC_DOC_FILE_MAPPING')[name]}")
    return {doc["name"]: _schema(doc) for doc in docs}


@cache
def checks(name: str) -> Mapping[str, Callable[[Mapping[str, Any]], str | None]]:
    """For each documented function of a class, the check of its arguments: what is wrong with them, or None."""
    return {key: arguments_check(schema["function"]["parameters"]) for key, schema in schemas(name).items()}


@cache
def parameters(name: str, function: str) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function of a class as Python has them, in their order."""
    every = inspect.signature(getattr(executable(name), function)).parameters
    return {key: value for key, value in every.items() if key != "self"}


def _constants(name: str) -> Mapping[str, str]:
    table: Mapping[str, str] = getattr(import_module("bfcl_eval.constants.executable_backend_config"), name)
    return table


def _schema(doc: Mapping[str, Any]) -> ToolSchema:
    function = {key: doc[key] for key in ("name", "description")}
    return {"type": "function", "function": {**function, "parameters": _json_schema(doc["parameters"])}}


def _json_schema(node: Any) -> Any:
    if isinstance(node, list):
        return [_json_schema(child) for child in node]
    if not isinstance(node, dict):
        return node
    # A property may itself be named "type". Its value is an object then, and only text is translated.
    return {
        k: _JSON_TYPES.get(v, v) if k == "type" and isinstance(v, str) else _json_schema(v) for k, v in node.items()
    }
