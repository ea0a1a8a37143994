"""Data in and out at the command line, in real processes."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from commands import PYFLYTE, run_command
from steptool.records import Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records


def conversation(number: int, solved: float) -> str:
    call = {"name": "look", "arguments": json.dumps({"at": number})}
    messages = [
        {"role": "user", "content": f"What is {number // 2}?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": f"seen {number}"},
        {"role": "assistant", "content": "Seen."},
    ]
    return json.dumps({"messages": messages, "tools": [{"name": "look"}], "solved": solved})


def test_recordings_go_in_and_come_out(tmp_path: Path) -> None:
    (tmp_path / "logs.jsonl").write_text("\n".join([*(conversation(n, n % 2) for n in range(6)), '{"messages": ']))
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"data": {"source": "recorded", "paths": [str(tmp_path / "logs.jsonl")]}}))
    out = tmp_path / "out"
    (out / "keep").mkdir(parents=True)
    process = run_command(
        PYFLYTE, "run", "workflows/ingest.py", "ingest", "--config", str(config), "--output", str(out)
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "demonstrations read 7" in process.stdout and "demonstrations dropped: not JSON: 1" in process.stdout
    assert sorted(p.name for p in out.iterdir()) == [
        "counts.json", "demonstrations.parquet", "keep", "quarantine.jsonl", "queries.parquet",
        "recorded_rewards.parquet",
    ]  # fmt: skip
    assert json.loads((out / "counts.json").read_text()) == {
        "queries read": 3, "queries kept": 3, "demonstrations read": 7, "demonstrations kept": 6,
        "demonstrations dropped: not JSON": 1,
    }  # fmt: skip
    assert json.loads((out / "quarantine.jsonl").read_text())["row"] == 7
    assert len(read_queries(out / "queries.parquet")) == 3
    assert len(read_records(out / "demonstrations.parquet", Trajectory)) == 6

    inputs = ("--trajectories", str(out / "demonstrations.parquet"), "--queries", str(out / "queries.parquet"))
    result = run_command(
        PYFLYTE, "run", "workflows/export.py", "export", *inputs, "--form", "preference", "--output", str(out)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{out}/preference.parquet: trajectories read 6, rows written 3" in result.stdout
    assert pq.read_table(out / "preference.parquet").num_rows == 3
    both = ("--more_trajectories", json.dumps([str(out / "demonstrations.parquet")]))
    more = run_command(
        PYFLYTE, "run", "workflows/export.py", "export", *inputs, *both, "--form", "sft", "--output", str(out)
    )
    assert more.returncode == 0 and "trajectories read 12" in more.stdout, more.stdout + more.stderr
    refused = run_command(
        PYFLYTE, "run", "workflows/export.py", "export", *inputs, "--form", "letters", "--output", str(out)
    )
    assert refused.returncode != 0 and "preference" in refused.stdout + refused.stderr


def test_counts_and_quarantine_arrive_where_everything_was_dropped(tmp_path: Path) -> None:
    (tmp_path / "logs.jsonl").write_text('{"messages": []}\n')
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"data": {"source": "recorded", "paths": [str(tmp_path / "logs.jsonl")]}}))
    out = tmp_path / "out"
    process = run_command(
        PYFLYTE, "run", "workflows/ingest.py", "ingest", "--config", str(config), "--output", str(out)
    )
    message = "demonstrations: 1 read, 1 dropped: no recorded step; queries: 0 kept. No query is left. See"
    assert process.returncode != 0 and message in process.stdout + process.stderr
    assert json.loads((out / "counts.json").read_text())["demonstrations dropped: no recorded step"] == 1
    assert json.loads((out / "quarantine.jsonl").read_text())["row"] == 1


def test_starting_the_workflows_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    program = f"import sys, workflows.ingest, workflows.export; print(sorted({heavy} & set(sys.modules)))"
    result = run_command(sys.executable, "-c", program)
    assert result.stdout.strip() == "[]", result.stderr
