"""A disk that is full: files of this process stop growing."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_files_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: writing more raises OSError, as on a full disk."""
    former, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (former, most))
