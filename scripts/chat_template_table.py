"""The table of docs/chat-formats.md: how the chat templates in TRL's package can be played.

python scripts/chat_template_table.py            prints the table
python scripts/chat_template_table.py --write    puts it into docs/chat-formats.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steptool.chat.codec import ChatCodec
from steptool.chat.messages import FINISH_SCHEMA, make_call_message, make_tool_message
from steptool.records import Message, ToolCall

FOLDER = Path(trl.__file__).parent / "chat_templates"
PAGE = Path(__file__).parents[1] / "docs" / "chat-formats.md"
BEGIN, END = "<!-- templates: begin -->", "<!-- templates: end -->"
_TOKEN = re.compile(
    r"<[|｜]?[^<>\s]{1,40}[|｜]>|<[|｜][^<>\s|｜]{1,40}>|</?s>|</?\w+_(?:call|response|of_turn|key|value)>|</?think>|"
    r"<end_of_\w+>|\[/?[A-Z_]+\]"
)
_EOS = (
    *("<|im_end|>", "<|return|>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|end|>", "<end_of_turn>"),
    *("<end_of_utterance>", "</s>", "<|endoftext|>"),
)
ORDER = ToolCall("get_order", {"id": "7"})
FINISH = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "It is shipped."})
TALK: list[Message] = [
    {"role": "user", "content": "Where is order 7?"},
    make_call_message(ORDER, "Look first."),
    make_tool_message("get_order", '{"state": "shipped"}'),
    make_call_message(FINISH),
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_order",
            "description": "Read an order",
            "parameters": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
        },
    },
    FINISH_SCHEMA,
]


def make_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the control tokens that the template writes or builds from pieces."""
    tokens = sorted({*_TOKEN.findall(template), *_EOS, "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"})
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([], trainer)
    eos = next(token for token in _EOS if token in template or token == _EOS[-1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


def play(template: str, chat_format: str) -> str:
    """The format in which a conversation is cut into turns and read back, or the reason why it cannot be."""
    try:
        codec = ChatCodec(make_tokenizer(template), chat_format)
        encoding = codec.encode(TALK, TOOLS)
    except ValueError as error:
        return f"refused: {str(error).split(':')[0].split(';')[0]}"
    calls = [codec.parse(encoding.input_ids[a:b].tolist(), TOOLS).call for a, b in encoding.spans]
    expected = [
        ToolCall("get_order", {"id": "7"}),
        ToolCall("Finish", TALK[3]["tool_calls"][0]["function"]["arguments"]),
    ]
    assert calls == expected, f"{calls} in {chat_format}"
    return f"`{codec.format.name}`" + (", native" if codec.native else ", as text")


def list_rows() -> Iterator[tuple[str, ...]]:
    """Template, what `auto` does, and whether hermes and react work. Templates patched for training are left out."""
    for path in sorted(FOLDER.glob("*.jinja")):
        if not path.stem.endswith("_training"):
            template = path.read_text(encoding="utf-8")
            forced = (play(template, name) for name in ("hermes", "react"))
            yield (path.stem, play(template, "auto"), *("yes" if "refused" not in text else text for text in forced))


def write_table() -> str:
    """The table as Markdown."""
    lines = ["| template | `auto` | `hermes` | `react` |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in list_rows())])


def main() -> None:
    """Print the table, or write it into the page."""
    text = write_table()
    if "--write" not in sys.argv[1:]:
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8")
    before, remainder = page.split(BEGIN)
    _, after = remainder.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
