from pathlib import Path
from types import SimpleNamespace

import numpy as np

from steptool.config import Config
from steptool.records import StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training.rounds import train_round


def scored(trajectories: list[Trajectory], solved: float) -> list[StepReward]:
    return [
        StepReward(
            t.trajectory_id, n, "rules", "2",
            succ_calling=1.0, contribution=float(n % 2), is_solved=solved if n == len(t.steps) - 1 else None,
        )
        for t in trajectories
        for n in range(len(t.steps))
    ]  # fmt: skip


def test_the_running_scale_goes_on_from_round_to_round(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rewards = {"normalisation": "running", "step_weight": 1.0}
    config = Config.model_validate({**make.config(epochs=1).model_dump(), "rewards": rewards})
    episodes, scale, raw = make.trajectories(6), RunningScale(), []
    for round_index, solved in enumerate((1.0, 0.0)):
        rows = scored(episodes, solved)
        done = train_round(
            model_dir, model_dir, episodes, rows, config=config, round_index=round_index, scale=scale,
            out_dir=tmp_path / str(round_index),
        )  # fmt: skip
        plain = [r.contribution if r.is_solved is None else r.is_solved for r in rows]
        raw += plain
        learned = [row.reward for row in sorted(done.advantages, key=lambda r: (r.trajectory_id, r.step))]
        np.testing.assert_allclose(learned, np.array(plain) / np.std(raw), rtol=1e-5)
        scale = done.scale
        assert scale.count == len(raw)


def test_calibrated_weights_pay_for_what_goes_with_the_outcome(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    """Contribution goes with the outcome and SuccCalling is always 1: the one is paid in full, the other not at all."""
    rewards = {"weights": "calibrated", "step_weight": 1.0, "alpha": 1.0, "succ_calling": "bonus"}
    config = Config.model_validate({**make.config(epochs=1).model_dump(), "rewards": rewards})
    episodes = [make.played("q", make.trajectories(1)[0].steps[:1] * 3, number=i) for i in range(4)]
    rows = [
        StepReward(
            t.trajectory_id, n, "rules", "3",
            succ_calling=1.0, contribution=i / 4, is_solved=float(i >= 2) if n == 2 else None,
        )
        for i, t in enumerate(episodes)
        for n in range(3)
    ]  # fmt: skip
    done = train_round(model_dir, model_dir, episodes, rows, config=config, round_index=0, out_dir=tmp_path)
    weights = {m.name: m.value for m in done.metrics if m.name.startswith("weight_")}
    assert weights == {"weight_succ_calling": 0.0, "weight_contribution": 1.0}
    assert [a.reward for a in done.advantages] == [0, 0, 0, 0.25, 0.25, 0, 0.5, 0.5, 1, 0.75, 0.75, 1]
    assert done.scale.weights == {"succ_calling": 0.0, "contribution": 1.0}
