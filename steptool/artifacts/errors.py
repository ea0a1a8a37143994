"""Errors as texts: in one line, with the stack in a file where that is of use, or as a refusal."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steptool.artifacts.metrics import escape_controls
from steptool.config import ConfigError

_PACKAGE = Path(__file__).parents[1]
_TOO_LARGE: frozenset[int | str] = frozenset({errno.EFBIG, "SQLITE_IOERR_WRITE"})
_FULL_DISK = _TOO_LARGE | {errno.ENOSPC, errno.EDQUOT, "SQLITE_FULL"}
"""Numbers of errors of the system and names of those of SQLite that say that a file cannot grow."""


def describe_error(error: BaseException, limit: int = 1000) -> str:
    """An error in one line that a terminal can show; with its class unless the text is one of ours and says enough.

    For a full disk the line adds which folder has no room, and the remedy.
    """
    if isinstance(error, SystemExit):
        return f"the code of the run called sys.exit({error.code!r})"
    is_explained = _has_our_class(error) or type(error) is ValueError
    text = str(error) if is_explained else ""
    lines = (text if text.strip() else describe_with_class(error).removesuffix(": ")).splitlines()
    line = "; ".join(line.strip() for line in lines if line.strip())[:limit]
    return escape_controls(line + _advise_on_full_disk(error))


def _advise_on_full_disk(error: BaseException) -> str:
    """How much room the folder of the file has, and what to do; empty for an error of another kind.

    SQLite, Arrow and streams do not name the file. Most of what they write here are temporary files.
    """
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorname", None)  # it is missing where the module raised the error, not SQLite
    if code not in _FULL_DISK:
        return ""
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if code in _TOO_LARGE and largest != resource.RLIM_INFINITY:
        return f"; no file may have more than {largest / 1e6:,.3f} MB here: raise that limit (ulimit -f)"
    file = getattr(error, "filename2", None) or getattr(error, "filename", None)
    folder, remedy = Path(tempfile.gettempdir()), "make room there, or let TMPDIR name a folder on another disk"
    if not isinstance(file, str):
        remedy = f"{remedy}; if there is enough, make room where the command writes"
    elif not Path(file).is_relative_to(folder):
        folder, remedy = Path(file).parent, "make room there, or name a place on another disk"
    with suppress(OSError):
        return f"; {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free in {folder}: {remedy}"
    return ""


def describe_with_class(error: BaseException) -> str:
    """Class and text of an error, and of the errors in a group; the class alone if the text cannot be read."""
    name = type(error).__name__
    try:
        text = f"{name}: {error}"
    except BaseException:
        return f"{name}, and its text cannot be read"
    if isinstance(error, BaseExceptionGroup):
        return f"{text}: {'; '.join(map(describe_with_class, error.exceptions))}"
    return text


def describe_with_stack(error: Exception) -> str:
    """The error in one line, which names a file with the stack unless the error is one of ours."""
    return describe_error(error) + ("" if _is_ours(error) else f" (stack: {keep_stack(error)})")


def keep_stack(error: BaseException, stage: str = "") -> str:
    """Write the stack of an error into a file of the temporary folder; returns its path.

    Where that fails, as on a full disk, it returns why: the error itself must not be lost.
    """
    try:
        handle, path = tempfile.mkstemp(prefix=f"steptool-{stage}-" if stage else "steptool-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as problem:
        return f"not kept, {problem}"
    return path


@contextmanager
def refuse_by_findings() -> Iterator[None]:
    """Turn what a check or a dry run finds into a refusal, since nothing ran that could fail. Bugs stay as they are."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if _is_ours(error) or type(error) is ValueError:
            raise ConfigError(describe_with_stack(error)) from error
        raise


def _is_ours(error: Exception) -> bool:
    """Whether we raised the error: its class is ours, or it is a ValueError of a raise statement of ours."""
    if type(error) is ValueError and error.__traceback__:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Path(place.filename).is_relative_to(_PACKAGE) and (place.line or "").startswith("raise ")
    return _has_our_class(error)


def _has_our_class(error: BaseException) -> bool:
    return type(error).__module__.startswith(("steptool.", "tasks."))
