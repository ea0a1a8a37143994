"""What a check finds is a refusal; an unexpected error leaves its stack in a file."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steptool.artifacts.metrics import describe_error
from steptool.config import ConfigError

_PACKAGE = Path(__file__).parents[1]


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


def describe_with_stack(error: Exception) -> str:
    """The error in one line, which names a file with the stack unless the error is one of ours."""
    return describe_error(error) + ("" if _is_ours(error) else f" (stack: {_keep_stack(error)})")


def _is_ours(error: Exception) -> bool:
    """Whether we raised the error: its class is ours, or it is a ValueError of a raise statement of ours."""
    if type(error) is ValueError and error.__traceback__:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Path(place.filename).is_relative_to(_PACKAGE) and (place.line or "").startswith("raise ")
    return type(error).__module__.startswith(("steptool.", "tasks."))


def _keep_stack(error: Exception) -> str:
    handle, path = tempfile.mkstemp(prefix="steptool-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return path
