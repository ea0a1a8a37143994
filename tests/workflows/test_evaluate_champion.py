"""The weekly evaluation: the model in service beside the base model and the policies of the configuration."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from steptool.config import Config
from steptool.models.load import EMBEDDED
from steptool.records import Evaluation
from steptool.records.tables import read_records
from steptool.registry import Registry
from workflows.evaluate_champion import evaluate_champion

KICKOFF = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {
            "data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 4},
            "evaluation": {
                "sampled_repeats": 0,
                "bootstrap": 200,
                "policies": [{"name": "reference", "kind": "playback"}],
            },
        }
    )


def test_the_champion_is_compared_in_a_folder_named_after_the_kickoff(config: Config, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    champion = registry.publish(EMBEDDED, {}).version_id
    registry.promote(champion, after=0, reason="the first")
    result = evaluate_champion(
        config=config, registry=str(tmp_path / "registry"), output=str(tmp_path / "runs"), kickoff=KICKOFF
    )
    folder = tmp_path / "runs" / "evaluation-20260301T060000Z"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    assert Path(str(result.page)) == folder / "evaluation.html"
    rows = read_records(folder / "evaluations.parquet", Evaluation)
    passed = {name: [row.passed for row in rows if row.model == name] for name in {row.model for row in rows}}
    assert set(passed) == {"reference", "base", "champion"} and all(len(values) == 4 for values in passed.values())
    assert passed["champion"] == passed["base"]  # they are the same model
    assert passed["reference"] == [1.0] * 4
    assert champion in (folder / "config.yaml").read_text()
    assert json.loads((folder / "metrics.json").read_text())


def test_before_the_first_promotion_the_base_is_evaluated_alone(config: Config, tmp_path: Path) -> None:
    result = evaluate_champion(
        config=config, registry=str(tmp_path / "registry"), output=str(tmp_path / "runs"), kickoff=KICKOFF
    )
    rows = read_records(Path(str(result.rows)), Evaluation)
    assert {row.model for row in rows} == {"reference", "base"}
