"""What prepare makes of recordings that the model cannot learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steptool.config import Config
from steptool.records import Metric, Trajectory
from steptool.records.tables import read_records
from tasks.ingest import Ingested, ingest
from tasks.warm_start import Prepared, prepare

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


def run(folder: Path, thoughts: list[str]) -> tuple[Ingested, Prepared]:
    rows = [conversation(number, thought) for number, thought in enumerate(thoughts)]
    (folder / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "recorded", "paths": [str(folder / "logs.jsonl")], **SIZES}
    config = Config.model_validate({"data": data})
    result = ingest(config=config, sources="")
    names = ("queries", "demonstrations", "quarantine")
    return result, prepare(config=config, **{name: getattr(result, name) for name in names})


def test_a_demonstration_that_cannot_be_encoded_is_left_out_before_training(tmp_path: Path) -> None:
    process, prepared = run(tmp_path, ["now <tool_call> it" if number % 2 else "I look." for number in range(16)])
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
        run(tmp_path, ["now <tool_call> it"] * 16)
