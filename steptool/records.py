"""The records that stages hand over: what is played, scored, learned from and measured.

Each class marked with `contract` is the contract of a Parquet file; docs/artifacts.md shows their columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import pyarrow as pa

from steptool.contracts.columns import (
    JSON_ARRAY,
    JSON_OBJECT,
    JSON_TUPLE,
    Float32,
    Float32Array,
    Float64,
    Int32,
    Int32Array,
    Int64,
    Row,
    Stored,
    contract,
    described,
    to_json,
)

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
    """The endpoint that plays would not go on: a filter of contents, a conversation that it does not take."""
    ENDED = "ended"
    """The environment ended the episode after a call: a game that is over, say."""


class VerdictSource(StrEnum):
    """Where the verdict on an episode comes from."""

    ENVIRONMENT = "environment"
    """The environment checked the episode."""
    REFERENCE = "reference"
    """The final answer was compared with the task's reference answer."""
    JUDGE = "judge"
    """Verdicts of a judge, stored or asked for: their mean."""
    RULE = "rule"
    """An episode without an answer is unsolved, where a judge gives the verdicts."""
    NONE = "none"
    """There is no verdict: the task has neither a check nor a reference answer."""
    FAILED = "failed"
    """There is no verdict: the environment's check failed."""


class StepStatus(StrEnum):
    """What became of one assistant step."""

    OK = "ok"
    """The tool ran and did not fail."""
    TOOL_ERROR = "tool_error"
    """The tool ran and reported an error."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """The arguments do not satisfy the tool's JSON schema."""
    UNKNOWN_TOOL = "unknown_tool"
    """No such tool was offered."""
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
    """One assistant step: the call that was read from its tokens, what became of it, and what came back."""

    call: ToolCall | None
    status: StepStatus
    observation: str
    """Text returned to the model; empty for a Finish."""


@dataclass(frozen=True)
class Reference:
    """What is known of the solution of a task. None is not known; an empty tuple or text is known to be empty."""

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
    """What the environment needs to know of the task, under names of its own."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reference:
        """The reference of a JSON object; keys that are none of the fields belong to the environment."""
        calls, turns, tools = (document.get(name) for name in ("calls", "turns", "tools"))
        return cls(
            answer=document.get("answer"),
            calls=None if calls is None else _calls_from_json(calls),
            turns=None if turns is None else tuple(map(_calls_from_json, turns)),
            tools=None if tools is None else tuple(tools),
            family=document.get("family"),
            environment={name: value for name, value in document.items() if name not in cls.__dataclass_fields__},
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads; what is not known has no key."""
        known = {
            "answer": self.answer,
            "calls": None if self.calls is None else _calls_to_json(self.calls),
            "turns": None if self.turns is None else list(map(_calls_to_json, self.turns)),
            "tools": None if self.tools is None else list(self.tools),
            "family": self.family,
        }
        return {name: value for name, value in known.items() if value is not None} | dict(self.environment)


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
        }
        for step in steps
    ]


def _steps_from_rows(rows: Sequence[Row]) -> list[Step]:
    return [Step(_call_from_row(row), StepStatus(row["status"]), row["observation"]) for row in rows]


def _call_from_row(row: Row) -> ToolCall | None:
    return None if row["call_name"] is None else ToolCall(row["call_name"], json.loads(row["call_arguments"]))


_SPANS = Stored(
    pa.list_(
        pa.struct(
            [
                described("start", pa.int32(), "Position of the first token of the step in input_ids"),
                described("end", pa.int32(), "Position after its last token, the end-of-turn token included"),
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
                described("call_name", pa.string(), "Tool that was called; null if no call could be read", True),
                described("call_arguments", pa.string(), "JSON object; null if no call could be read", True),
                described("status", pa.string(), f"What became of the step: {', '.join(StepStatus)}"),
                described("observation", pa.string(), "Text returned to the model; empty for a Finish"),
            ]
        )
    ),
    _steps_to_rows,
    _steps_from_rows,
)


_REFERENCE = Stored(
    pa.string(),
    lambda reference: to_json(reference.to_json()),
    lambda text: Reference.from_json(json.loads(text)),
)


