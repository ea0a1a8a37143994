"""A disk that is full: files of this process stop growing, or a command gets a small disk of its own."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def stop_files_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: writing more raises OSError, as on a full disk."""
    former, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (former, most))


def use_small_disk(folder: Path, kilobytes: int) -> list[str]:
    """Beginning of a command that sees an empty disk of this size at the folder; skips where none can be mounted.

    The command runs in a mount namespace of its own, which ends with it.
    """
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" && exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(folder)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk of its own cannot be mounted: {error}")
    return command
