"""Logs of an evaluation, by hand and by the packages that read them."""

import json
import math
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation_rows import make_evaluation
from steptool.artifacts import lineage
from steptool.evaluation.logs import LogForm, write_logs
from steptool.records import Evaluation, Query, Reference, Step, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.columns import ContractError
from steptool.records.tables import read_records, write_records
from steptool.storage.transfer import TargetError

ROOT = Path(__file__).parents[2]
READERS = ROOT / ".venv-logs" / "bin" / "python"
READ = """
import json, sys
from inspect_ai.analysis import evals_df, samples_df
from inspect_ai.log import list_eval_logs, read_eval_log
from lm_eval.utils import make_table
folder = sys.argv[3]
headers = [(info, read_eval_log(info, header_only=True)) for info in list_eval_logs(folder)]
logs = [(info.task, info.task_id, header.eval.task_id) for info, header in headers]
evaluations, samples = evals_df(folder), samples_df(folder)
tables = [sorted(evaluations["model"]), evaluations["eval_id"].nunique(), len(samples), samples["sample_id"].nunique()]
log = read_eval_log(sys.argv[1])
messages = log.samples[0].messages
calls = [(call.function, call.arguments) for m in messages for call in getattr(m, "tool_calls", None) or ()]
figures = {score.name: score.metrics["mean"].value for score in log.results.scores}
table = make_table(json.load(open(sys.argv[2])))
print(json.dumps([log.status, len(log.samples), log.eval.config.epochs, figures, calls, table, logs, tables]))
"""
TIERS = ("easy", "hard")
TIME = 1_764_000_000
"""2025-11-24 16:00 UTC"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models on four tasks of two tiers; the second one sampled twice, and one of its verdicts is missing."""
    queries = [
        Query(f"q{n}", "heldout", "desk", f"task {n}?", (), Reference(f"answer {n}"), tier=TIERS[n % 2])
        for n in range(4)
    ]
    rows = [make_evaluation(f"q{n}", float(n < 3), model="old/1", tier=TIERS[n % 2], recall=0.5) for n in range(4)]
    rows += [
        make_evaluation(
            f"q{n}",
            None if n == 3 else float(n == repeat),
            model="new",
            decoding="sampled",
            repeat=repeat,
            tier=TIERS[n % 2],
            trajectory_id=f"new/q{n}/{repeat}",
        )
        for n in range(4)
        for repeat in (0, 1)
    ]
    episodes = [_episode(row) for row in rows if row.model == "new"]
    write_records(tmp_path / lineage.QUERIES, queries, Query)
    write_records(tmp_path / lineage.name_policy_file("new"), episodes, Trajectory)
    os.utime(write_records(tmp_path / lineage.EVALUATED, rows, Evaluation), (TIME, TIME))
    return tmp_path


def _episode(row: Evaluation) -> Trajectory:
    call = {"type": "function", "function": {"name": "get_order", "arguments": {"order_id": "o1"}}}
    messages = [
        {"role": "user", "content": "task?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "get_order", "content": "open"},
    ]
    steps = [Step(ToolCall("get_order", {"order_id": "o1"}), StepStatus.OK, "open")]
    return Trajectory(
        row.trajectory_id, row.query_id, "desk", row.tier, row.model, -1, row.repeat, 1.0, messages, [], [], [], steps,
        StopReason.FINISHED, "open", row.passed, 0.5,
    )  # fmt: skip


def test_results_of_the_harness_by_hand(folder: Path, tmp_path: Path) -> None:
    files = write_logs(folder, tmp_path / "out", LogForm.LM_EVAL)
    stamp = "2025-11-24T16-00-00.000000"
    assert [str(file.relative_to(tmp_path / "out")) for file in files] == [
        f"{model}/{name}"
        for model in ("old__1", "new_sampled")
        for name in (
            f"results_{stamp}.json",
            f"samples_steptool_easy_{stamp}.jsonl",
            f"samples_steptool_hard_{stamp}.jsonl",
        )
    ]
    old, new = (json.loads(files[place].read_text()) for place in (0, 3))
    assert old["model_name"] == "old/1" and old["group_subtasks"] == {"steptool": ["steptool_easy", "steptool_hard"]}
    metrics = old["results"]["steptool"]
    # three of four tasks: deviation .5, over the root of 4
    assert (metrics["pass_rate,none"], metrics["pass_rate_stderr,none"]) == (0.75, 0.25)
    assert metrics["recall,none"] == 0.5 and "invalid_call_rate_stderr,none" not in metrics
    assert [old["results"][f"steptool_{tier}"]["pass_rate,none"] for tier in ("easy", "hard")] == [1.0, 0.5]
    # tasks 0 and 1 in one of two repeats, 2 never; 3 has no verdict
    assert new["results"]["steptool"]["pass_rate,none"] == pytest.approx(1 / 3)
    assert new["results"]["steptool"]["pass_rate_stderr,none"] == pytest.approx(math.sqrt(1 / 12) / math.sqrt(3))
    hard = [json.loads(line) for line in files[5].read_text().splitlines()]
    assert [(sample["doc"]["query_id"], sample["target"], sample["pass_rate"]) for sample in hard] == [
        ("q1", "answer 1", 0.5),
        ("q3", "answer 3", None),
    ]
    assert hard[0]["resps"] == [["open", "open"]] and hard[0]["arguments"] == {"gen_args_0": {"arg_0": "task 1?"}}


def test_the_log_of_inspect_by_hand(folder: Path, tmp_path: Path) -> None:
    _, file = write_logs(folder, tmp_path / "out", LogForm.INSPECT)
    log = json.loads(file.read_text())
    assert file.name == f"2025-11-24T16-00-00_steptool_new-sampled_{log['eval']['task_id']}.json"
    assert log["eval"]["dataset"]["sample_ids"] == ["q0", "q1", "q2", "q3"] and log["eval"]["config"] == {"epochs": 2}
    score = log["results"]["scores"][0]
    assert (score["name"], score["scored_samples"], score["unscored_samples"]) == ("pass_rate", 6, 2)
    assert score["metrics"]["mean"]["value"] == pytest.approx(1 / 3)
    sample = log["samples"][0]
    assert (sample["id"], sample["epoch"], sample["target"], sample["scores"]["pass_rate"]["value"]) == (
        "q0",
        1,
        "answer 0",
        1.0,
    )
    assert sample["messages"][2]["tool_call_id"] == sample["messages"][1]["tool_calls"][0]["id"]
    assert "pass_rate" not in log["samples"][-1]["scores"]


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for form in LogForm:
        once, again = (write_logs(folder, tmp_path / name, form) for name in ("once", "again"))
        assert [file.read_bytes() for file in once] == [file.read_bytes() for file in again]


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"evaluations\.parquet: no such file"):
        write_logs(tmp_path, tmp_path / "out", LogForm.INSPECT)
    assert not (tmp_path / "out").exists()


