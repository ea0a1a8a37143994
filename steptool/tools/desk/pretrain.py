"""Pretraining of the embedded policy on clean logs of the desk: what a model hub would otherwise provide.

    python -m steptool.tools.desk.pretrain

Fixed seeds; about ten minutes on one core. The result is `base/` beside this file. Only compositions of the training
split are seen, in queries of one to five calls, carried out by an expert that seldom slips and cuts no corners.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from steptool.chat.codec import ChatCodec, Encoded
from steptool.tools.desk import tasks
from steptool.tools.desk.expert import Expert
from steptool.tools.desk.tokenizer import build_tokenizer

FOLDER = Path(__file__).parent / "base"
LOGS = 12_000
SLIPS = 0.05
STEPS = 2500
BATCH = 16
LEARNING_RATE = 3e-3
WARMUP = 50


def clean_logs(codec: ChatCodec) -> list[Encoded]:
    """Encoded demonstrations of short training queries."""
    rng = random.Random("pretraining")
    return [_clean_log(codec, rng, number) for number in range(LOGS)]


def _clean_log(codec: ChatCodec, rng: random.Random, number: int) -> Encoded:
    tier = (tasks.SINGLE, tasks.SHORT, tasks.SHORT)[number % 3]
    query = tasks.draw_query("train", tier, f"pretraining.{number}")
    return codec.encode(Expert(query, rng, SLIPS, shortcuts=0.0).attempt().messages, query.tools)


def batches(logs: list[Encoded], rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of similar length in random order, without end."""
    while True:
        order = rng.sample(logs, len(logs))
        pools = [
            sorted(order[i : i + BATCH * 8], key=lambda e: len(e.input_ids)) for i in range(0, len(order), BATCH * 8)
        ]
        made = [pool[i : i + BATCH] for pool in pools for i in range(0, len(pool), BATCH)]
        yield from rng.sample(made, len(made))


def loss_of(model: Qwen3ForCausalLM, batch: list[Encoded], pad: int) -> torch.Tensor:
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


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon on the hidden matrices, AdamW on embeddings and norms."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named if not (p.ndim == 2 and "embed" not in n)]
    return [
        torch.optim.Muon(hidden, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def pretrain() -> None:
    """Train and write `base/` (weights in half precision)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = Qwen3ForCausalLM(_config(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id))
    codec, rng, optimizer = ChatCodec(tokenizer), random.Random(0), optimizers(model)
    for step, batch in zip(range(STEPS), batches(clean_logs(codec), rng), strict=False):
        share = min(1.0, (step + 1) / WARMUP) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / STEPS)))
        for group in (g for o in optimizer for g in o.param_groups):
            group["lr"] = LEARNING_RATE * share
        loss = loss_of(model, batch, tokenizer.pad_token_id)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizer:
            o.step()
            o.zero_grad()
        if step % 100 == 99:
            sys.stdout.write(f"step {step + 1} of {STEPS}, loss {loss.item():.3f}\n")
            sys.stdout.flush()
    model.half().save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)


def _config(vocabulary: int, pad: int, end: int) -> Qwen3Config:
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
    pretrain()
