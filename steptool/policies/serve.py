"""A small server of one model with OpenAI's interface: chat completions with tools, prompted as in training.

A client that does not know the tool `Finish` gets the final answer as the text of the message. Turns are computed one
after the other.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import PreTrainedModel

from steptool.chat.call_format import ParsedTurn, answer_of, offers_finish, to_finish_calls
from steptool.chat.codec import ChatCodec
from steptool.chat.messages import (
    GIVE_ANSWER,
    calls_of,
    model_schemas,
    one_call_per_turn,
    text_of,
)
from steptool.config import ConfigError
from steptool.environments.schema import check_tools
from steptool.models.load import Serving, load_codec, load_model, read_serving
from steptool.models.logprobs import causal_lm
from steptool.policies.kv_cache import check_context
from steptool.policies.sampler import BatchSampler, Feed, SampledTurn
from steptool.records import FINISH, Message, ToolCall

LARGEST_REQUEST = 4 << 20
"""Bytes of a request, at most."""
KEY_VARIABLE = "STEPTOOL_API_KEY"
"""Environment variable with the key that requests must send. If it is unset, they need no key."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONNECTIONS = 256
"""Connections at once; further ones are answered 503."""
_REMEMBERED = 4096
"""Turns with a call whose sampled tokens are kept, so that a conversation that comes back gets the same tokens."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
_GAVE_UP = "The model has given up the task."


class ChatRequest(BaseModel):
    """The supported fields of a chat completion. Other fields that would change the answer are refused."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: Literal[1] | None = None
    top_p: float | None = Field(None, ge=1, le=1)
    stop: None = None
    logprobs: Literal[False] | None = None
    stream: bool = False


@dataclass(frozen=True)
class _SampledCall:
    """The tokens of a turn that made a call, and the part of the turn that a client sends back."""

    ids: Sequence[int]
    call: ToolCall
    thought: str


