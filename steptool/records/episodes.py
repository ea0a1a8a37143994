"""Tasks and episodes: requests, calls and their results. `read_queries` reads the tasks of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import pyarrow as pa

from steptool.records.columns import (
    JSON_ARRAY,
    JSON_TUPLE,
    Float32,
    Float32Array,
    Float64,
    Int32,
    Int32Array,
    Row,
    Stored,
    contract,
    describe_field,
    from_row,
    to_json,
)
from steptool.records.tables import iterate_rows

T = TypeVar("T")

FINISH = "Finish"
"""Name of the call that ends an episode: Finish(return_type, final_answer), as in ToolBench."""

Message = dict[str, Any]
"""One chat message in OpenAI's form (role, content, tool_calls)."""
ToolSchema = dict[str, Any]
"""One tool in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}."""


class StopReason(StrEnum):
    """Why an episode ended."""

    FINISHED = "finished"
    GAVE_UP = "gave_up"
    STEP_LIMIT = "step_limit"
    CONTEXT_LIMIT = "context_limit"
    MALFORMED = "malformed"
    REFUSED = "refused"
    """The endpoint refused to continue: by a content filter, or because it does not accept the conversation."""
    ENDED = "ended"
    """The environment ended the episode after a call, for example because a game is over."""


class StepStatus(StrEnum):
    """The result of one assistant step."""

    OK = "ok"
    """The tool ran and did not fail."""
    TOOL_ERROR = "tool_error"
    """The tool ran and reported an error."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """The arguments do not satisfy the tool's JSON schema."""
    UNKNOWN_TOOL = "unknown_tool"
    """The task offers no tool of this name."""
    MALFORMED = "malformed"
    """The text holds no call that can be read."""
    FINISH = "finish"
    """A well-formed Finish."""


@dataclass(frozen=True)
class ToolCall:
    """A call of one tool with its parsed arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One assistant step: the call that was read from its tokens, its status, and what the tool returned."""

    call: ToolCall | None
    status: StepStatus
    observation: str
    """Text returned to the model; empty for a Finish."""
    state: str | None = None
    """Digest of the environment's state before the step; None where `credit.state` does not ask for it."""


@dataclass(frozen=True)
class Reference:
    """What is known of the solution of a task. None: not known; an empty tuple or text: known to be empty."""

    answer: str | None = None
    calls: tuple[ToolCall, ...] | None = None
    """The calls of a solution, in their order, without the Finish."""
    turns: tuple[tuple[ToolCall, ...], ...] | None = None
    """The same calls by turn of the user, where the user speaks several times."""
    tools: tuple[str, ...] | None = None
    """Names of the tools that a solution needs."""
    family: str | None = None
    """Tasks of one family belong to one split."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Values that the environment needs for the task, by names that it chooses."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reference:
        """The reference of a JSON object. Keys that are no field of this class go to the environment.

        The keys of an object `environment` go there as well.
        """
        calls, turns, tools = (document.get(name) for name in ("calls", "turns", "tools"))
        inner = document.get("environment", {})
        fields = dict(inner) if isinstance(inner, Mapping) else {"environment": inner}
        return cls(
            answer=document.get("answer"),
            calls=None if calls is None else _calls_from_json(calls),
            turns=None if turns is None else tuple(map(_calls_from_json, turns)),
            tools=None if tools is None else tuple(tools),
            family=document.get("family"),
            environment=fields | {key: value for key, value in document.items() if key not in cls.__dataclass_fields__},
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads. It has no key for what is not known.

        Values of the environment that are named as a field stand in an object `environment`, the others beside it.
        """
        fields = {
            "answer": self.answer,
            "calls": None if self.calls is None else _calls_to_json(self.calls),
            "turns": None if self.turns is None else list(map(_calls_to_json, self.turns)),
            "tools": None if self.tools is None else list(self.tools),
            "family": self.family,
        }
        values = {name: value for name, value in fields.items() if value is not None}
        inner = {name: value for name, value in self.environment.items() if name in self.__dataclass_fields__}
        outer = {name: value for name, value in self.environment.items() if name not in inner}
        return values | outer | ({"environment": inner} if inner else {})


