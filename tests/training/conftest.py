"""Small real material: a tiny Qwen3 with a tokenizer, and trajectories of random tokens with several steps."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steptool.config import Config
from steptool.models.load import make_tiny_model, train_tokenizer
from steptool.records import Step, StepReward, StepStatus, StopReason, Trajectory

torch.set_num_threads(1)
TEXTS = ["Find the order and cancel it.", '{"name": "get_order", "arguments": {"order_id": "o1"}}'] * 20


def trajectory(
    number: int, vocabulary: int, *, prompt: int = 6, steps: int = 3, rng: np.random.Generator
) -> Trajectory:
    """Random tokens: a prompt, then steps of 2-5 tokens with observations of 1-4 tokens between them."""
    ids = list(rng.integers(5, vocabulary, prompt + int(rng.integers(0, 6))))
    spans = []
    for step in range(steps):
        start = len(ids)
        ids += list(rng.integers(5, vocabulary, int(rng.integers(2, 6))))
        spans.append((start, len(ids)))
        if step < steps - 1:
            ids += list(rng.integers(5, vocabulary, int(rng.integers(1, 5))))
    tokens = sum(e - s for s, e in spans)
    return Trajectory(
        trajectory_id=f"t{number}",
        query_id=f"q{number}",
        environment="none",
        tier="",
        policy="p",
        round=0,
        sample=0,
        temperature=1.0,
        messages=[],
        input_ids=np.array(ids, np.int32),
        spans=spans,
        logprobs=np.zeros(tokens, np.float32),
        steps=[Step(None, StepStatus.MALFORMED, "") for _ in spans],
        stop_reason=StopReason.STEP_LIMIT,
        final_answer=None,
        solved=None,
        seconds=0.0,
    )


def trajectories(count: int, vocabulary: int = 260, seed: int = 0) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    return [trajectory(i, vocabulary, steps=int(rng.integers(1, 5)), rng=rng) for i in range(count)]


def played(query: str, steps: list[Step], number: int = 0) -> Trajectory:
    """Random tokens under given steps of a try at a query."""
    t = trajectory(number, 260, steps=len(steps), rng=np.random.default_rng(number))
    return replace(t, query_id=query, steps=steps)


def rewards_for(rows: list[Trajectory], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(len(t.spans)) for t in rows]


def scored(rows: list[Trajectory], rewards: list[np.ndarray | None]) -> list[StepReward]:
    """Step rewards from which `config` composes the given rewards; None: a score is missing."""
    return [
        StepReward(
            trajectory_id=trajectory.trajectory_id, step=step, annotator="rules", annotator_version="1",
            succ_calling=1.0,
            contribution=None if reward_T is None else float(reward_T[step]),
            is_solved=float(reward_T[step]) if reward_T is not None and step == last else None,
        )
        for trajectory, reward_T in zip(rows, rewards, strict=True)
        for last in [(len(trajectory.spans) if reward_T is None else len(reward_T)) - 1]
        for step in range(last + 1)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    tokenizer.save_pretrained(folder)
    make_tiny_model(tokenizer, max_context=128, seed=0, hidden=32).save_pretrained(folder)
    return folder


def scores(rows: list[Trajectory], seed: int = 0) -> list[StepReward]:
    """Random step rewards."""
    return scored(rows, rewards_for(rows, seed))


def config(credit: dict[str, object] | None = None, rollout: dict[str, object] | None = None, **ppo: object) -> Config:
    defaults = {"rounds": 4, "batch_size": 4, "micro_batch_size": 4, "epochs": 2, "value_warmup_rounds": 0}
    defaults |= {"max_mismatch": 0, "nll_coef": 0}  # no model has sampled these tokens
    return Config.model_validate(
        {
            "ppo": {**defaults, "learning_rate": 1e-3, **ppo},
            "rollout": {"temperature": 1.0, **(rollout or {})},
            "credit": {"negative_weight": 1.0, **(credit or {})},
            "rewards": {"step_weight": 1.0, "alpha": 0.0, "redundant_cost": 0.0},
        }
    )


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    return SimpleNamespace(
        trajectories=trajectories, played=played, rewards=rewards_for, scored=scored, scores=scores, config=config
    )
