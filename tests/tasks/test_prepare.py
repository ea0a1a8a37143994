"""What prepare makes of recordings that the model cannot learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from steptool.config import Config
from steptool.models.load import EMBEDDED, load_tokenizer
from steptool.records import Metric, StepStatus, ToolCall, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from tasks.ingest import IngestOutputs, ingest
from tasks.training import PrepareOutputs, prepare

TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
SIZES = {"train_queries": 10, "validation_queries": 2, "heldout_queries": 4}


def conversation(number: int, thought: str) -> dict[str, Any]:
    call = {"name": "look", "arguments": json.dumps({"n": number})}
    messages = [
        {"role": "user", "content": f"look at {number}"},
        {"role": "assistant", "content": thought, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": f"seen {number}"},
        {"role": "assistant", "content": "done"},
    ]
    return {"messages": messages, "tools": [TOOL]}


def written_conversation(number: int) -> dict[str, Any]:
    """With the call inside the text, and a message of the role tool as its response."""
    row = conversation(number, "")
    call = {"name": "look", "arguments": {"n": number}}
    row["messages"][1] = {"role": "assistant", "content": f"I look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"}
    return row


def run(folder: Path, rows: list[dict[str, Any]], base: str = "embedded") -> tuple[IngestOutputs, PrepareOutputs]:
    (folder / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "recorded", "paths": [str(folder / "logs.jsonl")], **SIZES}
    config = Config.model_validate({"data": data, "policy": {"base": base}})
    result = ingest(config=config, sources="")
    names = ("queries", "demonstrations", "quarantine")
    return result, prepare(config=config, **{name: getattr(result, name) for name in names})


def test_a_demonstration_that_cannot_be_encoded_is_left_out_before_training(tmp_path: Path) -> None:
    process, prepared = run(
        tmp_path, [conversation(number, "now <tool_call> it" if number % 2 else "I look.") for number in range(16)]
    )
    splits = {t.trajectory_id: t for t in read_records(str(process.demonstrations), Trajectory)}
    lessons = read_records(str(prepared.lessons), Trajectory)
    refusals = [json.loads(line) for line in Path(str(prepared.quarantine)).read_text().splitlines()]
    assert lessons and refusals and len(lessons) + len(refusals) == SIZES["train_queries"] and len(splits) == 16
    assert all("now" not in lesson.messages[1]["content"] and lesson.spans for lesson in lessons)
    assert all("now" in splits[refusal["row"]].messages[1]["content"] for refusal in refusals)
    counts = {metric.name: metric.value for metric in read_records(str(prepared.metrics), Metric)}
    assert counts["demonstrations"] == len(lessons)
    assert counts["demonstrations left out: the chat format cannot carry it"] == len(refusals)


def test_a_run_without_a_demonstration_that_can_be_encoded_stops_in_prepare(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"the warm start has no demonstration to learn from .*cannot carry it 10"):
        run(tmp_path, [conversation(number, "now <tool_call> it") for number in range(16)])


def test_calls_in_the_text_that_a_message_of_the_role_tool_answers_are_learned_as_calls(tmp_path: Path) -> None:
    _, prepared = run(tmp_path, [written_conversation(number) for number in range(16)])
    queries = {query.query_id: query for query in read_queries(str(prepared.queries))}
    lessons = read_records(str(prepared.lessons), Trajectory)
    assert len(lessons) == SIZES["train_queries"] and Path(str(prepared.quarantine)).read_text() == ""
    for lesson in lessons:
        number = int(queries[lesson.query_id].instruction.removeprefix("look at "))
        look, finish = lesson.steps
        assert (look.call, look.observation) == (ToolCall("look", {"n": number}), f"seen {number}")
        assert finish.status is StepStatus.FINISH and lesson.final_answer == "done" and len(lesson.spans) == 2
        assert lesson.messages[1]["content"] == "I look."


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4} | {
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 8192,
}  # fmt: skip
HYBRID: dict[str, dict[str, Any]] = {
    "qwen3_next": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
    "qwen3_5_text": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1},
}


@pytest.mark.parametrize("kind", HYBRID)
def test_a_folder_with_a_model_of_a_hybrid_cache_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(EMBEDDED)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SHAPE, **ids, **HYBRID[kind]))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    message = rf"policy\.base: {type(model).__name__} cannot be played by our engine.*choose a model"
    with pytest.raises(Exception, match=message):
        run(tmp_path, [conversation(number, "I look.") for number in range(16)], str(tmp_path / "model"))
