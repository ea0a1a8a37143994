"""One attempt of a task: its container's arguments as a process in an empty folder."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil
from flyteidl.core.errors_pb2 import ContainerError, ErrorDocument
from flyteidl.core.tasks_pb2 import TaskTemplate

from pods.image import Image
from pods.store import Store

INDEX_VARIABLE = "FLYTE_K8S_ARRAY_INDEX"
PLAIN_TYPES = ("python-task",)  # what the container plugin runs; Elastic on one node is one of them


class Ended(StrEnum):
    """How a pod ended."""

    DONE = "done"
    FAILED = "failed"  # the task wrote an error document
    LOST = "lost"  # it was killed or crashed without a word
    TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Attempt:
    """What a pod is to do.

    node: path of the node, as in n3/n0/2 for element 2 of a map task in a dynamic one; inputs, outputs, raw, previous:
    urls of the inputs, of the folders for outputs and for data, and of the checkpoints of the attempt before.
    """

    execution: str
    node: str
    task: TaskTemplate
    number: int
    inputs: str
    outputs: str
    raw: str
    previous: str = ""
    index: int | None = None

    @property
    def checkpoints(self) -> str:
        """Url of the folder for checkpoints."""
        return f"{self.raw}/_flytecheckpoints"


@dataclass(frozen=True)
class Pod:
    """A pod that has ended.

    start: when, by time.monotonic; seconds: from start to end; cpu_seconds: of all its processes that ended by
    themselves; memory: of its largest one, in MB.
    """

    attempt: Attempt
    ended: Ended
    start: float
    seconds: float
    cpu_seconds: float
    memory: float
    log: str
    error: ContainerError | None = None

    @property
    def task(self) -> str:
        """Name of the task in the code."""
        return name_of(self.attempt.task)

    def line(self) -> str:
        """One line about it."""
        name = f"{self.attempt.node} {self.task} attempt {self.attempt.number}"
        return f"{name}: {self.ended} after {self.seconds:.1f} s ({self.cpu_seconds:.1f} s of CPU)"


@dataclass(frozen=True)
class Kill:
    """A pod that is lost in mid-work: kill -9 of all its processes as soon as `when` holds.

    task: its name in the code; attempt: which attempt; index: which element of a map task.
    """

    task: str
    when: Callable[[Attempt], bool]
    attempt: int = 0
    index: int | None = None

    def due(self, attempt: Attempt) -> bool:
        """Whether this pod is to die now."""
        meant = (name_of(attempt.task), attempt.number, attempt.index) == (self.task, self.attempt, self.index)
        return meant and self.when(attempt)


@dataclass(frozen=True)
class Kubelet:
    """Runs pods, so many at once."""

    store: Store
    image: Image
    scratch: Path
    parallel: int = 2
    kills: tuple[Kill, ...] = ()
    slots: threading.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", threading.Semaphore(self.parallel))

    def run(self, attempt: Attempt) -> Pod:
        """Run an attempt to its end.

        Raises:
            ValueError: this task cannot run here, as _check says.
        """
        _check(attempt.task)
        with self.slots:
            folder = Path(tempfile.mkdtemp(prefix="pod-", dir=self.scratch))
            try:
                return self._run(attempt, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, attempt: Attempt, folder: Path) -> Pod:
        work, log = folder / "work", folder / "log"
        work.mkdir()
        (folder / "tmp").mkdir()
        start = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                arguments(attempt), cwd=work, env=self._environment(attempt, folder), stdout=out, stderr=out
            )
        timeout = attempt.task.metadata.timeout.seconds
        ended, used = self._wait(process, attempt, start + timeout if timeout else float("inf"))
        seconds, text = time.monotonic() - start, log.read_text(encoding="utf-8", errors="replace")
        cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        error = self.store.message(f"{attempt.outputs}/error.pb", ErrorDocument()) if ended is Ended.DONE else None
        ended = Ended.FAILED if error else ended
        return Pod(attempt, ended, start, seconds, cpu, memory, text, error.error if error else None)

    def _wait(
        self, process: subprocess.Popen[bytes], attempt: Attempt, deadline: float
    ) -> tuple[Ended, resource.struct_rusage]:
        """Wait for the process, and kill it when a kill or its deadline is due."""
        late = False
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                done = Ended.DONE if process.returncode == 0 else Ended.LOST
                return (Ended.TIMED_OUT if late else done), used
            late = late or time.monotonic() > deadline
            if late or any(kill.due(attempt) for kill in self.kills):
                _kill(process.pid)
            time.sleep(0.03)

    def _environment(self, attempt: Attempt, folder: Path) -> dict[str, str]:
        """What a pod finds in its environment, and nothing of this process's own."""
        task = attempt.task.id
        variables = {
            "PATH": f"{self.image.bin}:/usr/bin:/bin",
            "HOME": str(folder / "work"),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            **self.image.environment,
            **self.store.environment,
            "FLYTE_INTERNAL_EXECUTION_ID": attempt.execution,
            "FLYTE_INTERNAL_EXECUTION_PROJECT": task.project,
            "FLYTE_INTERNAL_EXECUTION_DOMAIN": task.domain,
            "FLYTE_INTERNAL_TASK_PROJECT": task.project,
            "FLYTE_INTERNAL_TASK_DOMAIN": task.domain,
            "FLYTE_INTERNAL_TASK_NAME": task.name,
            "FLYTE_INTERNAL_TASK_VERSION": task.version,
            "FLYTE_ATTEMPT_NUMBER": str(attempt.number),
            **{pair.key: pair.value for pair in attempt.task.container.env},
        }
        if attempt.index is not None:
            variables |= {"BATCH_JOB_ARRAY_INDEX_VAR_NAME": INDEX_VARIABLE, INDEX_VARIABLE: str(attempt.index)}
        return variables


def name_of(task: TaskTemplate) -> str:
    """The name of a task in the code; of a map task, that of the task which it maps."""
    return re.sub(r"\.map_(\w+)_[0-9a-f]{32}-arraynode$", r".\1", task.id.name)


def _check(task: TaskTemplate) -> None:
    """Refuse tasks of several containers, and code that would be unpacked outside of the pod's folder."""
    target = task.WhichOneof("target")
    if target != "container" or task.type not in PLAIN_TYPES:
        raise ValueError(f"{task.id.name}: expected a python-task in a container, got a {task.type} in a {target}")
    arguments = list(task.container.args)
    if "--dest-dir" in arguments and (place := arguments[arguments.index("--dest-dir") + 1]) != ".":
        hint = "register with --destination-dir ., or package with --in-container-source-path ."
        raise ValueError(f"{task.id.name}: its code goes to {place}; {hint}")


def arguments(attempt: Attempt) -> list[str]:
    """The container's arguments with the places of this attempt."""
    places: Mapping[str, str] = {
        "{{.input}}": attempt.inputs,
        "{{.outputPrefix}}": attempt.outputs,
        "{{.rawOutputDataPrefix}}": attempt.raw,
        "{{.checkpointOutputPrefix}}": attempt.checkpoints,
        "{{.prevCheckpointPrefix}}": attempt.previous or '""',
    }
    container = attempt.task.container
    return [places.get(argument, argument) for argument in (*container.command, *container.args)]


def _kill(pid: int) -> None:
    """Kill -9 a process and all that came from it, as a pod dies with its sandbox."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
