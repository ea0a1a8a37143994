"""What leaves the machine with a registration, and what is said where no cluster answers."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from flytekit.tools.ignore import DockerIgnore, FlyteIgnore, GitIgnore, IgnoreGroup, StandardIgnore

from scripts.registration import find_cluster_fault, leave_out_untracked

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with a commit, in which a user keeps data."""
    for name in ("steptool/a.py", "configs/laptop.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("tracked")
    (tmp_path / ".gitignore").write_text("runs/\n.flyteignore\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name in (
        "runs/model",
        "logs/private [1].jsonl",
        "logs/private 1.jsonl",
        "my_tools/tools.py",
        "configs/mine.yaml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    return tmp_path


def travelling(project: Path) -> set[str]:
    """What pyflyte would send."""
    ignored = IgnoreGroup(str(project), [GitIgnore, DockerIgnore, StandardIgnore, FlyteIgnore])
    files = (str(f.relative_to(project)) for f in project.rglob("*") if f.is_file() and ".git/" not in str(f))
    return {name for name in files if not ignored.is_ignored(name)}


def test_only_what_git_tracks_travels(project: Path) -> None:
    assert {"logs/private 1.jsonl", "my_tools/tools.py"} <= travelling(project)  # as pyflyte alone would have it
    left_out = leave_out_untracked(project)
    assert left_out == [
        "configs/mine.yaml", "logs/private 1.jsonl", "logs/private [1].jsonl", "my_tools/tools.py",
    ]  # fmt: skip
    assert travelling(project) == {".gitignore", "steptool/a.py", "configs/laptop.yaml"}


def test_a_list_names_what_travels_too(project: Path) -> None:
    (project / "travels.txt").write_text("# tools of ours\nmy_tools/*.py\nconfigs/mine.yaml\n")
    assert leave_out_untracked(project) == ["logs/private 1.jsonl", "logs/private [1].jsonl"]
    assert {"my_tools/tools.py", "configs/mine.yaml", "steptool/a.py"} <= travelling(project)


def test_without_a_repository_everything_travels(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    assert leave_out_untracked(tmp_path) == []


def test_the_first_line_names_the_address_and_the_file_where_no_cluster_answers(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = tmp_path / "flyte.config"
        config.write_text(f"[platform]\nurl = dns:///{address}\n")
        assert find_cluster_fault(config).startswith(
            f"no Flyte answers at dns:///{address}, the address under [platform] in {config} ("
        )
        probe.listen()
        assert find_cluster_fault(config) == ""
    config.write_text("[images]\ncpu = a\n")
    assert find_cluster_fault(config) == f"{config} names no cluster: set url under [platform]"


def test_make_register_ends_before_anything_is_packaged() -> None:
    settings = (f"BIN={Path(sys.executable).parent}", "FLYTE_CONFIG=tests/tasks/nowhere.config")
    command = ["make", "--no-print-directory", "--silent", "-o", ".venv/.installed", *settings, "register"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode != 0 and process.stdout == ""
    assert process.stderr.splitlines()[0].startswith(
        "no Flyte answers at 127.0.0.1:9, the address under [platform] in tests/"
    )
