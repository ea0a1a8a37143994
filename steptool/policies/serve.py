"""A small server of one model with OpenAI's interface: chat completions with tools, prompted as in training.

A client that does not know the tool `Finish` gets the final answer as the text of the message. Turns are computed one
after the other.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import PreTrainedModel

from steptool.artifacts.errors import describe_with_class
from steptool.chat.call_format import ParsedTurn, offers_finish, read_answer, to_finish_calls
from steptool.chat.codec import ChatCodec
from steptool.chat.messages import (
    GIVE_ANSWER,
    read_calls,
    read_text,
    split_calls,
    strip_hints,
)
from steptool.environments.schema import check_tools
from steptool.models.load import load_codec, load_model
from steptool.models.logprobs import unwrap_model
from steptool.models.serving import Serving, read_serving
from steptool.policies.http_server import TooLargeError, has_key, read_body, read_key, run_for_client, run_server
from steptool.policies.kv_cache import check_context
from steptool.policies.sampler import BatchSampler, Feed, SampledTurn
from steptool.records import FINISH, Message, ToolCall

_REMEMBERED = 4096
"""Turns with a call whose sampled tokens are kept, so that a conversation that comes back gets the same tokens."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
_CLIENT_GONE = 499
"""Status of an answer that nobody reads, by a custom of web servers."""
_GAVE_UP = "The model has given up the task."


_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "top_p": 1,
    "stop": [],
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
}
"""Fields that are not followed, each with the one value that changes nothing."""
_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)
"""Fields that change no answer. A turn makes one call at most, so that calls are never parallel."""
_COLDEST = 0.01
"""Temperature below which the likeliest token is taken: there the quotients leave the range of the numbers."""


