"""Rounds in one process against the same rounds step by step, as pods make them: bit for bit the same."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steptool.artifacts.metrics import Stopwatch
from steptool.pipeline.episodes import EPISODES, audit_round, open_learner, play_shard, score_file
from steptool.pipeline.learning import FinishedRound, RoundInputs, learn_round, play_and_learn
from steptool.policies.sampler import RowCache
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.records.tables import read_records
from steptool.rewards.audit import AuditError

torch.set_num_threads(1)
ROUNDS = 3


@pytest.fixture(scope="module")
def inputs(world: Callable[..., RoundInputs]) -> RoundInputs:
    """With LoRA."""
    return world(lora_rank=4)


@pytest.fixture(scope="module")
def whole(inputs: RoundInputs, tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRound]:
    """All rounds together."""
    return play_and_learn(inputs, 0, ROUNDS, inputs.start, None, tmp_path_factory.mktemp("whole"))


def step_by_step(inputs: RoundInputs, folder: Path) -> list[FinishedRound]:
    """The rounds as the stages of pods make them: each step takes files and leaves files."""
    policy, scale, config, made = inputs.start, None, inputs.config, []
    for r in range(ROUNDS):
        place = folder / str(r)
        shards, scores = [], []
        for shard in range(config.rollout.shards):
            for name in ("shard", "scores", "joined"):
                (place / f"{name}{shard}").mkdir(parents=True)
            with open_learner(policy, inputs.start, config, r) as player:
                watch = Stopwatch("rollout", r)
                shards.append(play_shard(player, inputs.tasks, config, r, shard, place / f"shard{shard}", watch))
            scores.append(score_file(shards[-1] / EPISODES, inputs.queries, config, r, place / f"scores{shard}"))
        pages: list[str] = []
        audited = audit_round(shards, scores, inputs.queries, config, r, place / "joined0", pages.append)
        learned = learn_round(policy, inputs.start, audited, config, r, scale, place)
        made.append(FinishedRound(audited, learned, pages[0]))
        policy, scale = learned.model, learned.scale
    return made


def content(rounds: list[FinishedRound]) -> list[object]:
    """What the rounds have made, without times: episodes, rewards, advantages, metrics, scale and page."""
    return [
        (
            [
                replace(t, seconds=0.0, input_ids=t.input_ids.tolist(), logprobs=t.logprobs.tobytes())
                for t in read_records(finished_round.audited.trajectories, Trajectory)
            ],
            read_records(finished_round.audited.rewards, StepReward),
            read_records(finished_round.learned.advantages, Advantage),
            read_records(finished_round.learned.metrics, Metric),
            finished_round.learned.scale.read_text(),
            finished_round.page,
        )
        for finished_round in rounds
    ]


def weights(model: Path) -> dict[str, torch.Tensor]:
    files = {file.relative_to(model).as_posix(): load_file(file) for file in model.rglob("*.safetensors")}
    return {f"{file}/{name}": value for file, tensors in files.items() for name, value in tensors.items()}


def assert_same(ours: list[FinishedRound], other: list[FinishedRound]) -> None:
    for number, (one, two) in enumerate(zip(content(ours), content(other), strict=True)):
        assert one == two, f"round {number}"
    one, two = ours[-1].learned.model, other[-1].learned.model
    assert {f.relative_to(one) for f in one.rglob("*")} == {f.relative_to(two) for f in two.rglob("*")}
    trained, expected = weights(one), weights(two)
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_rounds_together_make_the_same_bits_with_lora(
    inputs: RoundInputs, whole: list[FinishedRound], tmp_path: Path
) -> None:
    assert_same(whole, step_by_step(inputs, tmp_path / "steps"))
    assert {name.split("/")[0] for name in weights(whole[-1].learned.model)} == {
        "adapter_model.safetensors",
        "training",
    }


def test_keys_and_values_are_gone_before_the_training(inputs: RoundInputs, tmp_path: Path) -> None:
    """The page of the audit is shown between the two."""
    caches: list[int] = []

    def count_caches(name: str, page: str) -> None:
        caches.append(sum(type(thing) is RowCache for thing in gc.get_objects()))

    play_and_learn(inputs, 0, 1, inputs.start, None, tmp_path / "state", show=count_caches)
    assert caches == [0]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_rounds_together_make_the_same_bits_with_full_fine_tuning(
    world: Callable[..., RoundInputs], tmp_path: Path, dtype: str
) -> None:
    inputs = world(dtype=dtype)
    ours = play_and_learn(inputs, 0, ROUNDS, inputs.start, None, tmp_path / "state")
    assert_same(ours, step_by_step(inputs, tmp_path / "steps"))
    before, after = weights(inputs.start), weights(ours[-1].learned.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_interrupted_stage_goes_on_behind_its_last_round(
    inputs: RoundInputs, whole: list[FinishedRound], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class KilledError(Exception):
        pass

    checkpoint_names: list[str] = []

    def keep_and_die() -> None:
        checkpoint_names.extend(path.name for path in (tmp_path / "state").glob("checkpoint-*"))
        if len(checkpoint_names) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        play_and_learn(inputs, 0, ROUNDS, inputs.start, None, tmp_path / "state", on_checkpoint=keep_and_die)
    assert checkpoint_names == ["checkpoint-1", "checkpoint-2"]
    assert len(list((tmp_path / "state").rglob("policy"))) == 1  # that of the last round alone

    capsys.readouterr()
    pages: list[str] = []
    resumed = play_and_learn(
        inputs, 0, ROUNDS, inputs.start, None, tmp_path / "state", show=lambda name, page: pages.append(name)
    )
    played = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rollout")]
    assert len(played) == 2 and all("round 3 of 3" in line for line in played)
    assert pages == ["rewards of round 1", "rewards of round 2", "rewards of round 3"]
    assert_same(resumed, whole)


def test_a_second_stage_goes_on_with_policy_and_scale(
    inputs: RoundInputs, whole: list[FinishedRound], tmp_path: Path
) -> None:
    first = play_and_learn(inputs, 0, 2, inputs.start, None, tmp_path / "first")
    last = first[-1].learned
    second = play_and_learn(inputs, 2, 1, last.model, last.scale, tmp_path / "second")
    assert_same([*first, *second], whole)


def test_rewards_beyond_a_threshold_stop_the_rounds(inputs: RoundInputs, tmp_path: Path) -> None:
    audit = inputs.config.rewards.audit.model_copy(update={"max_farming": -1.0, "require_signal": False})
    rewards = inputs.config.rewards.model_copy(update={"audit": audit})
    strict = replace(inputs, config=inputs.config.model_copy(update={"rewards": rewards}))
    pages: list[str] = []
    with pytest.raises(AuditError, match="farming"):
        play_and_learn(
            strict, 0, ROUNDS, inputs.start, None, tmp_path / "state", show=lambda name, page: pages.append(name)
        )
    assert pages == ["rewards of round 1"]  # the page that tells why
