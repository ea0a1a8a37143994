"""The pins of the images, as far as they can be checked without a package index (make check-images asks it)."""

import importlib.util
import re
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pins", ROOT / "images" / "pins.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PINS = program()
CPU, GPU = (PINS.read_pins(ROOT / constraints) for _, constraints in PINS.IMAGES.values())


def parse_versions(requirements: list[str]) -> dict[str, str]:
    """Versions by name of what is installed here because of these requirements, and of what they require."""
    versions: dict[str, str] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if not any(not requirement.marker or requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = PINS.canonical(requirement.name)
        package = metadata.distribution(name)
        if name not in versions or requirement.extras:
            inner = [Requirement(text) for text in package.requires or ()]
            waiting += [r for r in inner if not r.marker or any(r.marker.evaluate({"extra": e}) for e in {"", *extras})]
        versions[name] = package.version.partition("+")[0]
    return versions


@pytest.mark.parametrize("constraints", [constraints for _, constraints in PINS.IMAGES.values()])
def test_every_line_pins_one_package_exactly(constraints: str) -> None:
    lines = [line for line in (ROOT / constraints).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)] == []
    names = [PINS.canonical(line.partition("==")[0]) for line in lines]
    assert [name for name in names if names.count(name) > 1] == []


def test_all_that_the_project_needs_is_pinned_as_it_was_tested() -> None:
    installed = parse_versions(PROJECT["dependencies"])
    assert len(installed) > 100
    assert {name: version for name, version in installed.items() if CPU.get(name) != version} == {}


def test_the_pins_of_the_gpu_image_differ_only_where_vllm_asks_for_it() -> None:
    differing = {name for name in CPU.keys() & GPU.keys() if CPU[name] != GPU[name]}
    assert differing == {"transformers", "numpy"}
    assert parse_versions(PROJECT["dependencies"]).keys() - GPU.keys() == set()


@pytest.mark.parametrize("pins", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_pins_are_versions_that_the_project_takes(pins: dict[str, str]) -> None:
    expected = [Requirement(text) for text in PROJECT["dependencies"]]
    assert [str(r) for r in expected if not r.specifier.contains(pins[PINS.canonical(r.name)])] == []


def test_vllm_is_pinned_to_the_version_of_the_extra() -> None:
    assert PROJECT["optional-dependencies"]["gpu"] == [f"vllm=={GPU['vllm']}"]
    assert "vllm" not in CPU


@pytest.mark.parametrize(("image", "pins"), [("cpu", CPU), ("gpu", GPU)])
def test_an_image_installs_every_package_by_its_digest(image: str, pins: dict[str, str]) -> None:
    lines = (ROOT / "images" / f"{image}.hashes.txt").read_text().splitlines()[1:]
    versions = {}
    for line in lines:
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.!+]+) --hash=sha256:[0-9a-f]{64}", line)
        assert match, line
        versions[match[1]] = match[2]
    assert len(versions) == len(lines) and lines == sorted(lines)
    assert parse_versions(PROJECT["dependencies"]).keys() <= versions.keys()
    others = {name for name, version in versions.items() if pins.get(name) != version}
    assert len(others) <= PINS.LEFT_OPEN[image]


def test_the_list_of_digests_is_made_from_what_pip_reports() -> None:
    archive = {"hashes": {"sha256": "ab" * 32}}
    names = ("Zope.Interface", "adlfs")
    report = [
        {"metadata": {"name": name, "version": "1.0"}, "download_info": {"url": "x", "archive_info": archive}}
        for name in names
    ]
    first, *lines = PINS.format_hashes("cpu", report).splitlines()
    assert first.startswith("# What the cpu image installs")
    assert lines == [f"{name}==1.0 --hash=sha256:{'ab' * 32}" for name in ("adlfs", "zope-interface")]