def test_no_part_replaces_another_one_and_none_leaves_the_folder(folder: Path, tmp_path: Path) -> None:
    names = (("m", "sampled"), ("m_sampled", "greedy"), ("..", "greedy"))
    rows = [
        make_evaluation(f"q{n}", 1.0, model=model, decoding=decoding, tier=tier)
        for model, decoding in names
        for n, tier in enumerate(("a b", "a/b", "a b"))
    ]
    write_records(folder / lineage.EVALUATED, rows, Evaluation)
    files = write_logs(folder, tmp_path / "out", LogForm.LM_EVAL)
    assert [file.parent.name for file in files[::2]] == ["m_sampled", "m_sampled_", ".._"]
    for results, samples in zip(files[::2], files[1::2], strict=True):
        assert results.parent.parent == tmp_path / "out"
        assert json.loads(results.read_text())["n-samples"] == {"steptool": {"original": 3, "effective": 3}}
        assert len(samples.read_text().splitlines()) == 3
    assert len(set(write_logs(folder, tmp_path / "out", LogForm.INSPECT))) == 3


def test_messages_that_inspect_has_no_place_for_are_written_in_its_own_form(folder: Path, tmp_path: Path) -> None:
    file = folder / lineage.name_policy_file("new")
    (episode, *_) = read_records(file, Trajectory)
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": text}} for text in ('{"a": 1}', '{"a": ', "[]")
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "task?"},
        *({"role": "assistant", "content": "", "tool_calls": [call]} for call in calls),
    ]
    write_records(file, [replace(episode, messages=messages)], Trajectory)
    log = json.loads(write_logs(folder, tmp_path / "out", LogForm.INSPECT)[1].read_text())
    system, _, *turns = log["samples"][0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    written = [turn["tool_calls"][0] for turn in turns]
    assert [call["arguments"] for call in written] == [{"a": 1}, {}, {}]
    assert [call.get("parse_error") for call in written] == [None, 'not an object: {"a": ', "not an object: []"]


def test_what_does_not_belong_together_or_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"file: cannot be written"):
        write_logs(folder, tmp_path / "file", LogForm.LM_EVAL)
    write_records(folder / lineage.QUERIES, [Query("other", "heldout", "desk", "task?", ())], Query)
    with pytest.raises(ContractError, match=r"queries\.parquet: it lacks the query 'q0' of evaluations\.parquet"):
        write_logs(folder, tmp_path / "out", LogForm.LM_EVAL)
    write_records(folder / lineage.EVALUATED, [], Evaluation)
    with pytest.raises(ContractError, match=r"evaluations\.parquet: it has no rows"):
        write_logs(folder, tmp_path / "out", LogForm.LM_EVAL)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not READERS.exists(), reason="needs Inspect and lm-evaluation-harness: make test-logs")
def test_the_packages_read_what_was_written(folder: Path, tmp_path: Path) -> None:
    inspect = write_logs(folder, tmp_path / "inspect", LogForm.INSPECT)[1]
    harness = write_logs(folder, tmp_path / "harness", LogForm.LM_EVAL)[0]
    command = [str(READERS), "-c", READ, str(inspect), str(harness), str(inspect.parent)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=tmp_path)
    status, samples, epochs, figures, calls, table, logs, tables = json.loads(process.stdout)
    assert (status, samples, epochs) == ("success", 8, 2)
    assert figures == pytest.approx({"pass_rate": 1 / 3, "recall": 1.0})
    assert calls == [["get_order", {"order_id": "o1"}]]
    assert {(task, in_name == in_file) for task, in_name, in_file in logs} == {("steptool", True)} and len(logs) == 2
    assert tables == [["steptool/new", "steptool/old/1"], 2, 12, 12]  # four tasks of one, eight episodes of the other
    assert "- steptool_hard" in table
    assert re.search(r"pass_rate +\|↑ +\| *0\.75\|± +\| *0\.25\|", table)
