"""The tokenizer of the embedded base model: whole words of the desk, and bytes for any other text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steptool.environments.desk import tasks
from steptool.environments.desk.database import CITIES, CURRENCIES, IDS_PER_KIND, KINDS, NAMES
from steptool.environments.desk.expert import Expert

_MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<tool_call>", "</tool_call>")
_PAD, _UNKNOWN = "<pad>", "<unk>"
_IDS = tuple(f"{prefix}_{i:02d}" for prefix in KINDS.values() for i in range(IDS_PER_KIND))
_WORDS = sorted({w for name in NAMES for w in name.split()} | set(CITIES) | set(CURRENCIES))
_JSON = (
    '{"name": "',
    '", "arguments": {"',
    '"return_type": "give_answer", "final_answer": "',
    '"return_type": "give_up_and_restart"',
    '{"error": "',
    '": "',
    '": ',
    '", "',
    ', "',
    '"}}',
    '"}',
    "}}",
    '{"',
    "; ",
    "(",
    ", ",
    ")",
)
"""Pieces of JSON that always occur together; where one is the beginning of another, the longer comes first."""
_PATTERN = "|".join(
    [
        *(
            re.escape(run)
            for run in ('{"name": "Finish", "arguments": {"return_type": "give_answer", "final_answer": "', *_JSON)
        ),
        rf"(?:{'|'.join(KINDS.values())})_\d\d",
        rf" ?(?:{'|'.join(_WORDS)})(?![a-z_])",
        r"\d\d",
        r" ?[A-Za-z_]+ ?",
        r"\s",
        r"[^A-Za-z_\s]",
    ]
)


def _corpus() -> Iterator[str]:
    """Text of training tasks and of their demonstrations; every wording of the desk occurs in it."""
    rng = random.Random("tokenizer")
    for number in range(4000):
        split = ("train", tasks.ERRAND)[number // 2 % 2]
        query = tasks.draw_query(split, (tasks.SINGLE, tasks.LONG)[number % 2], f"tokenizer.{number}")
        yield query.instruction
        attempt = Expert(query, rng, slips=0.3, shortcuts=0.3).attempt()
        for step in attempt.steps:
            yield step.observation
        for tool in query.tools:
            yield f"{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])})"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template."""
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    seen = {piece for text in _corpus() for piece, _ in split.pre_tokenize_str(text)}
    words = sorted(seen | set(_IDS) | set(_WORDS) | {f"{n:02d}" for n in range(100)} | set(_JSON) | {tasks.DONE} - {""})
    words.append('{"name": "Finish", "arguments": {"return_type": "give_answer", "final_answer": "')
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    vocabulary = [(_PAD, 0.0), (_UNKNOWN, 0.0), *((m, 0.0) for m in _MARKS)]
    vocabulary += [(w, -1.0) for w in words if w not in bytes_] + [(b, -20.0) for b in bytes_]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        eos_token="<|end|>",
        additional_special_tokens=[m for m in _MARKS if m != "<|end|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    template = Path(__file__).parents[2] / "chat" / "templates" / "compact.jinja"
    fast.chat_template = template.read_text(encoding="utf-8").replace("\n", "")
    return fast
