"""The viewer at the command line, in a real process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from steptool.records import Query, Step, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.tables import write_records

ROOT = Path(__file__).parents[2]
PYFLYTE = str(Path(sys.executable).with_name("pyflyte"))


def write_trajectories(path: Path, policy: str, queries: tuple[str, ...] = ("q0",)) -> Path:
    step = Step(ToolCall("look", {"at": 1}), StepStatus.OK, "seen")
    none = np.zeros(0)
    played = [
        Trajectory(
            trajectory_id=f"{policy}-{query_id}",
            query_id=query_id,
            environment="replay",
            tier="",
            policy=policy,
            round=-1,
            sample=0,
            temperature=0.0,
            messages=[],
            input_ids=none.astype(np.int32),
            spans=[],
            logprobs=none.astype(np.float32),
            steps=[step],
            stop_reason=StopReason.STEP_LIMIT,
            final_answer=None,
            solved=None,
            seconds=0.0,
        )
        for query_id in queries
    ]
    return write_records(path, played, Trajectory)


def view(**inputs: object) -> str:
    """What the command prints."""
    command = [PYFLYTE, "run", "workflows/view.py", "view"]
    command += [part for name, value in inputs.items() for part in (f"--{name}", str(value))]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_two_files_become_one_page(tmp_path: Path) -> None:
    queries = write_records(tmp_path / "queries.parquet", [Query("q0", "heldout", "replay", "look around", ())], Query)
    files = [write_trajectories(tmp_path / f"{name}.parquet", name) for name in ("before", "after")]
    page = tmp_path / "pages" / "viewer.html"
    out = view(title="Two & more", trajectories=files[0], trajectories_b=files[1], queries=queries, output=page)
    assert f"{page}: 0.0 MB" in out
    assert "<title>Two &amp; more</title>" in page.read_text()
    assert len(re.findall('class="chunk">', page.read_text())) == 1


def test_more_than_a_page_holds_become_several_files_beside_each_other(tmp_path: Path) -> None:
    names = ("q0", "q1", "q2")
    tasks = [Query(name, "heldout", "replay", "look around", ()) for name in names]
    queries = write_records(tmp_path / "queries.parquet", tasks, Query)
    played = write_trajectories(tmp_path / "played.parquet", "small", names)
    view(trajectories=played, queries=queries, output=tmp_path / "pages" / "all.html", page_size=2)
    assert sorted(page.name for page in (tmp_path / "pages").iterdir()) == ["all-2.html", "all.html"]
    assert '<a href="all-2.html">next</a>' in (tmp_path / "pages" / "all.html").read_text()