class ChatRequest(BaseModel):
    """The supported fields of a chat completion. Other fields that would change the answer are refused."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["auto", "none"] = "auto"
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, request: Any) -> Any:
        """The request without what changes nothing; null stands for a field that is left out."""
        if not isinstance(request, dict):
            return request
        fields = {name: value for name, value in request.items() if value is not None and name not in _IGNORED}
        for name in fields.keys() - cls.model_fields.keys():
            value = fields.pop(name)
            if name not in _NEUTRAL:
                raise ValueError(f"{name[:100]}: this server does not know this field; leave it out")
            if value != _NEUTRAL[name]:
                raise ValueError(f"{name}: this server takes {_NEUTRAL[name]!r} alone, got {str(value)[:200]}")
        return fields


@dataclass(frozen=True)
class _SampledCall:
    """The tokens of a turn that made a call, and the part of the turn that a client sends back."""

    ids: Sequence[int]
    call: ToolCall
    thought: str


class AbandonedError(Exception):
    """The client of a request is gone."""


class ServedModel:
    """A model with its codec that answers chat completions; any number of threads may call it."""

    def __init__(self, model: PreTrainedModel, codec: ChatCodec, serving: Serving, name: str) -> None:
        self.name, self._model, self._codec, self._serving = name, model, codec, serving
        positions = getattr(unwrap_model(model).config.get_text_config(), "max_position_embeddings", None)
        self._max_context = min(serving.max_context, positions or serving.max_context)
        check_context(model, self._max_context)
        self._longest_token = max(map(len, codec.tokenizer.get_vocab()))
        self._lock = threading.Lock()
        self._sampled: OrderedDict[str, _SampledCall] = OrderedDict()

    def complete(self, request: ChatRequest, abandoned: threading.Event) -> dict[str, Any]:
        """The chat completion. Raises ValueError for messages or tools that cannot be used, and for a long prompt.

        Once `abandoned` is set nobody waits for the answer: raises AbandonedError, so that others get theirs.
        """
        tools = [] if request.tool_choice == "none" else [complete_schema(tool) for tool in request.tools]
        check_tools(tools, "the request")
        offered_tools = strip_hints(self._serving.offer(tools))
        hides_finish = offers_finish(offered_tools) and not offers_finish(tools)
        messages = self._restore_training_form(request.messages, hides_finish)
        self._check_length(messages)
        with self._lock:
            if abandoned.is_set():
                raise AbandonedError
            prompt = self._codec.next_prompt_ids(messages, offered_tools, self._find_sampled(messages))
            turn = self._sample(prompt, request, abandoned)
            message = self._make_message(turn, self._codec.parse(turn.ids, offered_tools), hides_finish)
        is_cut = turn.ids[-1] not in self._codec.end_ids
        reason = "tool_calls" if message.get("tool_calls") else "length" if is_cut else "stop"
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(turn.ids),
                "total_tokens": len(prompt) + len(turn.ids),
            },
        }

    def _check_length(self, messages: Sequence[Message]) -> None:
        """Refuse messages that no prompt can hold, before they are tokenised, which takes long."""
        characters = sum(len(read_text(message)) for message in messages)
        if characters > self._max_context * self._longest_token:
            raise ValueError(
                f"the messages have {characters:,} characters, and the model's context length is {self._max_context} "
                "tokens; shorten the messages"
            )

    def _restore_training_form(self, messages: Sequence[Message], hides_finish: bool) -> list[Message]:
        """The messages in the internal form, with the system message of training unless they bring their own.

        Where the client does not know Finish, the assistant's earlier answers are calls of it.
        """
        turns = split_calls([_convert_message(message) for message in messages])
        if turns[-1]["role"] == "assistant":
            raise ValueError("messages: the last one is the assistant's; expected one of the user or of a tool")
        if self._serving.system and turns[0]["role"] not in ("system", "developer"):
            turns.insert(0, {"role": "system", "content": self._serving.system})
        return to_finish_calls(turns) if hides_finish else [self._write_answer(turn) for turn in turns]

    def _write_answer(self, message: Message) -> Message:
        """An answer in the notation of the format. A text without an answer stays as it is."""
        if self._serving.finish == "tool" or message["role"] != "assistant" or message.get("tool_calls"):
            return message
        with suppress(ValueError):
            return {**message, "content": self._codec.format.render_answer(read_text(message))}
        return message

    def _find_sampled(self, messages: Sequence[Message]) -> dict[int, Sequence[int]]:
        """The sampled tokens of calls that this server made, by position, if the messages came back unchanged."""
        sampled_turns: dict[int, Sequence[int]] = {}
        for position, message in enumerate(messages):
            for call in message.get("tool_calls") or []:
                turn = self._sampled.get(str(call.get("id")))
                if turn and [turn.call] == read_calls(message) and turn.thought == read_text(message):
                    sampled_turns[position] = turn.ids
        return sampled_turns

    def _sample(self, prompt: list[int], request: ChatRequest, abandoned: threading.Event) -> SampledTurn:
        wish = request.max_completion_tokens or request.max_tokens or self._serving.max_tokens
        limit = min(wish, self._serving.max_tokens)
        if len(prompt) + limit > self._max_context:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and leaves no room for {limit}: the model's context length is "
                f"{self._max_context} tokens; shorten the messages or lower max_tokens"
            )
        temperature = self._serving.temperature if request.temperature is None else request.temperature
        options = {"greedy": True} if temperature < _COLDEST else {"temperature": temperature}
        sampler = BatchSampler(self._model, 1, self._codec.end_ids, max_new_tokens=limit, **options)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        uniforms = torch.rand(limit, generator=torch.Generator().manual_seed(seed)).numpy()
        sampler.feed([Feed(0, 0, prompt, uniforms)])
        while not sampler.ended_count:
            if abandoned.is_set():
                raise AbandonedError
            sampler.step()
        (turn,) = sampler.take()
        return turn

    def _make_message(self, turn: SampledTurn, parsed: ParsedTurn, hides_finish: bool) -> Message:
        call = parsed.call
        if call is None and self._serving.finish == "text":
            return {"role": "assistant", "content": parsed.text if parsed.answer is None else parsed.answer}
        if call is None:
            return {"role": "assistant", "content": parsed.text}
        if hides_finish and call.name == FINISH:
            answer = read_answer(call) if call.arguments.get("return_type") == GIVE_ANSWER else None
            if answer is not None:
                return {"role": "assistant", "content": answer}
            return {"role": "assistant", "content": None, "refusal": _GAVE_UP}
        call_id = f"call_{secrets.token_hex(12)}"
        self._sampled[call_id] = _SampledCall(turn.ids, call, parsed.thought)
        if len(self._sampled) > _REMEMBERED:
            self._sampled.popitem(last=False)
        function = {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
        calls = [{"id": call_id, "type": "function", "function": function}]
        return {"role": "assistant", "content": parsed.thought or None, "tool_calls": calls}


def load_served(folder: Path, name: str) -> ServedModel:
    """The model of a folder, prompted as its serving.json says. Raises ModelError and ValueError as loading does."""
    serving = read_serving(folder)
    codec = load_codec(folder, serving.chat_format, serving.chat_date)
    return ServedModel(load_model(folder), codec, serving, name)


def make_app(served: ServedModel, key: str = "") -> Starlette:
    """The HTTP application. With a key every request but those of /health needs it as its bearer token."""

    async def complete(request: Request) -> Response:
        if refusal := _refuse(request, key):
            return refusal
        try:
            chat = ChatRequest.model_validate_json(await read_body(request))
            if chat.model != served.name:
                return _make_error(404, f"there is no model '{chat.model[:200]}' here; this server has '{served.name}'")
            answer = await run_for_client(request, partial(served.complete, chat))
        except TooLargeError as error:
            return _make_error(413, str(error))
        except ValidationError as error:
            return _make_error(400, _describe(error))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return _make_error(400, str(error))
        except AbandonedError:
            return Response(status_code=_CLIENT_GONE)
        return _stream(answer) if chat.stream else JSONResponse(answer)

    model = {"id": served.name, "object": "model", "created": 0, "owned_by": "steptool"}

    async def models(request: Request) -> Response:
        return _refuse(request, key) or JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if refusal := _refuse(request, key):
            return refusal
        if request.path_params["name"] != served.name:
            return _make_error(404, f"there is no such model here; this server has '{served.name}'")
        return JSONResponse(model)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_fault},
    )


def serve(folder: Path, host: str, port: int, name: str) -> None:
    """Serve the model of a folder until the process is told to end; port 0: a free one.

    Raises ModelError for a folder that cannot be used, and ConfigError for an address that others reach without a key.
    """
    key = read_key(host)
    run_server(make_app(load_served(folder, name), key), host, port, name, path="/v1")


def complete_schema(tool: Any) -> Any:
    """The schema with the two fields that OpenAI's form lets a client leave out: no description, no parameters.

    The fields keep their order, since a chat template writes them in this order and the model has learned it.
    """
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    fields = {name: value for name, value in function.items() if value is not None}
    fields.setdefault("description", "")
    fields.setdefault("parameters", {"type": "object", "properties": {}})
    return {**tool, "function": fields}


def _refuse(request: Request, key: str) -> Response | None:
    """The answer to a request without the right key; None for a request that may pass."""
    return (
        None if has_key(request, key) else _make_error(401, "the key is missing or wrong; send it as the bearer token")
    )


def _describe(error: ValidationError) -> str:
    """The first problem of a request, with the place where it stands."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "value_error":  # it names the field itself
        return first["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"])) or "the request"
    return f"{where}: {first['msg']}, got {str(first['input'])[:200]}"


