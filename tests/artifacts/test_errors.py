import errno
import re
import sqlite3
import tempfile
from pathlib import Path

import pytest

from full_disk import stop_files_at
from steptool.artifacts.errors import describe_error, describe_with_class, describe_with_stack
from steptool.config import ConfigError


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_is_told_in_one_line_with_its_class_where_the_text_is_not_ours() -> None:
    errors = (MemoryError(), KeyError("a"), ValueError("wrong"), ConfigError("bad\n  field"), ValueError("x" * 5000))
    lines = [describe_error(error) for error in errors]
    assert lines == ["MemoryError", "KeyError: 'a'", "wrong", "bad; field", "x" * 1000]


def test_an_error_that_quotes_data_cannot_command_the_terminal() -> None:
    assert describe_error(ValueError("the tool '\x1b[31mred\x9b2J'")) == "the tool '\\x1b[31mred\\x9b2J'"


def test_an_error_of_others_is_told_with_those_in_a_group_and_without_a_text_that_cannot_be_read() -> None:
    group = ExceptionGroup("two tasks", [KeyError("a"), OSError("no\nroute")])
    assert describe_error(group) == "ExceptionGroup: two tasks (2 sub-exceptions): KeyError: 'a'; OSError: no; route"
    assert describe_error(Unreadable()) == "Unreadable, and its text cannot be read"


def test_an_error_with_its_class_keeps_its_lines() -> None:
    assert describe_with_class(ValueError("no\nnumber")) == "ValueError: no\nnumber"
    assert describe_with_class(TimeoutError()) == "TimeoutError: "


def test_an_error_is_not_lost_where_its_stack_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    text = describe_with_stack(KeyError("a"))
    assert text.startswith("KeyError: 'a' (stack: not kept, [Errno 2] No such file or directory: ")


def test_an_error_of_a_full_disk_says_which_folder_has_how_much_room(tmp_path: Path) -> None:
    database = sqlite3.connect("")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE texts (text TEXT)")
    with pytest.raises(sqlite3.OperationalError) as full:
        database.execute("INSERT INTO texts VALUES (?)", ("x" * 100_000,))
    room = r"[\d,.]+ MB are free in"
    temporary = re.escape(tempfile.gettempdir())
    remedy = "make room there, or let TMPDIR name a folder on another disk; if there is enough, make room where"
    message = rf"OperationalError: database or disk is full; {room} {temporary}: {remedy} the command writes"
    assert re.fullmatch(message, describe_error(full.value))

    copied = OSError(errno.ENOSPC, "No space left on device", "/tmp/a", None, "/usr/results.parquet")
    assert re.search(rf"; {room} /usr: make room there, or name a place on another disk$", describe_error(copied))
    assert describe_error(OSError(errno.ENOENT, "none", "/usr/a")).endswith("none: '/usr/a'")


def test_an_error_of_the_limit_of_a_file_says_which_one(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "texts.sqlite")
    database.execute("CREATE TABLE texts (text TEXT)")
    with stop_files_at(50_000):
        with pytest.raises(sqlite3.OperationalError) as full, database:
            database.execute("INSERT INTO texts VALUES (?)", ("x" * 100_000,))
        advice = describe_error(full.value)
    assert advice.endswith("no file may have more than 0.050 MB here: raise that limit (ulimit -f)")
