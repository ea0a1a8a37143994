from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., str]:
    """module(text, name): the path of a file with this text."""

    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(dedent(text), encoding="utf-8")
        return str(tmp_path / name)

    return write
