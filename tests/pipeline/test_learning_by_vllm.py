"""Rounds in one process that vLLM plays, in an environment that has it (make test-vllm)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steptool.models.load import EMBEDDED, load_tokenizer, make_tiny_model
from steptool.pipeline.learning import RoundInputs, play_and_learn
from steptool.policies.vllm import RestingEngine, VllmEngine
from steptool.records import Metric
from steptool.records.tables import read_records

pytest.importorskip("vllm")
torch.set_num_threads(1)


@pytest.fixture
def inputs(world: Callable[..., RoundInputs], tmp_path: Path) -> RoundInputs:
    """With LoRA, vLLM, and steps so large that every round's policy is far from the base."""
    tokenizer = load_tokenizer(EMBEDDED)
    tokenizer.save_pretrained(tmp_path / "base")
    # heads of 32: vLLM takes none of 24 on a CPU
    make_tiny_model(tokenizer, 768, seed=0, hidden=128).save_pretrained(tmp_path / "base")
    inputs = world(lora_rank=4, base=str(tmp_path / "base"))
    rollout = inputs.config.rollout.model_copy(update={"engine": "vllm", "batch_size": 4})
    ppo = inputs.config.ppo.model_copy(update={"learning_rate": 0.02, "value_warmup_rounds": 0})
    return replace(inputs, config=inputs.config.model_copy(update={"rollout": rollout, "ppo": ppo}))


def count_cache_bytes(worker: Any) -> int:
    """Bytes of keys and values in vLLM's worker."""
    return sum(cache.untyped_storage().nbytes() for cache in worker.model_runner.kv_caches)


def test_one_vllm_plays_all_rounds_and_rests_while_the_process_trains(
    inputs: RoundInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[VllmEngine] = []
    bytes_before_training: list[int] = []
    open_engine = RestingEngine.open

    def note(resting: RestingEngine, folder: str, **options: Any) -> VllmEngine:
        engines.append(open_engine(resting, folder, **options))
        return engines[-1]

    def measure(name: str, page: str) -> None:
        bytes_before_training.extend(engines[-1]._engine.collective_rpc(count_cache_bytes))

    monkeypatch.setattr(RestingEngine, "open", note)
    finished = play_and_learn(inputs, 0, 3, inputs.start, None, tmp_path / "state", show=measure)
    assert len(engines) == 3 and engines[0] is engines[1] is engines[2]
    assert bytes_before_training == [0, 0, 0]
    for number, made in enumerate(finished):
        metrics = read_records(made.learned.metrics, Metric)
        (mismatch,) = (m.value for m in metrics if m.name == "mismatch_max")
        away = next(abs(m.value) for m in metrics if m.name == "kl" and m.update == 0)
        # an engine that played the base would differ by as much as the policy has moved away from it
        assert mismatch < 1e-3, f"round {number}"
        assert (away == 0) if number == 0 else (away > 1e-2), f"round {number}"
