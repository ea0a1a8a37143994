"""Bad input meets one clear error, in the first task that can see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from steptool.config import Config
from tasks.episodes import annotate
from tasks.ingest import IngestOutputs, ingest
from tasks.runtime.artifacts import Parquet
from tasks.training import PrepareOutputs, prepare

SMALL: dict[str, Any] = {
    "data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 2},
    "policy": {"base": "scratch", "max_context": 1600},
    "warm_start": {"demonstrations": 2},
}


def config(**sections: Any) -> Config:
    return Config.model_validate(
        {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in {**SMALL, **sections}}
    )


def prepared(chosen: Config) -> tuple[IngestOutputs, PrepareOutputs]:
    result = ingest(config=chosen, sources="")
    names = ("queries", "demonstrations", "quarantine")
    return result, prepare(config=chosen, **{name: getattr(result, name) for name in names})


def test_a_context_too_small_for_a_prompt_is_refused_before_training_with_the_query() -> None:
    with pytest.raises(Exception, match=r"query '[^']+': its prompt has \d+ tokens, but policy.max_context = 100"):
        prepared(config(policy={"max_context": 100}))


def test_a_model_folder_without_a_tokenizer_is_refused_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(Exception, match=f"{tmp_path}: no tokenizer"):
        prepared(config(policy={"base": str(tmp_path)}))


def test_a_run_that_does_not_fit_this_machine_is_refused_before_the_model_is_tried(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Exception, match=r"the run does not fit; rounds_together needs .* lower rollout\.batch_size"):
        prepared(config(policy={"max_context": 20_000}, rollout={"batch_size": 10_000, "episodes": 10_000}))
    printed = capfd.readouterr().out
    assert "memory by estimate: prepare" in printed and "base model" not in printed


def test_a_file_of_another_schema_version_is_refused_with_its_name(tmp_path: Path) -> None:
    settings = config()
    result = ingest(config=settings, sources="")
    table = pq.read_table(result.demonstrations.download())
    old = tmp_path / "old.parquet"
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"steptool.version": b"0"}), old)
    with pytest.raises(Exception, match=f"{old}: expected contract 'trajectories' version 5, found .* version 0"):
        annotate(trajectories=Parquet(str(old)), config=settings, queries=result.queries)


def test_a_source_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    missing = tmp_path / "tasks.jsonl"
    with pytest.raises(Exception, match=str(missing)):
        ingest(config=config(data={"source": "jsonl", "paths": [str(missing)]}), sources="")


def test_a_tool_schema_that_is_none_is_refused_with_file_line_and_field(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "objet"}}}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"instruction": "look", "tools": [tool]}) + "\n")
    with pytest.raises(Exception, match=rf"{tasks}, line 1.*tools\[0\]"):
        ingest(config=config(data={"source": "jsonl", "paths": [str(tasks)]}), sources="")