def _calls_from_json(calls: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call["name"], call["arguments"]) for call in calls)


def _calls_to_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]


def _spans_to_rows(spans: Sequence[tuple[int, int]]) -> list[Row]:
    return [{"start": start, "end": end} for start, end in spans]


def _spans_from_rows(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return [(row["start"], row["end"]) for row in rows]


def _steps_to_rows(steps: Sequence[Step]) -> list[Row]:
    return [
        {
            "call_name": step.call.name if step.call else None,
            "call_arguments": to_json(dict(step.call.arguments)) if step.call else None,
            "status": str(step.status),
            "observation": step.observation,
            "state": step.state,
        }
        for step in steps
    ]


def _steps_from_rows(rows: Sequence[Row]) -> list[Step]:
    return [Step(_call_from_row(row), StepStatus(row["status"]), row["observation"], row["state"]) for row in rows]


def _call_from_row(row: Row) -> ToolCall | None:
    if row["call_name"] is None:
        return None
    return ToolCall(row["call_name"], _require(dict, json.loads(row["call_arguments"]), "the arguments of a call"))


def _require(kind: type[T], value: Any, what: str) -> T:
    """Return the value. Raises ValueError unless it is an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{what}: expected {kind.__name__}, got {str(value)[:80]}")
    return value


def _messages_from_json(text: str) -> list[Message]:
    messages = _require(list, json.loads(text), "messages")
    for message in messages:
        _require(str, _require(dict, message, "a message").get("role"), "the role of a message")
        for call in _require(list, message.get("tool_calls") or [], "tool_calls"):
            function = _require(dict, _require(dict, call, "a tool call").get("function"), "the function of a call")
            _require(str, function.get("name"), "the name of a function")
    return messages


def _tools_from_json(text: str) -> tuple[ToolSchema, ...]:
    tools = _require(list, json.loads(text), "tools")
    for tool in tools:
        _require(dict, _require(dict, tool, "a tool").get("function", {}), "the function of a tool")
    return tuple(tools)


def _reference_from_json(text: str) -> Reference:
    document = _require(dict, json.loads(text), "a reference")
    for name in ("answer", "family"):
        if document.get(name) is not None:
            _require(str, document[name], name)
    return Reference.from_json(document)


_MESSAGES = Stored(pa.string(), JSON_ARRAY.encode, _messages_from_json)
_TOOLS = Stored(pa.string(), JSON_TUPLE.encode, _tools_from_json)
_OPENING = Stored(pa.string(), JSON_TUPLE.encode, lambda text: tuple(_messages_from_json(text)))
_SPANS = Stored(
    pa.list_(
        pa.struct(
            [
                describe_field("start", pa.int32(), "Position of the first token of the step in input_ids"),
                describe_field("end", pa.int32(), "Position after its last token, the end-of-turn token included"),
            ]
        )
    ),
    _spans_to_rows,
    _spans_from_rows,
)
_STEPS = Stored(
    pa.list_(
        pa.struct(
            [
                describe_field("call_name", pa.string(), "Tool that was called; null if no call could be read", True),
                describe_field("call_arguments", pa.string(), "JSON object; null if no call could be read", True),
                describe_field("status", pa.string(), f"Result of the step: {', '.join(StepStatus)}"),
                describe_field("observation", pa.string(), "Text returned to the model; empty for a Finish"),
                describe_field(
                    "state",
                    pa.string(),
                    "Digest of the environment's state before the step; null unless credit.state is digest",
                    True,
                ),
            ]
        )
    ),
    _steps_to_rows,
    _steps_from_rows,
)


_REFERENCE = Stored(
    pa.string(),
    lambda reference: to_json(reference.to_json()),
    _reference_from_json,
)


@contract("queries", version=2)
@dataclass(frozen=True)
class Query:
    """A task: an instruction, the tools that may be used, and what is known of its solution."""

    query_id: Annotated[str, "Unique in the file"]
    split: Annotated[str, "train, validation or heldout"]
    environment: Annotated[str, "Environment that runs the tools"]
    instruction: Annotated[str, "What the user asks for"]
    tools: Annotated[tuple[ToolSchema, ...], _TOOLS, "Tools that may be called: JSON array of OpenAI tool schemas"]
    reference: Annotated[
        Reference,
        _REFERENCE,
        "What is known of the solution: JSON object with answer (text), calls (array of name and arguments), turns "
        "(array of such arrays), tools (array of names), family (text) and values for the environment; an absent key "
        "means not known",
    ] = field(default_factory=Reference)
    source: Annotated[str, "Where the task comes from; may be empty"] = ""
    tier: Annotated[str, "Group of difficulty or origin by which results are broken down; may be empty"] = ""
    max_steps: Annotated[Int32, "Steps allowed, Finish included; 0 leaves the limit to rollout.max_steps"] = 0
    opening: Annotated[
        tuple[Message, ...],
        _OPENING,
        "Messages of the instruction, where some of them are not the user's: JSON array of OpenAI messages of the "
        "roles system, developer and user; empty: the instruction is one message of the user",
    ] = ()

    @property
    def first_messages(self) -> list[Message]:
        """The messages that an episode begins with."""
        return [dict(m) for m in self.opening] or [{"role": "user", "content": self.instruction}]


@contract("trajectories", version=5)
@dataclass(frozen=True)
class Trajectory:
    """One episode: the exact tokens that the model read and sampled, its calls and their results.

    Log-probabilities are natural logarithms at the temperature of the episode; of a greedy episode, at temperature 1.
    """

    trajectory_id: Annotated[str, "Unique in the file"]
    query_id: Annotated[str, "Task that was played; in queries"]
    environment: Annotated[str, "Environment that ran the tools"]
    tier: Annotated[str, "Tier of the query"]
    policy: Annotated[str, "Name of the policy that played"]
    round: Annotated[Int32, "Round of training, counted from 0; -1 outside of rounds"]
    sample: Annotated[Int32, "Number of the episode among those of its query, counted from 0"]
    temperature: Annotated[Float32, "Temperature of sampling; 0 is greedy"]
    messages: Annotated[Sequence[Message], _MESSAGES, "The conversation: JSON array of OpenAI messages"]
    input_ids: Annotated[Int32Array, "[L] token ids of prompt, steps and observations; empty without a tokenizer"]
    spans: Annotated[
        Sequence[tuple[int, int]], _SPANS, "[T] where the tokens of each step lie in input_ids: [start, end)"
    ]
    logprobs: Annotated[
        Float32Array,
        "[sum(end - start)] log-probability (nats) at which each token inside the spans was sampled, end to end",
    ]
    steps: Annotated[Sequence[Step], _STEPS, "[T] steps of the assistant: what was called and what came back"]
    stop_reason: Annotated[StopReason, f"Why the episode ended: {', '.join(StopReason)}"]
    final_answer: Annotated[str | None, "Answer of a well-formed Finish; null without one"]
    solved: Annotated[Float32 | None, "Verdict of the environment, or of the recording, in [0, 1]; null without one"]
    seconds: Annotated[Float64, "Wall-clock seconds from reset to stop; episodes of a batch overlap"]
    abandoned_turns: Annotated[Int32, "Turns sampled on other branches of a search; 0 for a chain"] = 0
    abandoned_tokens: Annotated[Int32, "Tokens sampled on other branches of a search"] = 0
    check_error: Annotated[str, "Why the environment's check failed, which leaves the verdict missing; else empty"] = ""

    @property
    def action_tokens(self) -> int:
        """Number of sampled tokens."""
        return sum(end - start for start, end in self.spans)

    @property
    def sampled_turns(self) -> int:
        """Number of turns that the policy was asked for, those on other branches included."""
        return len(self.steps) + self.abandoned_turns

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens sampled in all, those on other branches included: what the episode cost."""
        return self.action_tokens + self.abandoned_tokens


def read_queries(path: str | os.PathLike[str], split: str | None = None) -> list[Query]:
    """The queries of a file, or of one of its splits. Raises ValueError if the file or split is empty."""
    queries = [from_row(row, Query) for row in iterate_rows(path, Query) if split is None or row["split"] == split]
    if not queries:
        part = f"the split '{split}'" if split else "the file"
        raise ValueError(f"{path}: {part} is empty; every stage needs at least one query")
    return queries
