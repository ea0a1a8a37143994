"""Results are used again for equal inputs and equal code alone; and never from a folder that is gone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.registration import compute_version
from tasks.runtime.stage import code_version

ROOT = Path(__file__).parents[2]
PYFLYTE = str(Path(sys.executable).with_name("pyflyte"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "steptool/a.py": "1", "steptool/data/b.json": "{}", "tasks/c.py": "2", "workflows/d.py": "3",
        "configs/cluster.yaml": "", "flyte.config": "", "constraints.txt": "", "images/gpu.constraints.txt": "",
        "examples/tools.py": "4",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def versions(project: Path) -> tuple[str, str]:
    code_version.cache_clear()
    return code_version(project), compute_version(project)


@pytest.mark.parametrize(
    "name", ["steptool/a.py", "steptool/data/b.json", "tasks/c.py", "workflows/d.py", "constraints.txt"]
)
def test_a_change_of_code_of_its_data_or_of_a_pin_is_another_version(project: Path, name: str) -> None:
    before = versions(project)
    (project / name).write_text("changed")
    assert all(old != new for old, new in zip(before, versions(project), strict=True))


def test_a_new_name_is_another_version(project: Path) -> None:
    before = versions(project)
    (project / "steptool" / "a.py").rename(project / "steptool" / "z.py")
    assert versions(project)[0] != before[0]


@pytest.mark.parametrize("name", ["configs/cluster.yaml", "examples/tools.py", "flyte.config"])
def test_what_else_travels_is_registered_anew_and_leaves_the_cache_alone(project: Path, name: str) -> None:
    before = versions(project)
    (project / name).write_text("changed")
    after = versions(project)
    assert after[0] == before[0] and after[1] != before[1]


def test_what_is_not_code_leaves_both_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions(project)
    for name in ("steptool/__pycache__/a.pyc", "tasks/__pycache__/b.pyc"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("x")
    assert versions(project) == before
    (project / "steptool" / ".a.py.swp").write_text("x")
    assert versions(project)[0] == before[0]
    before = versions(project)
    monkeypatch.setenv("STEPTOOL_PROFILE", "configs/cluster.yaml")
    assert versions(project)[0] == before[0] and versions(project)[1] != before[1]


def test_the_version_to_register_is_printed() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "scripts.registration"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout == f"{compute_version()}\n"


def test_a_second_local_run_works_after_the_temporary_files_are_gone(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
    tasks, config = tmp_path / "tasks.jsonl", tmp_path / "mine.yaml"
    tasks.write_text(json.dumps({"instruction": "look around", "tools": [tool]}) + "\n")
    config.write_text(json.dumps({"data": {"source": "jsonl", "paths": [str(tasks)]}}))
    command = [PYFLYTE, "run", "workflows/ingest.py", "ingest", f"--config={config}", f"--output={tmp_path / 'out'}"]
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary"), "COLUMNS": "250"}
    for _ in range(2):
        (tmp_path / "temporary").mkdir()
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout + process.stderr
        assert "queries read 1" in process.stdout
        shutil.rmtree(tmp_path / "temporary")
