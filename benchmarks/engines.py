"""SmolLM2-135M plays episodes through vLLM, through our transformers engine, and by model.generate on each history.

    python -m benchmarks.engines [FOLDER] [--episodes 40]

FOLDER is the one that `make smollm` builds, runs/smollm-base, and a round of configs/smollm.yaml has 40 episodes, which
are played side by side. The same model in bfloat16, the same tasks and greedy decoding for all three, so that they make
the same episodes up to rounding. An episode has nine turns, as a long task of the desk. vLLM needs the environment of
`make vllm`; where it is missing its lines are left out. Speeds are tokens sampled per second of processor time, so that
they hardly depend on what else runs on the machine. Prints `NAME tokens/s: OURS OTHER RATIO`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks import rollout
from benchmarks.rollout import CONTEXT, NEW_TOKENS, Notebook, NoteCodec, make_queries, regenerate
from steptool.config import RolloutConfig
from steptool.models.load import load_model, load_tokenizer
from steptool.policies.token_policies import EnginePolicy, LocalPolicy, PolicySettings
from steptool.policies.vllm import VllmEngine
from steptool.records import Query
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import Policy, roll_out

FOLDER, EPISODES, TURNS = Path("runs/smollm-base"), 40, 9
Episodes = list[list[int]]


def make_settings(episodes: int) -> PolicySettings:
    """Settings of a policy that plays this many episodes side by side."""
    rollout_config = RolloutConfig(batch_size=episodes, max_steps=TURNS, max_new_tokens=NEW_TOKENS)
    return {"name": "smollm", "rollout": rollout_config, "max_context": CONTEXT, "seed": 0, "search": None}


def play(policy: Policy, queries: list[Query]) -> Episodes:
    """The tokens of each episode."""
    played = [episode.trajectory for episode in roll_out(policy, queries, Notebook(), decoding=Decoding.GREEDY)]
    rollout.SAMPLED["ours"] = sum(t.action_tokens for t in played)
    return [t.input_ids.tolist() for t in played]


def measure(name: str, run: Callable[[list[Query]], Episodes], queries: list[Query]) -> tuple[float, Episodes]:
    """Warm up on a few episodes, then play all; returns tokens per second of processor time, and the episodes."""
    run(queries[:1])
    started = time.process_time()
    episodes = run(queries)
    return rollout.SAMPLED[name] / (time.process_time() - started), episodes


def compare(label: str, ours: float, other: float) -> None:
    """Print one line of the result."""
    sys.stdout.write(f"{label} tokens/s: {ours:.0f} {other:.0f} {ours / other:.2f}\n")


def main() -> None:
    """Play the episodes in each way, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="model folder")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="episodes that are played side by side")
    options = parser.parse_args()
    folder, settings = options.folder, make_settings(options.episodes)
    if not folder.is_dir():
        sys.stdout.write(f"engines: no model in {folder}; python -m scripts.smollm {folder} builds it\n")
        return
    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    codec, model, queries = NoteCodec(load_tokenizer(folder)), load_model(folder), make_queries()[: options.episodes]
    plain, histories = measure("other", lambda batch: regenerate(model, codec, batch, TURNS), queries)
    with closing(LocalPolicy(model, codec, **settings)) as policy:
        ours, episodes = measure("ours", lambda batch: play(policy, batch), queries)
    longest = max(map(len, episodes))
    equal = sum(a == b for a, b in zip(episodes, histories, strict=True))
    sys.stdout.write(
        f"engines: {len(queries)} episodes of up to {longest} tokens, {equal} equal to those of generate\n"
    )
    compare("transformers engine against generate", ours, plain)
    if importlib.util.find_spec("vllm"):
        engine = VllmEngine(str(folder), max_context=CONTEXT, max_requests=options.episodes)
        with closing(EnginePolicy(engine, codec, **settings)) as policy:
            other, _ = measure("ours", lambda batch: play(policy, batch), queries)
        compare("vLLM against generate", other, plain)
        compare("vLLM against the transformers engine", other, ours)


if __name__ == "__main__":
    main()
