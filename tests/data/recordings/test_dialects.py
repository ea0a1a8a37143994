"""One conversation as each known writer writes it: always the same steps, words and tools."""

import copy
import json
from pathlib import Path

import pytest

from steptool.chat.formats import DEEPSEEK, GLM, LLAMA, MISTRAL, QWEN_XML
from steptool.chat.messages import FINISH_SCHEMA
from steptool.data.parsing import Record, UnusableError
from steptool.data.recordings.forms import read_recording
from steptool.data.recordings.recording import make_query, make_trajectory
from steptool.records import ToolCall, Trajectory

PARAMETERS = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
TIDES = {"name": "tides", "description": "Tides of a town", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": TIDES}
QUESTION, ANSWER, RESPONSE = "When is high water in Bath?", "At 9:12.", '{"high": "9:12"}'
CALL = {"name": "tides", "arguments": {"town": "Bath"}}
RESULT = {"name": "tides", "content": {"high": "9:12"}}
THOUGHT = "<think>\nThe tides know.\n</think>"


def no_tools():
    raise UnusableError("missing field 'tools'", "there are none")


def trajectory_of(value) -> tuple[Trajectory, tuple]:
    recording = read_recording(Record(Path("logs/may.jsonl"), 3, value), no_tools)
    query = make_query(recording)
    return make_trajectory(recording.turns, recording.solved, query, 0), query.tools


OPENAI = {
    "messages": [
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "c", "type": "function", "function": {**CALL, "arguments": '{"town": "Bath"}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": RESPONSE},
        {"role": "assistant", "content": ANSWER},
    ],
    "tools": [TOOL],
}
HERMES_CALL = f"I look.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
HERMES_RESULT = f"<tool_response>\n{json.dumps(RESULT)}\n</tool_response>"
HERMES_SYSTEM = f"You call functions. <tools>{json.dumps([TOOL])}</tools> For each call return <tool_call>{{...}}"
DIALECTS = {
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": "I look."},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": RESPONSE},
            {"from": "gpt", "value": ANSWER},
        ],
        "tools": json.dumps([TIDES]),
    },
    "ShareGPT as texts": {
        "conversations": json.dumps(
            [
                {"from": "human", "value": QUESTION},
                {"from": "gpt", "value": HERMES_CALL},
                {"from": "tool", "value": HERMES_RESULT},
                {"from": "gpt", "value": ANSWER},
            ]
        ),
        "tools": json.dumps([TOOL]),
    },
    "Hermes": {
        "conversations": [
            {"from": "system", "value": HERMES_SYSTEM},
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": HERMES_CALL},
            {"from": "tool", "value": HERMES_RESULT},
            {"from": "gpt", "value": ANSWER},
        ]
    },
    "Hermes with the answers of a user": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": HERMES_CALL},
            {"role": "user", "content": f"<tool_response>{RESPONSE}</tool_response>"},
            {"role": "assistant", "content": ANSWER},
        ],
        "tools": [TOOL],
    },
    "Hermes with the text of a dict": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": f"I look.<tool_call>{CALL}</tool_call>"},
            {"role": "tool", "content": HERMES_RESULT},
            {"role": "assistant", "content": ANSWER},
        ],
        "tools": [TOOL],
    },
    "ReAct": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": 'Thought: I look.\nAction: tides\nAction Input: {"town": "Bath"}'},
            {"role": "user", "content": f"Observation: {RESPONSE}"},
            {"role": "assistant", "content": f"Final Answer: {ANSWER}"},
        ],
        "tools": [TOOL],
    },
    "ms-swift": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "I look."},
            {"role": "tool_call", "content": json.dumps(CALL)},
            {"role": "tool_response", "content": RESPONSE},
            {"role": "assistant", "content": ANSWER},
        ],
        "tools": json.dumps([TOOL]),
    },
    "Anthropic": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "tides", "input": {"town": "Bath"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": RESPONSE}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ],
        "tools": [{"name": "tides", "description": "Tides of a town", "input_schema": PARAMETERS}],
    },
    "OpenAI responses": {
        "input": QUESTION,
        "output": [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "tides", "arguments": '{"town": "Bath"}'},
            {"type": "function_call_output", "call_id": "c1", "output": RESPONSE},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
        ],
        "tools": [{"type": "function", "strict": None, **TIDES}],
    },
    "OpenAI responses as messages": {
        "messages": [
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
            {"role": "assistant", "content": "I look."},
            {"type": "function_call", "call_id": "c1", "name": "tides", "arguments": '{"town": "Bath"}'},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": RESPONSE}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
        ],
        "tools": [TIDES],
    },
    "Gemini": {
        "contents": [
            {"role": "user", "parts": [{"text": QUESTION}]},
            {
                "role": "model",
                "parts": [{"text": "I look."}, {"functionCall": {"name": "tides", "args": {"town": "Bath"}}}],
            },
            {"role": "user", "parts": [{"functionResponse": {"name": "tides", "response": {"high": "9:12"}}}]},
            {"role": "model", "parts": [{"text": ANSWER}]},
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "tides",
                        "description": "Tides of a town",
                        "parameters": {
                            "type": "OBJECT",
                            "properties": {"town": {"type": "STRING"}},
                            "required": ["town"],
                        },
                    }
                ]
            }
        ],
    },
    "glaive": {
        "system": "SYSTEM: You are helpful, with access to these functions. Use them if required -\n"
        + json.dumps(TIDES, indent=1),
        "chat": f"USER: {QUESTION}\n\n\nASSISTANT: I look. <functioncall> "
        """{"name": "tides", "arguments": '{"town": "Bath"}'} <|endoftext|>\n\n\n"""
        f"FUNCTION RESPONSE: {RESPONSE}\n\n\nASSISTANT: {ANSWER} <|endoftext|>\n\n\n",
    },
    "glaive with JSON": {
        "system": f"SYSTEM: Functions -\n{json.dumps(TIDES)}",
        "chat": f"USER: {QUESTION}\n\nASSISTANT: I look. <functioncall> {json.dumps(CALL)} <|endoftext|>\n"
        f"FUNCTION RESPONSE: {RESPONSE}\nASSISTANT: {ANSWER}",
    },
    **{
        f"in the text of {written.name}": {
            "messages": [
                OPENAI["messages"][0],
                {"role": "assistant", "content": written.render(ToolCall(**CALL), "I look.", [TOOL])},
                *OPENAI["messages"][2:],
            ],
            "tools": [TOOL],
        }
        for written in (QWEN_XML, GLM, DEEPSEEK, MISTRAL, LLAMA)
    },
    "xLAM's parameters": {**OPENAI, "tools": [{**TIDES, "parameters": {"town": {"type": "str"}}}]},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_read_as_the_same_conversation(dialect: str) -> None:
    expected, tools = trajectory_of(OPENAI)
    assert expected.final_answer == ANSWER and tools == (TOOL, FINISH_SCHEMA)
    trajectory, data = trajectory_of(DIALECTS[dialect])
    assert [s.call for s in trajectory.steps] == [s.call for s in expected.steps]
    assert json.loads(trajectory.steps[0].observation) == json.loads(RESPONSE)
    assert [m["role"] for m in trajectory.messages] == [m["role"] for m in expected.messages]
    assert trajectory.messages[0] == expected.messages[0] and trajectory.messages[1] == expected.messages[1]
    assert (trajectory.final_answer, trajectory.stop_reason) == (expected.final_answer, expected.stop_reason)
    assert data == tools