@contract("queries", version=1)
@dataclass(frozen=True)
class Query:
    """A task: an instruction, the tools that may be used, and what is known of its solution."""

    query_id: Annotated[str, "Unique in the file"]
    split: Annotated[str, "train, validation or heldout"]
    environment: Annotated[str, "Environment that runs the tools"]
    instruction: Annotated[str, "What the user asks for"]
    tools: Annotated[tuple[ToolSchema, ...], JSON_TUPLE, "Tools that may be called: JSON array of OpenAI tool schemas"]
    reference: Annotated[
        Reference,
        _REFERENCE,
        "What is known of the solution: JSON object with answer (text), calls (array of name and arguments), turns "
        "(array of such arrays), tools (array of names), family (text) and what the environment keeps; an absent key "
        "is not known",
    ] = field(default_factory=Reference)
    source: Annotated[str, "Where the task comes from; may be empty"] = ""
    tier: Annotated[str, "Group of difficulty or origin by which results are broken down; may be empty"] = ""
    max_steps: Annotated[Int32, "Steps allowed, Finish included; 0 leaves the limit to rollout.max_steps"] = 0


@contract("trajectories", version=3)
@dataclass(frozen=True)
class Trajectory:
    """One episode: exactly the tokens that were seen and sampled, and what they did.

    The log-probabilities are natural logarithms at temperature 1 of the policy that sampled.
    """

    trajectory_id: Annotated[str, "Unique in the file"]
    query_id: Annotated[str, "Task that was played; in queries"]
    environment: Annotated[str, "Environment that ran the tools"]
    tier: Annotated[str, "Tier of the query"]
    policy: Annotated[str, "Name of the policy that played"]
    round: Annotated[Int32, "Round of training, counted from 0; -1 outside of rounds"]
    sample: Annotated[Int32, "Number of the episode among those of its query, counted from 0"]
    temperature: Annotated[Float32, "Temperature of sampling; 0 is greedy"]
    messages: Annotated[Sequence[Message], JSON_ARRAY, "The conversation: JSON array of OpenAI messages"]
    input_ids: Annotated[Int32Array, "[L] token ids of prompt, steps and observations; empty without a tokenizer"]
    spans: Annotated[
        Sequence[tuple[int, int]], _SPANS, "[T] where the tokens of each step lie in input_ids: [start, end)"
    ]
    logprobs: Annotated[
        Float32Array,
        "[sum(end - start)] log-probability (nats, at temperature 1) of each token inside the spans, end to end",
    ]
    steps: Annotated[Sequence[Step], _STEPS, "[T] steps of the assistant: what was called and what came back"]
    stop_reason: Annotated[StopReason, f"Why the episode ended: {', '.join(StopReason)}"]
    final_answer: Annotated[str | None, "Answer of a well-formed Finish; null where there is none"]
    solved: Annotated[
        Float32 | None, "Verdict of the environment, or of the recording, in [0, 1]; null where there is none"
    ]
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


@contract("rewards", version=1)
@dataclass(frozen=True)
class StepReward:
    """What one annotator said of one step. A score that could not be had is missing, never 0."""

    trajectory_id: Annotated[str, "Episode; in trajectories"]
    step: Annotated[Int32, "Number of the step, counted from 0"]
    annotator: Annotated[str, "Name of the annotator"]
    annotator_version: Annotated[str, "Changes whenever the annotator may give the same episode another score"]
    prompt_hash: Annotated[str, "SHA-256 of the prompt; empty for an annotator without one"] = ""
    succ_calling: Annotated[Float32 | None, "1: well formed and no failure; else 0; null: missing"] = None
    contribution: Annotated[
        Float32 | None, "How much the step serves the final answer, in [0, 1]; null: missing, or the step is a Finish"
    ] = None
    is_solved: Annotated[
        Float32 | None, "0, 0.5 (unsure) or 1, on the last step alone; null: missing, or another step"
    ] = None
    votes: Annotated[str, "What the scores were made of: JSON object"] = "{}"
    rationale: Annotated[str, "Why, in words; may be empty"] = ""


@contract("advantages", version=1)
@dataclass(frozen=True)
class Advantage:
    """What one step was worth to the training."""

    trajectory_id: Annotated[str, "Episode; in trajectories"]
    step: Annotated[Int32, "Number of the step, counted from 0"]
    reward: Annotated[Float32, "Composed reward of the step"]
    kl: Annotated[Float32, "Sum over the tokens of the step of log pi - log pi_ref (nats)"]
    value: Annotated[Float32, "Value of the state before the first token of the step"]
    advantage: Annotated[Float32, "Mean over the tokens of the step, before whitening"]


