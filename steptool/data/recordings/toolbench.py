"""ToolBench's answers and StepTool's released training files as recordings.

A released file has a row of prompts, responses and rewards, each a list in Python's syntax. The first prompt holds
the names of the tools and the query, each later one a tool's response; all end where the assistant begins. A
response is Thought, Action and Action Input. The markup is that of the model it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steptool.chat.formats import REACT
from steptool.chat.messages import GIVE_ANSWER
from steptool.data.parsing import (
    Record,
    UnusableError,
    convert_to_text,
    cut_excerpt,
    drop_repeats,
    join_texts,
    parse_literal,
    require,
    require_text,
)
from steptool.data.recordings.conversation import read_turns
from steptool.data.recordings.recording import RecordedTurn, Recording, make_recording
from steptool.data.tools import check_and_add_finish, read_toolbench_tools
from steptool.environments.toolbench import NAME_LIMIT
from steptool.records import FINISH, ToolSchema

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
    tools = read_toolbench_tools(require(answer, "function", list, "answer_generation"), "function")
    return make_recording(record, require_text(answer, "query", "answer_generation"), tools, turns)


def _read_nodes(nodes: Sequence[Node]) -> list[RecordedTurn]:
    turns: list[RecordedTurn] = []
    thoughts: list[str] = []
    name: str | None = None
    for node in nodes:
        kind, text = require(node, "node_type", str), convert_to_text(node.get("description"))
        if kind == "Thought":
            thoughts.append(text)
        elif kind == "Action":
            name = text.strip()
        elif kind == "Action Input" and name is not None:
            response = node.get("observation")
            observation = None if response is None and name else convert_to_text(response)
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
            thoughts.append(convert_to_text(message))
    tools = read_toolbench_tools(require(value, "available_tools", list), "available_tools")
    return make_recording(record, require_text(value, "query"), tools, turns + _make_last_turn(thoughts))


def _make_turn(call: dict[str, Any], thought: str) -> RecordedTurn:
    """A call and its response. A call without a name is a failed one."""
    name = "" if call.get("name") is None else require(call, "name", str, "answer_details.message").strip()
    response = call.get("response")
    observation = None if response is None and name else convert_to_text(response)
    return RecordedTurn(thought, name, convert_to_text(call.get("arguments")), observation)


def _read_call(message: Any) -> dict[str, Any]:
    """A tool's message, which some converters write as the text of a Python dict."""
    call = parse_literal(message, "answer_details.message") if isinstance(message, str) else message
    if not isinstance(call, dict):
        raise UnusableError("not an object", f"answer_details.message: expected a call, got {cut_excerpt(call)}")
    return call


def _rank_finish(node: Node) -> int:
    message = node.get("message")
    if node.get("role") != "tool" or FINISH not in convert_to_text(message):
        return 0
    try:
        call = _read_call(message)
    except UnusableError:
        return 0
    if call.get("name") != FINISH:
        return 0
    return 2 if GIVE_ANSWER in convert_to_text(call.get("arguments")) else 1


COLUMNS = {"prompt", "response", "reward"}
_TOOLS_HEADING = "access to the following APIs:"


@dataclass(frozen=True)
class _Markup:
    """How a model's prompts are written: what opens a message of a role, and what ends one."""

    opening: str
    end: str
    end_of_turn: str

    def split(self, prompt: str, *roles: str) -> list[str] | None:
        """The text of each of the roles in a prompt, in this order; None for a prompt of another form."""
        opening, *others, last = [self.opening.format(role, Role=role.title()) for role in (*roles, "assistant")]
        text = prompt.strip()
        if not (text.startswith(opening) and text.endswith(self.end + last)):
            return None
        parts, rest = [], text[len(opening) : -len(self.end + last)]
        for other in others:
            part, separator, rest = rest.partition(self.end + other)
            if not separator:
                return None
            parts.append(part)
        return [part.strip() for part in (*parts, rest)]


_MARKUPS = (
    _Markup("<|im_start|>{0}", "<|im_end|>\n", "<|im_end|>"),
    _Markup("<|start_header_id|>{0}<|end_header_id|>", "<|eot_id|>", "<|eot_id|>"),
    _Markup("{Role}:", "\n", "</s>"),
)


