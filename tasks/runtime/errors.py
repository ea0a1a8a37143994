"""Errors of a stage: which may pass and are worth another attempt, and what is told of them.

Flyte tries a task again only for a FlyteRecoverableException (lost pods apart); every other error ends the run at once.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.user import FlyteRecoverableException

from steptool.environments.base import TransportError

_SHOWN = 1000
"""Characters of a cause that are shown."""
_NUMBERS = frozenset(
    {
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENOTCONN),
        *(errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN),
        socket.EAI_AGAIN,
    }
)
"""Numbers of OSErrors that may pass: a network, a disk or a name server that is away, a store that is busy (s3fs)."""
_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may pass."""
_KINDS = frozenset(
    {
        *("botocore.exceptions.HTTPClientError", "botocore.exceptions.ConnectionError"),
        *("aiohttp.client_exceptions.ClientConnectionError", "aiohttp.client_exceptions.ClientPayloadError"),
        *("requests.exceptions.ConnectionError", "requests.exceptions.Timeout"),
        *("requests.exceptions.ChunkedEncodingError", "urllib3.exceptions.ProtocolError", "httpx2.TransportError"),
        *("torch.distributed.DistNetworkError", "torch.distributed.DistBackendError"),
        *("azure.core.exceptions.ServiceRequestError", "azure.core.exceptions.ServiceResponseError"),
    }
)
"""Classes of lost connections in libraries, by name: to import these would cost seconds."""


class StageFailed(Exception):
    """A stage that ended for good; the first line says which, why and what to do."""


@contextmanager
def told(stage: str, retries: int) -> Iterator[None]:
    """Run a stage: print an error in one line, and raise it in the form that says whether it is tried again.

    Raises FlyteRecoverableException for what may pass, else StageFailed; their text begins with that line.
    """
    try:
        yield
    except (StageFailed, FlyteRecoverableException):
        raise  # of a stage within this one, which has told it
    except (Exception, SystemExit) as error:  # a stage that exits early has not done its work, whatever the status
        passing = may_pass(error)
        advice = (
            f"this may pass: a cluster tries again, {retries} times at most; a local run has to be started again"
            if passing
            else "this is not tried again: mend it and start the run again"
        )
        line = f"{stage}: {cause(error)}; {advice}"
        print(line, flush=True)
        raise (FlyteRecoverableException if passing else StageFailed)(line) from error


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may do better: anything in the chain of causes is a fault that comes and goes."""
    return any(map(_comes_and_goes, _chain(error)))


def cause(error: BaseException) -> str:
    """The error in one line, under its class where that says more than the text."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:_SHOWN]
    own = type(error).__module__.startswith("steptool.") or type(error) is ValueError
    return text if own and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the causes behind it. Behind an error of Flyte's downloads they are only contexts."""
    flyte = False
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _chain(inner)
        flyte = flyte or isinstance(error, FlyteException)
        error = error.__cause__ or (error.__context__ if flyte else None)


def _comes_and_goes(error: BaseException) -> bool:
    from steptool.chat.endpoint import EndpointError, EndpointRefused, RequestRefused

    if isinstance(error, EndpointError):
        return not isinstance(error, (EndpointRefused, RequestRefused))
    if isinstance(error, (ConnectionError, TimeoutError, TransportError)):
        return True
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    if isinstance(error, RuntimeError) and "gloo/transport" in str(error):  # a process of the training is gone
        return True
    return _status(error) in _STATUSES or not _KINDS.isdisjoint(_names(error))


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, as aiohttp, OpenAI's client, requests, botocore and gcsfs note it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        answered = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        answered = getattr(error if response is None else response, "status_code", None)
    found = (getattr(error, "status", None), answered, getattr(error, "code", None))
    return next((status for status in found if isinstance(status, int)), None)


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