def _make_error(status: int, message: str, kind: str = "invalid_request_error") -> Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status_code=status)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path[:200]}"
    return _make_error(error.status_code, f"{place}: {error.detail}; this server has POST /v1/chat/completions")


async def _answer_fault(_: Request, error: Exception) -> Response:
    """The answer to a request on which our own code has failed; the stack is in the server's log."""
    return _make_error(500, f"the server has failed: {describe_with_class(error)}", "server_error")


def _stream(answer: Mapping[str, Any]) -> Response:
    """The whole answer as one chunk of server-sent events."""
    (choice,) = answer["choices"]
    calls = [{"index": n, **call} for n, call in enumerate(choice["message"].get("tool_calls", []))]
    delta = {**choice["message"], **({"tool_calls": calls} if calls else {})}
    choices = [{"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}]
    chunk = {**answer, "object": "chat.completion.chunk", "choices": choices}
    text = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\ndata: [DONE]\n\n"
    return Response(text, media_type="text/event-stream")


def _convert_message(message: Message) -> Message:
    """A message of a request, its parts of text put together. Raises ValueError for another role or other parts."""
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"messages: expected a role among {', '.join(_ROLES)}, got {role!r}")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError("messages: expected text as content, got parts of other kinds")
        message = {**message, "content": "".join(part["text"] for part in content)}
    if message.get("function_call"):
        raise ValueError("messages: expected calls in tool_calls, got one in function_call")
    read_text(message)
    read_calls(message)
    return message
