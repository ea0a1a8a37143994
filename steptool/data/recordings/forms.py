"""Recordings of any known form, and the recordings that a playback names.

What a record holds says which form it has. Conversations of other writers become conversations in OpenAI's form:

    ShareGPT          {"conversations": [{"from": "human", "value": ...}, {"from": "function_call", ...}, ...]}
    Gemini            {"contents": [{"role": "model", "parts": [{"functionCall": ...}]}, ...]}
    OpenAI responses  {"input": [...], "output": [{"type": "function_call", ...}, ...]}
    glaive            {"system": "... functions ...", "chat": "USER: ... ASSISTANT: <functioncall> ..."}

`steptool.data.recordings.messages` reads what stands in the messages themselves: Anthropic's blocks, Hermes' tags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steptool.chat.messages import read_first_json
from steptool.config import Config, EvaluatedPolicy
from steptool.data.files import SUFFIXES, find_files, parse_records
from steptool.data.parsing import (
    IngestError,
    IngestLog,
    Record,
    UnusableError,
    convert_to_text,
    cut_excerpt,
    parse_if_text,
    require,
)
from steptool.data.recordings.conversation import DefaultTools, read_conversation
from steptool.data.recordings.recording import ERROR_MARKS, Recording, make_trajectory
from steptool.data.recordings.toolbench import COLUMNS, read_converted_answer, read_raw_answer, read_released
from steptool.data.splits import make_text_key
from steptool.data.tools import ToolCatalog
from steptool.records import Query, Trajectory
from steptool.storage.transfer import fetch

Fields = Mapping[str, Any]
_GLAIVE_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_GLAIVE_CALL = re.compile(r"<functioncall>\s*(.*)", re.DOTALL)
_GLAIVE_ARGUMENTS = re.compile(r"""["']arguments["']\s*:\s*'(.*)'\s*\}\s*\Z""", re.DOTALL)
_NAME = re.compile(r"""["']name["']\s*:\s*["']([^"']*)["']""")
_END = "<|endoftext|>"


def translate_record(value: Fields) -> Fields | None:
    """A record with `messages` (and `tools`, `solved`) from a record of another writer; None for other records.

    Raises UnusableError where the record is of a known form and cannot be read.
    """
    if "messages" in value:
        return value
    for fields, read in _FORMS:
        if fields <= value.keys():
            fields_of_record = {
                name: value[name] for name in ("tools", "functions", "solved") if value.get(name) is not None
            }
            return {**fields_of_record, **read(value)}
    return None


def _read_sharegpt(value: Fields) -> Fields:
    turns = parse_if_text(value["conversations"], "conversations")
    if not isinstance(turns, list):
        detail = f"field 'conversations': expected a list, got {cut_excerpt(turns)}"
        raise UnusableError("ill-typed field 'conversations'", detail)
    system = value.get("system")
    opening = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return {"messages": [*opening, *(_read_sharegpt_turn(turn, f"conversations[{n}]") for n, turn in enumerate(turns))]}


def _read_sharegpt_turn(turn: Any, where: str) -> Fields:
    turn = parse_if_text(turn, where)
    if isinstance(turn, dict) and "from" not in turn and "role" in turn:
        return turn
    message = {"role": require(turn, "from", str, where), "content": require(turn, "value", str, where)}
    return message | {name: turn[name] for name in ERROR_MARKS if name in turn}


def _read_gemini(value: Fields) -> Fields:
    contents = parse_if_text(value["contents"], "contents")
    if not isinstance(contents, list):
        raise UnusableError("ill-typed field 'contents'", f"expected a list, got {cut_excerpt(contents)}")
    instruction = value.get("systemInstruction") or value.get("system_instruction")
    opening = [{**instruction, "role": "system"}] if isinstance(instruction, dict) else []
    messages = [
        message for n, content in enumerate([*opening, *contents]) for message in _read_gemini_content(content, n)
    ]
    return {"messages": messages}


def _read_gemini_content(content: Any, number: int) -> Iterator[Fields]:
    """The messages of one content: responses of tools, and then the words, thoughts and calls of its role."""
    where = f"contents[{number}]"
    role = require(content, "role", str, where)
    words: list[str] = []
    thoughts: list[str] = []
    calls: list[Fields] = []
    for part in require(content, "parts", list, where):
        if not isinstance(part, dict):
            raise UnusableError("not an object", f"{where}.parts: expected an object, got {cut_excerpt(part)}")
        call = part.get("functionCall") or part.get("function_call")
        response = part.get("functionResponse") or part.get("function_response")
        if isinstance(call, dict):
            calls.append({"id": call.get("id"), "function": {"name": call.get("name"), "arguments": call.get("args")}})
        elif isinstance(response, dict):
            text = convert_to_text(response.get("response"))
            yield {"role": "tool", "tool_call_id": response.get("id"), "name": response.get("name"), "content": text}
        elif isinstance(part.get("text"), str):
            (thoughts if part.get("thought") else words).append(part["text"])
        else:
            raise UnusableError("content that is no text", f"{where}.parts: a part with the fields {sorted(part)}")
    if words or calls or thoughts:
        role = "assistant" if role == "model" else "user" if role == "function" else role
        message = {"role": role, "content": "".join(words), "reasoning_content": "".join(thoughts)}
        yield {**message, "tool_calls": calls} if calls else message


def _read_responses(value: Fields) -> Fields:
    """OpenAI's responses: what went in, what came out, and the instructions as the system's message."""
    items: list[Any] = []
    if isinstance(value.get("instructions"), str):
        items.append({"role": "system", "content": value["instructions"]})
    for field in ("input", "output"):
        part = value[field]
        if field == "input" and isinstance(part, str) and not part.lstrip().startswith("["):
            items.append({"role": "user", "content": part})
            continue
        part = parse_if_text(part, field)
        if not isinstance(part, list):
            raise UnusableError(f"ill-typed field '{field}'", f"expected a list of items, got {cut_excerpt(part)}")
        items += part
    return {"messages": items}


def _read_glaive(value: Fields) -> Fields:
    """One text with the turns of all, and the functions in the text of the system."""
    chat, system = require(value, "chat", str), require(value, "system", str)
    parts = _GLAIVE_TURN.split(chat)
    messages = [
        _read_glaive_turn(_GLAIVE_ROLES[role], text.replace(_END, "").strip())
        for role, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return {"messages": messages, "tools": list(_iterate_objects(system))}


def _read_glaive_turn(role: str, text: str) -> Fields:
    match = _GLAIVE_CALL.search(text) if role == "assistant" else None
    if not match:
        return {"role": role, "content": text}
    name, quoted = _NAME.search(match[1]), _GLAIVE_ARGUMENTS.search(match[1])
    arguments = quoted[1] if quoted else _read_glaive_arguments(match[1])
    function = {"name": name[1] if name else "", "arguments": arguments}
    return {"role": role, "content": text[: match.start()].strip(), "tool_calls": [{"function": function}]}


def _read_glaive_arguments(text: str) -> Any:
    """The arguments of a call that is JSON; the text itself where it is not."""
    try:
        call, _ = read_first_json(text)
    except ValueError:
        return text
    return call.get("arguments") if isinstance(call, dict) else text


def _iterate_objects(text: str) -> Iterator[Any]:
    """The JSON objects that stand in a text one after the other."""
    begin = text.find("{")
    while begin >= 0:
        try:
            document, end = read_first_json(text[begin:])
        except ValueError as error:
            raise UnusableError("tools of another form", f"system: {error} at {cut_excerpt(text[begin:])}") from None
        yield document
        begin = text.find("{", begin + end)


def _refuse_xlam(value: Fields) -> Fields:
    calls = cut_excerpt(value["answers"])
    detail = f"the calls {calls} have no responses; write such rows as tasks with reference.calls (data.source: jsonl)"
    raise UnusableError("a task with calls but no responses", detail)


_FORMS: tuple[tuple[set[str], Callable[[Fields], Fields]], ...] = (
    ({"conversations"}, _read_sharegpt),
    ({"contents"}, _read_gemini),
    ({"chat", "system"}, _read_glaive),
    ({"input", "output"}, _read_responses),
    ({"query", "answers"}, _refuse_xlam),
)
"""Fields that tell a form, and what reads it."""


_KNOWN = (
    "the fields messages; conversations; contents; input and output; chat and system; answer_generation; query, "
    "available_tools and answer; or prompt, response and reward"
)


def read_recordings(
    paths: Sequence[str], field: str, default_tools: DefaultTools, log: IngestLog
) -> Iterator[Recording]:
    """The recordings of files and of those below folders. What cannot be used goes to the log.

    `field` is the field of the configuration that names the paths; `default_tools` gives the tools of a conversation
    that lists none.
    """
    files = find_files(paths, field, SUFFIXES)
    return parse_records(files, lambda record: read_recording(record, default_tools), "demonstrations", log)


def read_recording(record: Record, default_tools: DefaultTools) -> Recording:
    """The recording in a record of any form. Raises UnusableError naming the field that is wrong."""
    value = record.value
    if not isinstance(value, dict):
        raise UnusableError("not an object", f"expected a JSON object, got {cut_excerpt(value)}")
    if (conversation := translate_record(value)) is not None:
        return read_conversation(replace(record, value=conversation), default_tools)
    if value.keys() >= COLUMNS:
        return read_released(record)
    try:
        if {"answer_generation", "tree", "trys"} & value.keys():
            return read_raw_answer(record)
        if "answer" in value:
            return read_converted_answer(record)
    except (AttributeError, KeyError, TypeError) as error:
        raise UnusableError("a path of another shape", f"{type(error).__name__}: {error}") from None
    raise UnusableError("no known form of recording", f"expected {_KNOWN}; there are {sorted(value)[:20]}")


def find_policy_recordings(
    policy: EvaluatedPolicy, queries: Sequence[Query], config: Config, folder: Path
) -> list[Trajectory]:
    """The recordings that a playback policy names, one for each query, fetched into the folder; empty if it names none.

    Raises IngestError where it names recordings and a query has none.
    """
    if not policy.recordings:
        return []
    places = [fetch(place, folder / str(number)) for number, place in enumerate(policy.recordings)]
    return match_recordings(queries, places, f"evaluation.policies: recordings of '{policy.name}'", config)


def match_recordings(queries: Sequence[Query], places: Sequence[str], field: str, config: Config) -> list[Trajectory]:
    """The first recording of each query in the files, as a trajectory, in the order of the queries.

    A recording belongs to the query with its text. `field` is the field of the configuration that names the `places`.
    Raises IngestError where a query has no usable recording.
    """
    log = IngestLog()
    first: dict[str, Recording] = {}
    for recording in read_recordings(places, field, ToolCatalog(config).tools, log):
        first.setdefault(make_text_key(recording.instruction), recording)
    missing = [query.query_id for query in queries if make_text_key(query.instruction) not in first]
    if missing:
        unusable = {name: count for name, count in log.counts.items() if "dropped" in name}
        raise IngestError(
            f"{field}: {len(missing)} of {len(queries)} queries have no recording in {', '.join(places)}, the first is "
            f"'{missing[0]}' (unusable recordings: {unusable or 'none'}); name files that hold them, or play "
            "fewer queries with evaluation.recorded_only"
        )
    pairs = [(query, first[make_text_key(query.instruction)]) for query in queries]
    return [make_trajectory(recording.turns, recording.solved, query, 0) for query, recording in pairs]