@contract("evaluations", version=3)
@dataclass(frozen=True)
class Evaluation:
    """How one model did on one query in one repeat."""

    query_id: Annotated[str, "Task that was played; in queries"]
    split: Annotated[str, "Split of the query"]
    tier: Annotated[str, "Tier of the query"]
    model: Annotated[str, "Name of the model or policy"]
    decoding: Annotated[str, "greedy or sampled"]
    repeat: Annotated[Int32, "Number of the repeat, counted from 0"]
    trajectory_id: Annotated[str, "Episode behind the row"]
    passed: Annotated[Float32 | None, "Verdict in [0, 1]; 0.5 is unsure; null: not measurable, or the check failed"]
    verdict_source: Annotated[str, f"Where the verdict comes from: {', '.join(VerdictSource)}"]
    recall: Annotated[
        Float32 | None,
        "Share of the reference's tools that were called with success, in [0, 1]; null: the task names no tools",
    ]
    steps: Annotated[Int32, "Steps of the assistant"]
    calls: Annotated[Int32, "Steps that are not a well-formed Finish"]
    invalid_calls: Annotated[Int32, "Calls whose status is not ok, unreadable ones included"]
    redundant_calls: Annotated[Int32, "Calls that repeat an earlier one and bring nothing new"]
    tokens: Annotated[Int64, "Tokens written by the model, abandoned branches included"]
    prompt_tokens: Annotated[Int64 | None, "Tokens read by the model; null where nobody counted them"]
    money: Annotated[Float64 | None, "Price of the episode, in the currency of the configuration; null: not known"]
    seconds: Annotated[Float64, "Wall-clock seconds of the episode"]
    stop_reason: Annotated[str, f"Why the episode ended: {', '.join(StopReason)}"]


@contract("verdicts", version=1)
@dataclass(frozen=True)
class Verdict:
    """What one judgement said of one answer."""

    query_id: Annotated[str, "Task that was answered"]
    model: Annotated[str, "Model that answered"]
    repeat: Annotated[Int32, "Number of the judgement, counted from 0"]
    status: Annotated[str | None, "solved, unsure or unsolved; null: missing"]
    judge: Annotated[str, "Model that judged; empty: nobody was asked, or it is not known"] = ""
    prompt_hash: Annotated[str, "SHA-256 of the prompt; empty without one"] = ""
    rationale: Annotated[str, "Why, in words; may be empty"] = ""


@contract("preferences", version=1)
@dataclass(frozen=True)
class Preference:
    """Which of two answers one judgement preferred."""

    query_id: Annotated[str, "Task that both answered"]
    model: Annotated[str, "Model that is compared"]
    other: Annotated[str, "Model that it is compared with"]
    repeat: Annotated[Int32, "Number of the judgement, counted from 0"]
    swapped: Annotated[bool, "Whether the judge saw the other's answer first"]
    preference: Annotated[str | None, "model, other or tie; null: missing"]
    judge: Annotated[str, "Model that judged; empty: nobody was asked"] = ""
    prompt_hash: Annotated[str, "SHA-256 of the prompt; empty without one"] = ""
    rationale: Annotated[str, "Why, in words; may be empty"] = ""


@contract("metrics", version=1)
@dataclass(frozen=True)
class Metric:
    """One number that a stage measured."""

    stage: Annotated[str, "Stage that measured it, such as warm_start or ppo"]
    round: Annotated[Int32, "Round of training, counted from 0; -1 outside of rounds"]
    update: Annotated[Int32, "Optimizer step of the stage, counted from 0; -1 for a count of the whole stage"]
    name: Annotated[str, "What was measured"]
    value: Annotated[Float64, "The number"]


@contract("costs", version=1)
@dataclass(frozen=True)
class Cost:
    """What one task of a stage took."""

    stage: Annotated[str, "Stage, such as rollout"]
    round: Annotated[Int32, "Round of training, counted from 0; -1 outside of rounds"] = -1
    seconds: Annotated[Float64, "Wall-clock seconds; tasks of a stage may run side by side"] = 0.0
    tokens: Annotated[Int64, "Tokens generated, or trained on"] = 0
    peak_memory_mb: Annotated[Float64, "Peak resident memory of the process until then, in MiB"] = 0.0
    counts: Annotated[
        Mapping[str, float], JSON_OBJECT, "Other counts by name, such as requests to an endpoint and money: JSON object"
    ] = field(default_factory=dict)
