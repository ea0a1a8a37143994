"""ToolBench's answers as recordings: its own form, with search trees and chains, and the form that ToolEval judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steptool.chat.finish import GIVE_ANSWER
from steptool.data.ingest_log import Record, UnusableError
from steptool.data.parsing import as_text, excerpt, join_texts, parse_literal, require, require_text
from steptool.data.recordings.conversation import read_turns
from steptool.data.recordings.recording import RecordedTurn, Recording, make_recording
from steptool.data.tools import toolbench_tools
from steptool.records import FINISH

Node = Mapping[str, Any]
"""A node of a search tree or chain; its children, if any, are further steps or other attempts."""
_FURTHEST: Mapping[Any, int] = {3: 2, 4: 1}
"""ToolBench's observation codes of a final answer and of giving up, ranked."""


def read_raw_answer(record: Record) -> Recording:
    """ToolBench's own form. The path is that of the training messages if there are any, else the last one tried."""
    answer = require(record.value, "answer_generation", dict)
    if messages := answer.get("train_messages"):
        # What the system and the user say in between is ToolBench's own scaffolding.
        scaffolding = ("system", "user")
        path = [m for m in messages[-1] if require(m, "role", str, "train_messages") not in scaffolding]
        turns = read_turns(path, "train_messages")
    else:
        turns = _read_nodes(_find_last_nodes(record.value))
    tools = toolbench_tools(require(answer, "function", list, "answer_generation"), "function")
    return make_recording(record, require_text(answer, "query", "answer_generation"), tools, turns)


def _read_nodes(nodes: Sequence[Node]) -> list[RecordedTurn]:
    turns: list[RecordedTurn] = []
    thoughts: list[str] = []
    name: str | None = None
    for node in nodes:
        kind, text = require(node, "node_type", str), as_text(node.get("description"))
        if kind == "Thought":
            thoughts.append(text)
        elif kind == "Action":
            name = text.strip()
        elif kind == "Action Input" and name is not None:
            response = node.get("observation")
            observation = None if response is None and name else as_text(response)
            turns.append(RecordedTurn(join_texts(thoughts), name, text, observation))
            thoughts, name = [], None
    if name is not None:
        raise UnusableError("a call without a response", f"the path ends with the name {name!r} and no arguments")
    return turns + _make_last_turn(thoughts)


def _make_last_turn(thoughts: Sequence[str]) -> list[RecordedTurn]:
    words = join_texts(thoughts)
    return [RecordedTurn("", "", words, None)] if words else []


def _find_last_nodes(document: Node) -> list[Node]:
    """Nodes of the last chain tried, or of the tree's path that got furthest: an answer, giving up, the last one."""
    if document.get("trys"):
        return list(require(require(document, "trys", list)[-1], "chain", list, "trys[-1]"))
    root = require(require(document, "tree", dict), "tree", dict, "tree")
    return _find_furthest_path(root, "children", lambda node: _FURTHEST.get(node.get("observation_code"), 0))


def _find_furthest_path(root: Node, branches: str, rank: Callable[[Node], int]) -> list[Node]:
    """The path from the root whose leaf ranks highest; of several the last."""
    best, highest, stack = [root], -1, [[root]]
    while stack:
        path = stack.pop()
        children = path[-1].get(branches) or []
        if not children and rank(path[-1]) >= highest:
            best, highest = path, rank(path[-1])
        stack += [[*path, child] for child in reversed(children)]
    return best


def read_converted_answer(record: Record) -> Recording:
    """The form that ToolEval judges: a tree of messages, in which a tool's holds the call and its response."""
    value = record.value
    details = require(require(value, "answer", dict), "answer_details", list, "answer")
    turns: list[RecordedTurn] = []
    thoughts: list[str] = []
    for node in _find_furthest_path({"next": details}, "next", _rank_finish)[1:]:
        role = require(node, "role", str, "answer_details")
        message = require(node, "message", (str, dict), "answer_details")
        if role == "tool":
            turns.append(_make_turn(_read_call(message), join_texts(thoughts)))
            thoughts = []
        elif role == "assistant":
            thoughts.append(as_text(message))
    tools = toolbench_tools(require(value, "available_tools", list), "available_tools")
    return make_recording(record, require_text(value, "query"), tools, turns + _make_last_turn(thoughts))


def _make_turn(call: dict[str, Any], thought: str) -> RecordedTurn:
    """A call and its response. A call without a name is a failed one."""
    name = "" if call.get("name") is None else require(call, "name", str, "answer_details.message").strip()
    response = call.get("response")
    observation = None if response is None and name else as_text(response)
    return RecordedTurn(thought, name, as_text(call.get("arguments")), observation)


def _read_call(message: Any) -> dict[str, Any]:
    """A tool's message, which some converters write as the text of a Python dict."""
    call = parse_literal(message, "answer_details.message") if isinstance(message, str) else message
    if not isinstance(call, dict):
        raise UnusableError("not an object", f"answer_details.message: expected a call, got {excerpt(call)}")
    return call


def _rank_finish(node: Node) -> int:
    message = node.get("message")
    if node.get("role") != "tool" or FINISH not in as_text(message):
        return 0
    try:
        call = _read_call(message)
    except UnusableError:
        return 0
    if call.get("name") != FINISH:
        return 0
    return 2 if GIVE_ANSWER in as_text(call.get("arguments")) else 1
