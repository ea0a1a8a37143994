"""The form for human labels: the command, and the page in a real browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser import Browser
from full_disk import stop_files_at
from steptool.records import Query, StepReward, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.report.labelling import FORM, build_labelling_form, label_table, main, write_label_table

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
    assert len({row["trajectory_id"] for row in steps["rows"]}) == len(steps["tools_of"]) == 3
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


@pytest.mark.parametrize("name", ["steps.csv", "steps.parquet"])
def test_a_full_disk_leaves_the_table_that_was_there(tmp_path: Path, trajectory: Make, query: Make, name: str) -> None:
    rows = list(label_table({query().query_id: query()}, [trajectory("t", ["ok", "finish"])]))
    table = write_label_table(rows[:1], tmp_path / name)
    before = table.read_bytes()
    with stop_files_at(len(before) // 2), pytest.raises(OSError, match="File too large"):
        write_label_table(rows, table)
    assert table.read_bytes() == before and list(tmp_path.iterdir()) == [table]


def test_the_form_works_from_the_file_and_gives_what_was_entered(
    browser: Browser, files: tuple[Path, Path], tmp_path: Path
) -> None:
    assert main(["export", *map(str, files), str(tmp_path), "--episodes", "1"]) == 0
    browser.open(tmp_path / FORM)
    assert browser.js("document.title") == "Label steps of trajectories.parquet"
    browser.js("localStorage.clear()")
    browser.open(tmp_path / FORM)
    browser.js("who.value = 'ana'")
    browser.js("document.querySelectorAll(\"input[type=radio][value='1']\").forEach((input) => input.click())")
    entered = browser.js("labels()")
    assert [(label["step"], label["labelled_by"]) for label in entered] == [(0, "ana"), (1, "ana")]
    assert (entered[0]["succ_calling"], entered[0]["contribution"], entered[1]["is_solved"]) == (1, 1, 1)
    assert browser.js("document.getElementById('count').textContent") == "2 of 2 steps labelled"
    assert not browser.faults


def test_keys_answer_the_questions(browser: Browser, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["export", *map(str, files), str(tmp_path), "--episodes", "1"]) == 0
    browser.open(tmp_path / FORM)
    browser.js("localStorage.clear()")
    browser.open(tmp_path / FORM)
    browser.js("who.value = 'ana'")
    for key in "ynkp":  # yes to the first, no to the second, back to it: partly
        browser.press(key)
    focused = "document.activeElement.closest('fieldset').querySelector('legend').textContent"
    assert browser.js(focused) == "Was the task solved?"
    browser.press("k")
    assert browser.js(focused) == "Did it serve the final answer?"
    answers = browser.js("labels().map((label) => [label.succ_calling, label.contribution, label.is_solved])")
    assert answers == [[1, 0.5, None]]
    browser.press("c")
    assert browser.js("document.activeElement.tagName") == "TEXTAREA"
    browser.press("y")  # a letter of the comment
    browser.press("Escape")
    browser.js("keys.click()")
    browser.press("n")
    assert browser.js("labels()[0].succ_calling") == 1
    assert not browser.faults


def test_the_form_shows_the_tools_of_a_task(browser: Browser, trajectory: Make, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "get_order", "description": "Looks an order up.", "parameters": {
        "type": "object", "properties": {"order_id": {"type": "string"}, "verbose": {"type": "boolean"}},
        "required": ["order_id"]}}}]  # fmt: skip
    rows = [{"trajectory_id": "t0", "step": 0, "instruction": "where is it?", "tool": "get_order", "arguments": "{}",
             "observation": "", "answer": "", "asked": "succ_calling"}]  # fmt: skip
    page = tmp_path / FORM
    page.write_text(build_labelling_form(rows, tools={"t0": tools}), encoding="utf-8")
    browser.open(page)
    browser.js("document.querySelector('.tools').open = true")
    words = browser.js("document.querySelector('.tools').innerText")
    assert words.split("\n") == ["Tools of this task (1)", "get_order", "Looks an order up.",
        "order_id: string, required", "verbose: boolean, optional"]  # fmt: skip
