"""Makes a function a Flyte task with the profile of its stage, and makes pyflyte read configurations.

Flyte runs a task again only after a FlyteRecoverableException (lost pods apart); every other error ends the run. So a
stage tells transient errors, which are worth another attempt, from all others, and says so to its user in one line.

flytekit answers a mistyped path with "should be a valid json object", and broken YAML with a stack. This module makes
it read a configuration as `load_config` does. Overrides may follow the path: --config "my.yaml ppo.rounds=4 seed=1".
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import click
import flytekit
from flytekit import Cache, Deck, Resources, Secret, task
from flytekit import dynamic as dynamic_task
from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from steptool.artifacts.errors import describe_error, keep_stack
from steptool.artifacts.metrics import Stopwatch, is_first_process, is_on, say_error, trace_stage
from steptool.config.base import ConfigError, StrictModel
from steptool.config.run import override, read_mapping
from steptool.environments.base import TransportError
from tasks.runtime.artifacts import runs_locally
from tasks.runtime.profile import ROOT, VARIABLE, Amounts, StageName, StageProfile, profile

_TRANSIENT_ERRNOS = frozenset(
    {
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENOTCONN),
        *(errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN),
        socket.EAI_AGAIN,
    }
)
"""A network, a disk or a name server that is away, or a store that is busy (s3fs)."""
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which a repeated request may succeed."""
_TRANSIENT_CLASSES = frozenset(
    {
        *("botocore.exceptions.HTTPClientError", "botocore.exceptions.ConnectionError"),
        *("aiohttp.client_exceptions.ClientConnectionError", "aiohttp.client_exceptions.ClientPayloadError"),
        *("requests.exceptions.ConnectionError", "requests.exceptions.Timeout"),
        *("requests.exceptions.ChunkedEncodingError", "urllib3.exceptions.ProtocolError", "httpx2.TransportError"),
        *("torch.distributed.DistNetworkError", "torch.distributed.DistBackendError"),
        *("azure.core.exceptions.ServiceRequestError", "azure.core.exceptions.ServiceResponseError"),
    }
)
"""Classes of lost connections in libraries, by name, because importing them would cost seconds."""
_CLICK_TYPES = "flytekit.interaction.click_types"
_CODE_PLACES = ("steptool", "tasks", "workflows", "constraints.txt", "images/gpu.constraints.txt")
_DIGITS = 16


class StageFailed(click.ClickException):
    """A stage that failed for good. Its text says which stage, why, and what to do.

    pyflyte prints a ClickException as one message, and every other exception as a stack of a hundred lines.
    """


@contextmanager
def classify_errors(stage: str, retries: int) -> Iterator[None]:
    """Run a stage, and turn every error into one line and into the exception that tells Flyte whether to try again.

    Raises FlyteRecoverableException for a transient error in a pod, else StageFailed. SystemExit counts as an error:
    code of the user that calls `sys.exit(0)` must not end a run as a success.
    """
    try:
        yield
    except (StageFailed, FlyteRecoverableException):
        raise  # an inner stage has reported it
    except (Exception, SystemExit) as error:
        if runs_locally():
            _fail_locally(stage, error)
        transient = is_transient(error)
        advice = f"Flyte tries it again, at most {retries} times" if transient else "it is not tried again"
        text = f"{describe_error(error)}; {advice}"
        say_error(stage, text)
        raise (FlyteRecoverableException if transient else StageFailed)(f"{stage}: {text}") from error


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: the error or one of its causes is a fault that comes and goes."""
    return any(map(_is_transient_itself, _list_causes(error)))


def _fail_locally(stage: str, error: BaseException) -> NoReturn:
    """Raise StageFailed without a chain of causes, which would be printed; the stack goes into a file."""
    advice = "this may pass: start the run again" if is_transient(error) else "mend it and start the run again"
    raise StageFailed(f"{stage}: {describe_error(error)}; {advice} (stack: {keep_stack(error, stage)})") from None


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the causes behind it. Errors of Flyte's downloads carry theirs as contexts only."""
    from_flyte = False
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _list_causes(inner)
        from_flyte = from_flyte or isinstance(error, FlyteException)
        error = error.__cause__ or (error.__context__ if from_flyte else None)


