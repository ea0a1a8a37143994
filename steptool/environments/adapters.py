"""What the adapters to environments of other packages share: requests to their servers, and how prompts, tools and
rewards become ours."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import httpx2

from steptool.artifacts.errors import describe_error
from steptool.config.base import ConfigError
from steptool.environments.base import TransportError, VerdictError
from steptool.environments.limits import OutOfTime, run_coroutine
from steptool.records import ToolSchema
from steptool.storage.http import ONE_REQUEST_EACH, BoundedClient

_SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "eval": "validation",
}
"""Our split for each name that other packages use. Any other name means held out."""


class LimitedClient:
    """Requests to the server at an address. The whole answer has `seconds` to come; cookies are kept until `close`."""

    def __init__(self, url: str, headers: Mapping[str, str], seconds: float) -> None:
        self._url, self._seconds = url, seconds
        self._client = BoundedClient(headers=headers, timeout=seconds, limits=ONE_REQUEST_EACH)

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """The answer, of whatever status.

        Raises TransportError if no connection is made, and RuntimeError if no answer comes in time and whole.
        """
        address = f"{self._url}/{path}"
        content = None if body is None else dict(body)
        try:
            return run_coroutine(self._client.request(method, address, json=content), self._seconds)
        except OutOfTime:
            raise RuntimeError(f"{address} gave no answer within {self._seconds:g} s") from None
        except httpx2.ConnectError as error:
            raise TransportError(f"{address} cannot be reached: {error}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise RuntimeError(f"{address} gave no answer: {describe_error(error)}") from error

    def close(self) -> None:
        """Forget the session."""
        self._client.cookies.clear()


def import_package(name: str, environment: str, requirement: str) -> ModuleType:
    """The module of an optional package. Raises ConfigError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the environment '{environment}' needs a package that cannot be imported ({error}): "
            f"pip install '{requirement}'"
        ) from error


def read_object_setting(settings: Any, field: str) -> dict[str, Any]:
    """A setting that has to be an object with texts as keys. Raises ConfigError naming the field."""
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"tools.settings.{field}: expected an object of fields, got {settings!r}")
    return dict(settings)


def find_split(name: str) -> str:
    """Our split for a split of another package or of one of its tasks; an empty name stays empty, to be drawn later."""
    return _SPLITS.get(name.lower(), "heldout") if name else ""


def join_instructions(texts: Iterable[str | None]) -> str:
    """The instruction that the messages of a prompt make: their texts with a blank line between them."""
    return "\n\n".join(text.strip() for text in texts if text and text.strip())


def read_content_text(content: Any) -> str:
    """The text of a message's content: a text, or a list of parts of which some have a text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and part.get("text"))


def make_tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> ToolSchema:
    """A tool in OpenAI's form."""
    schema = {"type": "object", "properties": {}, **(parameters or {})}
    return {"type": "function", "function": {"name": name, "description": description or "", "parameters": schema}}


def write_result(value: Any) -> str:
    """A result as the model reads it: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def read_reward(reward: Any) -> float:
    """The reward as a number. Raises VerdictError for what is no finite number."""
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise VerdictError(f"the reward is no number: {str(reward)[:100]}")
    return number


@dataclass(frozen=True)
class RewardRange:
    """The rewards of an environment that mean not solved and solved."""

    low: float = 0.0
    high: float = 1.0

    @classmethod
    def parse(cls, setting: Any) -> Self:
        """The range of a setting [low, high]. Raises ConfigError for anything else."""
        match setting:
            case [int() | float() as low, int() | float() as high] if -math.inf < low < high < math.inf:
                return cls(float(low), float(high))
        raise ConfigError(f"tools.settings.reward_range: expected [low, high] with low below high, got {setting!r}")

    def verdict(self, reward: Any) -> float:
        """The reward in [0, 1]. Raises VerdictError for one outside the range, and for what is no number."""
        number = read_reward(reward)
        share = (number - self.low) / (self.high - self.low)
        if not -1e-6 <= share <= 1 + 1e-6:
            raise VerdictError(
                f"the reward {number:g} lies outside [{self.low:g}, {self.high:g}]: set tools.settings.reward_range to "
                "the rewards that the environment gives for a task that failed and for one that is solved"
            )
        return min(max(share, 0.0), 1.0)
