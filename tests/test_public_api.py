"""The public interface, used as in a notebook: one round of training on the embedded model with four queries."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steptool

ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The variables that the code of docs/notebook.md leaves behind, run in an empty folder."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    cells = PYTHON.findall((ROOT / "docs" / "notebook.md").read_text(encoding="utf-8"))
    assert len(cells) == 7
    variables: dict[str, Any] = {}
    exec("\n".join(cells), variables)
    return SimpleNamespace(**variables)


def test_the_notebook_of_the_documentation_runs(notebook: SimpleNamespace, tmp_path: Path) -> None:
    n = notebook
    assert (len(n.queries), len(n.base.queries), len(n.demonstrations), len(n.train)) == (9, 9, 4, 4)
    assert [episode.query_id for episode in n.episodes] == [query.query_id for query in n.train]
    assert all(episode.policy == "round_00" and episode.steps for episode in n.episodes)
    steps = sum(len(episode.steps) for episode in n.episodes)
    assert len(n.rewards) == len(n.advantages) == steps
    assert n.result.advantages == n.advantages  # what the round learned from
    before, after = (folder / "model.safetensors" for folder in (n.base.model, tmp_path / "notebook" / "policy"))
    assert before.read_bytes() != after.read_bytes()
    assert {row.model for row in n.after.rows} == {"policy"} and len(n.after.rows) == len(n.before.rows) == 4
    assert -1 <= n.gain.low <= n.gain.mean <= n.gain.high <= 1
    assert "<title>A round" in (tmp_path / "notebook" / "viewer.html").read_text()
    stored = steptool.read_records(tmp_path / "notebook" / "episodes.parquet", steptool.Trajectory)
    assert [episode.trajectory_id for episode in stored] == [episode.trajectory_id for episode in n.episodes]


def test_the_import_is_quick_and_every_public_name_is_there() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'pyarrow', 'pydantic', 'flytekit'}"
    program = f"import sys, steptool; print(sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
    assert set(steptool.__all__) <= set(dir(steptool))
    assert all(getattr(steptool, name).__doc__ for name in steptool.__all__)
    with pytest.raises(AttributeError, match="no attribute 'roll_up'"):
        _ = steptool.roll_up
