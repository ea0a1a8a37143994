"""One recorded trajectory in any form, and the query and the trajectory that it becomes.

Arguments of recorded calls are JSON as its writers produced it, which is not always JSON as a model has to write it.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steptool.chat.messages import GIVE_ANSWER, GIVE_UP, NO_CALL, make_call_message, make_tool_message
from steptool.data.files import strip_suffixes
from steptool.data.parsing import Record, UnusableError, join_texts, parse_json, replace_half_pairs
from steptool.environments.toolbench import read_status
from steptool.records import (
    FINISH,
    Message,
    Query,
    Step,
    StepReward,
    StepStatus,
    StopReason,
    ToolCall,
    ToolSchema,
    Trajectory,
)

_LITERAL_LIMIT = 1 << 16
"""Characters of arguments in Python's syntax, which takes some hundred times as much memory to read."""
_LENIENT = json.JSONDecoder(strict=False)
"""Takes raw newlines and other control characters in strings."""
_ABSENT = ("", "null", "None")
_BAD_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])|\\')
_RETURN_TYPE = re.compile(rf"""["']return_type["']\s*:\s*["']({GIVE_ANSWER}|{GIVE_UP})["']""")
_ANSWER = re.compile(r'"final_answer"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)
_SUSPECT = re.compile(r"NaN|Infinity|[eE]\+?\d{2}|\d{300}")
"""What a text holds wherever its JSON holds a number beyond the range of floats."""


def is_strict_object(text: str) -> bool:
    """Whether a text is a JSON object that needs no mending."""
    try:
        return isinstance(json.loads(text), dict) and not _SUSPECT.search(text)
    except (ValueError, RecursionError):
        return False


def read_recorded_arguments(name: str, text: str) -> dict[str, Any] | None:
    """The arguments of a call of the tool `name`; None where they are no object.

    Besides JSON these are read: no arguments at all, strings with raw control characters, JSON within JSON, and the
    text of a Python dict. A Finish is also read where it was cut off or has escapes that JSON does not know: its answer
    is what is left of it. Raises UnusableError for numbers that JSON cannot write.
    """
    if text.strip() in _ABSENT:
        return {}
    value = _read_json(text)
    arguments: dict[str, Any] | None = value if isinstance(value, dict) else None
    if arguments is None:
        finish = _read_finish(text) if name == FINISH else None
        arguments = finish if finish and "final_answer" in finish else _read_literal(text) or finish
    if arguments is not None and _SUSPECT.search(text):
        _check_numbers(arguments)
    return arguments


def _read_json(text: str) -> Any:
    """The value of a JSON text, or of the JSON text that it holds as a string."""
    try:
        value = replace_half_pairs(_LENIENT.decode(text), text)
        return replace_half_pairs(_LENIENT.decode(value), value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _read_literal(text: str) -> dict[str, Any] | None:
    if len(text) > _LITERAL_LIMIT or not text.lstrip().startswith("{"):
        return None
    try:
        value = ast.literal_eval(text.strip())
        # What JSON cannot hold (sets, bytes, keys that are no text) is not read.
        text_of_value = json.dumps(value, ensure_ascii=False)
        return value if isinstance(value, dict) and json.loads(text_of_value) == value else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _read_finish(text: str) -> dict[str, Any] | None:
    """A Finish whose return type can be read, with as much of its answer as there is."""
    return_type, answer = _RETURN_TYPE.search(text), _ANSWER.search(text)
    if not return_type:
        return None
    finish: dict[str, Any] = {"return_type": return_type[1]}
    return finish | {"final_answer": _unescape(answer[1])} if answer else finish


def _unescape(body: str) -> str:
    """The string between the quotation marks of a JSON text; a backslash that escapes nothing is left out."""
    body = _BAD_ESCAPE.sub(lambda escape: escape[0] if escape[1] else "", body)
    text: str = replace_half_pairs(json.loads(f'"{body}"', strict=False), body)
    return text


def _check_numbers(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UnusableError("a number that JSON cannot write", f"expected finite numbers, got {value}")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(child)


RELEASE = "steptool-release"
"""Annotator under which the step rewards of StepTool's released files are kept."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NOTHING = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)


ERROR_MARKS = ("is_error", "isError", "status", "success", "ok")
"""Fields in which writers say beside an answer, or in it, whether the tool failed."""
_FAILED = ("error", "failed", "failure")


class RecordedTurn(NamedTuple):
    """One recorded turn of the assistant, and what came back."""

    thought: str
    """Words before the call."""
    name: str
    """The tool that was called; empty where the turn makes no call."""
    arguments: str
    """The call's arguments as JSON text; without a call, the turn's words."""
    observation: str | None
    """The response; None without one, as after Finish."""
    user: str | None = None
    """What the user said next, if anything."""
    failed: bool = False
    """Whether the record says beside the response that the tool failed."""
    notes: Sequence[tuple[str, str]] = ()
    """What system and developer said after that, before the user: role and text."""


@dataclass(frozen=True)
class Recording:
    """One recorded trajectory: the task's text, the tools as recorded, and the turns of its final path."""

    file: Path
    row: int | str | None
    instruction: str
    tools: tuple[ToolSchema, ...]
    turns: tuple[RecordedTurn, ...]
    solved: float | None = None
    """The verdict that was recorded with it, in [0, 1]."""
    rewards: tuple[float, ...] = ()
    """Recorded rewards, one per turn; empty without rewards."""
    opening: tuple[Message, ...] = ()
    """What the instruction consists of where others than the user speak in it."""


def make_recording(
    record: Record,
    instruction: str,
    tools: tuple[ToolSchema, ...],
    turns: Sequence[RecordedTurn],
    solved: float | None = None,
    rewards: Sequence[float] = (),
    opening: Sequence[Message] = (),
) -> Recording:
    """The recording up to the call that ends it, with arguments that are strict JSON wherever they can be read.

    Raises UnusableError if it has no step, a call without a response, or arguments that JSON cannot write.
    """
    if not turns:
        raise UnusableError("no recorded step", "no call and no words of the assistant are recorded")
    turns = [_make_arguments_strict(turn, number) for number, turn in enumerate(turns)]
    end = next((n for n, turn in enumerate(turns) if _ends_episode(turn)), len(turns) - 1) + 1
    for number, turn in enumerate(turns[:end]):
        if turn.observation is None and turn.name not in ("", FINISH):
            raise UnusableError("a call without a response", f"call {number} ({turn.name}) has no recorded response")
    path = tuple(turns[:end])
    return Recording(record.file, record.row, instruction, tools, path, solved, tuple(rewards[:end]), tuple(opening))


def _make_arguments_strict(turn: RecordedTurn, number: int) -> RecordedTurn:
    if not turn.name:
        return turn
    if is_strict_object(turn.arguments):
        return turn
    try:
        arguments = read_recorded_arguments(turn.name, turn.arguments)
    except UnusableError as error:
        raise UnusableError(error.reason, f"call {number} ({turn.name}): {error.detail}") from None
    return turn if arguments is None else turn._replace(arguments=json.dumps(arguments, ensure_ascii=False))


def _ends_episode(turn: RecordedTurn) -> bool:
    return turn.user is None and not turn.notes and turn.name == FINISH and _make_step(turn).status is StepStatus.FINISH


def make_query(recording: Recording) -> Query:
    """The task that a recording brings along, without a split.

    Its tier is the name of the file, or of the file's folder where the file holds this recording alone.
    """
    file, stem = recording.file, _SHARD.sub("", strip_suffixes(recording.file))
    name = f"{file.parent.name}-{strip_suffixes(file)}"
    return Query(
        query_id=name if recording.row is None else f"{name}-{recording.row}",
        split="",
        environment="replay",
        instruction=recording.instruction,
        tools=recording.tools,
        source="recorded",
        tier=file.parent.name if recording.row is None else stem,
        opening=recording.opening,
    )


def make_trajectory_id(query_id: str, sample: int) -> str:
    """Id of the trajectory of a recording of a query."""
    return f"{query_id}-recorded-{sample}"


def make_trajectory(turns: Sequence[RecordedTurn], solved: float | None, query: Query, sample: int) -> Trajectory:
    """The turns of a recording as a trajectory of a query: messages and steps, no tokens."""
    messages = query.first_messages
    steps: list[Step] = []
    for turn in turns:
        step = _make_step(turn)
        steps.append(step)
        messages += _make_messages(turn, step)
    return Trajectory(
        trajectory_id=make_trajectory_id(query.query_id, sample),
        query_id=query.query_id,
        environment=query.environment,
        tier=query.tier,
        policy="recorded",
        round=-1,
        sample=sample,
        temperature=1.0,
        messages=messages,
        input_ids=_NOTHING[0],
        spans=[],
        logprobs=_NOTHING[1],
        steps=steps,
        stop_reason=_find_stop_reason(steps[-1]),
        final_answer=_find_final_answer(steps[-1]),
        solved=solved,
        seconds=0.0,
    )


def collect_recorded_rewards(trajectory_id: str, rewards: Sequence[float]) -> list[StepReward]:
    """Step rewards that were recorded with a trajectory.

    A released reward before the last is the mean of SuccCalling and Contribution over several judgements. Its parts are
    lost: the mean stands under "reward" in the votes, and the components are missing. The last reward is IsSolved.
    """
    return [
        StepReward(
            trajectory_id=trajectory_id,
            step=step,
            annotator=RELEASE,
            annotator_version="1",
            is_solved=reward if step == len(rewards) - 1 else None,
            votes=json.dumps({"reward": reward}),
        )
        for step, reward in enumerate(rewards)
    ]


def marks_error(fields: Mapping[str, Any]) -> bool:
    """Whether a message or an answer says of itself that the tool failed: `is_error`, `status: error`, `ok: false`."""
    status, wrong = fields.get("status"), [fields.get(name) for name in ("is_error", "isError")]
    right = [fields.get(name) for name in ("success", "ok")]
    is_failed_status = isinstance(status, str) and status.lower() in _FAILED
    return is_failed_status or any(value is True for value in wrong) or any(value is False for value in right)


def _read_status(turn: RecordedTurn, observation: str) -> StepStatus:
    status = read_status(observation)
    if status is not StepStatus.OK:
        return status
    try:
        answer = parse_json(observation)
    except UnusableError:
        answer = None
    is_failure = turn.failed or (isinstance(answer, dict) and marks_error(answer))
    return StepStatus.TOOL_ERROR if is_failure else StepStatus.OK


def _make_step(turn: RecordedTurn) -> Step:
    observation = turn.observation or ""
    arguments = _load_arguments(turn)
    if arguments is None:
        return Step(None, StepStatus.MALFORMED, observation)
    call = ToolCall(turn.name, arguments)
    if turn.name != FINISH:
        return Step(call, _read_status(turn, observation), observation)
    if not _is_finish(arguments):
        return Step(call, StepStatus.INVALID_ARGUMENTS, observation)
    return Step(call, StepStatus.FINISH, "")


def _is_finish(arguments: dict[str, Any]) -> bool:
    """Whether these are arguments of Finish: what its schema says, without the time that a schema takes."""
    has_finish_arguments = arguments.keys() <= {"return_type", "final_answer"}
    answer = arguments.get("final_answer", "")
    return has_finish_arguments and arguments.get("return_type") in (GIVE_ANSWER, GIVE_UP) and isinstance(answer, str)


def _load_arguments(turn: RecordedTurn) -> dict[str, Any] | None:
    if not turn.name:
        return None
    try:
        arguments = parse_json(turn.arguments)
    except UnusableError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _make_messages(turn: RecordedTurn, step: Step) -> list[Message]:
    """The turn, its response (also that to a Finish which the user answers), and what the user said next."""
    if step.call is None:
        words = f"{turn.name}: {turn.arguments}" if turn.name else turn.arguments
        messages: list[Message] = [{"role": "assistant", "content": join_texts([turn.thought, words])}]
    else:
        messages = [make_call_message(step.call, turn.thought)]
    is_finish, is_answered = step.status is StepStatus.FINISH, turn.name or turn.observation is not None
    if turn.user is not None or turn.notes if is_finish else is_answered:
        messages.append(make_tool_message(turn.name or NO_CALL, step.observation))
    messages += [{"role": role, "content": text} for role, text in turn.notes]
    if turn.user is not None:
        messages.append({"role": "user", "content": turn.user})
    return messages


def _find_stop_reason(last: Step) -> StopReason:
    if last.status is StepStatus.FINISH and last.call:
        return StopReason.FINISHED if last.call.arguments["return_type"] == GIVE_ANSWER else StopReason.GAVE_UP
    return StopReason.MALFORMED if last.status is StepStatus.MALFORMED else StopReason.STEP_LIMIT


def _find_final_answer(last: Step) -> str | None:
    finish = last.call if last.status is StepStatus.FINISH else None
    return finish.arguments.get("final_answer") if finish else None
