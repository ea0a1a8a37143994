"""How a stage becomes a Flyte task: one decorator that gives it what its profile says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

from flytekit import Cache, Deck, Resources, Secret, task
from flytekit import dynamic as dynamic_task
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.progress import Stopwatch, first_process
from tasks.runtime.errors import told
from tasks.runtime.profile import VARIABLE, Amounts, StageName, StageProfile, profile
from tasks.runtime.version import code_version

_RENDEZVOUS = 900
"""Seconds that the nodes of a training wait for each other: one may have to be started, and to pull its image."""


def stage(name: str, *, cached: bool = False, dynamic: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Declare a function as the Flyte task of a stage.

    `cached`: its result is used again while its inputs and the code are unchanged. `dynamic`: it lays out other stages,
    and has no time limit, since Flyte would count theirs. The profile gives the image, the machine, retries, time limit
    and secrets, and the number of processes.
    """
    chosen = StageName(name)
    given = profile().of(chosen)
    settings = _settings(given) | {"cache": Cache(version=code_version()) if cached else False}

    def declare(function: Callable[..., Any]) -> Any:
        if dynamic:
            return dynamic_task(**settings | {"timeout": timedelta(0)})(_guarded(chosen, given, function))
        shown = _shown(chosen, function)
        return task(**settings, enable_deck=True, deck_fields=())(_guarded(chosen, given, shown))

    return declare


def _guarded(name: StageName, given: StageProfile, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its errors told and its processes ended in good order."""

    @wraps(function)
    def run(**inputs: Any) -> Any:
        with told(name, given.retries):
            try:
                return function(**inputs)
            finally:
                _part()

    return run


def _shown(name: StageName, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a page of what came in, what went out and what it took."""

    @wraps(function)
    def run(**inputs: Any) -> Any:
        watch = Stopwatch(name)
        result = function(**inputs)
        if first_process():
            from steptool.report.stage_page import stage_page

            went_out = result._asdict() if hasattr(result, "_asdict") else {"result": result}
            Deck(name, stage_page(name, _here(inputs), _here(went_out), watch.cost()))
        return result

    return run


def _here(value: Any) -> Any:
    """The value with artifacts as their paths on this machine; those that are elsewhere as their addresses."""
    if isinstance(value, (FlyteFile, FlyteDirectory)):
        path = Path(value.path)
        return path if path.exists() else value.remote_source or str(value.path)
    if isinstance(value, dict):
        return {name: _here(inner) for name, inner in value.items()}
    return [_here(inner) for inner in value] if isinstance(value, list) else value


def _part() -> None:
    """Leave the group of processes that a training has made, or the threads of gloo may abort this one as it exits."""
    if "torch" in sys.modules and os.environ.get("WORLD_SIZE", "1") != "1":
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _settings(given: StageProfile) -> dict[str, Any]:
    settings = {
        "container_image": f"{{{{.image.{given.image}.fqn}}}}:{{{{.image.{given.image}.version}}}}",
        "requests": _resources(given.requests, given.gpus),
        "limits": _resources(given.limits, given.gpus),
        "accelerator": given.accelerator,
        "interruptible": given.spot,
        "retries": given.retries,
        "timeout": timedelta(hours=given.timeout_hours),
        "shared_memory": given.shared_memory or None,
        "secret_requests": [_secret(variable, place) for variable, place in given.secrets.items()],
        "environment": _environment(given),
    }
    return settings | (_elastic(given) if given.nodes * given.processes > 1 else {})


def _resources(amounts: Amounts, gpus: int) -> Resources:
    return Resources(
        cpu=f"{amounts.cpu:g}" if amounts.cpu else None,
        mem=amounts.memory or None,
        ephemeral_storage=amounts.storage or None,
        gpu=str(gpus) if gpus else None,
    )


def _environment(given: StageProfile) -> dict[str, str]:
    """What a pod needs to see the same profile, and to take no more threads than it has cores."""
    named = os.environ.get(VARIABLE, "")
    cores = given.requests.cpu or given.limits.cpu
    threads = {"OMP_NUM_THREADS": str(max(1, int(cores / given.processes)))} if cores else {}
    return threads | ({VARIABLE: named} if named else {})


def _secret(variable: str, place: str) -> Secret:
    group, _, key = place.partition("/")
    return Secret(group=group, key=key or None, env_var=variable, mount_requirement=Secret.MountType.ENV_VAR)


def _elastic(given: StageProfile) -> dict[str, Any]:
    """Several processes. Only here is the plugin imported, which costs an import of torch."""
    from flytekitplugins.kfpytorch import Elastic

    waits = dict.fromkeys(("timeout", "join_timeout", "read_timeout"), _RENDEZVOUS)
    config = Elastic(
        nnodes=given.nodes,
        nproc_per_node=given.processes,
        monitor_interval=1,
        rdzv_configs=waits,
        increase_shared_mem=False,
    )
    return {"task_config": config, "shared_memory": given.shared_memory or True}