class ServedModel:
    """A model with its codec that answers chat completions; any number of threads may call it."""

    def __init__(self, model: PreTrainedModel, codec: ChatCodec, serving: Serving, name: str) -> None:
        self.name, self._model, self._codec, self._serving = name, model, codec, serving
        positions = getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)
        self._max_context = min(serving.max_context, positions or serving.max_context)
        check_context(model, self._max_context)
        self._lock = threading.Lock()
        self._sampled: OrderedDict[str, _SampledCall] = OrderedDict()

    def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The chat completion. Raises ValueError for messages or tools that cannot be used, and for a long prompt."""
        tools = [] if request.tool_choice == "none" else [_complete_schema(tool) for tool in request.tools or []]
        check_tools(tools, "the request")
        offered = model_schemas(self._serving.offer(tools))
        hides_finish = offers_finish(offered) and not offers_finish(tools)
        messages = self._as_trained(request.messages, hides_finish)
        with self._lock:
            prompt = self._codec.next_prompt_ids(messages, offered, self._find_sampled(messages))
            turn = self._sample(prompt, request)
            message = self._message(turn, self._codec.parse(turn.ids, offered), hides_finish)
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

    def _as_trained(self, messages: Sequence[Message], hides_finish: bool) -> list[Message]:
        """The messages in the internal form, with the system message of training unless they bring their own.

        Where the client does not know Finish, the assistant's earlier answers are calls of it.
        """
        turns = one_call_per_turn([_internal(message) for message in messages])
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
            return {**message, "content": self._codec.format.render_answer(text_of(message))}
        return message

    def _find_sampled(self, messages: Sequence[Message]) -> dict[int, Sequence[int]]:
        """The sampled tokens of calls that this server made, by position, if the messages came back unchanged."""
        sampled: dict[int, Sequence[int]] = {}
        for position, message in enumerate(messages):
            for call in message.get("tool_calls") or []:
                turn = self._sampled.get(str(call.get("id")))
                if turn and [turn.call] == calls_of(message) and turn.thought == text_of(message):
                    sampled[position] = turn.ids
        return sampled

    def _sample(self, prompt: list[int], request: ChatRequest) -> SampledTurn:
        wish = request.max_completion_tokens or request.max_tokens or self._serving.max_tokens
        limit = min(wish, self._serving.max_tokens)
        if len(prompt) + limit > self._max_context:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and leaves no room for {limit}: the model's context length is "
                f"{self._max_context} tokens; shorten the messages or lower max_tokens"
            )
        temperature = self._serving.temperature if request.temperature is None else request.temperature
        options = {"greedy": True} if temperature == 0 else {"temperature": temperature}
        sampler = BatchSampler(self._model, 1, self._codec.end_ids, max_new_tokens=limit, **options)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        uniforms = torch.rand(limit, generator=torch.Generator().manual_seed(seed)).numpy()
        sampler.feed([Feed(0, 0, prompt, uniforms)])
        while not sampler.ended_count:
            sampler.step()
        (turn,) = sampler.take()
        return turn

    def _message(self, turn: SampledTurn, parsed: ParsedTurn, hides_finish: bool) -> Message:
        call = parsed.call
        if call is None and self._serving.finish == "text":
            return {"role": "assistant", "content": parsed.text if parsed.answer is None else parsed.answer}
        if call is None:
            return {"role": "assistant", "content": parsed.text}
        if hides_finish and call.name == FINISH:
            answer = answer_of(call) if call.arguments.get("return_type") == GIVE_ANSWER else None
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
            chat = ChatRequest.model_validate_json(await _read_body(request))
            if chat.model != served.name:
                return _error(404, f"there is no model '{chat.model}' here; this server has '{served.name}'")
            answer = await run_in_threadpool(served.complete, chat)
        except _TooLarge:
            return _error(413, f"the request has more than {LARGEST_REQUEST >> 20} MB")
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"])) or "the request"
            return _error(400, f"{where}: {first['msg']}, got {str(first['input'])[:200]}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return _error(400, str(error))
        return _stream(answer) if chat.stream else JSONResponse(answer)

    async def models(request: Request) -> Response:
        model = {"id": served.name, "object": "model", "created": 0, "owned_by": "steptool"}
        return _refuse(request, key) or JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ]
    )


def serve(folder: Path, host: str, port: int, name: str) -> None:
    """Serve the model of a folder until the process is told to end; port 0: a free one.

    Raises ModelError for a folder that cannot be used, and ConfigError for an address that others reach without a key.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and host not in _LOOPBACK:
        raise ConfigError(
            f"--host {host} can be reached from other machines: set a key in {KEY_VARIABLE}, or serve on 127.0.0.1"
        )
    app = make_app(load_served(folder, name), key)
    server = uvicorn.Server(uvicorn.Config(app, host, port, log_level="warning", limit_concurrency=_CONNECTIONS))
    listener = server.config.bind_socket()
    print(f"serving {name} at http://{host}:{listener.getsockname()[1]}/v1", flush=True)
    server.run([listener])


def _complete_schema(tool: Any) -> Any:
    """The schema with the two fields that OpenAI's form lets a client leave out: no description, no parameters."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    parameters = {"type": "object", "properties": {}}
    return {**tool, "function": {"description": "", "parameters": parameters, **function}}


class _TooLarge(Exception):
    """A request is larger than the limit."""


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_REQUEST:
            raise _TooLarge
    return bytes(body)


def _refuse(request: Request, key: str) -> Response | None:
    """The answer to a request without the right key; None for a request that may pass."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not key or secrets.compare_digest(sent.encode(), key.encode()):
        return None
    return _error(401, "the key is missing or wrong; send it as the bearer token")


def _error(status: int, message: str) -> Response:
    kind = "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status_code=status)


def _stream(answer: Mapping[str, Any]) -> Response:
    """The whole answer as one chunk of server-sent events."""
    (choice,) = answer["choices"]
    calls = [{"index": n, **call} for n, call in enumerate(choice["message"].get("tool_calls", []))]
    delta = {**choice["message"], **({"tool_calls": calls} if calls else {})}
    choices = [{"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}]
    chunk = {**answer, "object": "chat.completion.chunk", "choices": choices}
    text = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\ndata: [DONE]\n\n"
    return Response(text, media_type="text/event-stream")


def _internal(message: Message) -> Message:
    """A message of a request, its parts of text put together. Raises ValueError for another role or other parts."""
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"messages: expected a role among {', '.join(_ROLES)}, got {role!r}")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError("messages: expected text as content, got parts of other kinds")
        message = {**message, "content": "".join(part["text"] for part in content)}
    text_of(message)
    calls_of(message)
    return message
