"""What former runs left in the temporary folder."""

import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from steptool.storage.transfer import find_leftovers, remove_leftovers


def test_leftovers_are_measured_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, young, other = (tmp_path / name for name in ("flyte-old12345", "flyte-new12345", "something_else"))
    for folder in (old, young, other):
        (folder / "inputs").mkdir(parents=True)
        (folder / "inputs" / "model").write_bytes(b"x" * 70_000)
    for path in (old / "inputs" / "model", old / "inputs", old, other):
        os.utime(path, (0, 0))
    (leftover,) = find_leftovers(hours=1)
    assert leftover.path == old and 70_000 <= leftover.size < 90_000  # the folders take a block each
    remove_leftovers([leftover])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flyte-new12345", "something_else"]


def test_runs_that_end_meanwhile_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    is_over = threading.Event()

    def run_again_and_again() -> None:
        folder = tmp_path / "flyte-run12345"
        while not is_over.is_set():
            (folder / "task" / "inputs").mkdir(parents=True)
            (folder / "task" / "inputs" / "model").touch()
            shutil.rmtree(folder)

    runs = threading.Thread(target=run_again_and_again)
    runs.start()
    try:
        assert [find_leftovers(hours=1) for _ in range(100)] == [[]] * 100
    finally:
        is_over.set()
        runs.join()
