"""The fields are documented once, in their docstrings: files made from them are up to date and leave out none."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from scripts.document_configuration import documents, list_entries
from steptool.config import Config, load_config
from tasks.runtime.profile import Profile

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(file for file in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_a_file_says_what_the_docstrings_say(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == documents()[path], "run make docs-config"


@pytest.mark.parametrize("model", [Config, Profile])
def test_every_field_has_a_documentation(model: type[Config | Profile]) -> None:
    entries = list(list_entries(model))
    assert len(entries) > 10
    assert [entry.name for entry in entries if not entry.documentation] == []


def test_the_commented_file_is_the_default_configuration() -> None:
    assert load_config(ROOT / "configs" / "laptop.yaml") == Config()
    text = (ROOT / "configs" / "laptop.yaml").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_names_the_schema_that_it_keeps(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    schema = json.loads((path.parent / first.partition("=")[2]).read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


def test_the_schema_refuses_what_the_configuration_refuses() -> None:
    schema = json.loads((ROOT / "configs" / "steptool.schema.json").read_text(encoding="utf-8"))
    for wrong in ({"ppo": {"round": 1}}, {"ppo": {"rounds": 0}}, {"rewards": {"annotator": "rule"}}, {"seed": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    rounds = schema["$defs"]["PPOConfig"]["properties"]["rounds"]
    assert rounds["description"].startswith("Rounds of rollout") and rounds["default"] == 16
