"""Tool calls as text, in every format by its name (docs/chat-formats.md)."""

from steptool.chat.formats.base import (
    CALL_CLOSE,
    CALL_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    ChatFormat,
    Format,
    ParsedTurn,
)
from steptool.chat.formats.native import DEEPSEEK, GLM, GPT_OSS, LLAMA, MISTRAL, QWEN_XML
from steptool.chat.formats.prompted import HERMES, REACT

FORMATS = {f.name: f for f in (LLAMA, HERMES, QWEN_XML, GLM, DEEPSEEK, GPT_OSS, MISTRAL, REACT)}
"""All formats by name, in the order in which they are tried on a template. Hermes also reads Llama's bare object."""

render = HERMES.render
"""A call in Hermes' form, which the embedded model speaks."""
parse_hermes = HERMES.parse
"""Read a turn in Hermes' form."""

__all__ = [
    "CALL_CLOSE",
    "CALL_OPEN",
    "DEEPSEEK",
    "FORMATS",
    "GLM",
    "GPT_OSS",
    "HERMES",
    "LLAMA",
    "MISTRAL",
    "QWEN_XML",
    "REACT",
    "RESPONSE_CLOSE",
    "RESPONSE_OPEN",
    "THINK_CLOSE",
    "THINK_OPEN",
    "ChatFormat",
    "Format",
    "ParsedTurn",
    "parse_hermes",
    "render",
]
