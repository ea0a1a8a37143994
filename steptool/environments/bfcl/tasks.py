"""Tasks of BFCL's multi-turn categories, from the data of the installed package."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from steptool.chat.finish import FINISH_SCHEMA
from steptool.environments.bfcl.package import parameters, read_records, schemas
from steptool.records import Query, Reference, ToolCall, ToolSchema

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
"""Each has 200 tasks; the last three vary the tasks of `base`."""
STEPS_PER_TURN = 20
"""Steps that the benchmark allows in a turn, before the one that answers it."""

Entry = Mapping[str, Any]


def bfcl_queries() -> list[Query]:
    """All tasks of the four categories, without splits. Raises ConfigError where the package is missing.

    The family of a task is the text of the task that it varies. `reference.environment["bfcl"]` holds what the
    environment needs.
    """
    families = {
        _task_number(entry): _user_text(entry["question"][0]) for entry in read_records("BFCL_v4_multi_turn_base.json")
    }
    queries = []
    for category in CATEGORIES:
        file = f"BFCL_v4_multi_turn_{category}.json"
        answers = {answer["id"]: answer["ground_truth"] for answer in read_records(f"possible_answer/{file}")}
        queries += [
            _query(entry, answers[entry["id"]], category, families[_task_number(entry)]) for entry in read_records(file)
        ]
    return queries


def _query(entry: Entry, solution: Sequence[Sequence[str]], category: str, family: str) -> Query:
    tools = {name: schema for owner in entry["involved_classes"] for name, schema in schemas(owner).items()}
    later = {turn: [tools.pop(name) for name in names] for turn, names in entry.get("missed_function", {}).items()}
    turns = [tuple(parse_call(text, entry["involved_classes"]) for text in turn) for turn in solution]
    user_turns = [_turn_text(turn, later.get(str(number), ())) for number, turn in enumerate(entry["question"])]
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
    name, positional, named = _split_call(text)
    owner = next((c for c in classes if name in schemas(c)), None)
    if owner is None:
        raise ValueError(f"none of the classes {', '.join(classes)} has the function of {text!r}")
    names = list(parameters(owner, name))[: len(positional)]
    values = dict(zip(names, positional, strict=True)) | named
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


def _turn_text(turn: Sequence[Entry], tools: Sequence[ToolSchema]) -> str:
    """What the user says in a turn. Where tools come later, it is their schemas and the benchmark's sentence."""
    if not tools:
        return _user_text(turn)
    sentence = import_module("bfcl_eval.constants.default_prompts").DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
    return f"{json.dumps(tools, ensure_ascii=False)}\n{sentence}"


def _user_text(turn: Sequence[Entry]) -> str:
    return "\n".join(message["content"] for message in turn)


def _task_number(entry: Entry) -> str:
    return str(entry["id"]).rpartition("_")[2]
