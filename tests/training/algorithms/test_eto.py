import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from steptool.config import Config, PolicyConfig
from steptool.models.actor import Actor, collate
from steptool.models.load import load_model
from steptool.models.optimizer import make_adamw
from steptool.models.packed_attention import VARIABLE_LENGTH
from steptool.records import Step, StepReward, StepStatus, ToolCall, Trajectory
from steptool.rewards.compose import NO_REWARDS_SEEN
from steptool.training.algorithms.eto import ExplorationPreference
from steptool.training.rounds import RoundResult, train_round

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


def log_prob(folder: Path, row: Trajectory, temperature: float = 1.0) -> float:
    with torch.no_grad():
        return float(Actor(load_model(folder), temperature=temperature)(collate([row])).log_probs_N.sum())


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
    assert figures(result, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)  # the policy is its reference
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


def test_a_round_ends_with_the_weights_of_dpo_worked_out_here(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    """Two pairs in a step, two steps at the temperature of the rollouts: TRL's trainer against eight lines."""
    rows, beta = tries(make, "aabb"), 0.3
    config = make.config(
        algorithm="eto", rollout={"samples_per_query": 2, "temperature": 0.7}, epochs=2, batch_size=4, dpo_beta=beta,
        micro_batch_size=2, learning_rate=1e-3, final_learning_rate=1.0,
    )  # fmt: skip
    scores = outcomes(rows, [1.0, 0.0, 1.0, 0.0])
    result = train_round(model_dir, model_dir, rows, scores, config=config, round_index=0, out_dir=tmp_path)
    actor = Actor(load_model(model_dir), temperature=0.7)
    optimizer = make_adamw(actor.policy, 1e-3)
    reference, losses = [log_prob(model_dir, t, 0.7) for t in rows], []
    for _ in range(2):
        gains = [actor(collate([t])).log_probs_N.sum() - ref for t, ref in zip(rows, reference, strict=True)]
        loss = -logsigmoid(beta * (torch.stack(gains[0::2]) - torch.stack(gains[1::2]))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert figures(result, "loss") == pytest.approx(losses, rel=1e-4)
    start, end = load_file(model_dir / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for name, weight in actor.policy.state_dict().items():
        if name in end:
            distance = (end[name] - start[name]).abs().max()
            assert distance > 0 and (end[name] - weight).abs().max() < 0.02 * distance, name


def test_an_interrupted_round_goes_on_to_the_same_weights(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows = tries(make, "aabbcc")
    scores, config = outcomes(rows, [1.0, 0.0] * 3), configure(make, epochs=2, batch_size=4, micro_batch_size=2)

    def stop() -> None:
        raise KeyboardInterrupt

    def train(out: str, **options: object) -> RoundResult:
        return train_round(
            model_dir, model_dir, rows, scores, config=config, round_index=0, out_dir=tmp_path / out, **options
        )

    options = {"checkpoints": tmp_path / "checkpoints", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train("stopped", **options, on_checkpoint=stop)
    resumed, undisturbed = train("resumed", **options), train("undisturbed")
    assert resumed == undisturbed and len(figures(resumed, "loss")) == 4
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        actual, expected = load_file(tmp_path / "resumed" / file), load_file(tmp_path / "undisturbed" / file)
        assert all(torch.equal(actual[name], expected[name]) for name in expected), file


@pytest.mark.parametrize(("rank", "attention"), [(0, "sdpa"), (4, "sdpa"), (0, VARIABLE_LENGTH)])
def test_a_model_is_as_before_but_for_its_weights(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, rank: int, attention: str
) -> None:
    """TRL puts a forward pass and settings of its own on the model, with which the next round is played."""
    rows, model = tries(make, "aabb"), load_model(model_dir)
    model.set_attn_implementation(attention)  # that for packed sequences, as on a GPU, takes one at a time
    before = model.config.to_dict(), model.generation_config.to_dict()
    config = configure(make, batch_size=4, micro_batch_size=1)
    config = config.model_copy(update={"policy": PolicyConfig(lora_rank=rank)})
    result = train_round(
        model_dir, model_dir, rows, outcomes(rows, [1.0, 0.0] * 2), config=config, round_index=0, out_dir=tmp_path,
        load=lambda folder: model,
    )  # fmt: skip
    assert figures(result, "margin")[-1] > 0
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert model.config._attn_implementation == attention
    assert "forward" not in vars(model) and not model.training
    assert (tmp_path / "adapter_model.safetensors").exists() == bool(rank)


def test_a_machine_without_trl_says_what_to_install(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    rows = tries(make, "aa")
    with pytest.raises(ImportError, match=r"eto trains through TRL's DPOTrainer, .* install trl==1\.16\.0, or choose"):
        train_round(
            model_dir, model_dir, rows, outcomes(rows, [1.0, 0.0]), config=configure(make), round_index=0,
            out_dir=tmp_path,
        )  # fmt: skip
