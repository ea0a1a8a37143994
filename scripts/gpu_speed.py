"""Speed and memory of updates, attention, log-probabilities and rollouts on a GPU: the parts of `scripts.gpu_check`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PEAK = 989e12
"""Dense bfloat16 operations per second of an H100 or H200 (SXM), from their data sheet."""
Row = dict[str, Any]


def measure_full(small: bool) -> list[Row]:
    """A PPO update of all weights of a model of 0.5 billion parameters, layers compiled."""
    return _measure_update("0.5B full", small, tokens_per_pass=16_384, sequences=8, compiled=True)


def measure_full_plain(small: bool) -> list[Row]:
    """The same without compiling."""
    return _measure_update("0.5B full", small, tokens_per_pass=8_192, sequences=8, compiled=False)


def measure_lora(small: bool) -> list[Row]:
    """A PPO update of a LoRA adapter of rank 16 on a model of 7 billion parameters, layers compiled."""
    return _measure_update("7B LoRA 16", small, tokens_per_pass=8_192, sequences=3, compiled=True)


def measure_lora_checkpointed(small: bool) -> list[Row]:
    """The same without compiling, with gradient checkpointing: the memory that remains is the least."""
    return _measure_update("7B LoRA 16", small, tokens_per_pass=8_192, sequences=2, compiled=False, checkpointed=True)


def _measure_update(
    name: str, small: bool, tokens_per_pass: int, sequences: int, *, compiled: bool, checkpointed: bool = False
) -> list[Row]:
    import torch

    from benchmarks.update import Size, make_actor, make_episodes, time_updates
    from steptool.models.load import choose_device
    from steptool.training.processes import PassLimit

    sizes = {
        "0.5B full": Size(896, 24, 14, 2, 4864, 151_936, sequences, 8192),
        "7B LoRA 16": Size(3584, 28, 28, 4, 18_944, 152_064, sequences, 8192, tied=False, lora_rank=16),
    }
    if small:
        sizes = {
            "0.5B full": Size(64, 2, 4, 2, 128, 20_000, sequences, 256),
            "7B LoRA 16": Size(64, 2, 4, 2, 128, 20_000, sequences, 256, tied=False, lora_rank=16),
        }
        tokens_per_pass //= 32
    size = sizes[name]
    _say(f"building {name} on {choose_device()}")
    actor = make_actor(size, torch.bfloat16, choose_device())
    if checkpointed:
        actor.checkpoint_activations()
    if compiled and not small:
        actor.compile_layers()
    _say("scoring, then updates")
    limit = PassLimit(1, tokens_per_pass, actor.packed)
    speed = time_updates(actor, size, make_episodes(size, shortest=1.0), limit, updates=2 if small else 4)
    flops = count_flops_per_token(size, speed.action_share) * speed.tokens
    conditions = {
        "compiled": compiled,
        "checkpointed": checkpointed,
        "packed": actor.packed,
        "padded": not actor.packed,
    }
    return [
        {
            "part": f"update {name}",
            "way": ", ".join(name for name, holds in conditions.items() if holds),
            "tokens/s": round(speed.tokens),
            "share of peak": f"{flops / PEAK:.1%}",
            "scoring tokens/s": round(speed.scored),
            "seconds an update": round(speed.seconds, 2),
            "action tokens": f"{speed.action_share:.0%}",
            "peak GB": _read_peak_gigabytes(),
        }
    ]


def count_flops_per_token(size: Any, action_share: float) -> float:
    """Operations that an update needs for one token, without those that are made a second time.

    6 per weight of the layers, and per weight of the output layer for each action token (nothing else reaches it); 4
    where the weight is frozen, and 6 for the adapter. Attention of T tokens, half of them masked: 6 * T * H in each
    layer (queries times keys and weights times values, T * H each, three times: forward, and twice that backward).
    """
    keys = size.key_value_heads * size.hidden // size.heads
    queries_and_output, keys_and_values = 2 * [(size.hidden, size.hidden)], 2 * [(size.hidden, keys)]
    linear = [*queries_and_output, *keys_and_values, *3 * [(size.hidden, size.intermediate)]]
    weights = size.layers * sum(a * b for a, b in linear)
    adapter = size.layers * size.lora_rank * sum(a + b for a, b in linear)
    head = size.vocabulary * size.hidden * action_share
    per_weight = 4 if size.lora_rank else 6
    attention = 6 * size.layers * size.length * size.hidden
    return float(per_weight * (weights + head) + 6 * adapter + attention)


def measure_attention(small: bool) -> list[Row]:
    """Causal attention of 8,192 tokens, forward and backward: torch's kernels for variable lengths against SDPA."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from steptool.models.load import choose_device

    rows: list[Row] = []
    length = 128 if small else 8192
    for heads, key_value_heads, width in ((14, 2, 64), (28, 4, 128)):
        shapes = [(1, count, length, width) for count in (heads, key_value_heads, key_value_heads)]
        query, key, value = (
            torch.randn(shape, device=choose_device(), dtype=torch.bfloat16, requires_grad=True) for shape in shapes
        )
        ways = {"SDPA": partial(scaled_dot_product_attention, query, key, value, is_causal=True, enable_gqa=True)}
        if choose_device().type == "cuda":
            ways["variable length, two halves"] = partial(_attend, query, key, value)
        for name, way in ways.items():
            seconds = _time_calls(partial(_compute_gradients, way, [query, key, value]))
            flops = 6 * length * length * heads * width / (2 if "halves" in name else 1)
            rows.append(
                {
                    "part": f"attention {heads} heads of {width}", "way": name, "ms": round(1e3 * seconds, 2),
                    "share of peak": f"{flops / seconds / PEAK:.1%}",
                }
            )  # fmt: skip
    return rows


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    import torch

    from steptool.models.packed_attention import attend

    half = query.shape[2] // 2
    bounds = torch.tensor([0, half, 2 * half], dtype=torch.int32, device=query.device)
    return attend(torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=bounds, max_length_q=half)[0]


