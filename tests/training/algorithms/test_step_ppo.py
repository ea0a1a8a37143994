from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from steptool.config import Config
from steptool.models.actor import Actor, ValueHead, collate, save_value_head
from steptool.models.load import load_model, load_tokenizer
from steptool.records import Advantage, Metric, Step, StepReward, StepStatus, ToolCall, Trajectory
from steptool.records.columns import to_row
from steptool.records.tables import to_table
from steptool.rewards.compose import RunningScale
from steptool.training.algorithms import ALGORITHMS
from steptool.training.rounds import train_round


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def values(result: object, name: str) -> list[float]:
    return [row.value for row in result.metrics if row.name == name]


def test_round_starts_at_kl_0_and_ratio_1(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(8)
    config = make.config(micro_batch_size=3)
    result = train_round(model_dir, model_dir, rows, make.scores(rows), config=config, round_index=0, out_dir=tmp_path)
    assert values(result, "ratio_deviation")[0] == pytest.approx(0, abs=1e-5)
    assert values(result, "kl") == pytest.approx([0.0] * 4, abs=1e-6)
    assert all(abs(row.kl) < 1e-5 for row in result.advantages)
    assert values(result, "ratio_deviation")[1] > 1e-4
    assert sum(values(result, "tokens")) == result.tokens == 2 * sum(t.action_tokens for t in rows)


def test_result_satisfies_the_contracts_and_the_folder_loads(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows = make.trajectories(5)
    out = tmp_path / "out"
    result = train_round(
        model_dir, model_dir, rows, make.scores(rows), config=make.config(), round_index=1, out_dir=out
    )
    to_table(map(to_row, result.metrics), Metric)
    to_table(map(to_row, result.advantages), Advantage)
    assert len(result.advantages) == sum(len(t.spans) for t in rows)
    assert {row.round for row in result.metrics} == {1}
    assert sorted({row.update for row in result.metrics}) == [0, 1, 2, 3]
    assert load_tokenizer(out)("order")["input_ids"] == load_tokenizer(model_dir)("order")["input_ids"]
    assert not torch.equal(load_model(out).lm_head.weight, load_model(model_dir).lm_head.weight)


def test_a_step_reward_sits_on_the_last_token_of_its_step(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    """Values are 0 at first, gamma is 1, lambda 1/2: the mean advantage of a step can be summed by hand."""
    row = replace(make.trajectories(1)[0], spans=[(3, 5), (6, 7), (8, 10)], input_ids=np.arange(20, 31, dtype=np.int32))
    config = make.config(kl_coef=0.0).model_copy(
        update={"credit": make.config().credit.model_copy(update={"level": "token", "gamma": 1.0, "lam": 0.5})}
    )
    result = train_round(
        model_dir,
        model_dir,
        [row],
        make.scored([row], [np.array([0.0, 1.0, 4.0])]),
        config=config,
        round_index=0,
        out_dir=tmp_path,
    )
    # packed rewards 0 0 | 1 | 0 4: a reward d tokens ahead counts for 2^-d
    expected = [(0.25 * 1 + 0.0625 * 4 + 0.5 * 1 + 0.125 * 4) / 2, 1 + 0.25 * 4, (0.5 * 4 + 4) / 2]
    assert [r.advantage for r in result.advantages] == pytest.approx(expected, rel=1e-5)
    assert [r.reward for r in result.advantages] == [0.0, 1.0, 4.0]
    assert [r.value for r in result.advantages] == [0.0, 0.0, 0.0]


def test_missing_rewards_are_left_out_and_counted(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    rewards = make.rewards(rows)
    others = [rows[i] for i in (0, 2, 3, 5)]
    only = train_round(
        model_dir, model_dir, others, make.scored(others, [rewards[i] for i in (0, 2, 3, 5)]), config=make.config(),
        round_index=0, out_dir=tmp_path / "a",
    )  # fmt: skip
    holes = make.scored(rows, [None if i in (1, 4) else r for i, r in enumerate(rewards)])
    mixed = train_round(model_dir, model_dir, rows, holes, config=make.config(), round_index=0, out_dir=tmp_path / "b")
    assert (only.left_out, mixed.left_out) == (0, 2)
    assert {r.trajectory_id for r in mixed.advantages} == {t.trajectory_id for t in others}
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(tensor, weights(tmp_path / "b")[name])


def test_bad_rewards_are_refused(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(2)
    run = {"config": make.config(), "round_index": 0, "out_dir": tmp_path}
    with pytest.raises(ValueError, match=f"trajectory t0: expected one reward for each of its {len(rows[0].spans)} st"):
        train_round(model_dir, model_dir, rows, make.scored(rows, [np.zeros(9), None]), **run)
    with pytest.raises(ValueError, match="none of the 2 trajectories has steps and complete rewards"):
        train_round(model_dir, model_dir, rows, make.scored(rows, [None, None]), **run)
    with pytest.raises(ValueError, match="none of the 2 trajectories has steps and complete rewards"):
        train_round(model_dir, model_dir, rows, [], **run)


def test_accumulation_changes_nothing(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(9)
    for size in (5, 2):
        train_round(
            model_dir, model_dir, rows, make.scores(rows), round_index=0, out_dir=tmp_path / str(size),
            config=make.config(batch_size=5, micro_batch_size=size),
        )  # fmt: skip
    whole, parts = weights(tmp_path / "5"), weights(tmp_path / "2")
    start = weights(model_dir)
    for name in whole:
        distance = (whole[name] - start[name]).abs().max()
        assert (whole[name] - parts[name]).abs().max() < 0.02 * distance


def test_value_rounds_leave_the_policy_alone(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(8)
    rewards = make.scored(rows, [np.full(len(t.spans), 1.0) for t in rows])
    folders = [model_dir, *(tmp_path / str(r) for r in range(3))]
    explained = []
    for r in range(3):
        config = make.config(value_warmup_rounds=2, epochs=4, value_learning_rate=1e-2)
        result = train_round(folders[r], model_dir, rows, rewards, config=config, round_index=r, out_dir=folders[r + 1])
        explained.append(np.mean(values(result, "value_loss")))
    start = weights(model_dir)
    for name, tensor in weights(folders[2]).items():
        assert torch.equal(tensor, start[name])
    assert any(not torch.equal(t, start[n]) for n, t in weights(folders[3]).items())
    assert explained[2] < explained[1] < explained[0]


def test_value_head_and_moments_go_on_from_the_folder(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    run = {
        "config": make.config(),
        "trajectories": rows,
        "rewards": make.scores(rows),
        "reference_dir": model_dir,
    }
    train_round(model_dir, round_index=0, out_dir=tmp_path / "one", **run)
    first = load_file(tmp_path / "one" / "training/optimizer.safetensors")
    steps = {float(v) for k, v in first.items() if k.startswith("step/")}
    assert steps == {4.0}
    train_round(tmp_path / "one", round_index=1, out_dir=tmp_path / "two", **run)
    second = load_file(tmp_path / "two" / "training/optimizer.safetensors")
    assert {float(v) for k, v in second.items() if k.startswith("step/")} == {8.0}
    assert second.keys() == first.keys()
    # a folder whose value head says 3 everywhere shows it in the advantages' rows
    head = ValueHead(32)
    torch.nn.init.constant_(head.out.bias, 3.0)
    save_value_head(head, tmp_path / "two")
    result = train_round(tmp_path / "two", round_index=2, out_dir=tmp_path / "three", **run)
    assert {round(row.value, 4) for row in result.advantages} == {3.0}


def test_learning_rate_falls_linearly_over_rounds(make: SimpleNamespace) -> None:
    config = make.config(rounds=5, learning_rate=1e-3, final_learning_rate=0.2)
    for algorithm in ALGORITHMS.values():
        rates = [algorithm(config, r).learning_rate for r in range(5)]
        assert rates == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
        assert algorithm(make.config(rounds=1), 0).learning_rate == 1e-3


def test_kl_penalty_enters_the_rewards(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    """No step rewards, values 0, gamma = lambda = 1: the advantage of a token is -kl_coef * (its kl and all later)."""
    rows = [replace(t, spans=[(start, start + 1) for start, _ in t.spans]) for t in make.trajectories(6)]
    train_round(
        model_dir, model_dir, rows, make.scores(rows), round_index=0, out_dir=tmp_path / "moved",
        config=make.config(learning_rate=1e-2),
    )  # fmt: skip
    (tmp_path / "moved" / "training/value_head.safetensors").unlink()
    config = make.config(kl_coef=0.5).model_copy(
        update={"credit": make.config().credit.model_copy(update={"gamma": 1.0, "lam": 1.0})}
    )
    zero = make.scored(rows, [np.zeros(len(t.spans)) for t in rows])
    result = train_round(
        tmp_path / "moved", model_dir, rows, zero, config=config, round_index=1, out_dir=tmp_path / "next"
    )
    assert max(abs(row.kl) for row in result.advantages) > 0.05
    for t in rows:
        own = [row for row in result.advantages if row.trajectory_id == t.trajectory_id]
        expected = -0.5 * np.cumsum([row.kl for row in own][::-1])[::-1]
        assert [row.advantage for row in own] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_likelihood_of_solved_episodes_and_the_entropy_join_the_loss(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    """The first update, in one batch: what the loss gains is the mean over solved tokens, or over all tokens."""
    rows = make.trajectories(4)
    rewards = make.scored(rows, [np.append(np.zeros(len(t.spans) - 1), float(i < 2)) for i, t in enumerate(rows)])
    options = {"plain": {}, "nll": {"nll_coef": 0.5}, "entropy": {"entropy_coef": 0.1}}
    losses = {}
    for name, ppo in options.items():
        result = train_round(
            model_dir, model_dir, rows, rewards, config=make.config(**ppo), round_index=0, out_dir=tmp_path / name
        )
        losses[name] = values(result, "loss")[0]
    with torch.no_grad():
        actor = Actor(load_model(model_dir))
        solved, every = actor(collate(rows[:2])), actor(collate(rows))
    assert losses["nll"] - losses["plain"] == pytest.approx(-0.5 * float(solved.log_probs_N.mean()), rel=1e-4)
    surprise = -every.log_probs_N - every.entropy_N
    assert losses["entropy"] - losses["plain"] == pytest.approx(-0.1 * float(surprise.mean()), abs=1e-5)


def test_the_mean_of_a_group_takes_the_place_of_a_value_head(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    """Two tries at one query, one solved; gamma 1: the state that both start in is worth 1/2."""
    call = Step(ToolCall("look", {}), StepStatus.OK, "")
    rows = [make.played("q", [call], number=i) for i in range(2)]
    rewards = make.scored(rows, [np.array([1.0]), np.array([0.0])])
    config = make.config({"value": "group_mean", "gamma": 1.0}, {"samples_per_query": 2}, value_warmup_rounds=2)
    result = train_round(model_dir, model_dir, rows, rewards, config=config, round_index=0, out_dir=tmp_path)
    assert [(a.value, a.advantage) for a in result.advantages] == [(0.5, 0.5), (0.5, -0.5)]
    assert not (tmp_path / "training/value_head.safetensors").exists()
    assert any(
        not torch.equal(t, weights(model_dir)[n]) for n, t in weights(tmp_path).items()
    )  # no warm-up to wait for


def test_rewarded_tokens_become_likelier(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    """One-token episodes, reward 1 for an even token: seven rounds on samples of the policy itself are enough."""
    prompt = np.arange(40, 48, dtype=np.int32)
    generator = torch.Generator().manual_seed(0)
    template = make.trajectories(1)[0]
    folder, shares = model_dir, []
    for r in range(8):
        with torch.no_grad():
            logits = load_model(folder)(torch.tensor(prompt)[None].long()).logits[0, -1]
        probabilities = logits.softmax(-1)
        shares.append(float(probabilities[::2].sum()))
        tokens = torch.multinomial(probabilities, 64, replacement=True, generator=generator).tolist()
        rows = [
            replace(template, trajectory_id=str(i), input_ids=np.append(prompt, np.int32(t)), spans=[(8, 9)])
            for i, t in enumerate(tokens)
        ]
        rewards = make.scored(rows, [np.array([float(t % 2 == 0)]) for t in tokens])
        config = make.config(rounds=8, learning_rate=1e-2, batch_size=16, micro_batch_size=16)
        train_round(folder, model_dir, rows, rewards, config=config, round_index=r, out_dir=tmp_path / str(r))
        folder = tmp_path / str(r)
    assert shares[0] < 0.65
    assert shares[-1] > 0.9


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
