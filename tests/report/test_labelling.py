"""The form for human labels: the command, and the page in a real browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steptool.records import Query, StepReward, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.report.labelling import FORM, main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '</script><script>document.title="owned"</script>'
Make = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path, trajectory: Make, query: Make) -> tuple[Path, Path]:
    episodes = [trajectory(f"t{n}", ["ok", "finish"], observation=HOSTILE) for n in range(5)]
    return (
        write_records(tmp_path / "trajectories.parquet", episodes, Trajectory),
        write_records(tmp_path / "queries.parquet", [query()], Query),
    )


def test_labels_go_out_and_come_back(files: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    trajectories, queries = map(str, files)
    assert main(["export", trajectories, queries, str(tmp_path / "out"), "--episodes", "3"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [FORM, "steps.csv", "steps.parquet"]
    steps = json.loads(re.findall(r'type="application/json">(.*?)</script>', (tmp_path / "out" / FORM).read_text())[0])
    assert len({row["trajectory_id"] for row in steps}) == 3
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([{"trajectory_id": "t1", "step": 0, "contribution": 1, "labelled_by": "ana"}]))
    assert main(["import", trajectories, str(tmp_path / "rewards.parquet"), str(labels)]) == 0
    rows = read_records(tmp_path / "rewards.parquet", StepReward)
    assert [(r.trajectory_id, r.step, r.annotator, r.contribution) for r in rows] == [
        ("t1", 0, "human", 1.0),
        ("t1", 1, "human", None),
    ]
    labels.write_text("[{}]")
    assert main(["import", trajectories, str(tmp_path / "again.parquet"), str(labels)]) == 1
    assert "labels.json, row 1: expected trajectory_id and step" in capsys.readouterr().err
    assert not (tmp_path / "again.parquet").exists()
    labels.write_text(json.dumps([{"trajectory_id": "\x1b[2J", "step": 0, "contribution": 1, "labelled_by": "ana"}]))
    assert main(["import", trajectories, str(tmp_path / "again.parquet"), str(labels)]) == 1
    error = capsys.readouterr().err
    assert "\\x1b[2J" in error and "\x1b" not in error


@pytest.mark.skipif(not CHROMIUM, reason="no browser on this machine")
def test_the_form_works_from_the_file_and_gives_what_was_entered(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["export", *map(str, files), str(tmp_path), "--episodes", "1"]) == 0
    page = tmp_path / FORM
    entered = """<script>
      document.getElementById("who").value = "ana";
      document.querySelectorAll("input[type=radio][value='1']").forEach((input) => input.click());
      const told = document.createElement("p");
      told.id = "told";
      told.textContent = JSON.stringify(labels());
      document.body.append(told);
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", entered))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>Label steps of trajectories.parquet</title>" in dom
    entered_labels = json.loads(re.findall(r'<p id="told">(.*?)</p>', dom)[0])
    assert [(label["step"], label["labelled_by"]) for label in entered_labels] == [(0, "ana"), (1, "ana")]
    assert (
        entered_labels[0]["succ_calling"],
        entered_labels[0]["contribution"],
        entered_labels[1]["is_solved"],
    ) == (1, 1, 1)
    assert "2 of 2 steps labelled" in dom
