import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from steptool.config import Config
from steptool.models.actor import Actor, collate
from steptool.models.load import load_model
from steptool.records import Step, StepReward, StepStatus, ToolCall, Trajectory
from steptool.rewards.compose import NO_REWARDS_SEEN
from steptool.training.algorithms.eto import ExplorationPreference
from steptool.training.rounds import train_round

CALLS = [Step(ToolCall("look", {}), StepStatus.OK, "")] * 2


def tries(make: SimpleNamespace, queries: str) -> list[Trajectory]:
    """One try of two steps for each letter, which names its query."""
    return [make.played(query, CALLS, number=i) for i, query in enumerate(queries)]


def outcomes(rows: list[Trajectory], solved: list[float | None]) -> list[StepReward]:
    return [
        StepReward(t.trajectory_id, len(t.spans) - 1, "rules", "1", is_solved=outcome)
        for t, outcome in zip(rows, solved, strict=True)
    ]


def configure(make: SimpleNamespace, **ppo: object) -> Config:
    return make.config(rollout={"samples_per_query": 2}, algorithm="eto", **ppo)


def log_prob(folder: Path, row: Trajectory) -> float:
    with torch.no_grad():
        return float(Actor(load_model(folder))(collate([row])).log_probs_N.sum())


def figures(result: object, name: str) -> list[float]:
    return [m.value for m in result.metrics if m.name == name]


def test_each_try_that_differs_from_the_best_is_in_a_pair(make: SimpleNamespace) -> None:
    rows = tries(make, "aaabbccd")
    solved = [1.0, 0.0, 0.5, 0.0, 0.0, 1.0, None, 1.0]
    selection = ExplorationPreference(configure(make), 0).select(rows, outcomes(rows, solved), NO_REWARDS_SEEN)
    # a: its best with both others; b: two alike; c: one without an outcome; d: one try
    assert [t.trajectory_id for t in selection.trajectories] == ["t0", "t1", "t0", "t2"]
    assert (selection.left_out, [m.value for m in selection.metrics]) == (5, [2.0])


def test_the_better_try_gains_on_the_worse_one(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = tries(make, "aabb")
    config = configure(make, epochs=6, learning_rate=2e-3, batch_size=4)
    result = train_round(
        model_dir, model_dir, rows, outcomes(rows, [1.0, 0.0, 0.0, 1.0]), config=config, round_index=0, out_dir=tmp_path
    )
    assert figures(result, "preference_loss")[0] == pytest.approx(math.log(2), abs=1e-5)  # the policy is its reference
    assert figures(result, "preferred")[-1] == 1.0
    assert (result.left_out, result.advantages) == (0, [])
    assert result.tokens == 6 * sum(t.action_tokens for t in rows)
    for better, worse in ((0, 1), (3, 2)):
        gains = [log_prob(tmp_path, rows[i]) - log_prob(model_dir, rows[i]) for i in (better, worse)]
        assert gains[0] > gains[1] + 1


def test_the_cut_into_forward_passes_changes_nothing(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = tries(make, "aabbccdd")
    scores = outcomes(rows, [1.0, 0.0] * 4)
    for size in (8, 3):  # three sequences: one pair in a pass
        config = configure(make, batch_size=8, micro_batch_size=size)
        train_round(model_dir, model_dir, rows, scores, config=config, round_index=0, out_dir=tmp_path / str(size))
    start, whole, parts = (load_file(d / "model.safetensors") for d in (model_dir, tmp_path / "8", tmp_path / "3"))
    for name in whole:
        distance = (whole[name] - start[name]).abs().max()
        assert (whole[name] - parts[name]).abs().max() < 0.02 * distance


def test_no_pair_passes_the_policy_on(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = tries(make, "aabb")
    result = train_round(
        model_dir, model_dir, rows, outcomes(rows, [1.0, 1.0, 0.0, 0.0]), config=configure(make), round_index=0,
        out_dir=tmp_path / "same",
    )  # fmt: skip
    assert "no query has a better and a worse try among 4 trajectories" in result.note
    assert (tmp_path / "same/model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()


def test_the_loss_is_that_of_trl_where_its_mask_leaves_observations_out(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from steptool.models.load import load_tokenizer

    rows = tries(make, "aa")
    train_round(
        model_dir, model_dir, rows, outcomes(rows, [1.0, 0.0]), round_index=0, out_dir=tmp_path / "moved",
        config=configure(make, learning_rate=1e-2, dpo_beta=0.3),
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "order", "chosen": "cancel", "rejected": "find"}])
    args = DPOConfig(str(tmp_path), beta=0.3, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
    theirs = DPOTrainer(
        load_model(tmp_path / "moved"), load_model(model_dir), args, train_dataset=data,
        processing_class=load_tokenizer(model_dir),
    )  # fmt: skip
    batch = collate(rows)
    mask_BL = torch.zeros_like(batch.input_ids_BL)
    for row, t in zip(mask_BL, rows, strict=True):
        for start, end in t.spans:
            row[start:end] = 1
    lengths = torch.tensor([len(t.input_ids) for t in rows])
    seen_BL = (torch.arange(mask_BL.shape[1]) < lengths[:, None]).long()
    inputs = {"input_ids": batch.input_ids_BL, "attention_mask": seen_BL, "completion_mask": mask_BL}
    expected = float(theirs.compute_loss(theirs.model, inputs).detach())
    gains = [log_prob(tmp_path / "moved", t) - log_prob(model_dir, t) for t in rows]
    assert expected == pytest.approx(math.log(1 + math.exp(-0.3 * (gains[0] - gains[1]))), rel=1e-4)
    assert expected < 0.6
