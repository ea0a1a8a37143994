"""Prepares a registration: it checks the cluster, leaves data here, and names the version by its content.

    python -m scripts.registration                         before `pyflyte package`
    python -m scripts.registration --cluster flyte.config  before `pyflyte register`

pyflyte sends every file below the project's root that git does not ignore. Files that git does not track are often data
of the user, so .flyteignore, which pyflyte obeys, is written with their names. The file travels.txt names those that a
run needs on the cluster, such as tools of your own: one pattern a line, as in my_tools/*.py.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import os
import re
import socket
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from tasks.runtime.profile import ROOT, VARIABLE

TRAVELS = "travels.txt"
IGNORE_FILE = ".flyteignore"
_DIGITS = 16
_SHOWN = 5
_SECONDS = 5.0


def compute_version(root: Path = ROOT) -> str:
    """Digest of every file that travels with a registration, and of the name of the profile."""
    from flytekit.constants import CopyFileDetection
    from flytekit.tools.ignore import DockerIgnore, FlyteIgnore, GitIgnore, IgnoreGroup, StandardIgnore
    from flytekit.tools.script_mode import ls_files

    ignored = IgnoreGroup(str(root), [GitIgnore, DockerIgnore, StandardIgnore, FlyteIgnore])
    _, digest = ls_files(str(root), CopyFileDetection.ALL, ignore_group=ignored)
    return hashlib.sha256(f"{digest} {os.environ.get(VARIABLE, '')}".encode()).hexdigest()[:_DIGITS]


def leave_out_untracked(root: Path = ROOT) -> list[str]:
    """Write .flyteignore, and return the files that it leaves out. Without a git repository it leaves out none."""
    names = [name for name in _list_untracked(root) if name != IGNORE_FILE]
    patterns = _read_patterns(root / TRAVELS)
    left_out = [name for name in names if not any(fnmatch(name, pattern) for pattern in (*patterns, TRAVELS))]
    lines = ["# Written before each registration: files that git does not track. travels.txt names exceptions."]
    (root / IGNORE_FILE).write_text("\n".join(lines + [_escape(name) for name in left_out]) + "\n", encoding="utf-8")
    return left_out


def find_cluster_fault(flyte_config: Path) -> str:
    """Why the cluster that a flyte.config names cannot be reached; empty if it takes connections."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(flyte_config, encoding="utf-8")
    url = parser.get("platform", "url", fallback="")
    if not url:
        return f"{flyte_config} names no cluster: set url under [platform]"
    host, _, port = re.sub(r"^\w+:/*", "", url).partition("/")[0].partition(":")
    try:
        socket.create_connection((host, int(port or 443)), timeout=_SECONDS).close()
    except (OSError, ValueError) as error:
        return (
            f"no Flyte answers at {url}, the address under [platform] in {flyte_config} ({error}): start the cluster "
            "(flytectl demo start, for a sandbox) or change the address"
        )
    return ""


def main() -> None:
    """Check the cluster, write .flyteignore and print the version. Ends with 1 if the cluster does not answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, metavar="FLYTE_CONFIG", help="flyte.config of the cluster to reach")
    cluster = parser.parse_args().cluster
    if cluster and (fault := find_cluster_fault(cluster)):
        sys.exit(fault)
    if left_out := leave_out_untracked():
        names = ", ".join(left_out[:_SHOWN]) + (", ..." if len(left_out) > _SHOWN else "")
        advice = f"{TRAVELS} names those that a run needs"
        print(f"{len(left_out)} files that git does not track stay here: {names} ({advice})", file=sys.stderr)
    print(compute_version())


def _list_untracked(root: Path) -> list[str]:
    """Files below the root that git neither tracks nor ignores."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "-z"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(filter(None, result.stdout.split("\0")))


def _read_patterns(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _escape(name: str) -> str:
    """The name as a pattern that matches nothing else."""
    return re.sub(r"([*?\[])", r"[\1]", name)


if __name__ == "__main__":
    main()
