"""Messages of other writers in OpenAI's form: roles of other names, blocks and items as content, calls in the text.

Anthropic         content blocks of the types text, thinking, tool_use and tool_result
OpenAI responses  items of the types message, reasoning, function_call and function_call_output
Hermes            <tool_call>{...}</tool_call> in the assistant's text, <tool_response>...</tool_response> in answers
ReAct             "Action: ..." and "Action Input: ..." in the assistant's text, "Observation: ..." in answers
MCP               {"content": [...], "isError": ...} as what a tool answered

`conversation` reads the calls that models wrote into their text in other forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steptool.chat.call_format import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN
from steptool.chat.formats import REACT
from steptool.chat.messages import make_call_message
from steptool.data.parsing import UnusableError, convert_to_text, cut_excerpt, join_texts, parse_json, require
from steptool.data.recordings.recording import ERROR_MARKS, read_recorded_arguments

Fields = Mapping[str, Any]
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALL_ROLES = ("function_call", "tool_call")
"""Roles whose content is a call, or a list of them, as JSON."""
_RESPONSES = re.compile(r"\s*(?:<tool_response>.*?</tool_response>\s*)+", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_CALL = re.compile(rf"{CALL_OPEN}\s*(\{{.*?)\s*(?:{CALL_CLOSE}|\Z)", re.DOTALL)
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_OBSERVATION, _FINAL_ANSWER = "Observation:", "Final Answer:"
_THINKING = (
    re.compile(r"\A\s*(?:<(?:thinking|thought|reasoning)>|\[THINK\])"),
    re.compile(r"</(?:thinking|thought|reasoning)>|\[/THINK\]"),
)
"""Other tags around what a model thinks at the beginning of its turn."""
_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")


def translate_messages(messages: Sequence[Any]) -> list[Any]:
    """The messages with known roles, their text as content, and their calls under `tool_calls`.

    Messages that are in OpenAI's form already stay as they are, and so do values that are no messages.
    """
    translated_messages = [part for n, message in enumerate(messages) for part in _translate(message, f"messages[{n}]")]
    return _read_react(translated_messages) if any(map(_is_observation, translated_messages)) else translated_messages


def _is_observation(message: Any) -> bool:
    """Whether a message holds what a tool answered, in ReAct's form."""
    text = message.get("content") if isinstance(message, dict) and message.get("role") != "assistant" else None
    return isinstance(text, str) and text.lstrip().startswith(_OBSERVATION)


def _read_react(messages: Sequence[Any]) -> list[Any]:
    """The messages with the calls of ReAct's texts: those that an observation follows, and the final answer."""
    results: list[Any] = []
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        text = message.get("content") if isinstance(message, dict) else None
        if _is_observation(message):
            results.append({"role": "tool", "content": message["content"].lstrip().removeprefix(_OBSERVATION).strip()})
        elif not isinstance(text, str) or message.get("role") != "assistant" or message.get("tool_calls"):
            results.append(message)
        elif _is_observation(following) and (turn := REACT.parse(text)).call:
            results.append({**message, **make_call_message(turn.call, turn.thought)})
        else:
            thought, answers, answer = text.rpartition(_FINAL_ANSWER)
            reasoning = {"reasoning_content": thought.strip().removeprefix("Thought:").strip()} if answers else {}
            results.append({**message, "content": answer.strip() if answers else text, **reasoning})
    return results


def find_tools_of_system(messages: Sequence[Any]) -> tuple[list[Any], list[Any]] | None:
    """The tools that a system message lists between <tools> and </tools>, and the messages without that one."""
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) and message.get("role") == "system" else None
        match = _TOOLS.search(content) if isinstance(content, str) else None
        if match:
            other_messages = [*messages[:number], *messages[number + 1 :]]
            return _parse_tools(match[1]), other_messages
    return None


def _parse_tools(text: str) -> list[Any]:
    """The tools of a JSON list, or of JSON objects on a line each."""
    text = text.strip()
    if text.startswith("["):
        tools = parse_json(text)
        return tools if isinstance(tools, list) else [tools]
    return [parse_json(line) for line in text.splitlines() if line.strip()]


def _translate(message: Any, where: str) -> Iterator[Any]:
    if not isinstance(message, dict):
        yield message
    elif "role" not in message and isinstance(message.get("type"), str):
        yield _translate_item(message, where)
    elif not isinstance(role := message.get("role"), str):
        yield message
    elif role in _CALL_ROLES:
        yield _make_calls_message("", convert_to_text(message.get("content")))
    else:
        message = {**message, "role": _ROLES.get(role, role)}
        blocks = message.get("content")
        if isinstance(blocks, list) and all(isinstance(block, dict) and "type" in block for block in blocks):
            yield from _translate_blocks(message, blocks, where)
        else:
            yield from _translate_text(message)


