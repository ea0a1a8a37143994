"""Small material for runs of retraining: a folder that passes for a model, and files of tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from steptool.config import Config
from steptool.registry import Registry
from steptool.retraining.plan import Criterion, Decision, RetrainingPlan

KICKOFF = datetime(2026, 11, 21, 2, tzinfo=UTC)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """`model(name)`: a folder with the files that a registry wants of a model."""

    def make(name: str) -> Path:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "tokenizer_config.json"):
            (folder / file).write_text("{}")
        (folder / "model.safetensors").write_text(f"weights of {name}")
        return folder

    return make


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Path]:
    """`bring(name, *instructions)`: a file of tasks below `tasks/`."""

    def write(name: str, *instructions: str) -> Path:
        path = tmp_path / "tasks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"instruction": i, "environment": "desk"}) + "\n" for i in instructions))
        return path

    return write


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"data": {"source": "jsonl", "paths": [str(tmp_path / "tasks")]}})


@pytest.fixture
def plan() -> Callable[..., RetrainingPlan]:
    """`plan(**changes)`: a plan with a new file and no champion."""

    def make(**changes: Any) -> RetrainingPlan:
        fields = {"run_id": "20261121T020000Z-1", "kickoff": KICKOFF, "sequence": 0, "champion": "", "base": "embedded"}
        new = [{"place": "a.jsonl", "size": 7, "sha256": "ab" * 32}]
        return RetrainingPlan.model_validate(fields | {"new": new, "files": 3, "forced": False} | changes)

    return make


@pytest.fixture
def decision() -> Callable[[bool], Decision]:
    """`decision(promote)`: the rule's decision on a gain of 30 points."""

    def make(promote: bool) -> Decision:
        statement = "30 points on 60 tasks (95% interval 20 to 40); its lower end has to be above 0"
        gain = {"name": "gain in pass rate", "passed": promote, "statement": statement, "tasks": 60, "measured": True}
        return Decision(criteria=[Criterion.model_validate(gain | {"mean": 0.3, "low": 0.2, "high": 0.4})])

    return make
