from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from steptool.records import StepReward
from steptool.training.rounds import train_round
from weights import mean_log_prob, same_weights


def outcomes(rows: list, solved: list[bool]) -> list[StepReward]:
    """Rewards of the last steps: whether each trajectory was solved."""
    return [
        StepReward(t.trajectory_id, len(t.spans) - 1, "rules", "1", is_solved=float(s))
        for t, s in zip(rows, solved, strict=True)
    ]


def test_rejection_imitates_the_solved_alone(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(10)
    solved = [i % 5 == 0 for i in range(10)]
    config = make.config(algorithm="rft", learning_rate=1e-2, epochs=10)
    result = train_round(
        model_dir, model_dir, rows, outcomes(rows, solved), config=config, round_index=0, out_dir=tmp_path / "solved"
    )
    # as many steps as PPO: 10 epochs of 3 batches over all ten trajectories
    assert len([m for m in result.metrics if m.name == "loss"]) == 30
    assert (result.left_out, result.advantages, result.note) == (8, [], "")
    good = [t for t, s in zip(rows, solved, strict=True) if s]
    assert mean_log_prob(tmp_path / "solved", good) > -2
    others = [rows[i] for i in (1, 2, 3)]
    other_rows = [
        t if s else others[i % 3].__class__(**{**vars(t), "input_ids": np.flip(t.input_ids).copy()})
        for i, (t, s) in enumerate(zip(rows, solved, strict=True))
    ]
    train_round(
        model_dir,
        model_dir,
        other_rows,
        outcomes(rows, solved),
        config=config,
        round_index=0,
        out_dir=tmp_path / "changed",
    )
    assert same_weights(tmp_path / "solved", tmp_path / "changed")


def test_rejection_carries_its_optimizer_and_its_rate(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(4)
    folders = [model_dir, tmp_path / "0", tmp_path / "1"]
    for r in range(2):
        result = train_round(
            folders[r],
            model_dir,
            rows,
            outcomes(rows, [True] * 4),
            config=make.config(algorithm="rft"),
            round_index=r,
            out_dir=folders[r + 1],
        )
    moments = load_file(tmp_path / "1" / "training/optimizer.safetensors")
    assert {float(v) for k, v in moments.items() if k.startswith("step/")} == {4.0}
    assert [m.value for m in result.metrics if m.name == "learning_rate"] == pytest.approx([7e-4] * 2)


@pytest.mark.parametrize(("option", "temperature"), [(0.0, 0.5), (1.0, 1.0)])
def test_the_likelihood_is_taken_at_the_temperature_of_the_rollouts_or_its_own(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, option: float, temperature: float
) -> None:
    rows = make.trajectories(4)
    config = make.config(rollout={"temperature": 0.5}, algorithm="rft", rft_temperature=option)
    result = train_round(
        model_dir, model_dir, rows, outcomes(rows, [True] * 4), config=config, round_index=0, out_dir=tmp_path
    )
    assert result.metrics[0].value == pytest.approx(-mean_log_prob(model_dir, rows, temperature), rel=1e-5)


def test_nothing_solved_passes_the_policy_on(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(4)
    train_round(
        model_dir, model_dir, rows, make.scores(rows), config=make.config(), round_index=0, out_dir=tmp_path / "0"
    )
    result = train_round(
        tmp_path / "0",
        model_dir,
        rows,
        outcomes(rows, [False] * 4),
        config=make.config(algorithm="rft"),
        round_index=1,
        out_dir=tmp_path / "1",
    )
    assert "none of 4 trajectories was solved" in result.note
    assert (result.tokens, result.left_out) == (0, 4)
    for file in (f for f in (tmp_path / "0").rglob("*") if f.is_file()):
        assert (tmp_path / "1" / file.relative_to(tmp_path / "0")).read_bytes() == file.read_bytes()
