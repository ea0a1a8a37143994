"""What `pip install` gives: the library alone, with its types, data files and the command."""

import importlib.util
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("setuptools is not installed, and the package index is not asked")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in map(bytes.decode, filter(None, tracked)):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", str(target)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    (file,) = target.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_library_is_the_only_package_and_is_complete(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"steptool"}
    suffixes = {".py", ".json", ".safetensors", ".jinja", ".html", ".css", ".js", ".typed"}
    tracked = subprocess.run(["git", "ls-files", "steptool"], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()}
    assert {Path(name).suffix for name in expected} <= suffixes
    assert names == expected and "steptool/py.typed" in names


def test_the_command_and_the_metadata_are_there(wheel: zipfile.ZipFile) -> None:
    folder = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert "steptool = steptool.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Name"] == "steptool" and metadata["License-Expression"] == "Apache-2.0"
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Issues"} <= urls.keys()
    assert "Typing :: Typed" in metadata.get_all("Classifier", []) and metadata["Keywords"]
