"""A chat model behind an endpoint of OpenAI's form: attempts, limits, a file of replies, and counts of it all."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx2

from steptool.artifacts.metrics import count
from steptool.chat.messages import DEEPEST, measure_nesting, strip_hints
from steptool.config import EndpointConfig
from steptool.records import Message, ToolSchema
from steptool.storage.http import ONE_REQUEST_EACH, BoundedClient, Redactor
from steptool.storage.sqlite import Replies, make_request_key

_REFUSING = frozenset({401, 403, 404})
"""Answers that every further request would get as well: a wrong key, address or model."""
_UNANSWERABLE = frozenset({400, 413, 422})
"""Answers that the same request would get again, and another one may not."""
_TOO_LONG = re.compile(
    r"context.{0,3}(length|size|window)|prompt.{0,6}too long|(too many|exceeds the maximum number of) (input )?tokens",
    re.I,
)
"""How servers say that a request is longer than the model's context."""
_MOST_TOKENS = 10**9
"""Tokens that one request can have read or written; a larger count is an error of the server."""


class EndpointError(Exception):
    """No reply to a request: it failed in every attempt, ran out of time or cannot be answered."""


class EndpointRefused(EndpointError):
    """The endpoint takes no request of this kind: its address, the model's name, the key or a setting is wrong."""


class RequestRefused(EndpointError):
    """The endpoint will never answer this request; it may answer others."""


class RequestTooLong(RequestRefused):
    """The request is longer than the model's context."""


@dataclass(frozen=True)
class Reply:
    """The model's answer to a request."""

    message: Message
    """In OpenAI's form: role, content and perhaps tool_calls or refusal."""
    prompt_tokens: int
    """Tokens read, as the endpoint counts them; of a cached reply, when it was made."""
    completion_tokens: int
    """Tokens written."""
    cached: bool
    """Whether it was there already, or came with the same request of another caller."""
    is_cut: bool = False
    """Whether the limit of tokens has ended the turn."""