def _is_transient_itself(error: BaseException) -> bool:
    from steptool.chat.endpoint import EndpointError, EndpointRefused, RequestRefused

    if isinstance(error, EndpointError):
        return not isinstance(error, (EndpointRefused, RequestRefused))
    if isinstance(error, (ConnectionError, TimeoutError, TransportError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    if isinstance(error, RuntimeError) and "gloo/transport" in str(error):  # a process of the training is gone
        return True
    return _read_http_status(error) in _TRANSIENT_STATUSES or not _TRANSIENT_CLASSES.isdisjoint(
        _list_class_names(error)
    )


def _read_http_status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, as aiohttp, OpenAI's client, requests, botocore and gcsfs note it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        of_response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        of_response = getattr(error if response is None else response, "status_code", None)
    candidates = (getattr(error, "status", None), of_response, getattr(error, "code", None))
    return next((status for status in candidates if isinstance(status, int)), None)


def _list_class_names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def read_configurations() -> None:
    """Make pyflyte read configurations this way. flytekit has no hook for it, so its method is replaced.

    Does nothing in a process that is not pyflyte's: these do not import flytekit's command line.
    """
    if _CLICK_TYPES in sys.modules:
        parameter = sys.modules[_CLICK_TYPES].JsonParamType
        parameter.convert = _replace(parameter.convert)


def _replace(convert: Callable[..., Any]) -> Callable[..., Any]:
    """flytekit's method, except that the path of a configuration becomes its content."""

    def convert_argument(self: Any, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        kind = self._python_type
        if not (isinstance(kind, type) and issubclass(kind, StrictModel)):
            return convert(self, value, param, context)
        try:
            if isinstance(value, str) and not value.lstrip().startswith("{"):
                path, *overrides = shlex.split(value)
                return kind.model_validate(override(read_mapping(path), overrides))
            return convert(self, value, param, context)
        except (ConfigError, ValueError) as error:
            raise click.BadParameter(str(error)) from None

    return convert_argument


P = ParamSpec("P")
R = TypeVar("R")

_RENDEZVOUS_SECONDS = 900
"""How long the nodes of a training wait for each other: one may have to be started and to pull its image."""


def stage(name: str, *, cached: bool = False, dynamic: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a function as the Flyte task of a stage.

    The profile gives the stage its image, machine, retries, time limit, secrets and number of processes.

    Args:
        name: a member of StageName.
        cached: Flyte reuses the result while the inputs and the code are unchanged.
        dynamic: the function lays out other stages. It has no time limit, because Flyte would count theirs.
    """
    stage_name = StageName(name)
    stage_profile = profile().of(stage_name)
    settings = _make_task_settings(stage_profile) | {"cache": Cache(version=code_version()) if cached else False}

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        if dynamic:
            untimed_settings = settings | {"timeout": timedelta(0)}
            flyte_task = dynamic_task(**untimed_settings)(_add_error_handling(stage_name, stage_profile, function))
        else:
            with_page = _add_page(stage_name, function)
            flyte_task = task(**settings, enable_deck=True, deck_fields=())(
                _add_error_handling(stage_name, stage_profile, with_page)
            )
        return cast("Callable[P, R]", flyte_task)

    return declare


def workflow(on_failure: Callable[..., None] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a function as a Flyte workflow, as flytekit's own decorator, with the types of the function kept.

    `on_failure` is a task that Flyte runs with the workflow's inputs if one of its tasks fails.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        return cast("Callable[P, R]", flytekit.workflow(on_failure=on_failure)(function))

    return declare


def _add_error_handling(name: StageName, stage_profile: StageProfile, function: Callable[P, R]) -> Callable[P, R]:
    """The function with its errors classified, and its group of processes left at the end."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with (
            classify_errors(name, stage_profile.retries),
            trace_stage(name, _name_run(kwargs), _describe_round(kwargs)) as attributes,
        ):
            try:
                if stage_profile.gpus and not runs_locally():
                    check_gpus(name)
                result = function(*args, **kwargs)
                attributes |= _count_rows(result) if is_on() else {}
                return result
            finally:
                _leave_process_group()

    return run


def check_gpus(stage: str) -> None:
    """Raise ConfigError where torch finds no GPU, on which a stage would compute on the processor for days."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"the profile gives GPUs to stages.{stage}, and torch finds none in this pod; look whether nvidia-smi "
            f"shows one here, and whether the driver of the node is new enough for CUDA {torch.version.cuda}"
        )


def _name_run(inputs: Mapping[str, Any]) -> str:
    """The run that a stage with these inputs belongs to, by the name that trackers know it by."""
    if not is_on():
        return ""
    from steptool.config.run import TrackingConfig
    from steptool.pipeline.tracking import name_run

    tracking = getattr(inputs.get("config"), "tracking", None)
    return name_run(tracking if isinstance(tracking, TrackingConfig) else TrackingConfig())


def _describe_round(inputs: Mapping[str, Any]) -> dict[str, int]:
    round_index = inputs.get("round_index")
    return {"steptool.round": round_index} if isinstance(round_index, int) else {}


def _count_rows(result: Any) -> dict[str, int]:
    """The rows of the Parquet files that a stage returns, together."""
    from pyarrow.parquet import read_metadata

    outputs = result._asdict() if hasattr(result, "_asdict") else {"result": result}
    files = [path for path in _replace_by_local_paths(outputs).values() if isinstance(path, Path) and path.is_file()]
    return {"steptool.rows": sum(read_metadata(file).num_rows for file in files if file.suffix == ".parquet")}


def _add_page(name: StageName, function: Callable[P, R]) -> Callable[P, R]:
    """The function with a page in Flyte's console: inputs, outputs, and what it cost."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        watch = Stopwatch(name)
        result = function(*args, **kwargs)
        if is_first_process():
            from steptool.report.stage_page import build_stage_page

            outputs = result._asdict() if hasattr(result, "_asdict") else {"result": result}
            Deck(
                name,
                build_stage_page(
                    name, _replace_by_local_paths(kwargs), _replace_by_local_paths(outputs), watch.measure_cost()
                ),
            )
        return result

    return run


def _replace_by_local_paths(value: Any) -> Any:
    """The value with each artifact as its path on this machine, or as its address where it was not downloaded."""
    if isinstance(value, (FlyteFile, FlyteDirectory)):
        path = Path(value.path)
        return path if path.exists() else value.remote_source or str(value.path)
    if isinstance(value, dict):
        return {name: _replace_by_local_paths(inner) for name, inner in value.items()}
    return [_replace_by_local_paths(inner) for inner in value] if isinstance(value, list) else value


def _leave_process_group() -> None:
    """Leave the group of processes that a training has made: gloo's threads may abort a process that exits in it."""
    if "torch" in sys.modules and os.environ.get("WORLD_SIZE", "1") != "1":
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _make_task_settings(stage_profile: StageProfile) -> dict[str, Any]:
    """The arguments of flytekit's `task`."""
    image = stage_profile.image
    settings = {
        "container_image": f"{{{{.image.{image}.fqn}}}}:{{{{.image.{image}.version}}}}",
        "requests": _make_resources(stage_profile.requests, stage_profile.gpus),
        "limits": _make_resources(stage_profile.limits, stage_profile.gpus),
        "accelerator": stage_profile.accelerator,
        "interruptible": stage_profile.spot,
        "retries": stage_profile.retries,
        "timeout": timedelta(hours=stage_profile.timeout_hours),
        "shared_memory": stage_profile.shared_memory or None,
        "secret_requests": [_make_secret(variable, place) for variable, place in stage_profile.secrets.items()],
        "environment": _make_environment(stage_profile),
    }
    return settings | (
        _make_elastic_settings(stage_profile) if stage_profile.nodes * stage_profile.processes > 1 else {}
    )


def _make_resources(amounts: Amounts, gpus: int) -> Resources:
    return Resources(
        cpu=f"{amounts.cpu:g}" if amounts.cpu else None,
        mem=amounts.memory or None,
        ephemeral_storage=amounts.storage or None,
        gpu=str(gpus) if gpus else None,
    )


def _make_environment(stage_profile: StageProfile) -> dict[str, str]:
    """The variables by which a pod sees the same profile and takes no more threads than it has cores."""
    profile_path = os.environ.get(VARIABLE, "")
    cores = stage_profile.requests.cpu or stage_profile.limits.cpu
    threads = {"OMP_NUM_THREADS": str(max(1, int(cores / stage_profile.processes)))} if cores else {}
    return threads | ({VARIABLE: profile_path} if profile_path else {})


def _make_secret(variable: str, place: str) -> Secret:
    group, _, key = place.partition("/")
    return Secret(group=group, key=key or None, env_var=variable, mount_requirement=Secret.MountType.ENV_VAR)


def _make_elastic_settings(stage_profile: StageProfile) -> dict[str, Any]:
    """Several processes. The plugin is imported only here, because it imports torch."""
    from flytekitplugins.kfpytorch import Elastic

    waits = dict.fromkeys(("timeout", "join_timeout", "read_timeout"), _RENDEZVOUS_SECONDS)
    config = Elastic(
        nnodes=stage_profile.nodes,
        nproc_per_node=stage_profile.processes,
        monitor_interval=1,
        rdzv_configs=waits,
        increase_shared_mem=False,
    )
    return {"task_config": config, "shared_memory": stage_profile.shared_memory or True}


@cache
def code_version(root: Path = ROOT) -> str:
    """Digest of the code, its data files and the pins of libraries: a cached stage depends on these and its inputs."""
    digest = hashlib.sha256()
    for file in (f for place in _CODE_PLACES for f in _list_files(root / place)):
        digest.update(f"\0{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _list_files(place: Path) -> Iterator[Path]:
    """The file, or the files below a folder in a fixed order, without caches and hidden files."""
    if place.is_file():
        yield place
    for file in sorted(place.rglob("*")):
        parts = file.relative_to(place).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            yield file
