from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from steptool.config import CreditConfig
from steptool.records import Step, StepStatus, ToolCall, Trajectory
from steptool.training.algorithms.archer import step_critic
from steptool.training.rounds import train_round

CALL = Step(ToolCall("act", {}), StepStatus.OK, "")


def choices(make: SimpleNamespace) -> list[Trajectory]:
    """One prompt, one step of three tokens; half of the episodes choose the token 50, the others 60."""
    prompt, template = np.arange(40, 48, dtype=np.int32), make.trajectories(1)[0]
    return [
        replace(
            template, trajectory_id=str(i), input_ids=np.append(prompt, np.int32([50 + 10 * (i % 2), 70, 71])),
            spans=[(8, 11)], steps=[CALL],
        )
        for i in range(8)
    ]  # fmt: skip


def test_a_critic_of_steps_by_hand() -> None:
    # Steps of 2, 3 and 1 tokens; V before the first token of each: 1, 2, 3; Q before the last: 1.5, 2.5, none.
    values = np.array([1, 1.5, 2, 99, 2.5, 3])
    config = CreditConfig(level="step", gamma=0.5, lam=0.0)
    got = step_critic([np.array([0.0, 1.0, 4.0])], [np.array([2, 3, 1])], values, config)
    # targets of Q: 0 + .5*2 = 1, 1 + .5*3 = 2.5, 4; targets of V: Q. The last step has one token: Q is its target, 4.
    np.testing.assert_allclose(got.advantages_N, [0.5, 0.5, 0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(got.returns_N[got.value_mask_N], [1.5, 1, 2.5, 2.5, 4])
    assert got.value_mask_N.tolist() == [True, True, True, False, True, True]


def test_the_critic_learns_which_call_is_worth_more(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    """Rewards 1 and 0: Q learns to tell the calls apart, V their mean, and the advantages are the difference."""
    rows = choices(make)
    scores = make.scored(rows, [np.array([float(i % 2 == 0)]) for i in range(8)])
    settings = {"algorithm": "archer", "rounds": 9, "value_warmup_rounds": 9, "epochs": 20, "clip_value": 10.0}
    config = make.config({"lam": 0.0}, value_learning_rate=5e-3, kl_coef=0.0, **settings)
    folder = model_dir
    for r in range(8):
        result = train_round(folder, model_dir, rows, scores, config=config, round_index=r, out_dir=tmp_path / str(r))
        folder = tmp_path / str(r)
        if r == 0:
            assert [a.advantage for a in result.advantages] == [0.0] * 8  # the head says 0 everywhere at first
    assert [a.value for a in result.advantages] == pytest.approx([0.5] * 8, abs=0.15)
    assert [a.advantage for a in result.advantages] == pytest.approx([0.5, -0.5] * 4, abs=0.2)
