"""From the project's folder to the registry of what is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from flyteidl.admin.launch_plan_pb2 import LaunchPlan, LaunchPlanSpec
from flyteidl.admin.task_pb2 import TaskSpec
from flyteidl.admin.workflow_pb2 import WorkflowSpec
from flyteidl.core.identifier_pb2 import Identifier
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import WorkflowTemplate
from google.protobuf.message import Message

from pods.store import Store

PROJECT, DOMAIN = "steptool", "development"
DISTRIBUTION = "{{ .remote_package_path }}"

M = TypeVar("M", bound=Message)


class Key(NamedTuple):
    """What one version of a task, workflow or launch plan is found by."""

    project: str
    domain: str
    name: str
    version: str

    @classmethod
    def of(cls, identifier: Identifier) -> Key:
        """The key of an identifier."""
        return cls(identifier.project, identifier.domain, identifier.name, identifier.version)


@dataclass(frozen=True)
class Registry:
    """What is registered; sub-workflows stand among the workflows. Admin adds to the dictionaries."""

    tasks: dict[Key, TaskTemplate] = field(default_factory=dict)
    workflows: dict[Key, WorkflowTemplate] = field(default_factory=dict)
    plans: dict[Key, LaunchPlanSpec] = field(default_factory=dict)

    def task(self, identifier: Identifier) -> TaskTemplate:
        """The task of an identifier."""
        return self.tasks[Key.of(identifier)]

    def workflow(self, identifier: Identifier) -> WorkflowTemplate:
        """The workflow of an identifier."""
        return self.workflows[Key.of(identifier)]

    def plan(self, name: str) -> tuple[Key, LaunchPlanSpec]:
        """The one launch plan of a name."""
        matches = [(key, spec) for key, spec in self.plans.items() if key.name == name]
        if len(matches) != 1:
            names = ", ".join(sorted(key.name for key in self.plans))
            raise KeyError(f"{len(matches)} launch plans are called {name}; there are {names}")
        return matches[0]

    def get_task(self, name: str) -> TaskTemplate:
        """The one task of a name."""
        (template,) = (template for key, template in self.tasks.items() if key.name == name)
        return template

    def extend(self, tasks: Mapping[Key, TaskTemplate], workflows: Mapping[Key, WorkflowTemplate]) -> Registry:
        """This registry and what a dynamic task brings along."""
        return Registry({**self.tasks, **tasks}, {**self.workflows, **workflows}, self.plans)


def package(
    root: Path, pkgs: str, target: Path, images: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> Path:
    """Run `pyflyte package --copy all` on the modules of a folder, in a process of its own, and unpack what comes out.

    Args:
        root: folder that pyflyte runs in.
        pkgs: the package with the workflows.
        target: a new folder, which receives the protobufs and the tarball of the code.
        images: full names by the names that tasks use.
        environment: variables that the project reads when it is serialised.

    Raises:
        RuntimeError: pyflyte failed; with what it said.
    """
    target.mkdir(parents=True)
    archive = target.parent / f"{target.name}.tgz"
    named = [argument for name, image in images.items() for argument in ("--image", f"{name}={image}")]
    command = [str(Path(sys.executable).with_name("pyflyte")), "--pkgs", pkgs, "package", *named]
    command += ["--copy", "all", "--in-container-source-path", ".", "--force", "--output", str(archive)]
    process = subprocess.run(
        command, cwd=root, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} in {root}:\n{process.stdout[-2000:]}{process.stderr[-4000:]}")
    with tarfile.open(archive) as opened:
        opened.extractall(target, filter="data")
    return target


def register(folder: Path, store: Store, version: str) -> Registry:
    """Read a package as `flytectl register` does: fill in project, domain, version and the place of the code."""
    tarball = next(folder.glob("fast*.tar.gz"))
    place = store.upload(tarball, f"{store.root}/code/{tarball.name}")
    tasks: dict[Key, TaskTemplate] = {}
    workflows: dict[Key, WorkflowTemplate] = {}
    plans: dict[Key, LaunchPlanSpec] = {}
    for file in sorted(folder.glob("*.pb")):
        kind = re.fullmatch(r".*_(\d)\.pb", file.name)
        match kind and kind[1]:
            case "1":
                task = _read(file, TaskSpec(), version).template
                _locate_code(task, place)
                tasks[Key.of(task.id)] = task
            case "2":
                spec = _read(file, WorkflowSpec(), version)
                workflows |= {Key.of(w.id): w for w in (spec.template, *spec.sub_workflows)}
            case "3":
                plan = _read(file, LaunchPlan(), version)
                plans[Key.of(plan.id)] = plan.spec
            case _:
                raise ValueError(f"{file.name}: expected a name that ends with _1, _2 or _3")
    return Registry(tasks, workflows, plans)


def _read(file: Path, message: M, version: str) -> M:
    message.ParseFromString(file.read_bytes())
    for identifier in _identifiers(message):
        identifier.project = identifier.project or PROJECT
        identifier.domain = identifier.domain or DOMAIN
        identifier.version = identifier.version or version
    return message


def _identifiers(message: Message) -> Iterator[Identifier]:
    """Every identifier of an entity inside a message."""
    if isinstance(message, Identifier):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            parts = [v for v in value.values() if isinstance(v, Message)]
        else:
            parts = list(value) if descriptor.is_repeated else [value]
        for part in parts:
            yield from _identifiers(part)


def _locate_code(task: TaskTemplate, place: str) -> None:
    """Say where the code lies."""
    arguments = task.container.args
    for number, argument in enumerate(arguments):
        if argument == DISTRIBUTION:
            arguments[number] = place
