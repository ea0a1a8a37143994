"""Recorded answers of ToolBench (search trees) and StableToolBench (chains) as trajectories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steptool.chat.finish import FINISH_SCHEMA, GIVE_ANSWER
from steptool.data.intake import Ledger, UnusableError, field, files, parse_json, read_json, text_field
from steptool.data.toolbench import distinct, function_schema, json_type, with_finish
from steptool.tools.schema import SchemaError, check_arguments, check_tools
from steptool.trajectory import FINISH, Message, Query, Step, StepStatus, StopReason, ToolCall, ToolSchema, Trajectory

_ERROR_FIELD = re.compile(r'\s*\{\s*"error"\s*:\s*"((?:[^"\\]|\\.)*)')
_FAILURE = re.compile(
    r"""["']?status(?:_?code)?["']?\s*:\s*["']?[45]\d\d\b|unauthori[sz]ed|authentication (?:failed|required|error)"""
    r"|not subscribed|too many requests|rate limit|quota|timed? ?out|internal server error|bad gateway|page not found",
    re.IGNORECASE,
)
_LONGEST_FAILURE = 400
"""Characters: a longer response is content, whatever words are in it."""


@dataclass(frozen=True)
class Turn:
    """One recorded call: the words before it, its name, its arguments as text, and the response (None for Finish)."""

    thought: str
    name: str
    arguments: str
    observation: str | None


@dataclass(frozen=True)
class Answer:
    """One recorded answer: the query's text, the tools as recorded, and the calls of its final path.

    `closing` is what was said after the last call, where the answer ends without one.
    """

    file: Path
    query: str
    tools: tuple[ToolSchema, ...]
    turns: tuple[Turn, ...]
    closing: str


def read_answers(paths: Sequence[str], ledger: Ledger) -> Iterator[Answer]:
    """Recorded answers below the folders. What cannot be used goes to the ledger."""
    for file in files(paths, "data.recorded_answers", ".json"):
        ledger.count("demonstrations read")
        try:
            document = read_json(file)
        except UnusableError as error:
            ledger.refuse("demonstrations", file, None, error)
            continue
        try:
            yield read_answer(document, file)
        except UnusableError as error:
            ledger.refuse("demonstrations", file, None, error, document)


def read_answer(document: Any, file: Path) -> Answer:
    """A raw answer. The path is that of the training messages if there are any, else the last one tried.

    Raises UnusableError naming the field.
    """
    answer = field(document, "answer_generation", dict)
    messages = answer.get("train_messages") or []
    try:
        turns, closing = _from_messages(messages[-1]) if messages else _from_nodes(_last_nodes(document))
    except (AttributeError, KeyError, TypeError) as error:
        raise UnusableError("a path of another shape", f"{type(error).__name__}: {error}") from None
    if not turns and not closing:
        raise UnusableError("no recorded step", "neither 'train_messages' nor 'trys' nor 'tree' holds a call")
    last = next((n for n, turn in enumerate(turns) if _step(turn).status is StepStatus.FINISH), len(turns) - 1)
    for number, turn in enumerate(turns[: last + 1]):
        if turn.observation is None and turn.name != FINISH:
            raise UnusableError("a call without a response", f"call {number} ({turn.name}) has no recorded response")
    tools = recorded_tools(field(answer, "function", list, "answer_generation"))
    query = text_field(answer, "query", "answer_generation")
    return Answer(file, query, tools, tuple(turns[: last + 1]), "" if last + 1 < len(turns) else closing)


def _from_messages(messages: Any) -> tuple[list[Turn], str]:
    turns: list[Turn] = []
    thoughts: list[str] = []
    for message in messages:
        role = field(message, "role", str, "train_messages")
        if role in ("function", "tool"):
            waiting = next((n for n, t in enumerate(turns) if t.observation is None), None)
            if waiting is None:
                raise UnusableError("a response without a call", f"from {message.get('name')}")
            turns[waiting] = Turn(*_call_of(turns[waiting]), _text(message.get("content")))
        elif role == "assistant":
            thoughts.append(_text(message.get("content")))
            calls = [c.get("function") for c in message.get("tool_calls") or []] or [message.get("function_call")]
            for call in filter(None, calls):
                name, arguments = text_field(call, "name", "function_call"), _text(call.get("arguments"))
                turns.append(Turn(_joined(thoughts), name, arguments, None))
                thoughts = []
    return turns, _joined(thoughts)


def _call_of(turn: Turn) -> tuple[str, str, str]:
    return turn.thought, turn.name, turn.arguments


def _from_nodes(nodes: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], str]:
    turns: list[Turn] = []
    thoughts: list[str] = []
    name = ""
    for node in nodes:
        kind, text = field(node, "node_type", str), _text(node.get("description"))
        if kind == "Thought":
            thoughts.append(text)
        elif kind == "Action":
            name = text
        elif kind == "Action Input" and name:
            observation = node.get("observation")
            turns.append(Turn(_joined(thoughts), name, text, None if observation is None else _text(observation)))
            thoughts, name = [], ""
    if name:
        raise UnusableError("a call without a response", f"the path ends with the name {name!r} and no arguments")
    return turns, _joined(thoughts)


def _last_nodes(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Nodes of the last chain tried, or of the tree's path that got furthest: an answer, giving up, the last one."""
    if document.get("trys"):
        return list(field(field(document, "trys", list)[-1], "chain", list, "trys[-1]"))
    root: dict[str, Any] = field(field(document, "tree", dict), "tree", dict, "tree")
    ended: dict[Any, int] = {3: 2, 4: 1}  # ToolBench's observation codes of a final answer and of giving up
    paths = list(_paths(root))
    ranks = [ended.get(path[-1].get("observation_code"), 0) for path in paths]
    return paths[max(range(len(paths)), key=lambda n: (ranks[n], n))]


