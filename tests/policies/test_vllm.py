"""The real engine, in an environment that has it (make test-vllm)."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steptool.config import Config, EvaluatedPolicy
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_desk_queries
from steptool.models.adapter import add_adapter, save_adapter
from steptool.models.load import EMBEDDED, load_model, load_tokenizer, make_tiny_model
from steptool.policies.catalog import open_policy
from steptool.policies.vllm import RestingEngine
from steptool.records import Query, Trajectory
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import roll_out

pytest.importorskip("vllm")
SIZES = {"train_queries": 1, "validation_queries": 1, "heldout_queries": 4}


def write_model(folder: Path, sharpness: float) -> EvaluatedPolicy:
    """A model of random float32 weights. Without sharpness every token is about as probable as any other."""
    tokenizer = load_tokenizer(EMBEDDED)
    tokenizer.save_pretrained(folder)
    model = make_tiny_model(tokenizer, 768, seed=0, hidden=128)  # heads of 32: vLLM takes none of 24 on a CPU
    model.model.embed_tokens.weight.data *= sharpness
    model.save_pretrained(folder)
    return EvaluatedPolicy(name="small", model=str(folder))


def play(
    engine: str,
    policy: EvaluatedPolicy,
    queries: Sequence[Query],
    resting: RestingEngine | None = None,
    **settings: Any,
) -> list[Trajectory]:
    config = Config.model_validate({"policy": {"lora_rank": 4}, "rollout": {"engine": engine, "temperature": 1.0}})
    with open_policy(policy, config, resting=resting) as opened:
        return [episode.trajectory for episode in roll_out(opened, queries, DeskEnvironment(), **settings)]


def heldout() -> list[Query]:
    return [q for q in draw_desk_queries(Config.model_validate({"data": SIZES})) if q.split == "heldout"]


def expect_alike(ours: Sequence[Trajectory], theirs: Sequence[Trajectory]) -> None:
    assert [t.input_ids.tolist() for t in ours] == [t.input_ids.tolist() for t in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)


def test_vllm_plays_as_our_own_sampler_does(tmp_path: Path) -> None:
    policy = write_model(tmp_path, 20.0)
    episodes = play("transformers", policy, heldout(), decoding=Decoding.GREEDY)
    assert sum(len(t.steps) for t in episodes) >= 12
    expect_alike(episodes, play("vllm", policy, heldout(), decoding=Decoding.GREEDY))


def test_samples_depend_on_round_query_and_sample_alone(tmp_path: Path) -> None:
    policy, queries = write_model(tmp_path, 1.0), heldout()
    together = play("vllm", policy, [*queries, *queries])
    alone = play("vllm", policy, queries[2:3], sample=1)
    later = play("vllm", policy, queries, round_index=1)
    expect_alike(together[6:7], alone)
    assert len({tuple(t.input_ids.tolist()) for t in (*together, *later)}) == 12


def write_adapter(folder: Path, policy: EvaluatedPolicy) -> EvaluatedPolicy:
    """An adapter of random weights over the model of a policy."""
    config = Config.model_validate({"policy": {"lora_rank": 4}}).policy
    adapted = add_adapter(load_model(policy.model), config, seed=0)
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    save_adapter(adapted, policy.model, folder)
    return EvaluatedPolicy(name="small", model=str(folder), base=policy.model)


def test_an_adapter_is_played_over_its_base(tmp_path: Path) -> None:
    policy = write_model(tmp_path / "base", 20.0)
    over_base = write_adapter(tmp_path / "adapter", policy)
    actual, expected = (
        play(engine, over_base, heldout(), decoding=Decoding.GREEDY) for engine in ("transformers", "vllm")
    )
    expect_alike(actual, expected)
    without = play("transformers", policy, heldout(), decoding=Decoding.GREEDY)
    assert [t.input_ids.tolist() for t in without] != [t.input_ids.tolist() for t in actual]


def test_a_resting_engine_goes_on_with_other_weights_and_adapters(tmp_path: Path) -> None:
    """As rounds placed together use it: every policy is played as by an engine of its own, which an adapter shares."""
    first, second = write_model(tmp_path / "first", 20.0), write_model(tmp_path / "second", 3.0)
    policies = [first, write_adapter(tmp_path / "adapter", first), first, second]
    engines, played = [], []
    with closing(RestingEngine()) as resting:
        for policy in policies:
            played.append(play("vllm", policy, heldout(), resting, decoding=Decoding.GREEDY))
            engines.append(resting._engine)
    assert engines[0] is engines[1] is engines[2]
    for policy, episodes in zip(policies, played, strict=True):
        expect_alike(episodes, play("transformers", policy, heldout(), decoding=Decoding.GREEDY))
    assert len({np.concatenate([t.logprobs[:4] for t in episodes]).tobytes() for episodes in played}) == 3