def _translate_item(item: Fields, where: str) -> Fields:
    """An item of OpenAI's responses."""
    kind = item["type"]
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
    if kind == "function_call_output":
        output = _join_parts(item.get("output"))
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output, **_select_marks(item)}
    if kind == "reasoning":
        parts = [*(item.get("summary") or []), *(item.get("content") or [])]
        return {
            "role": "assistant",
            "reasoning_content": join_texts([convert_to_text(_join_parts([p])) for p in parts]),
        }
    expected = "expected message, reasoning, function_call or function_call_output"
    raise UnusableError("an item of another type", f"{where}: {expected}, got {cut_excerpt(kind)}")


def _select_marks(fields: Fields) -> Fields:
    """The fields in which an answer says that the tool failed."""
    return {name: fields[name] for name in ERROR_MARKS if name in fields}


def _join_parts(content: Any) -> Any:
    """Parts of text as their text; other content as it is."""
    parts = content if isinstance(content, list) else ()
    if parts and all(isinstance(p, dict) and p.get("type") in _TEXT_PARTS and "text" in p for p in parts):
        return "".join(convert_to_text(part["text"]) for part in parts)
    return content


def _translate_blocks(message: Fields, blocks: Sequence[Fields], where: str) -> Iterator[Any]:
    """A message of typed parts: what tools answered, then the words, the thoughts and the calls."""
    other_items: list[Fields] = []
    thoughts: list[str] = []
    calls: list[Fields] = []
    for block in blocks:
        kind = block["type"]
        if kind == "tool_use":
            function = {"name": require(block, "name", str, where), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "function": function})
        elif kind == "tool_result":
            content = _join_parts(block.get("content"))
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content, **_select_marks(block)}
        elif kind in ("thinking", "reasoning"):
            thoughts.append(convert_to_text(block.get("thinking") or block.get("text")))
        elif kind == "refusal":
            other_items.append({"type": "text", "text": convert_to_text(block.get("refusal"))})
        elif kind != "redacted_thinking":
            other_items.append({**block, "type": "text"} if kind in _TEXT_PARTS else block)
    if other_items or calls or thoughts or not blocks:
        reasoning = {"reasoning_content": join_texts(thoughts)} if thoughts else {}
        call_fields = {"tool_calls": calls} if calls else {}
        yield from _translate_text(
            {**message, "content": _join_parts(other_items) if other_items else "", **reasoning, **call_fields}
        )


def _translate_text(message: Fields) -> Iterator[Any]:
    """A message whose text may hold Hermes' tags."""
    role, text = message.get("role"), message.get("content")
    if role in ("tool", "function") and isinstance(text, dict) and isinstance(text.get("content"), list):
        yield {**message, "content": _join_parts(text["content"]), **_select_marks(text)}
        return
    if role == "assistant" and isinstance(text, str) and _THINKING[0].match(text):
        text = _THINKING[1].sub(THINK_CLOSE, _THINKING[0].sub(THINK_OPEN, text), count=1)
        message = {**message, "content": text}
    if not isinstance(text, str):
        yield message
    elif role == "assistant" and not message.get("tool_calls") and not message.get("function_call"):
        begin = text.rfind(THINK_CLOSE) + 1
        match = _CALL.search(text, begin)
        yield _make_calls_message(text[: match.start()], text[match.start() :], message) if match else message
    elif role in ("user", "tool", "function") and _RESPONSES.fullmatch(text):
        yield from (_read_response(body, message) for body in _RESPONSE.findall(text))
    else:
        yield message


def _make_calls_message(words: str, text: str, message: Fields | None = None) -> Fields:
    """An assistant message with the calls of a text, each between tags, or all of them as JSON."""
    bodies = _CALL.findall(text) if CALL_OPEN in text else [text]
    calls = [call for body in bodies for call in _read_calls(body)]
    content = join_texts([words.strip(), _CALL.sub("", text).strip() if CALL_OPEN in text else ""])
    return {**(message or {}), "role": "assistant", "content": content, "tool_calls": calls}


def _read_calls(body: str) -> Iterator[Fields]:
    """The call or the calls that a JSON text makes; a text that makes none is a call without a name."""
    try:
        value = parse_json(body)
    except UnusableError:
        value = read_recorded_arguments("", body)
    for call in value if isinstance(value, list) else [value]:
        call = call.get("function", call) if isinstance(call, dict) else {}
        name = call.get("name")
        arguments = call.get("arguments", call.get("parameters"))
        function = {"name": name, "arguments": arguments} if isinstance(name, str) else {"name": "", "arguments": body}
        yield {"function": function}


def _read_response(body: str, message: Fields) -> Fields:
    """What a tool answered; Hermes may name the tool beside it."""
    body = body.strip()
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and answer.keys() == {"name", "content"}:
        return {
            "role": "tool",
            "name": answer["name"],
            "content": convert_to_text(answer["content"]),
            **_select_marks(message),
        }
    return {"role": "tool", "name": message.get("name"), "content": body, **_select_marks(message)}