def test_thinking_is_a_thought_in_every_dialect() -> None:
    anthropic = copy.deepcopy(DIALECTS["Anthropic"])
    anthropic["messages"][1]["content"].insert(0, {"type": "thinking", "thinking": "The tides know.", "signature": "x"})
    gemini = copy.deepcopy(DIALECTS["Gemini"])
    gemini["contents"][1]["parts"].insert(0, {"text": "The tides know.", "thought": True})
    responses = copy.deepcopy(DIALECTS["OpenAI responses"])
    responses["output"][:1] = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "The tides know."}]},
        responses["output"][0],
    ]
    hermes = copy.deepcopy(DIALECTS["Hermes"])
    hermes["conversations"][2]["value"] = f"{THOUGHT}\n{HERMES_CALL}"
    for value in (anthropic, gemini, responses, hermes):
        assert trajectory_of(value)[0].messages[1]["content"] == f"{THOUGHT}\nI look."


def test_parallel_calls_in_a_text_take_their_responses_by_name() -> None:
    calls = "".join(f"<tool_call>{json.dumps({**CALL, 'name': name})}</tool_call>" for name in ("tides", "waves"))
    results = "".join(
        f"<tool_response>{json.dumps({'name': name, 'content': text})}</tool_response>"
        for name, text in (("waves", "2 m"), ("tides", "9:12"))
    )
    tools = [TOOL, {"type": "function", "function": {**TIDES, "name": "waves"}}]
    turns = [QUESTION, calls, results, ANSWER]
    roles = ["user", "assistant", "tool", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    steps = trajectory_of({"messages": messages, "tools": tools})[0].steps
    assert [(s.call.name, s.observation) for s in steps[:2]] == [("tides", "9:12"), ("waves", "2 m")]


def test_bare_values_of_a_call_in_the_text_have_the_types_of_the_schema() -> None:
    value = copy.deepcopy(DIALECTS["in the text of qwen_xml"])
    call = value["messages"][1]
    call["content"] = call["content"].replace("Bath", "1842")
    assert trajectory_of(value)[0].steps[0].call == ToolCall("tides", {"town": "1842"})
    del value["messages"][2:]
    with pytest.raises(UnusableError, match="has no recorded response"):  # the text of a call is no final answer
        trajectory_of(value)


def test_an_answer_that_is_an_object_with_a_name_stays_an_answer() -> None:
    value = copy.deepcopy(OPENAI)
    value["messages"][-1]["content"] = '{"name": "Bath", "parameters": {"high": "9:12"}}'
    assert trajectory_of(value)[0].final_answer == value["messages"][-1]["content"]


def test_a_call_in_the_text_that_cannot_be_read_is_one_failed_step() -> None:
    value = copy.deepcopy(DIALECTS["Hermes with the answers of a user"])
    value["messages"][1]["content"] = 'I look.<tool_call>{"name": "tides", "arguments": </tool_call>'
    trajectory, _ = trajectory_of(value)
    assert [str(s.status) for s in trajectory.steps] == ["malformed", "finish"]
    assert trajectory.final_answer == ANSWER


def test_the_final_thought_of_react_is_no_part_of_the_answer_and_a_call_gone_wrong_is_one_failed_step() -> None:
    value = copy.deepcopy(DIALECTS["ReAct"])
    value["messages"][1]["content"] = "Thought: I look.\nAction: tides\nAction Input: Bath"
    value["messages"][3]["content"] = f"Thought: I know.\nFinal Answer: {ANSWER}"
    trajectory, _ = trajectory_of(value)
    assert [str(s.status) for s in trajectory.steps] == ["malformed", "finish"]
    assert trajectory.final_answer == ANSWER
    assert trajectory.messages[-1]["content"] == "<think>\nI know.\n</think>"


def test_words_about_tags_stay_words() -> None:
    value = copy.deepcopy(OPENAI)
    value["messages"][-1]["content"] = "Write <tool_call> first, and {} in <tool_response>."
    assert trajectory_of(value)[0].final_answer == "Write <tool_call> first, and {} in <tool_response>."


ODD = {
    "xLAM": (
        {"query": QUESTION, "answers": json.dumps([CALL]), "tools": json.dumps([TIDES])},
        "a task with calls but no responses",
    ),
    "a picture": (
        {"contents": [{"role": "user", "parts": [{"inlineData": {}}]}], "tools": []},
        "content that is no text",
    ),
    "a search": (
        {"input": QUESTION, "output": [{"type": "web_search_call", "status": "completed"}], "tools": []},
        "an item of another type",
    ),
    "a picture in a block": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, OPENAI["messages"][3]], "tools": []},
        "content that is no text",
    ),
    "a turn without a speaker": ({"conversations": [{"value": QUESTION}]}, "missing field 'from'"),
    "another speaker": (
        {
            "conversations": [{"from": name, "value": name} for name in ("human", "gpt", "judge")],
            "tools": [],
        },
        "a message of another role",
    ),
    "functions that are cut off": (
        {"chat": f"USER: {QUESTION}\n\nASSISTANT: Hm.", "system": '{"name": "tid'},
        "tools of another form",
    ),
    "no list": ({"conversations": {}}, "ill-typed field 'conversations'"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_read_is_refused_with_its_reason(name: str) -> None:
    value, reason = ODD[name]
    with pytest.raises(UnusableError) as refusal:
        trajectory_of(value)
    assert refusal.value.reason == reason and refusal.value.detail