@dataclass
class Usage:
    """What an endpoint was used for."""

    requests: int = 0
    """Requests with a reply."""
    sent: int = 0
    """HTTP requests sent, further attempts included."""
    cached: int = 0
    """Replies that needed no request."""
    failed: int = 0
    """Requests without a reply."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens of the requests made, not of the cached ones."""
    money: float = 0.0
    """Price of these tokens."""

    def counts(self) -> dict[str, float]:
        """All figures by the names of their fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class _Running:
    """A request in flight, and how many callers wait for its reply."""

    task: asyncio.Task[dict[str, Any]]
    callers: int = 0


class Endpoint:
    """The client: any number of threads may call it.

    Requests run side by side up to the concurrency of the configuration. A request like one that was answered gets its
    reply from the file, and one like a request in flight waits for that, each caller until its own deadline. The key is
    read from the environment and in nothing that is kept, raised or logged.
    """

    def __init__(self, config: EndpointConfig, cache: str | Path = "") -> None:
        """Without a path the replies are kept in memory. Raises ValueError if the configuration names no address."""
        if not config.base_url or not config.model:
            raise ValueError(
                "an endpoint needs a base_url (as in http://localhost:8000/v1) and a model, got "
                f"{config.base_url!r} and {config.model!r}: set both in the endpoint's section of the configuration"
            )
        try:
            httpx2.URL(config.base_url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"base_url: '{config.base_url}' is no address: {error}") from None
        import openai  # takes half a second

        self.config, self.usage = config, Usage()
        key = os.environ.get(config.key_variable, "").strip()
        self._redactor = Redactor([key])
        self._replies = Replies(cache)
        self._running: dict[str, _Running] = {}
        self._turn = asyncio.Semaphore(config.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=key or "none",
            timeout=config.timeout,
            max_retries=config.retries,
            http_client=BoundedClient(
                event_hooks={"request": [self._on_send]}, limits=ONE_REQUEST_EACH, follow_redirects=True
            ),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        tool_choice: str | Mapping[str, Any] | None = None,
        vote: int = 0,
        deadline: float = math.inf,
    ) -> Reply:
        """The model's next message. Each `vote` of the same request is a request of its own.

        `deadline` is a time of `time.monotonic` after which no request is sent and none awaited. Raises EndpointError
        if no attempt brings a reply by then, RequestRefused if none ever will, EndpointRefused if that holds for every
        request.
        """
        request: dict[str, Any] = {
            "model": self.config.model,
            "messages": list(messages),
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        if tools:
            request["tools"] = strip_hints(tools)
        if tool_choice is not None:
            request["tool_choice"] = tool_choice
        request = {k: v for k, v in {**request, **self.config.request}.items() if v is not None}
        return asyncio.run_coroutine_threadsafe(self._reply(request, vote, deadline), self._loop).result()

    def close(self) -> None:
        """End what is in flight and close the file."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._replies.close()

    async def _reply(self, request: dict[str, Any], vote: int, deadline: float) -> Reply:
        key = make_request_key(request, vote)
        body = self._replies.get(key)
        is_cached = body is not None or key in self._running
        if body is None:
            body = await self._share(key, request, deadline)
        self.usage.cached += is_cached
        is_cut = body.get("is_cut", False)  # files of earlier versions do not say
        return Reply(body["message"], body["prompt_tokens"], body["completion_tokens"], is_cached, is_cut)

    async def _share(self, key: str, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """The reply to a request that others may wait for as well. The request ends when nobody waits any more."""
        if key not in self._running:
            self._running[key] = _Running(asyncio.create_task(self._ask(key, request)))
        running = self._running[key]
        running.callers += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic() if deadline < math.inf else None):
                return await asyncio.shield(running.task)
        except TimeoutError:
            raise EndpointError(self._name_problem("no reply before the deadline")) from None
        finally:
            running.callers -= 1
            if not running.callers:
                del self._running[key]
                if running.task.cancel():  # it had not ended
                    self._count_failure()

    async def _ask(self, key: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            body = await self._ask_in_turn(request)
        except EndpointError:
            self._count_failure()
            raise
        self._count(body)
        self._replies.add(key, body)
        return body

    async def _ask_in_turn(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply, once it is this request's turn. Raises EndpointError without the key in it."""
        import openai

        kind: type[EndpointError] = EndpointError
        limit = self.config.timeout * (self.config.retries + 1)
        try:
            async with self._turn, asyncio.timeout(limit):
                return await self._make_attempts(request)
        except TimeoutError:
            problem = f"no reply within {limit:g} s, all attempts together"
        except openai.APIStatusError as error:
            problem = f"answered {error.status_code}: {error.message}"
            if error.status_code in _REFUSING:
                kind = EndpointRefused
                problem = f"{problem}; see base_url, model and the key in {self.config.key_variable}"
            elif error.status_code in _UNANSWERABLE:
                long = error.status_code == 413 or _TOO_LONG.search(error.message)
                kind = RequestTooLong if long else RequestRefused
        except (openai.OpenAIError, ValueError) as error:
            problem = f"{error} {error.__cause__ or ''}".strip()
        # raised out here, so that the client's error, which may hold the key, is no part of it
        raise kind(self._name_problem(problem))

    async def _make_attempts(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply after several attempts: the client repeats requests that failed on the way, and this method those
        whose answer was no chat completion."""
        for further in range(self.config.retries, -1, -1):
            response = await self._client.chat.completions.with_raw_response.create(**_make_arguments(request))
            try:
                return _make_body(response.text, self._redactor)
            except ValueError as error:
                if not further:
                    raise ValueError(f"answered something that is no chat completion: {error}") from None
        raise AssertionError("unreachable")

    async def _on_send(self, _: object) -> None:
        self.usage.sent += 1

    def _count(self, body: Mapping[str, Any]) -> None:
        prompt_tokens, completion_tokens = body["prompt_tokens"], body["completion_tokens"]
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        money = (prompt_tokens * self.config.price_in + completion_tokens * self.config.price_out) / 1e6
        self.usage.money += money
        model = {"gen_ai.request.model": self.config.model}
        count("steptool.endpoint.requests", 1, model)
        count("steptool.endpoint.tokens", prompt_tokens, {**model, "gen_ai.token.type": "input"})
        count("steptool.endpoint.tokens", completion_tokens, {**model, "gen_ai.token.type": "output"})
        count("steptool.endpoint.cost", money, model)

    def _count_failure(self) -> None:
        self.usage.failed += 1
        count("steptool.endpoint.failures", 1, {"gen_ai.request.model": self.config.model})

    def _name_problem(self, problem: str) -> str:
        return self._redactor.redact_text(f"{self.config.model} at {self.config.base_url}: {problem}")[:500]

    async def _end(self) -> None:
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()


@functools.cache
def _list_known_fields() -> frozenset[str]:
    """Fields of a request that the client's method has an argument for."""
    from openai.resources.chat.completions import AsyncCompletions

    return frozenset(inspect.signature(AsyncCompletions.create).parameters)


def _make_arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as arguments of the client's method, which takes fields that it does not know as `extra_body`."""
    known = _list_known_fields()
    arguments = {name: value for name, value in request.items() if name in known}
    further = {name: value for name, value in request.items() if name not in known}
    return {**arguments, "extra_body": {**further, **(arguments.get("extra_body") or {})}}


def _make_body(text: str, redactor: Redactor) -> dict[str, Any]:
    """Message, whether it is cut, and numbers of tokens (0 where the endpoint counts none). Raises ValueError.

    Halves of surrogate pairs, which no file can hold, become question marks.
    """
    try:
        answer = json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        message, is_cut = choice["message"], choice.get("finish_reason") == "length"
        if not isinstance(message, dict):
            raise TypeError("a message is an object")
        if measure_nesting(message) > DEEPEST:
            raise ValueError(f"a message nested more than {DEEPEST} levels deep")
        tokens = {name: _read_token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
        return {"message": redactor.redact_value(message), "is_cut": is_cut, **tokens}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{redactor.redact_text(text)[:200]!r} ({type(error).__name__})") from None


def _read_token_count(value: Any) -> int:
    """A number of tokens as a server gives it, from 0 to the most that one request can have; 0 for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return min(max(0, int(value)), _MOST_TOKENS)
