"""Tool calls as text, in every format by its name (docs/chat-formats.md).

A prompt can teach two of them to any model: Hermes, which Qwen 2.5 and Qwen 3 also write, and ReAct. The others are
those that families of models write by themselves: DeepSeek, GLM, gpt-oss, Llama 3.1, Mistral, Qwen 3.5.
"""

from __future__ import annotations

import re

from steptool.chat.call_format import (
    CALL_CLOSE,
    CALL_OPEN,
    RESPONSE,
    ChatFormat,
    Format,
    NoCallError,
    read_bare_object,
    read_between_tags,
    refuse_response,
    write_value,
)
from steptool.chat.messages import read_call, read_first_json, read_json, write_json
from steptool.records import ToolCall


def _write_hermes(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "arguments": dict(call.arguments)}, HERMES.marks)
    text = f"{CALL_OPEN}{body}{CALL_CLOSE}"
    return f"{thought}\n{text}" if thought else text


def _read_hermes(text: str, start: int) -> tuple[int, ToolCall]:
    """The call between the tags. JSON strings may hold the tags; the first value after the opening one is the call."""
    begin = text.find(CALL_OPEN, start)
    if begin < 0 and CALL_CLOSE not in text[start:]:
        return read_bare_object(text, start)
    if begin < 0 or CALL_CLOSE not in text[begin:]:
        raise ValueError("tool call not closed")
    refuse_response(text[start:begin])
    body = text[begin + len(CALL_OPEN) :].lstrip()
    value, end = read_first_json(body)
    rest = body[end:].lstrip()
    if not rest.startswith(CALL_CLOSE):
        raise ValueError("tool call not closed")
    if CALL_OPEN in rest:
        raise ValueError("more than one tool call")
    if rest.removeprefix(CALL_CLOSE).strip():
        raise ValueError("text after the tool call")
    return begin, read_call(value)


HERMES = Format(
    ChatFormat.HERMES,
    '<tool_call>{"name": <name of the tool>, "arguments": <object>}</tool_call>',
    RESPONSE,
    (CALL_OPEN, CALL_CLOSE),
    _write_hermes,
    _read_hermes,
)


