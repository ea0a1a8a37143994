"""docs/dependencies.md names what pyproject.toml requires, and nothing that it does not."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def test_every_dependency_has_its_line() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("What is installed"), re.MULTILINE)
    assert {name for cell in rows for name in re.findall(r"`([\w-]+)`", cell)} == names(PROJECT["dependencies"])


def test_every_extra_names_its_packages() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section("Extras"), re.MULTILINE))
    assert rows.keys() == PROJECT["optional-dependencies"].keys()
    for extra, packages in PROJECT["optional-dependencies"].items():
        assert names(packages) == {name for name in re.findall(r"`([\w-]+)`", rows[extra]) if name != "make"}, extra
