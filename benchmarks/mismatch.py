"""How far the engines of rollouts are from the model that is trained: figures of steptool.training.scores.

Prints a line for each engine and precision: mean, 99% quantile and maximum of the difference, k3 and the effective
sample share, with training at the engine's temperature of .7 and, as a fault would have it, at .8. The model has random
weights that are large enough for its distributions to differ from uniform ones. vLLM is measured where it is installed
(`make vllm`, then `.venv-vllm/bin/python -m benchmarks.mismatch`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from steptool.models.actor import Actor, collate
from steptool.models.load import load_model, make_tiny_model, train_tokenizer
from steptool.policies.sampler import BatchSampler, Feed
from steptool.policies.token_policies import Sampling
from steptool.training.scores import Mismatch, measure_mismatch

TEMPERATURE, WRONG_TEMPERATURE = 0.7, 0.8
REQUESTS, PROMPT, TURN = 16, 12, 64


@dataclass(frozen=True)
class Sampled:
    """A prompt with a turn that an engine has sampled after it."""

    input_ids: list[int]
    logprobs: npt.NDArray[np.float32]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where the turn lies."""
        return [(PROMPT, len(self.input_ids))]


def make_folder(folder: Path, dtype: torch.dtype) -> None:
    """A model folder of 256 hidden units in heads of 64, which vLLM's kernels for CPUs know."""
    tokenizer = train_tokenizer(["Find the order and cancel it."], vocabulary=300)
    tokenizer.save_pretrained(folder)
    model = make_tiny_model(tokenizer, max_context=256, seed=0, hidden=256)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.8)
    model.to(dtype).save_pretrained(folder)


def play_transformers(folder: Path, prompts: Sequence[list[int]]) -> list[Sampled]:
    """Turns of this package's own sampler."""
    sampler = BatchSampler(load_model(folder), REQUESTS, set(), max_new_tokens=TURN, temperature=TEMPERATURE)
    uniforms = np.random.default_rng(1).random((REQUESTS, TURN), dtype=np.float32)
    sampler.feed([Feed(row, 0, prompt, uniforms[row]) for row, prompt in enumerate(prompts)])
    while sampler.ended_count < REQUESTS:
        sampler.step()
    return [Sampled([*prompts[turn.row], *turn.ids], turn.logprobs) for turn in sampler.take()]


def play_vllm(folder: Path, prompts: Sequence[list[int]]) -> list[Sampled]:
    """Turns of vLLM."""
    from steptool.policies.vllm import VllmEngine

    engine = VllmEngine(str(folder), max_context=256, max_requests=REQUESTS)
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, Sampling(TURN, TEMPERATURE, (), number))
    turns: list[Sampled] = []
    while len(turns) < REQUESTS:
        turns += [Sampled([*prompts[int(c.request_id)], *c.ids], c.logprobs) for c in engine.step()]
    engine.close()
    return turns


@torch.no_grad()
def compare(folder: Path, turns: Sequence[Sampled], temperature: float) -> Mismatch:
    """The figures with training at a temperature."""
    log_probs_N = Actor(load_model(folder), temperature=temperature)(collate(turns)).log_probs_N.cpu().numpy()
    return measure_mismatch(log_probs_N, np.concatenate([turn.logprobs for turn in turns]), importance_cap=2.0)


def main() -> None:
    """Measure every engine in both precisions."""
    prompts = np.random.default_rng(0).integers(5, 200, (REQUESTS, PROMPT)).tolist()
    engines = {"transformers": play_transformers, **({"vllm": play_vllm} if find_spec("vllm") else {})}
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as name:
            make_folder(Path(name), dtype)
            for engine, play in engines.items():
                turns = play(Path(name), prompts)
                for temperature in (TEMPERATURE, WRONG_TEMPERATURE):
                    figures = compare(Path(name), turns, temperature)
                    print(
                        f"{engine} {str(dtype).removeprefix('torch.')}, training at {temperature}: mean "
                        f"{figures.mean:.1e} 99% {figures.p99:.1e} largest {figures.largest:.1e} k3 {figures.k3:.1e} "
                        f"effective share {figures.effective_share:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
