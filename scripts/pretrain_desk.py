"""Pretraining of the embedded base model on logs of errands, in place of a model from a hub.

    python -m scripts.pretrain_desk         # the first three phases, from random weights
    python -m scripts.pretrain_desk --last  # the last phase, from the weights in base/

The seeds are fixed. The two commands take about 10 and 25 minutes on one core. Each writes
`steptool/environments/desk/base/`. The logs hold errands (`goals.py` there) carried out by an expert that seldom slips:
first one goal, then two, at last two or three. The logs contain no procedure of the desk: the model learns those in the
warm start and by reinforcement. The tokenizer has whole words of the desk, and bytes for any other text.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from steptool.chat.codec import ChatCodec, Encoded
from steptool.environments.desk import tasks
from steptool.environments.desk.environment import CITIES, CURRENCIES, IDS_PER_KIND, KINDS, NAMES
from steptool.environments.desk.tasks import Expert
from steptool.models.load import EMBEDDED, load_tokenizer

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


def _write_corpus() -> Iterator[str]:
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
    seen = {piece for text in _write_corpus() for piece, _ in split.pre_tokenize_str(text)}
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
    template = EMBEDDED.parents[2] / "chat" / "templates" / "compact.jinja"
    fast.chat_template = template.read_text(encoding="utf-8").replace("\n", "")
    return fast


SLIPS = 0.05
BATCH = 16
WARMUP = 50


@dataclass(frozen=True)
class Phase:
    """A part of the pretraining, with an optimizer and a learning rate of its own."""

    tiers: tuple[str, ...]
    steps: int
    learning_rate: float
    logs: int = 12_000


PHASES = (
    Phase((tasks.SINGLE,), 600, 3e-3),
    Phase((tasks.SINGLE, tasks.SHORT, tasks.PAIR), 900, 3e-3),
    Phase((tasks.SINGLE, tasks.LONG, tasks.LONG), 500, 2e-3),
    Phase((tasks.SINGLE, tasks.LONG, tasks.LONG), 3000, 2e-3, logs=48_000),
)


def make_logs(codec: ChatCodec, phase: Phase, name: str) -> list[Encoded]:
    """Encoded demonstrations of errands of the phase's tiers."""
    rng = random.Random(name)
    logs = []
    for number in range(phase.logs):
        query = tasks.draw_query(tasks.ERRAND, phase.tiers[number % len(phase.tiers)], f"{name}.{number}")
        attempt = Expert(query, rng, SLIPS, shortcuts=0.0).attempt()
        logs.append(codec.encode(attempt.messages, query.tools))
    return logs


def draw_batches(logs: list[Encoded], rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of logs of similar length in random order, without end."""
    while True:
        order = rng.sample(logs, len(logs))
        pools = [
            sorted(order[i : i + BATCH * 8], key=lambda e: len(e.input_ids)) for i in range(0, len(order), BATCH * 8)
        ]
        batches = [pool[i : i + BATCH] for pool in pools for i in range(0, len(pool), BATCH)]
        yield from rng.sample(batches, len(batches))


def compute_loss(model: Qwen3ForCausalLM, batch: list[Encoded], pad: int) -> torch.Tensor:
    """Mean negative log-likelihood of the assistant tokens."""
    width = max(len(e.input_ids) for e in batch)
    ids = torch.full((len(batch), width), pad)
    action = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        for start, end in example.spans:
            action[row, start:end] = True
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1][action[:, 1:]]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][action[:, 1:]])


def make_optimizers(model: torch.nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon on the hidden matrices, AdamW on embeddings and norms."""
    named_parameters = list(model.named_parameters())
    hidden = [p for n, p in named_parameters if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named_parameters if not (p.ndim == 2 and "embed" not in n)]
    return [
        torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def pretrain(last: bool = False) -> None:
    """Go through the phases before the last from random weights, or through the last from the weights in `base/`.

    Writes `base/` in half precision.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(EMBEDDED)
    if last:
        model = Qwen3ForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    else:
        model = Qwen3ForCausalLM(_make_config(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id))
    model.train()
    for number in (len(PHASES) - 1,) if last else range(len(PHASES) - 1):
        _train(model, ChatCodec(load_tokenizer(EMBEDDED)), tokenizer.pad_token_id, PHASES[number], f"p{number}")
    model.half().save_pretrained(EMBEDDED)


def _train(model: Qwen3ForCausalLM, codec: ChatCodec, pad: int, phase: Phase, name: str) -> None:
    rng, optimizer = random.Random(0), make_optimizers(model, phase.learning_rate)
    for step, batch in zip(range(phase.steps), draw_batches(make_logs(codec, phase, name), rng), strict=False):
        share = min(1.0, (step + 1) / WARMUP) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / phase.steps)))
        for group in (g for o in optimizer for g in o.param_groups):
            group["lr"] = phase.learning_rate * share
        loss = compute_loss(model, batch, pad)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizer:
            o.step()
            o.zero_grad()
        if step % 100 == 99:
            print(f"{name}: step {step + 1} of {phase.steps}, loss {loss.item():.3f}", flush=True)


def _make_config(vocabulary: int, pad: int, end: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=math.ceil(vocabulary / 8) * 8,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=24,
        intermediate_size=256,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--last", action="store_true", help="go through the last phase")
    pretrain(parser.parse_args().last)
