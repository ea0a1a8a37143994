"""Log-probabilities of 1,024 tokens at a vocabulary of 151,936, forward and backward: ours against TRL's kernel.

Prints `log-probabilities DTYPE extra MB: OURS OTHER RATIO`, the memory beside states and weights, gradients included,
and `log-probabilities DTYPE seconds: OURS OTHER RATIO`, on one thread. Each side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

TOKENS, HIDDEN, VOCABULARY = 1024, 896, 151_936
_TILE = 32_768


def tiled_log_probs(states_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
    """The library."""
    from steptool.models.logprobs import compute_token_log_probs

    head = SimpleNamespace(weight=weight_VH, bias=None)
    lm: Any = SimpleNamespace(
        get_output_embeddings=lambda: head, config=SimpleNamespace(get_text_config=SimpleNamespace)
    )
    return compute_token_log_probs(lm, states_NH, targets_N)[0]


def other(states_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
    """TRL's chunked kernel, with the entropy that ours gives as well."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    log_probs_N: Tensor = ChunkedLogProbFunction.apply(
        states_NH, weight_VH, None, targets_N, 1.0, _TILE, None, 1.0, ("entropy",)
    )[0]
    return log_probs_N


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": tiled_log_probs, "other": other}


def run_side(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Memory that one forward and backward pass takes beside its inputs, and its seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight_VH = (torch.randn(VOCABULARY, HIDDEN) * 0.02).to(dtype).requires_grad_()
    states_NH = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
    targets_N = torch.randint(0, VOCABULARY, (TOKENS,))
    # a first pass loads what is loaded once
    SIDES[name](states_NH[:2], weight_VH[:64], targets_N[:2] % 64).sum().backward()  # type: ignore[no-untyped-call]
    weight_VH.grad = None
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # starts the measurement of the peak anew
    before, start = _megabytes("VmRSS"), time.perf_counter()
    SIDES[name](states_NH, weight_VH, targets_N).sum().backward()  # type: ignore[no-untyped-call]
    return {"extra MB": _megabytes("VmHWM") - before, "seconds": time.perf_counter() - start}


def _megabytes(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides in both precisions, or one side in one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(run_side(options.side, getattr(torch, options.dtype))))
        return
    for dtype in ("float32", "bfloat16"):
        figures = []
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.log_probs", "--side", side, "--dtype", dtype]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures.append(json.loads(output.splitlines()[-1]))
        for name, value in figures[0].items():
            against = figures[1][name]
            print(f"log-probabilities {dtype} {name}: {value:.1f} {against:.1f} {value / against:.2f}", flush=True)


if __name__ == "__main__":
    main()
