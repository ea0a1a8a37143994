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


def written(path: Path, policy: str) -> Path:
    step = Step(ToolCall("look", {"at": 1}), StepStatus.OK, "seen")
    none = np.zeros(0)
    played = Trajectory(
        trajectory_id=f"{policy}-q0",
        query_id="q0",
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
    return write_records(path, [played], Trajectory)


def test_two_files_become_one_page(tmp_path: Path) -> None:
    queries = write_records(tmp_path / "queries.parquet", [Query("q0", "heldout", "replay", "look around", ())], Query)
    files = [written(tmp_path / f"{name}.parquet", name) for name in ("before", "after")]
    page = tmp_path / "pages" / "viewer.html"
    inputs = {"trajectories": files[0], "trajectories_b": files[1], "queries": queries, "output": page}
    command = [PYFLYTE, "run", "workflows/view.py", "view", "--title", "Two & more"]
    command += [part for name, value in inputs.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{page}: 0.0 MB" in done.stdout
    assert "<title>Two &amp; more</title>" in page.read_text()
    assert len(re.findall('class="chunk">', page.read_text())) == 1
