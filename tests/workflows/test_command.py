"""What a user meets at the command line, in real processes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from commands import PYFLYTE, run_command
from steptool.records.episodes import read_queries

ROOT = Path(__file__).parents[2]


def run_train(config: Path | str, output: Path) -> subprocess.CompletedProcess[str]:
    workflow = ("workflows/train.py", "train", "--config", str(config), "--output", str(output))
    return run_command(PYFLYTE, "run", *workflow)


def text_of(result: subprocess.CompletedProcess[str]) -> str:
    """All that was printed, without the frames and line breaks of a terminal."""
    return " ".join((result.stdout + result.stderr).replace("│", " ").split())


def test_starting_a_workflow_imports_nothing_heavy() -> None:
    program = "import sys, workflows.train; print(sorted({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)))"
    result = run_command(sys.executable, "-c", program)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("command", [("run", "--help"), ("run", "workflows/train.py", "train", "--help")])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    result = run_command(sys.executable, "-X", "importtime", PYFLYTE, *command)
    assert result.returncode == 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[-1].strip() for line in lines}
    assert "flytekit" in imported
    assert not imported & {"torch", "transformers", "trl", "peft"}


def test_an_unknown_and_an_ill_typed_field_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "ppo: {rounds: many, round: 3, epochs: '2'}\nrewards: {annotator: oracle}\ncredit: {whiten: 1, gamma: true}\n"
    )
    result = run_train(path, tmp_path / "out")
    assert result.returncode != 0
    text = text_of(result)
    assert "field 'ppo.rounds': input should be a valid integer" in text
    assert "field 'ppo.epochs': input should be a valid integer" in text  # text is no number, however it looks
    assert "field 'credit.whiten': input should be a valid boolean" in text
    assert "field 'credit.gamma': input should be a valid number" in text
    assert "unknown field 'ppo.round'" in text
    assert "field 'rewards.annotator': input should be 'rules', 'lcs', 'overlap', 'truth' or 'judge'" in text
    assert "ingest" not in result.stdout  # nothing has started
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_refused_with_its_file(tmp_path: Path) -> None:
    tool = {
        "type": "function",
        "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
    }
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"instruction": "look around", "tools": [tool], "split": "train"}) + "\n")
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"data": {"source": "jsonl", "paths": [str(tasks)]}}))
    result = run_train(path, tmp_path / "out")
    assert result.returncode != 0
    assert f"{tasks}: the split 'validation' is empty" in text_of(result)
    assert not (tmp_path / "out").exists()


def test_the_documented_configurations_are_complete_inputs() -> None:
    from steptool.config import Config, load_config

    assert load_config(ROOT / "configs" / "laptop.yaml").data.source == "desk"
    fields = json.dumps(sorted(_keys(_yaml(ROOT / "configs" / "laptop.yaml"))))
    assert fields == json.dumps(sorted(_keys(Config().model_dump(mode="json"))))  # every field is there to be read


def _yaml(path: Path) -> dict[str, object]:
    import yaml

    data: dict[str, object] = yaml.safe_load(path.read_text())
    return data


def _keys(tree: dict[str, object], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in tree.items():
        names += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def test_a_mistyped_path_and_broken_yaml_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ppo: {rounds: 2\n")
    missing = run_train(tmp_path / "mime.yaml", tmp_path / "out")
    assert missing.returncode != 0
    assert f"{tmp_path}/mime.yaml: no such file; did you mean {tmp_path}/mine.yaml?" in text_of(missing)
    broken = run_train(tmp_path / "mine.yaml", tmp_path / "out")
    assert broken.returncode != 0
    assert f"{tmp_path}/mine.yaml: not YAML: expected ',' or '}}'" in text_of(broken)
    assert "Traceback" not in text_of(broken)


def test_overrides_follow_the_path(tmp_path: Path) -> None:
    result = run_train(f"{ROOT}/configs/laptop.yaml ppo.rounds=4 ppo.epoch=2", tmp_path / "out")
    assert result.returncode != 0
    assert "did you mean 'epochs'?" in text_of(result)


def test_a_run_takes_the_overrides_behind_the_path(tmp_path: Path) -> None:
    path = tmp_path / "my small.yaml"
    path.write_text("data: {train_queries: 6, validation_queries: 2, heldout_queries: 4}\n")
    config = f"'{path}' data.train_queries=3 warm_start.demonstrations=2 rollout.finish=text"
    result = run_command(
        PYFLYTE, "run", "workflows/ingest.py", "ingest", "--config", config, "--output", f"{tmp_path}/out"
    )
    assert result.returncode == 0, text_of(result)
    queries = read_queries(tmp_path / "out" / "queries.parquet")
    assert Counter(query.split for query in queries) == {"train": 3, "validation": 2, "heldout": 4}
    assert all(tool["function"]["name"] != "Finish" for query in queries for tool in query.tools)
