"""Files that appear whole, and what a killed process leaves of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steptool.records.tables import scratch_folder, write_whole

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from steptool.records.tables import scratch_folder, write_whole

place = Path(sys.argv[1])
with scratch_folder(place, "export") as folder, write_whole(place / "rows.jsonl") as partial:
    (folder / "scratch.sqlite").write_text("much")
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@contextmanager
def start_writer(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing, which is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout and process.stdout.readline() == "writing\n"
        yield process
        process.send_signal(signal.SIGKILL)


def write(place: Path, text: str) -> None:
    with scratch_folder(place, "export"), write_whole(place / "rows.jsonl") as partial:
        partial.write_text(text)


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with start_writer(tmp_path):
        pass
    assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path, "whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rows.jsonl": "whole"}


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with start_writer(tmp_path):
        before = sorted(tmp_path.iterdir())
        assert len(before) == 2
        write(tmp_path, "whole")
        assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "rows.jsonl"]


def test_an_error_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "former")
    with (
        pytest.raises(ZeroDivisionError),
        scratch_folder(tmp_path, "x"),
        write_whole(tmp_path / "rows.jsonl") as partial,
    ):
        partial.write_text("half")
        raise ZeroDivisionError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rows.jsonl": "former"}


def test_only_what_belongs_to_the_same_name_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".steptool-mine.partial").touch()
    write(tmp_path, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".steptool-mine.partial", "rows.jsonl"]