_KEYWORDS = "Action Input|Action|Observation"
_KEYWORD = re.compile(rf"(?:\A\s*|^)({_KEYWORDS}):", re.MULTILINE)
_ACTION = re.compile(r"Action:([^\n]*)\n(?:\s*\n)?Action Input:(.*)", re.DOTALL)
_TO_QUOTE = re.compile(rf"^(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)
_QUOTED = re.compile(rf"^\\(?=\\*(?:{_KEYWORDS}):)", re.MULTILINE)


def _write_react(call: ToolCall, thought: str) -> str:
    return f"{_open_with(thought)}Action: {call.name}\nAction Input: {write_json(dict(call.arguments))}"


def _open_with(thought: str) -> str:
    return "Thought: " + _TO_QUOTE.sub(r"\\", thought) + "\n" if thought else ""


def _read_react(text: str, start: int) -> tuple[int, ToolCall]:
    """Keywords count at the beginning of a line, and of the turn. The input is one JSON object up to the turn's end."""
    keyword = _KEYWORD.search(text, start)
    if not keyword:
        raise NoCallError
    if keyword[1] != "Action":
        raise ValueError(f"'{keyword[1]}:' before 'Action:'")
    action = _ACTION.fullmatch(text, keyword.start(1))
    if not action:
        raise ValueError("'Action:' without 'Action Input:' in the next line")
    return keyword.start(1), read_call({"name": action[1].strip(), "arguments": read_json(action[2])})


FINAL_ANSWER = "Final Answer:"
"""Begins the line with which ReAct's text ends a task. Without it a turn gives no answer."""
_FINAL = re.compile(rf"(?:\A\s*|^){FINAL_ANSWER}(.*)", re.MULTILINE | re.DOTALL)


def _write_react_answer(answer: str, thought: str) -> str:
    return f"{_open_with(thought)}{FINAL_ANSWER} " + _TO_QUOTE.sub(r"\\", answer)


def _read_react_answer(text: str) -> str | None:
    match = _FINAL.search(text)
    return _QUOTED.sub("", match[1]) if match else None


def _read_react_thought(text: str) -> str:
    return _QUOTED.sub("", text.removeprefix("Thought:").strip())


REACT = Format(
    ChatFormat.REACT,
    "Thought: <what you know and what to do next>\nAction: <name of the tool>\nAction Input: <object>",
    ("Observation: ", ""),
    (),
    _write_react,
    _read_react,
    _read_react_thought,
    final_form=f", in a line that begins with {FINAL_ANSWER}",
    write_answer=_write_react_answer,
    read_answer=_read_react_answer,
)


_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_SEP, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_CALL_BODY = re.compile(
    rf"(?:function{_CALL_SEP}([^\n]+)\n```json\n(.*?)\n?```|([^\n]+?){_CALL_SEP}(.*))\s*", re.DOTALL
)
"""V3 and R1 write "function", the name and a fence; V3.1 writes the name and the bare object."""


def _write_deepseek(call: ToolCall, thought: str) -> str:
    arguments = write_json(dict(call.arguments), (*DEEPSEEK.marks, "```"))
    body = f"function{_CALL_SEP}{call.name}\n```json\n{arguments}\n```"
    return f"{thought}{_CALLS_BEGIN}{_CALL_BEGIN}{body}{_CALL_END}{_CALLS_END}"


def _read_deepseek(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(_CALL_BEGIN, start)
    if begin < 0:
        raise NoCallError
    body, end, rest = text[begin + len(_CALL_BEGIN) :].rpartition(_CALL_END)
    if not end:
        raise ValueError("tool call not closed")
    if _CALL_BEGIN in body:
        raise ValueError("more than one tool call")
    thought = text[:begin].rstrip().removesuffix(_CALLS_BEGIN)
    has_thought = thought != text[:begin].rstrip()
    if has_thought and _CALLS_END not in rest:
        raise ValueError("tool call not closed")
    if (rest.replace(_CALLS_END, "", 1) if has_thought else rest).strip():
        raise ValueError("text after the tool call")
    refuse_response(thought[start:])
    match = _CALL_BODY.fullmatch(body)
    if not match:
        raise ValueError(f"tool call without {_CALL_SEP}")
    name, arguments = (match[1], match[2]) if match[1] else (match[3], match[4])
    return len(thought), read_call({"name": name.strip(), "arguments": read_json(arguments)})


DEEPSEEK = Format(
    ChatFormat.DEEPSEEK,
    f"{_CALLS_BEGIN}{_CALL_BEGIN}function{_CALL_SEP}<name of the tool>\n```json\n<object>\n```{_CALL_END}{_CALLS_END}",
    RESPONSE,
    (_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_SEP, _CALL_END),
    _write_deepseek,
    _read_deepseek,
)


_NAME = re.compile(r"\s*([^\s<]+)\s*")
_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def _write_glm(call: ToolCall, thought: str) -> str:
    pairs = "".join(
        f"<arg_key>{name}</arg_key>\n<arg_value>{write_value(value)}</arg_value>\n"
        for name, value in call.arguments.items()
    )
    text = f"{CALL_OPEN}{call.name}\n{pairs}{CALL_CLOSE}"
    return f"{thought}\n{text}" if thought else text


def _read_glm(text: str, start: int) -> tuple[int, ToolCall]:
    begin, body = read_between_tags(text, start)
    name = _NAME.match(body)
    if not name:
        raise ValueError("tool call without name")
    arguments, end = {}, name.end()
    while pair := _PAIR.match(body, end):
        arguments[pair[1]], end = pair[2], pair.end()
    if body[end:].strip():
        raise ValueError("tool call with text besides its arguments")
    return begin, ToolCall(name[1], arguments)


GLM = Format(
    ChatFormat.GLM,
    "<tool_call><name of the tool>\n<arg_key><name></arg_key>\n<arg_value><value></arg_value>\n</tool_call>",
    RESPONSE,
    (CALL_OPEN, CALL_CLOSE, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    _write_glm,
    _read_glm,
    textual=True,
)


_HARMONY_START, _HARMONY_MESSAGE, _HARMONY_END, _HARMONY_CHANNEL = "<|start|>", "<|message|>", "<|end|>", "<|channel|>"
_HARMONY_ASSISTANT = f"{_HARMONY_START}assistant"
_HARMONY_RECIPIENT = re.compile(r"to=functions\.")
_HARMONY_HEADER = re.compile(
    r"\s*(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)?\s*to=functions\.([^\s<]+)\s*"
    r"(?:<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*"
)
"""The header of a call. The recipient stands before the channel or behind it."""
_HARMONY_NAMED = re.compile(rf"{re.escape(_HARMONY_CHANNEL)}(\w+)")
_HARMONY_ANALYSIS = re.compile(
    rf"{re.escape(_HARMONY_CHANNEL)}analysis{re.escape(_HARMONY_MESSAGE)}(.*?){re.escape(_HARMONY_END)}", re.DOTALL
)


def _write_gpt_oss(call: ToolCall, thought: str) -> str:
    analysis = (
        f"{_HARMONY_CHANNEL}analysis{_HARMONY_MESSAGE}{thought}{_HARMONY_END}{_HARMONY_ASSISTANT}" if thought else ""
    )
    body = write_json(dict(call.arguments), GPT_OSS.marks)
    return f"{analysis} to=functions.{call.name}{_HARMONY_CHANNEL}commentary json{_HARMONY_MESSAGE}{body}"


def _read_gpt_oss(text: str, start: int) -> tuple[int, ToolCall]:
    """The call in the last message of the turn. The prompt has written the first message's <|start|>assistant."""
    head, _, body = text.rpartition(_HARMONY_MESSAGE)
    begin = max(head.rfind(_HARMONY_START), 0)
    header = _HARMONY_HEADER.fullmatch(head[begin:])
    recipients = len(_HARMONY_RECIPIENT.findall(head))
    if recipients > 1:
        raise ValueError("more than one tool call")
    if not header:
        raise ValueError("text after the tool call") if recipients else NoCallError
    refuse_response(head)
    if f"{_HARMONY_START}functions." in head:
        raise ValueError("a tool's response before the tool call")
    return begin, read_call({"name": header[1], "arguments": read_json(body)})


def _write_gpt_oss_answer(answer: str, thought: str) -> str:
    return answer  # the chat template writes the channel


def _read_gpt_oss_answer(text: str) -> str | None:
    """The last message of the turn; None where it stands in another channel than the final one."""
    header, message, body = text.rpartition(_HARMONY_MESSAGE)
    channels = _HARMONY_NAMED.findall(header)
    return None if message and channels[-1:] != ["final"] else body


def _read_gpt_oss_thought(text: str) -> str:
    return "\n".join(_HARMONY_ANALYSIS.findall(text)).strip()


GPT_OSS = Format(
    ChatFormat.GPT_OSS,
    f" to=functions.<name of the tool>{_HARMONY_CHANNEL}commentary json{_HARMONY_MESSAGE}<object>",
    RESPONSE,
    (_HARMONY_START, _HARMONY_MESSAGE, _HARMONY_END, _HARMONY_CHANNEL, "<|constrain|>"),
    _write_gpt_oss,
    _read_gpt_oss,
    _read_gpt_oss_thought,
    write_answer=_write_gpt_oss_answer,
    read_answer=_read_gpt_oss_answer,
)


PYTHON_TAG = "<|python_tag|>"


def _write_llama(call: ToolCall, thought: str) -> str:
    body = write_json({"name": call.name, "parameters": dict(call.arguments)}, LLAMA.marks)
    return f"{thought}{PYTHON_TAG}{body}" if thought else body


def _read_llama(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(PYTHON_TAG, start)
    if begin < 0 or text[start:].lstrip().startswith("{"):
        return read_bare_object(text, start)
    refuse_response(text[start:begin])
    return begin, read_call(read_json(text[begin + len(PYTHON_TAG) :]))


LLAMA = Format(
    ChatFormat.LLAMA,
    '{"name": <name of the tool>, "parameters": <object>}',
    RESPONSE,
    (PYTHON_TAG,),
    _write_llama,
    _read_llama,
)


_CALLS, _ARGUMENTS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\][^\s\[]*)?\s*\[ARGS\](.*)", re.DOTALL)


def _write_mistral(call: ToolCall, thought: str) -> str:
    body = write_json([{"name": call.name, "arguments": dict(call.arguments)}], MISTRAL.marks)
    return f"{thought}{_CALLS} {body}"


def _read_mistral(text: str, start: int) -> tuple[int, ToolCall]:
    begin = text.find(_CALLS, start)
    if begin < 0:
        raise NoCallError
    refuse_response(text[start:begin])
    body = text[begin + len(_CALLS) :]
    if _CALLS in body:
        raise ValueError("more than one tool call")
    match = _NAMED.fullmatch(body)
    if match:
        return begin, read_call({"name": match[1], "arguments": read_json(match[2])})
    calls = read_json(body)
    if not isinstance(calls, list) or not calls:
        raise ValueError("tool calls are not a list")
    if len(calls) > 1:
        raise ValueError("more than one tool call")
    call = calls[0]
    return begin, read_call({k: v for k, v in call.items() if k != "id"} if isinstance(call, dict) else call)


MISTRAL = Format(
    ChatFormat.MISTRAL,
    f'{_CALLS} [{{"name": <name of the tool>, "arguments": <object>}}]',
    RESPONSE,
    (_CALLS, _ARGUMENTS, _CALL_ID),
    _write_mistral,
    _read_mistral,
)


_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


def _write_qwen_xml(call: ToolCall, thought: str) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{write_value(value)}\n</parameter>\n" for name, value in call.arguments.items()
    )
    text = f"{CALL_OPEN}\n<function={call.name}>\n{parameters}</function>\n{CALL_CLOSE}"
    return f"{thought}\n\n{text}" if thought else text


def _read_qwen_xml(text: str, start: int) -> tuple[int, ToolCall]:
    begin, body = read_between_tags(text, start)
    function = _FUNCTION.fullmatch(body)
    if not function:
        raise ValueError("tool call without <function=name> and </function>")
    arguments, end = {}, 0
    while parameter := _PARAMETER.match(function[2], end):
        arguments[parameter[1]], end = parameter[2], parameter.end()
    if function[2][end:].strip():
        raise ValueError("tool call with text besides its parameters")
    return begin, ToolCall(function[1], arguments)


QWEN_XML = Format(
    ChatFormat.QWEN_XML,
    "<tool_call>\n<function=<name of the tool>>\n<parameter=<name>>\n<value>\n</parameter>\n</function>\n</tool_call>",
    RESPONSE,
    (CALL_OPEN, CALL_CLOSE, "</function>", "</parameter>"),
    _write_qwen_xml,
    _read_qwen_xml,
    textual=True,
)


FORMATS = {f.name: f for f in (LLAMA, HERMES, QWEN_XML, GLM, DEEPSEEK, GPT_OSS, MISTRAL, REACT)}
"""All formats by name, in the order in which they are tried on a template. Hermes also reads Llama's bare object."""
