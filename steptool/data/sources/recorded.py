"""Recorded trajectories of any known form, told apart by what a record holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from steptool.chat.finish import GIVE_ANSWER
from steptool.data.intake import IngestLog, Record, UnusableError, field, shown, text_field
from steptool.data.readers import SUFFIXES, files, read
from steptool.data.sources.answers import Answer, Turn, joined, recorded_answer
from steptool.data.sources.conversation import Offered, as_text, conversation_answer, read_turns
from steptool.data.sources.released import COLUMNS, released_answer
from steptool.data.sources.toolbench import recorded_tools
from steptool.records import FINISH

Node = Mapping[str, Any]
"""A node of a search tree or chain; its children, if any, are further steps or other attempts."""
_FURTHEST: Mapping[Any, int] = {3: 2, 4: 1}
"""ToolBench's observation codes of a final answer and of giving up, ranked."""


def read_answers(paths: Sequence[str], named: str, offered: Offered, ledger: IngestLog) -> Iterator[Answer]:
    """Recorded answers of files and of those below folders. What cannot be used goes to the ledger.

    `named` is the field that the paths are from; `offered` gives the tools of a conversation that lists none.
    """
    return read(files(paths, named, SUFFIXES), lambda r: read_answer(r, offered), "demonstrations", ledger)


def read_answer(record: Record, offered: Offered) -> Answer:
    """The answer in a record of any form. Raises UnusableError naming the field that is amiss."""
    value = record.value
    if not isinstance(value, dict):
        raise UnusableError("not an object", f"expected a JSON object, got {shown(value)}")
    if "messages" in value:
        return conversation_answer(record, offered)
    if value.keys() >= COLUMNS:
        return released_answer(record)
    try:
        if {"answer_generation", "tree", "trys"} & value.keys():
            return _raw(record)
        if "answer" in value:
            return _converted(record)
    except (AttributeError, KeyError, TypeError) as error:
        raise UnusableError("a path of another shape", f"{type(error).__name__}: {error}") from None
    known = "messages; answer_generation; query, available_tools and answer; prompt, response and reward"
    raise UnusableError("no known form of recording", f"expected the fields {known}; there are {sorted(value)[:20]}")


def _raw(record: Record) -> Answer:
    """ToolBench's own form. The path is that of the training messages if there are any, else the last one tried."""
    answer = field(record.value, "answer_generation", dict)
    if messages := answer.get("train_messages"):
        # What the system and the user say in between is ToolBench's own scaffolding.
        said = [m for m in messages[-1] if field(m, "role", str, "train_messages") not in ("system", "user")]
        turns = read_turns(said, "train_messages")
    else:
        turns = _turns_of_nodes(_last_nodes(record.value))
    tools = recorded_tools(field(answer, "function", list, "answer_generation"), "function")
    return recorded_answer(record, text_field(answer, "query", "answer_generation"), tools, turns)


def _turns_of_nodes(nodes: Sequence[Node]) -> list[Turn]:
    turns: list[Turn] = []
    thoughts: list[str] = []
    name = ""
    for node in nodes:
        kind, text = field(node, "node_type", str), as_text(node.get("description"))
        if kind == "Thought":
            thoughts.append(text)
        elif kind == "Action":
            name = text
        elif kind == "Action Input" and name:
            response = node.get("observation")
            turns.append(Turn(joined(thoughts), name, text, None if response is None else as_text(response)))
            thoughts, name = [], ""
    if name:
        raise UnusableError("a call without a response", f"the path ends with the name {name!r} and no arguments")
    return turns + _closing(thoughts)


def _closing(thoughts: Sequence[str]) -> list[Turn]:
    return [Turn("", "", joined(thoughts), None)] if joined(thoughts) else []


def _last_nodes(document: Node) -> list[Node]:
    """Nodes of the last chain tried, or of the tree's path that got furthest: an answer, giving up, the last one."""
    if document.get("trys"):
        return list(field(field(document, "trys", list)[-1], "chain", list, "trys[-1]"))
    root = field(field(document, "tree", dict), "tree", dict, "tree")
    return _furthest(root, "children", lambda node: _FURTHEST.get(node.get("observation_code"), 0))


def _furthest(root: Node, branches: str, rank: Callable[[Node], int]) -> list[Node]:
    """The path from the root whose leaf ranks highest; of several the last."""
    best, highest, stack = [root], -1, [[root]]
    while stack:
        path = stack.pop()
        children = path[-1].get(branches) or []
        if not children and rank(path[-1]) >= highest:
            best, highest = path, rank(path[-1])
        stack += [[*path, child] for child in reversed(children)]
    return best


def _converted(record: Record) -> Answer:
    """The form that ToolEval judges: a tree of messages, in which a tool's holds the call and its response."""
    value = record.value
    details = field(field(value, "answer", dict), "answer_details", list, "answer")
    path = _furthest({"next": details}, "next", _how_far)[1:]
    turns: list[Turn] = []
    thoughts: list[str] = []
    for node in path:
        role = field(node, "role", str, "answer_details")
        message = field(node, "message", (str, dict), "answer_details")
        if role == "tool":
            name, arguments = text_field(message, "name", "answer_details.message"), message.get("arguments")
            response = None if message.get("response") is None else as_text(message["response"])
            turns.append(Turn(joined(thoughts), name, as_text(arguments), response))
            thoughts = []
        elif role == "assistant":
            thoughts.append(as_text(message))
    tools = recorded_tools(field(value, "available_tools", list), "available_tools")
    return recorded_answer(record, text_field(value, "query"), tools, turns + _closing(thoughts))


def _how_far(node: Node) -> int:
    message = node.get("message")
    if not isinstance(message, dict) or message.get("name") != FINISH:
        return 0
    return 2 if GIVE_ANSWER in as_text(message.get("arguments")) else 1
