"""A tokenizer's chat template: it is rendered with clear errors, in bounded time and on one date.

Text of users and tools cannot change the structure of a conversation.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from steptool.chat.call_format import Format
from steptool.records import Message, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "2026-01-01"
"""The date that templates print as today's, so that episodes do not depend on the day of the run."""
PLAIN = Path(__file__).parent / "templates" / "plain.jinja"
"""Template for tokenizers without one: text under the name of its role, the eos token after an assistant's turn."""
RENDER_SECONDS = 5.0
"""Time in which a template has to render a conversation. Those of models take milliseconds."""
WATCHDOG = "template watchdog"
"""Name of the thread that ends renderings."""
_TAG = re.compile(r"</?(?:tool|think|function|parameter|arg_|observation|response)[\w=-]*>|</?s>|\[/?[A-Z][A-Z_]*\]")
_TODAY = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
_MARK = "templateprobe"
_ROLE_WORD = re.compile(r"(?:^|\n)((?:system|user|assistant|human|tool|observation|instruction)s?):", re.IGNORECASE)


class EndlessTemplateError(ValueError):
    """A chat template that has not ended in time."""


class ChatTemplate:
    """The chat template of a tokenizer. If it has several by name, `tools` says whether it is the one for tools.

    `control_tokens` are the tokens that carry the structure of a conversation: all special ones, and the added ones
    that the template writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: str = DATE, *, tools: bool = True) -> None:
        self._tokenizer = tokenizer
        self.eos_token: str = tokenizer.eos_token or ""
        self.source = _choose(tokenizer.chat_template, tools)
        self.literals = _join_literals(self.source)
        added_tokens = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        markup = {token for token, special in added_tokens.items() if special or token in self.literals}
        self.control_tokens = {token for token in (*markup, *tokenizer.all_special_tokens) if token.strip()}
        self._fixed_source = _fix_date(self.source, date.fromisoformat(day))
        self._date = date.fromisoformat(day).strftime("%d %b %Y")
        self._parts = False
        self._parts = self._needs_parts()

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, prompt: bool = False) -> str:
        """The text of the messages, with the beginning of the assistant's next turn where `prompt` is true.

        Raises ValueError with the roles and the template's own complaint where the template refuses the messages, and
        where it does not end in time.
        """
        try:
            with _WATCHDOG.limit(RENDER_SECONDS):
                text: Any = self._tokenizer.apply_chat_template(
                    [_split_into_parts(message) for message in messages] if self._parts else list(messages),
                    tools=list(tools) or None,
                    chat_template=self._fixed_source,
                    add_generation_prompt=prompt,
                    tokenize=False,
                    date_string=self._date,
                )
        except EndlessTemplateError:
            raise EndlessTemplateError(
                f"the chat template does not end within {RENDER_SECONDS:g} s; give the model another template"
            ) from None
        except Exception as error:  # a template is a program of the model's author and may fail in any way
            roles = [message["role"] for message in messages]
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise ValueError(f"the chat template refuses messages of the roles {roles}: {kind}{error}") from error
        return str(text)

    def try_render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> str:
        """The text of the messages; empty where the template refuses them. Raises EndlessTemplateError."""
        try:
            return self.render(messages, tools)
        except EndlessTemplateError:
            raise
        except ValueError:
            return ""

    def _needs_parts(self) -> bool:
        """Whether the template shows text only as a list of parts, as templates for images and text may do."""
        conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        if _MARK in self.try_render(conversation):
            return False
        return _MARK in self.try_render([_split_into_parts(message) for message in conversation])

    def find_first_control_token(self, text: str) -> str:
        """The control token with which a text begins, white space aside; empty without one."""
        fits = (token for token in self.control_tokens if text.lstrip().startswith(token))
        return max(fits, key=len, default="")

    def find_last_control_token(self, text: str) -> str:
        """The last control token of a text; empty without one."""
        return (
            max(self.control_tokens, key=lambda token: (text.rfind(token), len(token)), default="")
            if any(token in text for token in self.control_tokens)
            else ""
        )


class _Watchdog:
    """Ends renderings that take too long, with one thread for all of them. The thread ends with the last rendering.

    A rendered template is Python code without calls that wait, so an exception set from another thread ends it.
    """

    _INTERVAL = 0.25
    """Seconds between two looks at the deadlines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}
        """By thread, on the monotonic clock."""
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raise EndlessTemplateError in this thread where what runs in it takes longer."""
        caller = threading.get_ident()
        with self._lock:
            self._deadlines[caller] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():  # a forked process has no threads
                self._thread = threading.Thread(target=self._watch, name=WATCHDOG, daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                # Only what was set is taken back: after such a call CPython 3.11 checks at every call and loop.
                if self._deadlines.pop(caller, None) is None:
                    _raise_in(caller, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._INTERVAL)
            with self._lock:
                now = time.monotonic()
                for caller in [thread for thread, deadline in self._deadlines.items() if deadline < now]:
                    del self._deadlines[caller]
                    _raise_in(caller, EndlessTemplateError)
                if not self._deadlines:
                    self._thread = None
                    return


_WATCHDOG = _Watchdog()


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread; None takes back one that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)


def find_structure_words(literals: str) -> tuple[set[str], set[str]]:
    """Tags such as [INST], and role words such as User before a colon, that stand in a template's own text."""
    return set(_TAG.findall(literals)), {word.strip() for word in _ROLE_WORD.findall(literals)}


def _choose(template: str | Mapping[str, str] | None, tools: bool) -> str:
    if isinstance(template, Mapping):
        names = ("tool_use", "default") if tools else ("default", "tool_use")
        return next((template[name] for name in names if name in template), next(iter(template.values())))
    return template or ""


def _fix_date(source: str, day: date) -> str:
    """The template with one day in place of today. Raises ValueError where it asks for the date in an unknown way."""
    fixed_source = _TODAY.sub(lambda call: repr(day.strftime(call[2])), source)
    if re.search(r"strftime_now\s*\(", fixed_source):
        raise ValueError(
            "the chat template computes how it prints today's date, so that episodes would depend on the day; give the "
            "model a template with a fixed format, as in strftime_now('%Y-%m-%d'), or without the date"
        )
    return fixed_source


def _split_into_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _join_literals(source: str) -> str:
    """All text that a template itself may write, from its source."""
    try:
        tree = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except jinja2.TemplateSyntaxError:  # of a tag that only transformers' engine knows
        return source
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\n".join(texts)


class StructureFilter:
    """Breaks the words that carry the structure of a conversation where a user, a tool or a schema writes them.

    These are the control tokens, the tags that the chat template itself writes, what opens and closes calls and
    observations in the format, and the template's role words at the beginning of a line. A space goes after the first
    character of each (`< /tool_response>`), or before the colon of a role word.
    """

    def __init__(self, template: ChatTemplate, form: Format) -> None:
        tags, roles = find_structure_words(template.literals)
        tags |= {*template.control_tokens, *form.marks}
        tags |= {part.strip() for part in form.observation if part.strip().startswith("<")}
        longest_first = sorted((tag for tag in tags if len(tag.strip()) > 1), key=len, reverse=True)
        self._tags = re.compile("|".join(re.escape(tag) for tag in longest_first) or r"(?!)")
        self._roles = re.compile(rf"^(\s*(?:{'|'.join(map(re.escape, sorted(roles))) or '(?!)'})):", re.MULTILINE)

    def clean(self, text: str) -> str:
        """The text with every such word broken."""
        return self._roles.sub(r"\1 :", self._tags.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text))
