"""Whether the pins of the images resolve, and what they leave open: pip is asked what it would install, and installs
nothing.

python images/pins.py needs the package index. It prints a line for each image and the versions of what is not pinned,
and ends with 1 where the pins do not resolve, or leave more open than one client library that only vLLM asks for.
For a new version of vLLM change its pin, remove the pins that it refuses and add the lines that this program prints.

python images/pins.py --write writes images/*.hashes.txt too: every package of an image, with the sha256 of its file for
this machine's kind and Python. The images are built from these files alone.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMAGES = {"cpu": (".", "constraints.txt"), "gpu": (".[gpu]", "images/gpu.constraints.txt")}
"""What each image installs, and its pins."""
LEFT_OPEN = {"cpu": 0, "gpu": 1}
"""How many packages may be unpinned: of a client library of vLLM's, which nothing here calls, any version will do."""


def read_pins(path: Path) -> dict[str, str]:
    """Versions by name of a file of pins."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(what: str, constraints: str, torch: str) -> list[dict[str, Any]]:
    """All that pip would install into an empty environment, as its report says. Raises SystemExit if nothing fits.

    === asks for the index's own build of torch, whose dependencies are the most: CUDA's libraries. With a second index
    it is the build that a plain request gets.
    """
    equal = "==" if os.environ.get("PIP_EXTRA_INDEX_URL") else "==="
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ("--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check", "--report", str(report))
        command = [sys.executable, "-m", "pip", "install", *options, "-c", constraints, f"torch{equal}{torch}", what]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit(f"{what} does not resolve with {constraints}")
        entries: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [entry for entry in entries if canonical(entry["metadata"]["name"]) != "steptool"]


def read_versions(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Versions by name of what a report lists."""
    packages = [entry["metadata"] for entry in entries]
    return {canonical(package["name"]): package["version"] for package in packages}


def format_hashes(image: str, entries: Iterable[Mapping[str, Any]]) -> str:
    """The lines from which pip installs exactly the files of a report, and refuses others."""
    machine, python = platform.machine(), ".".join(platform.python_version_tuple()[:2])
    digests = {
        f"{canonical(entry['metadata']['name'])}=={entry['metadata']['version']}": entry["download_info"][
            "archive_info"
        ]
        for entry in entries
    }
    lines = [f"{package} --hash=sha256:{digests[package]['hashes']['sha256']}" for package in sorted(digests)]
    about = (
        f"# What the {image} image installs, by the sha256 of each file (Python {python}, {machine}); see make lock."
    )
    return "\n".join([about, *lines, ""])


def main() -> None:
    """Check both images."""
    in_order = True
    for image, (what, constraints) in IMAGES.items():
        pins = read_pins(ROOT / constraints)
        entries = resolve(what, constraints, pins["torch"])
        versions = read_versions(entries)
        unpinned = sorted(versions.keys() - pins.keys())
        print(f"{image}: {len(versions)} packages resolve, {len(unpinned)} of them are not pinned in {constraints}")
        for name in unpinned:
            print(f"{name}=={versions[name]}")
        in_order = in_order and len(unpinned) <= LEFT_OPEN[image]
        if "--write" in sys.argv[1:]:
            (ROOT / "images" / f"{image}.hashes.txt").write_text(format_hashes(image, entries), encoding="utf-8")
    sys.exit(0 if in_order else 1)


if __name__ == "__main__":
    main()
