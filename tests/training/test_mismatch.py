import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from steptool.config import PPOConfig
from steptool.models.actor import Actor, collate, find_action_places
from steptool.models.load import load_model
from steptool.records import Trajectory
from steptool.training.algorithms.step_ppo import Experience, StepPPO
from steptool.training.rounds import train_round
from steptool.training.scores import (
    MismatchError,
    check_mismatch,
    compute_importance_weights,
    measure_mismatch,
    read_engine_log_probs,
)
from steptool.training.trainer import ForwardPass

TEMPERATURE = 0.7


def test_figures_worked_out_by_hand() -> None:
    """Weights 1/2, 1 and 2: d = -ln 2, 0, ln 2."""
    mismatch = measure_mismatch(np.log([0.2, 0.5, 0.8]), np.log([0.4, 0.5, 0.4]), importance_cap=1.5)
    ln2 = np.log(2.0)
    assert mismatch.mean == pytest.approx(2 * ln2 / 3)
    assert mismatch.largest == pytest.approx(ln2)
    assert mismatch.p99 == pytest.approx(ln2)
    assert mismatch.k1 == pytest.approx(0.0, abs=1e-12)
    assert mismatch.k3 == pytest.approx((3.5 - 3.0) / 3)  # the mean of w - 1 - d, and the d add up to 0
    assert mismatch.effective_share == pytest.approx(3.5**2 / (3 * 5.25))
    assert mismatch.beyond_cap == pytest.approx(1 / 3)


def test_k1_and_k3_estimate_the_divergence() -> None:
    """mu = (.5, .5), pi = (.25, .75): KL(mu || pi) = .5 ln 2 + .5 ln (2/3) = .1438; each token once is the mean."""
    mismatch = measure_mismatch(np.log([0.25, 0.75]), np.log([0.5, 0.5]), importance_cap=2.0)
    assert mismatch.k1 == pytest.approx(0.1438, abs=1e-4)
    assert mismatch.k3 == pytest.approx(0.1438, abs=1e-4)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [("none", [1.0, 1.0, 1.0, 1.0]), ("truncated", [0.5, 1.0, 2.0, 2.0]), ("masked", [0.5, 1.0, 2.0, 0.0])],
)
def test_weights_worked_out_by_hand(importance: str, expected: list[float]) -> None:
    """Training gives the tokens .2, .5, .8 and .9, the engine gave .4, .5, .4 and .1: weights 1/2, 1, 2 and 9."""
    ppo = PPOConfig.model_validate({"importance": importance, "importance_cap": 2.0})
    weights = compute_importance_weights(np.log([0.2, 0.5, 0.8, 0.9]), np.log([0.4, 0.5, 0.4, 0.1 - 1e-9]), ppo)
    assert weights == pytest.approx(expected)


def test_tokens_without_log_probabilities_cannot_be_weighed(make: SimpleNamespace) -> None:
    rows = [replace(t, logprobs=np.zeros(0, np.float32)) for t in make.trajectories(2)]
    assert read_engine_log_probs(rows) is None
    with pytest.raises(ValueError, match="not every trajectory of the round has the log-probabilities"):
        compute_importance_weights(np.zeros(3), None, PPOConfig(importance="masked"))
    assert compute_importance_weights(np.zeros(3), None, PPOConfig()).tolist() == [1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def decided_model(model_dir: Path) -> PreTrainedModel:
    """The tiny model with weights eight times as large, so that its distributions are far from uniform."""
    model = load_model(model_dir)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8.0)
    return model


@torch.no_grad()
def log_distribution(model: PreTrainedModel, prompt: Sequence[int], temperature: float = TEMPERATURE) -> Tensor:
    """Log-probability [V] of each next token."""
    logits_V: Tensor = model(input_ids=torch.tensor([list(prompt)])).logits[0, -1].float()
    return (logits_V / temperature).log_softmax(-1)


def wrong_engine(model: PreTrainedModel, prompt: Sequence[int], fault: str) -> Tensor:
    """Log-probabilities [V] of an engine with bfloat16 weights, or with a temperature that is off by .1."""
    if fault == "temperature":
        return log_distribution(model, prompt, TEMPERATURE + 0.1)
    rounded = type(model)(model.config)
    rounded.load_state_dict(model.state_dict())
    return log_distribution(rounded.bfloat16(), prompt)


def policy_gradient(
    make: SimpleNamespace, model: PreTrainedModel, engine_V: Tensor, advantages_V: Tensor, importance: str
) -> Tensor:
    """The expected gradient of StepPPO's loss over tokens that the engine samples after one prompt.

    Each token of the vocabulary is an episode, and its advantage is multiplied by V * mu: the mean over the V episodes
    is the exact expectation under mu.
    """
    config = make.config(importance=importance, importance_cap=10.0, clip=0.2, value_coef=0.0)
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"temperature": TEMPERATURE})})
    template = make.trajectories(1)[0]
    count = len(engine_V)
    rows = [
        replace(template, input_ids=np.array([*PROMPT, token], np.int32), spans=[(len(PROMPT), len(PROMPT) + 1)])
        for token in range(count)
    ]
    own_V = log_distribution(model, PROMPT)
    algorithm = StepPPO(config, 0)
    zeros, ones = torch.zeros(count), torch.ones(count)
    weights = torch.from_numpy(compute_importance_weights(own_V.numpy(), engine_V.numpy(), config.ppo)).float()
    places = torch.arange(count)
    advantages = count * engine_V.exp() * advantages_V
    algorithm._experience = Experience(own_V, own_V, zeros, advantages, zeros, ones, weights, zeros, places)
    actor = Actor(model, ValueZero(), temperature=TEMPERATURE)
    model.zero_grad()
    algorithm.loss(actor, ForwardPass(collate(rows), places, places)).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class ValueZero(torch.nn.Module):
    """Values that are 0 and have no part in the gradient."""

    def forward(self, states_NH: Tensor) -> Tensor:
        return torch.zeros(len(states_NH))


