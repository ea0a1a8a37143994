"""Files that appear whole or not at all, and folders for scratch beside them; what a killed process left is tidied up.

Both have a name of their own while they are written and are locked by their process. A lock ends with its process, even
one that is killed. So whoever writes to the same place later removes what is not locked any more, and never what
another process is still writing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def write_whole(target: Path) -> Iterator[Path]:
    """A path to write to, beside the target, whose name it gets at the end unless an error is raised."""
    name = hashlib.sha256(target.name.encode()).hexdigest()[:12]
    with _open_partial(target.parent, name, Path.touch) as partial:
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder in another one, which is removed at the end."""
    with _open_partial(parent, name, Path.mkdir) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _open_partial(parent: Path, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Remove what former processes have left under the name; make a file or folder and hold its lock."""
    with ExitStack() as stack:
        with _lock(parent, fcntl.LOCK_EX):  # nobody tidies up between the making and the lock
            for path in parent.glob(f".steptool-{name}-*.partial"):
                with suppress(OSError), _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB):  # locked: it is being written
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            partial = parent / f".steptool-{name}-{uuid.uuid4().hex}.partial"
            make(partial)
            stack.enter_context(_lock(partial, fcntl.LOCK_EX))
        yield partial


@contextmanager
def _lock(path: Path, operation: int) -> Iterator[None]:
    """Hold the lock of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