def _compute_gradients(way: Callable[[], Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward."""
    import torch

    return torch.autograd.grad(way().sum(), inputs)


def measure_log_probs(small: bool) -> list[Row]:
    """Log-probabilities of 8,192 tokens at a vocabulary of 152k, forward and backward: in tiles against all at once."""
    import torch
    from torch import nn

    from steptool.models.load import choose_device
    from steptool.models.logprobs import TileWays, compute_token_log_probs

    count, hidden, vocabulary = (64, 64, 20_000) if small else (8192, 896, 151_936)
    head = nn.Linear(hidden, vocabulary, bias=False).to(choose_device(), torch.bfloat16)
    states = torch.randn(count, hidden, device=choose_device(), dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, vocabulary, (count,), device=choose_device())
    lm: Any = _HeadOnly(head)
    ways: dict[str, Callable[[], Tensor]] = {
        "tiles": lambda: compute_token_log_probs(lm, states, targets)[0],
        "all at once": lambda: head(states).float().log_softmax(-1).gather(-1, targets[:, None]),
    }
    if not small:
        ways["tiles, compiled"] = lambda: compute_token_log_probs(lm, states, targets, 1.0, TileWays(fused=True))[0]
    rows: list[Row] = []
    for name, way in ways.items():
        run = partial(_compute_gradients, way, [states, head.weight])
        seconds = _time_calls(run)
        before = _reset_peak()
        run()
        peak = _read_peak_gigabytes()
        rows.append(
            {
                "part": f"log-probabilities of {count} tokens, vocabulary {vocabulary}", "way": name,
                "ms": round(1e3 * seconds, 1), "extra GB": None if peak is None else round(peak - before, 2),
            }
        )  # fmt: skip
        _say(json.dumps(rows[-1]))
    return rows


class _HeadOnly:
    """As much of a model as log-probabilities need."""

    class config:  # noqa: N801
        """Nothing between the output layer and the softmax."""

        @staticmethod
        def get_text_config() -> object:
            """A configuration without fields."""
            return object()

    def __init__(self, head: Any) -> None:
        self._head = head

    def get_output_embeddings(self) -> Any:
        """The output layer."""
        return self._head


def measure_rollout(small: bool) -> list[Row]:
    """Episodes of three turns by our own engine, plain and with decoding steps recorded as CUDA graphs."""
    import torch

    from benchmarks.rollout import NOTE, SENTENCE, Notebook, NoteCodec, make_queries
    from benchmarks.update import Size, make_model
    from steptool.config import RolloutConfig
    from steptool.models.load import choose_device, train_tokenizer
    from steptool.policies.token_policies import LocalPolicy
    from steptool.rollout.runner import roll_out

    codec = NoteCodec(train_tokenizer([SENTENCE, str(NOTE)] * 4))
    sizes = {
        "135M": Size(576, 30, 9, 3, 1536, 49_152, 1, 1),
        "0.5B": Size(896, 24, 14, 2, 4864, 151_936, 1, 1),
    }
    if small:
        sizes = {"tiny": Size(64, 2, 4, 2, 128, 4096, 1, 1)}
    rows: list[Row] = []
    for name, size in sizes.items():
        model = make_model(size, torch.bfloat16, choose_device())
        model.get_output_embeddings().weight.data[len(codec.tokenizer) :] = 0.0
        queries = [replace(query, query_id=f"{query.query_id} {n}") for n in range(4) for query in make_queries()]
        queries = queries[:4] if small else queries
        for way, episodes in (("warming up", queries[:4]), ("plain", queries), ("CUDA graphs", queries)):
            rollout = RolloutConfig(
                batch_size=len(episodes),
                max_steps=3,
                max_new_tokens=4 if small else 32,
                cuda_graphs=way == "CUDA graphs",
            )
            policy = LocalPolicy(model, codec, name="random", rollout=rollout, max_context=2048, seed=0)
            _reset_peak()
            start = time.perf_counter()
            trajectories = [episode.trajectory for episode in roll_out(policy, episodes, Notebook())]
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "part": f"rollout {name}", "way": f"{len(episodes)} episodes, {way}",
                    "tokens/s": round(sum(t.action_tokens for t in trajectories) / seconds),
                    "seconds": round(seconds, 1), "peak GB": _read_peak_gigabytes(),
                }
            )  # fmt: skip
            _say(json.dumps(rows[-1]))
    return rows


def _say(text: str) -> None:
    print(text, flush=True)


def _time_calls(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of one call, after two to warm up."""
    for _ in range(2):
        run()
    _wait()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait()
    return (time.perf_counter() - start) / repeats


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> float:
    """Start a new measurement of the peak; returns the gigabytes in use."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e9


def _read_peak_gigabytes() -> float | None:
    """The most GPU memory that tensors have held; None on a CPU."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None