PROMPT = (5, 17, 23, 42, 8)


@pytest.mark.parametrize(("fault", "importance"), [("temperature", "truncated"), ("bfloat16", "masked")])
def test_a_wrong_engine_shows_and_its_gradient_is_corrected(
    make: SimpleNamespace, decided_model: PreTrainedModel, fault: str, importance: str
) -> None:
    own_V, engine_V = log_distribution(decided_model, PROMPT), wrong_engine(decided_model, PROMPT, fault)
    tokens = np.random.default_rng(0).choice(len(engine_V), 2000, p=engine_V.double().softmax(-1).numpy())
    right = measure_mismatch(own_V.numpy()[tokens], own_V.numpy()[tokens], 2.0)
    wrong = measure_mismatch(own_V.numpy()[tokens], engine_V.numpy()[tokens], 2.0)
    assert (right.mean, right.k3, right.effective_share) == (0.0, 0.0, pytest.approx(1.0))
    assert wrong.mean > 1e-3 and wrong.k3 > 0.0 and wrong.effective_share < 1.0
    check_mismatch(right, PPOConfig(max_mismatch=5e-4), 3)
    with pytest.raises(MismatchError, match=r"round 3: .* ppo\.max_mismatch allows 0\.0005"):
        check_mismatch(wrong, PPOConfig(max_mismatch=5e-4), 3)

    advantages_V = torch.randn(len(engine_V), generator=torch.Generator().manual_seed(1))
    true = policy_gradient(make, decided_model, own_V, advantages_V, "none")
    plain = policy_gradient(make, decided_model, engine_V, advantages_V, "none")
    corrected = policy_gradient(make, decided_model, engine_V, advantages_V, importance)
    assert (plain - true).norm() > 1e-3 * true.norm()
    assert (corrected - true).norm() < 0.02 * (plain - true).norm()


def with_own_log_probs(model: PreTrainedModel, rows: Sequence[Trajectory], temperature: float) -> list[Trajectory]:
    """The trajectories with the log-probabilities that an engine of this model stores at a temperature."""
    with torch.no_grad():
        log_probs_N = Actor(model, temperature=temperature)(collate(rows)).log_probs_N.numpy()
    ends = np.cumsum([len(find_action_places(row)) for row in rows])[:-1]
    return [replace(row, logprobs=own) for row, own in zip(rows, np.split(log_probs_N, ends), strict=True)]


@pytest.fixture
def decided_dir(model_dir: Path, decided_model: PreTrainedModel, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    decided_model.save_pretrained(folder)
    return folder


def test_a_round_reports_the_mismatch_or_stops(
    decided_dir: Path, decided_model: PreTrainedModel, tmp_path: Path, make: SimpleNamespace
) -> None:
    model, rows = decided_dir, make.trajectories(6)

    def run(temperature: float, out: str, **ppo: object) -> dict[str, float]:
        played = with_own_log_probs(decided_model, rows, temperature)
        config = make.config(**{"max_mismatch": 0.05, **ppo})
        result = train_round(
            model, model, played, make.scores(rows), config=config, round_index=0, out_dir=tmp_path / out
        )
        return {m.name: m.value for m in reversed(result.metrics)}

    right = run(1.0, "right")
    assert right["mismatch_mean"] < 1e-5
    assert right["mismatch_max"] < 1e-4
    assert right["effective_sample_share"] == pytest.approx(1.0)
    with pytest.raises(MismatchError, match="the log-probabilities stored by the engine differ from those of training"):
        run(1.1, "refused")
    assert not (tmp_path / "refused").exists()
    wrong = run(1.1, "wrong", max_mismatch=0)
    assert wrong["mismatch_mean"] > 0.05
    assert wrong["effective_sample_share"] < 1.0
    # without a correction the stored log-probabilities change no weight; with one they do
    run(1.1, "truncated", max_mismatch=0, importance="truncated")
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("right", "wrong", "truncated")}
    assert weights["right"] == weights["wrong"] != weights["truncated"]


def test_rejection_fine_tuning_reports_it_at_the_temperature_of_the_rollouts(
    decided_dir: Path, decided_model: PreTrainedModel, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows = make.trajectories(6)

    def run(temperature: float, out: str, **ppo: object) -> dict[str, float]:
        played = with_own_log_probs(decided_model, rows, temperature)
        rewards = make.scored(played, [np.ones(len(row.spans)) for row in rows])  # all solved
        config = make.config(algorithm="rft", rft_temperature=2.0, **{"max_mismatch": 0.05, **ppo})
        result = train_round(
            decided_dir, decided_dir, played, rewards, config=config, round_index=0, out_dir=tmp_path / out
        )
        return {m.name: m.value for m in reversed(result.metrics) if m.stage == "rft"}

    right = run(1.0, "right")
    assert right["mismatch_mean"] < 1e-5
    assert right["effective_sample_share"] == pytest.approx(1.0)
    with pytest.raises(MismatchError, match=r"round 0: .* differ from those of training"):
        run(1.1, "refused")
    assert not (tmp_path / "refused").exists()
    assert run(1.1, "wrong", max_mismatch=0)["mismatch_mean"] > 0.05
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("right", "wrong")]
    assert weights[0] == weights[1]  # the figures change nothing that is learned
