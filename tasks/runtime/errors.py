"""Errors of a stage: which are transient and worth another attempt, and what the user reads about them.

Flyte runs a task again only after a FlyteRecoverableException (lost pods apart); every other error ends the run.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.user import FlyteRecoverableException

from steptool.artifacts.metrics import describe_error, say_error
from steptool.environments.base import TransportError
from tasks.runtime.artifacts import runs_locally

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
    return any(map(_is_transient_itself, _causes(error)))


def _fail_locally(stage: str, error: BaseException) -> NoReturn:
    """Raise StageFailed without a chain of causes, which would be printed; the stack goes into a file."""
    handle, path = tempfile.mkstemp(prefix=f"steptool-{stage}-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    advice = "this may pass: start the run again" if is_transient(error) else "mend it and start the run again"
    raise StageFailed(f"{stage}: {describe_error(error)}; {advice} (stack: {path})") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the causes behind it. Errors of Flyte's downloads carry theirs as contexts only."""
    from_flyte = False
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _causes(inner)
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
    return _http_status(error) in _TRANSIENT_STATUSES or not _TRANSIENT_CLASSES.isdisjoint(_class_names(error))


def _http_status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, as aiohttp, OpenAI's client, requests, botocore and gcsfs note it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        of_response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        of_response = getattr(error if response is None else response, "status_code", None)
    candidates = (getattr(error, "status", None), of_response, getattr(error, "code", None))
    return next((status for status in candidates if isinstance(status, int)), None)


def _class_names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
