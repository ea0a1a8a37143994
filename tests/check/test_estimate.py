"""Estimates by hand."""

import pytest

from steptool.check.plan import (
    EpisodeShape,
    Speeds,
    StageEstimate,
    describe_estimate,
    estimate_evaluation,
    estimate_training,
)
from steptool.config import Config

SHAPE = EpisodeShape(tokens=200.0, turns=4.0, turn_tokens=10.0, source="by hand")
SPEEDS = Speeds(prompt_seconds=0.5, sampled_per_second=80.0, trained_per_second=1000.0, call_seconds=1.6)
PRICES = {"base_url": "http://localhost/v1", "model": "m", "price_in": 2.0, "price_out": 10.0}


def configure(**sections: object) -> Config:
    return Config.model_validate(
        {
            "warm_start": {"steps": 10, "batch_size": 5},
            "rollout": {"episodes": 20, "batch_size": 10},
            "ppo": {"rounds": 3, "epochs": 2},
            "tools": {"concurrency": 16},
            "evaluation": {"sampled_repeats": 1},
            **sections,
        }
    )


def test_the_stages_of_a_training_take_what_their_tokens_take() -> None:
    stages = {stage.stage: stage for stage in estimate_training(configure(), SHAPE, SPEEDS, evaluated=50)}
    # An episode takes .5 s for its prompt, 40 tokens at 80 a second, and 4 calls of 1.6 s of which 10 run side by side.
    an_episode = 0.5 + 0.5 + 0.64
    assert stages["warm start"].seconds == pytest.approx(10 * 5 * 200 / 1000)
    assert stages["rollouts"].seconds == pytest.approx(60 * an_episode)
    assert stages["training"].seconds == pytest.approx(60 * (2 + 2 / 3) * 200 / 1000)
    assert stages["evaluation"].seconds == pytest.approx(3 * 2 * 50 * an_episode)
    assert list(stages) == ["warm start", "rollouts", "training", "evaluation"]


def test_a_judge_costs_its_votes_by_the_prices_of_its_endpoint() -> None:
    config = configure(rewards={"annotator": "judge", "judge": {"votes": 3, "endpoint": PRICES}})
    (judge,) = [s for s in estimate_training(config, SHAPE, SPEEDS, evaluated=50) if s.stage == "judge"]
    # 60 episodes of training and twice 50 of the evaluation, 3 votes each: 1,200 tokens read and 250 written.
    assert judge.seconds is None and judge.money == pytest.approx(160 * 3 * (1200 * 2 + 250 * 10) / 1e6)


def test_an_evaluation_has_a_line_for_each_policy() -> None:
    policies = [
        {"name": "ours", "model": "embedded"},
        {"name": "theirs", "kind": "endpoint", "endpoint": PRICES},
        {"name": "free", "kind": "endpoint", "endpoint": {**PRICES, "price_in": 0.0, "price_out": 0.0}},
        {"name": "solution", "kind": "playback"},
    ]
    config = configure(evaluation={"policies": policies, "sampled_repeats": 1})
    stages = {stage.stage: stage for stage in estimate_evaluation(config, SHAPE, SPEEDS, evaluated=50)}
    assert stages["ours"] == StageEstimate("ours", pytest.approx(100 * 1.64))
    # An endpoint reads half of an episode on average in each of 4 turns, and writes 40 tokens.
    assert stages["theirs"] == StageEstimate("theirs", None, pytest.approx(100 * (400 * 2 + 40 * 10) / 1e6))
    assert stages["free"] == StageEstimate("free", None) and stages["solution"] == StageEstimate("solution", 0.0)


def test_the_table_adds_up() -> None:
    table = [*describe_estimate([StageEstimate("rollouts", 150.0), StageEstimate("judge", None, 1.5)])]
    assert [line.split() for line in table] == [
        ["estimate", "time", "money"],
        ["rollouts", "2", "min", "30", "s"],
        ["judge", "unknown", "1.50"],
        ["in", "all", "2", "min", "30", "s", "1.50"],
    ]


def test_without_demonstrations_an_episode_takes_half_of_its_limits() -> None:
    config = configure(rollout={"max_steps": 8, "max_new_tokens": 40}, policy={"max_context": 400})
    shape = EpisodeShape.of([], 100.0, config)
    assert (shape.turns, shape.turn_tokens, shape.tokens) == (4.0, 20.0, 100 + 2 * 4 * 20)
