"""Rules that the Dockerfiles keep: those of hadolint that matter here, which is not at hand, and some of our own."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*.Dockerfile"))
BAD = """
# the newest
FROM python
FROM python:latest
RUN apt-get update && apt-get install git
RUN sudo make
RUN curl example.com | tar x
# tools
RUN pip install ruff==1.0
ADD code .
WORKDIR code
# nobody
USER nobody
USER root
"""


@dataclass(frozen=True)
class Instruction:
    name: str
    arguments: str
    explained: bool
    """A comment stands right above it, or above the one that it goes on from."""


def instructions(text: str) -> list[Instruction]:
    parsed: list[Instruction] = []
    explained = False
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("#"):
            explained = True
        elif line:
            name, _, arguments = line.partition(" ")
            parsed.append(Instruction(name, " ".join(arguments.split()), explained))
        else:
            explained = False
    return parsed


def faults(text: str) -> list[str]:
    """Every rule that is broken, with hadolint's number where it has one."""
    lines = [with_default(line, text) for line in instructions(text)]
    users = [line.arguments for line in lines if line.name == "USER"]
    broken_rules = [f"{line.name} {line.arguments}: no reason given" for line in lines if not line.explained]
    broken_rules += [fault for line in lines for fault in find_broken_rules(line)]
    return broken_rules + (
        [] if users and users[-1].isdigit() and int(users[-1]) else ["DL3002: the last user is not a number above 0"]
    )


def with_default(line: Instruction, text: str) -> Instruction:
    """The instruction with the defaults of build arguments in place of their names."""
    defaults = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)$", text))
    arguments = re.sub(r"\$\{(\w+)\}", lambda match: defaults.get(match[1], ""), line.arguments)
    return replace(line, arguments=arguments)


def find_broken_rules(line: Instruction) -> list[str]:
    rules = {
        "FROM": [("DL3006 DL3007: a full version", re.search(r":\d+\.\d+\.\d+-\S+$", line.arguments))],
        "ADD": [("DL3020: COPY instead", False)],
        "WORKDIR": [("DL3000: an absolute path", line.arguments.startswith("/"))],
        "RUN": run_rules(line.arguments),
    }
    return [f"{line.name} {line.arguments}: {rule}" for rule, is_kept in rules.get(line.name, []) if not is_kept]


def run_rules(command: str) -> list[tuple[str, object]]:
    rules: list[tuple[str, object]] = [
        ("DL3004: no sudo", "sudo" not in command),
        ("DL4006: no pipes", "|" not in command),
    ]
    for part in map(str.strip, command.split("&&")):
        words = [word for word in part.split() if not word.startswith("-")]
        if part.startswith("apt-get install"):
            rules += [
                ("DL3008: pinned packages", all("=" in word for word in words[2:])),
                ("DL3014: --yes", "--yes" in part),
                ("DL3015: --no-install-recommends", "--no-install-recommends" in part),
                ("DL3009: the lists removed in the same layer", "rm -rf /var/lib/apt/lists/*" in command),
            ]
        if part.startswith("pip install"):
            rules += [
                ("DL3042: --no-cache-dir", "--no-cache-dir" in part),
                ("DL3013: files by their digests", re.search(r"--require-hashes -r \S+\.hashes\.txt", part)),
            ]
    return rules


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_keeps_the_rules(path: Path) -> None:
    assert faults(path.read_text()) == []


def test_the_rules_find_what_breaks_them() -> None:
    report = " ".join(faults(BAD))
    numbers = {"DL3000", "DL3002", "DL3004", "DL3006", "DL3008", "DL3009", "DL3013", "DL3014", "DL3015", "DL3020"}
    assert set(re.findall(r"DL\d+", report)) == numbers | {"DL3007", "DL3042", "DL4006"}
    assert report.count("no reason given") == 0  # comments stand above
    unpinned = "# a\nARG BASE=python:3.11\n\n# b\nFROM ${BASE}\n"
    assert "FROM python:3.11: DL3006 DL3007: a full version" in faults(unpinned)
    assert "RUN make: no reason given" in faults("# one\nFROM python:3.11.14-slim\n\nRUN make\n")


def test_there_is_a_dockerfile_for_each_image_of_a_profile() -> None:
    image_names = re.findall(
        r"(?m)^(\w+) *= *\S+:[\d.]+$", (ROOT / "flyte.config").read_text().partition("[images]")[2]
    )
    assert (
        [path.name for path in DOCKERFILES]
        == [f"{name}.Dockerfile" for name in image_names]
        == ["cpu.Dockerfile", "gpu.Dockerfile"]
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_build_gets_the_files_that_it_copies_and_no_others(path: Path) -> None:
    copied = {
        source
        for line in instructions(path.read_text())
        if line.name == "COPY"
        for source in line.arguments.split()[:-1]
    }
    ignored = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    assert ignored.index("*") < min(ignored.index(f"!{source}") for source in copied)
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / source).is_file() for source in copied)
    assert not (ROOT / ".dockerignore").exists()  # pyflyte would leave out what it names


def test_both_images_and_make_begin_from_the_same_base_by_digest() -> None:
    places = ("images/cpu.Dockerfile", "images/gpu.Dockerfile", "Makefile")
    pattern = re.compile(r"^(?:ARG )?PYTHON_IMAGE(?: \?)?= ?(\S+)$", re.MULTILINE)
    cpu, gpu, make = (pattern.findall((ROOT / place).read_text()) for place in places)
    assert cpu == gpu == make
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", cpu[0])
