"""Files with a content, and what is read from them."""

from __future__ import annotations

import pytest

from steptool.data.files import read_file


@pytest.fixture
def read_values():
    """The rows and values of a file; a record that cannot be read has the reason in place of its value."""

    def read(file, **limits):
        return [(r.row, r.fault.reason if r.fault else r.value) for r in read_file(file, **limits)]

    return read


@pytest.fixture
def write_file():
    """Write a content to a path below a folder that is made for it."""

    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