def _paths(root: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    stack = [[root]]
    while stack:
        path = stack.pop()
        children = path[-1].get("children") or []
        if not children:
            yield path
        stack += [[*path, child] for child in reversed(children)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(thoughts: Sequence[str]) -> str:
    return "\n".join(t for t in thoughts if t)


def recorded_tools(functions: Sequence[Any]) -> tuple[ToolSchema, ...]:
    """The `function` list of an answer as tool schemas. Raises UnusableError naming the field."""
    schemas: dict[str, ToolSchema] = {}
    for number, function in enumerate(functions):
        where = f"function[{number}]"
        name = text_field(function, "name", where)
        parameters = field(function, "parameters", dict, where)
        properties = {
            key: _recorded_property(value) for key, value in field(parameters, "properties", dict, where).items()
        }
        wanted = field(parameters, "required", list, where) if parameters.get("required") else []
        required = [key for key in properties if key in wanted]
        if name != FINISH:
            name = distinct(name, schemas)
            schemas[name] = function_schema(name, _text(function.get("description")), properties, required)
    tools = with_finish(list(schemas.values()))
    try:
        check_tools(tools, "function")
    except SchemaError as error:
        raise UnusableError("tool schema that is no schema", str(error)) from None
    return tools


def _recorded_property(recorded: Any) -> dict[str, Any]:
    schema = dict(recorded) if isinstance(recorded, dict) else {}
    example = schema.pop("example_value", None)
    schema["type"] = json_type(schema.get("type"))
    return schema if example in ("", None) else {**schema, "examples": [example]}


def answer_query(answer: Answer) -> Query:
    """The query that a recorded answer carries itself, without a split."""
    file = answer.file
    return Query(
        query_id=f"{file.parent.name}-{file.stem}",
        split="",
        environment="replay",
        instruction=answer.query,
        tools=answer.tools,
        source="recorded",
        tier=file.parent.name,
    )


def demonstration(answer: Answer, query: Query, sample: int) -> Trajectory:
    """A recorded answer as the trajectory of a query: messages and steps, no tokens."""
    messages: list[Message] = [{"role": "user", "content": query.instruction}]
    steps: list[Step] = []
    for turn in answer.turns:
        step = _step(turn)
        steps.append(step)
        messages.append(_message(turn, step))
        if step.status is not StepStatus.FINISH:
            messages.append({"role": "tool", "name": turn.name, "content": step.observation})
    if answer.closing:
        steps.append(Step(None, StepStatus.MALFORMED, ""))
        messages.append({"role": "assistant", "content": answer.closing})
    return Trajectory(
        trajectory_id=f"{query.query_id}-recorded-{sample}",
        query_id=query.query_id,
        environment=query.environment,
        tier=query.tier,
        policy="recorded",
        round=-1,
        sample=sample,
        temperature=1.0,
        messages=messages,
        input_ids=np.zeros(0, dtype=np.int32),
        spans=[],
        logprobs=np.zeros(0, dtype=np.float32),
        steps=steps,
        stop_reason=_stop_reason(steps[-1]),
        final_answer=_final_answer(steps[-1]),
        solved=None,
        seconds=0.0,
    )


def _step(turn: Turn) -> Step:
    try:
        arguments = parse_json(turn.arguments) if turn.arguments.strip() else {}
    except UnusableError:
        arguments = None
    observation = turn.observation or ""
    if not isinstance(arguments, dict):
        return Step(None, StepStatus.MALFORMED, observation)
    call = ToolCall(turn.name, arguments)
    if turn.name != FINISH:
        return Step(call, observation_status(observation), observation)
    if check_arguments(FINISH_SCHEMA["function"]["parameters"], arguments):
        return Step(call, StepStatus.INVALID_ARGUMENTS, observation)
    return Step(call, StepStatus.FINISH, "")


def _message(turn: Turn, step: Step) -> Message:
    if step.call is None:
        return {"role": "assistant", "content": _joined([turn.thought, f"{turn.name}: {turn.arguments}"])}
    function = {"name": turn.name, "arguments": dict(step.call.arguments)}
    return {
        "role": "assistant",
        "content": turn.thought,
        "tool_calls": [{"type": "function", "function": function}],
    }


def _stop_reason(last: Step) -> StopReason:
    if last.status is StepStatus.FINISH and last.call:
        return StopReason.FINISHED if last.call.arguments["return_type"] == GIVE_ANSWER else StopReason.GAVE_UP
    return StopReason.MALFORMED if last.status is StepStatus.MALFORMED else StopReason.STEP_LIMIT


def _final_answer(last: Step) -> str | None:
    answered = last.call if last.status is StepStatus.FINISH else None
    return answered.arguments.get("final_answer") if answered else None


def observation_status(observation: str) -> StepStatus:
    """What became of a call, from the protocol's text {"error": ..., "response": ...} (it may be cut off).

    A filled `error` is a failure. So is a short response that carries an HTTP error or the words of one.
    """
    try:
        document = json.loads(observation)
    except (ValueError, RecursionError):
        cut = _ERROR_FIELD.match(observation)
        document = {"error": cut.group(1) if cut else "", "response": observation}
    if not isinstance(document, dict):
        document = {"response": document}
    error = _text(document.get("error"))
    if error.startswith("No such function name"):
        return StepStatus.UNKNOWN_TOOL
    response = _text(document.get("response", document))
    failed = error or (len(response) <= _LONGEST_FAILURE and _FAILURE.search(response))
    return StepStatus.TOOL_ERROR if failed else StepStatus.OK
