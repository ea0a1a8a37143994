import hashlib
from pathlib import Path

import pytest

from full_disk import stop_files_at
from steptool.artifacts import lineage


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_model_card_names_every_stage_and_file_behind_it(tmp_path: Path) -> None:
    base, tuned, trained = (folder(tmp_path / name) for name in ("base", "tuned", "trained"))
    data = tmp_path / "demonstrations.parquet"
    data.write_bytes(b"some rows")
    lineage.sign(base, None, "base", [], note="embedded")
    lineage.sign(tuned, base, "warm_start", [data])
    lineage.sign(trained, tuned, "step_ppo", [data], round_index=0, note="nothing was solved")

    digest = hashlib.sha256(b"some rows").hexdigest()
    assert [(e["stage"], e["round"]) for e in lineage.read(trained)] == [
        ("base", -1),
        ("warm_start", -1),
        ("step_ppo", 0),
    ]
    assert lineage.read(trained)[1]["files"] == {"demonstrations.parquet": digest}
    card = (trained / "README.md").read_text()
    assert "# step_ppo of round 1" in card
    assert f"| step_ppo | 1 | demonstrations.parquet {digest[:12]} | nothing was solved |" in card
    assert lineage.read(base) == lineage.read(trained)[:1]  # the parents keep their own


def test_a_folder_from_elsewhere_has_no_lineage(tmp_path: Path) -> None:
    assert lineage.read(tmp_path) == []
    lineage.sign(folder(tmp_path / "own"), tmp_path, "base", [])
    assert len(lineage.read(tmp_path / "own")) == 1


def test_a_full_disk_leaves_the_card_and_the_lineage_that_were_there(tmp_path: Path) -> None:
    lineage.sign(tmp_path, None, "base", [])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with stop_files_at(40), pytest.raises(OSError, match="File too large"):
        lineage.sign(tmp_path, tmp_path, "warm_start", [])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_card_says_which_results_are_not_measurable() -> None:
    unknown = {"pass_rate": None, "low": None, "high": None, "tasks": 0}
    half = {"pass_rate": 0.5, "low": 0.2, "high": 0.8, "tasks": 4}
    card = lineage.make_card([], "a model", {"results": {"champion": unknown, "challenger": half}})
    assert "| champion | not measurable | | 0 |" in card
    assert "| challenger | 50.0% | 20.0% to 80.0% | 4 |" in card
