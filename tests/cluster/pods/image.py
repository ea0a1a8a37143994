"""The interpreter of a pod: every installed package, but not the project."""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = ("pyflyte-execute", "pyflyte-fast-execute", "pyflyte-map-execute")


@dataclass(frozen=True)
class Image:
    """What stands in for a container image."""

    bin: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """The ENV lines of its Dockerfile."""


def build(folder: Path, environment: Mapping[str, str] | None = None) -> Image:
    """Make a virtual environment whose packages are those of this one.

    The project itself is installed here as links to its sources, which would hide what the tarball lacks. They hang on
    a .pth file, and such files count only in a site folder of the interpreter's own: naming the packages' folder in
    another .pth leaves them out.
    """
    venv.create(folder, symlinks=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    programs = folder / "bin"
    for name in SCRIPTS:
        text = (Path(sys.executable).parent / name).read_text(encoding="utf-8")
        script = programs / name
        script.write_text(f"#!{programs / 'python'}\n" + text.split("\n", 1)[1], encoding="utf-8")
        script.chmod(0o755)
    return Image(programs, dict(environment or {}))
