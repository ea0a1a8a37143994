from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from steptool.config import Config
from steptool.models.actor import Actor, collate
from steptool.models.load import load_model
from steptool.records import Step, StepReward, StepStatus, ToolCall, Trajectory
from steptool.training.rounds import train_round

CALLS = [Step(ToolCall("look", {}), StepStatus.OK, ""), Step(ToolCall("act", {}), StepStatus.OK, "")]


def tries(make: SimpleNamespace, queries: int = 2, each: int = 3) -> list[Trajectory]:
    return [make.played(f"q{i // each}", CALLS, number=i) for i in range(queries * each)]


def outcomes(rows: list[Trajectory], solved: list[float]) -> list[StepReward]:
    return [
        StepReward(t.trajectory_id, step, "rules", "1", "", 1.0, 0.0, outcome if step == len(t.spans) - 1 else None)
        for t, outcome in zip(rows, solved, strict=True)
        for step in range(len(t.spans))
    ]


def configure(make: SimpleNamespace, algorithm: str, credit: dict[str, object] | None = None, **ppo: object) -> Config:
    section = {"whiten": False, **(credit or {})}
    return make.config(section, {"samples_per_query": 3}, algorithm=algorithm, **ppo)


def log_probs(folder: Path, rows: list[Trajectory]) -> float:
    with torch.no_grad():
        return float(Actor(load_model(folder))(collate(rows)).log_probs_N.mean())


def test_advantages_of_grpo_and_gigpo_by_hand(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    """One query, one of three tries solved; gamma 1/2. All tries start in one state and call the same there."""
    rows = tries(make, queries=1)
    scores, root = outcomes(rows, [1.0, 0.0, 0.0]), 2**0.5
    results = {
        algorithm: train_round(
            model_dir, model_dir, rows, scores, round_index=0, out_dir=tmp_path / algorithm,
            config=configure(make, algorithm, {"gamma": 0.5}),
        )
        for algorithm in ("grpo", "gigpo")
    }  # fmt: skip
    by_episode = [root, root, *[-1 / root] * 4]
    assert [a.advantage for a in results["grpo"].advantages] == pytest.approx(by_episode, rel=1e-4)
    # the second step too comes after the same call: both states have returns in the proportions 1, 0, 0
    assert [a.advantage for a in results["gigpo"].advantages] == pytest.approx([2 * a for a in by_episode], rel=1e-4)


def test_better_tries_become_likelier_without_a_value_head(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows = tries(make)
    solved = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    config = configure(make, "gigpo", epochs=4, learning_rate=5e-3)
    train_round(model_dir, model_dir, rows, outcomes(rows, solved), config=config, round_index=0, out_dir=tmp_path)
    good = [t for t, s in zip(rows, solved, strict=True) if s]
    assert log_probs(tmp_path, good) > log_probs(model_dir, good) + 0.2
    assert not (tmp_path / "training/value_head.safetensors").exists()


def test_tries_with_equal_outcomes_teach_nothing_and_the_penalty_leads_back(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows = tries(make)
    equal = outcomes(rows, [1.0] * 6)
    train_round(
        model_dir, model_dir, rows, equal, round_index=0, out_dir=tmp_path / "same",
        config=configure(make, "grpo", kl_coef=0.0),
    )  # fmt: skip
    start, same = (load_file(folder / "model.safetensors") for folder in (model_dir, tmp_path / "same"))
    assert all(torch.equal(start[name], same[name]) for name in start)

    change, back = tmp_path / "moved", tmp_path / "back"
    apart = outcomes(rows, [1.0, 0.0, 0.0] * 2)
    train_round(
        model_dir, model_dir, rows, apart, round_index=0, out_dir=change,
        config=configure(make, "grpo", epochs=4, learning_rate=5e-3, kl_coef=0.0),
    )  # fmt: skip
    train_round(
        change,
        model_dir,
        rows,
        equal,
        round_index=1,
        out_dir=back,
        config=configure(make, "grpo", epochs=4, kl_coef=1.0),
    )
    distance = {folder: abs(log_probs(folder, rows[:1]) - log_probs(model_dir, rows[:1])) for folder in (change, back)}
    assert distance[back] < distance[change]


def test_the_cut_into_forward_passes_changes_nothing(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = tries(make)
    scores = outcomes(rows, [1.0, 0.0, 0.0] * 2)
    options = {"ratio": "step", "clip_high": 0.3, "nll_coef": 0.1, "entropy_coef": 0.01}
    for size in (6, 2):
        config = configure(make, "gigpo", batch_size=6, micro_batch_size=size, **options)
        train_round(model_dir, model_dir, rows, scores, config=config, round_index=0, out_dir=tmp_path / str(size))
    start, whole, parts = (load_file(d / "model.safetensors") for d in (model_dir, tmp_path / "6", tmp_path / "2"))
    for name in whole:
        distance = (whole[name] - start[name]).abs().max()
        assert (whole[name] - parts[name]).abs().max() < 0.02 * distance


def test_a_try_with_a_missing_outcome_leaves_its_group(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = tries(make, queries=1)
    scores = [
        replace(row, is_solved=None) if row.trajectory_id == rows[2].trajectory_id else row
        for row in outcomes(rows, [1.0, 0.0, 0.0])
    ]
    result = train_round(
        model_dir, model_dir, rows, scores, config=configure(make, "grpo"), round_index=0, out_dir=tmp_path
    )
    assert result.left_out == 1
    assert [a.advantage for a in result.advantages] == pytest.approx([1, 1, -1, -1], rel=1e-4)