def read_released(record: Record) -> Recording:
    """A row of a released file. Raises UnusableError naming the column that is of another form."""
    prompts, responses = _read_texts(record.value, "prompt"), _read_texts(record.value, "response")
    rewards = _read_rewards(record.value)
    if not len(prompts) == len(responses) == len(rewards):
        sizes = f"{len(prompts)} prompts, {len(responses)} responses, {len(rewards)} rewards"
        raise UnusableError("lists of different lengths", f"expected as many of each, got {sizes}")
    markup, system, user = _read_opening(prompts)
    observations = [_read_response(markup, text, n) for n, text in enumerate(prompts[1:], start=1)]
    turns = [_read_turn(markup, *pair) for pair in zip(responses, [*observations, None], strict=True)]
    recording = make_recording(
        record, _read_instruction(user), _make_tools(_read_names(system)), turns, rewards[-1], rewards
    )
    if len(recording.turns) < len(turns):
        raise UnusableError("steps after Finish", f"response[{len(recording.turns) - 1}] ends the episode")
    return recording


def _read_opening(prompts: list[str]) -> tuple[_Markup, str, str]:
    for markup in _MARKUPS:
        if prompts and (texts := markup.split(prompts[0], "system", "user")):
            return markup, texts[0], texts[1]
    expected = "a system's and a user's message and the assistant's opening"
    raise UnusableError("a prompt of another form", f"prompt[0]: expected {expected}, got {cut_excerpt(prompts[:1])}")


def _read_response(markup: _Markup, prompt: str, number: int) -> str:
    if texts := markup.split(prompt, "function"):
        return texts[0]
    expected = "a function's message and the assistant's opening"
    raise UnusableError("a prompt of another form", f"prompt[{number}]: expected {expected}, got {cut_excerpt(prompt)}")


def _read_instruction(user: str) -> str:
    instruction = user.removesuffix("Begin!").strip()
    if not instruction:
        raise UnusableError("no instruction", "prompt[0]: the user says nothing")
    return instruction


def _read_turn(markup: _Markup, response: str, observation: str | None) -> RecordedTurn:
    """A response as a turn; one without a call that can be read is words."""
    text = response.strip().removesuffix(markup.end_of_turn).strip()
    parsed = REACT.parse(text)
    if parsed.call is None:
        return RecordedTurn("", "", text, observation)
    arguments = json.dumps(dict(parsed.call.arguments), ensure_ascii=False)
    return RecordedTurn(parsed.thought, parsed.call.name[-NAME_LIMIT:], arguments, observation)


def _read_names(system: str) -> list[str]:
    _, heading, names_text = system.partition(_TOOLS_HEADING)
    names = _read_list(names_text, "prompt[0]") if heading else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        expected = f"a list of names after '{_TOOLS_HEADING}'"
        raise UnusableError("tools of another form", f"prompt[0]: expected {expected}, got {cut_excerpt(system)}")
    return names


def _make_tools(names: list[str]) -> tuple[ToolSchema, ...]:
    """Schemas for names alone, which are cut as ToolBench does: any arguments."""
    anything = {"type": "object", "properties": {}, "additionalProperties": True}
    short = drop_repeats(name[-NAME_LIMIT:] for name in names)
    functions = [{"name": name, "description": "", "parameters": anything} for name in short]
    return check_and_add_finish([{"type": "function", "function": function} for function in functions], "prompt[0]")


def _read_texts(row: dict[str, Any], column: str) -> list[str]:
    texts = _read_list(require(row, column, (str, list)), column)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnusableError(
            f"ill-typed field '{column}'", f"'{column}': expected a list of texts, got {cut_excerpt(texts)}"
        )
    return texts


def _read_rewards(row: dict[str, Any]) -> list[float]:
    rewards = _read_list(require(row, "reward", (str, list)), "reward")
    if not isinstance(rewards, list) or not all(isinstance(r, int | float) and 0 <= r <= 1 for r in rewards):
        detail = f"'reward': expected a list of numbers from 0 to 1, got {cut_excerpt(rewards)}"
        raise UnusableError("ill-typed field 'reward'", detail)
    return [float(reward) for reward in rewards]


def _read_list(text: str | list[Any], where: str) -> Any:
    """A list, or the text of one."""
    return parse_literal(text, where) if isinstance(text, str) else text
