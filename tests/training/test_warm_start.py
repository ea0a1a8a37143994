from pathlib import Path
from types import SimpleNamespace

import pytest

from steptool.config import PolicyConfig, WarmStartConfig
from steptool.records import Metric
from steptool.records.columns import to_row
from steptool.records.tables import to_table
from steptool.training.warm_start import warm_start
from weights import mean_log_prob, same_weights


def test_warm_start_learns_its_examples_and_reports_progress(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace
) -> None:
    rows = make.trajectories(12)
    progress: list[tuple[int, float]] = []
    cfg = WarmStartConfig(steps=60, batch_size=5, learning_rate=1e-2)
    metrics = warm_start(
        model_dir, rows, cfg, PolicyConfig(), 0, tmp_path, on_step=lambda step, loss: progress.append((step, loss))
    )
    to_table(map(to_row, metrics), Metric)
    assert [step for step, _ in progress] == list(range(1, 61))
    assert progress[0][1] == pytest.approx(-mean_log_prob(model_dir, rows), abs=0.3)
    assert mean_log_prob(tmp_path, rows) > -2 > mean_log_prob(model_dir, rows)
    rates = [m.value for m in metrics if m.name == "learning_rate"]
    assert max(rates) == pytest.approx(1e-2, rel=0.01) and rates[0] < 3e-3 and rates[-1] < 1.2e-3


def test_no_steps_pass_the_model_on(model_dir: Path, tmp_path: Path) -> None:
    assert warm_start(model_dir, [], WarmStartConfig(steps=0), PolicyConfig(), 0, tmp_path) == []
    assert same_weights(model_dir, tmp_path)


def test_warm_start_is_a_function_of_its_seed(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(12)
    cfg = WarmStartConfig(steps=6, batch_size=5)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        warm_start(model_dir, rows, cfg, PolicyConfig(), seed, tmp_path / name)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_an_interrupted_warm_start_goes_on_to_the_same_weights(
    model_dir: Path, tmp_path: Path, make: SimpleNamespace, lora_rank: int
) -> None:
    rows, cfg, saves = make.trajectories(12), WarmStartConfig(steps=9, batch_size=5), []
    arguments = (model_dir, rows, cfg, PolicyConfig(lora_rank=lora_rank), 0)

    def stop(step: int, _: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    checkpointing = {"checkpoints": tmp_path / "kept", "checkpoint_every": 4, "on_checkpoint": lambda: saves.append(1)}
    with pytest.raises(KeyboardInterrupt):
        warm_start(*arguments, tmp_path / "a", on_step=stop, **checkpointing)
    assert len(saves) == 1
    steps: list[int] = []
    resumed = warm_start(*arguments, tmp_path / "a", on_step=lambda step, _: steps.append(step), **checkpointing)
    assert steps == [5, 6, 7, 8, 9] and len(saves) == 3
    assert resumed == warm_start(*arguments, tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_warm_start_with_lora_leaves_a_plain_model(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    cfg = WarmStartConfig(steps=20, batch_size=6, learning_rate=1e-2)
    warm_start(model_dir, rows, cfg, PolicyConfig(lora_rank=4), 0, tmp_path)
    assert mean_log_prob(tmp_path, rows) > mean_log_prob(model_dir, rows) + 0.2
    assert not (tmp_path / "training").exists()


def test_examples_that_do_not_fit_are_left_out(model_dir: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    rows = make.trajectories(6)
    shortest = min(len(t.input_ids) for t in rows)
    cfg = WarmStartConfig(steps=2, batch_size=4)
    metrics = warm_start(model_dir, rows, cfg, PolicyConfig(max_context=shortest), 0, tmp_path)
    expected = sum(len(t.input_ids) > shortest for t in rows)
    assert [m.value for m in metrics if m.name == "left_out"] == [expected]
    with pytest.raises(ValueError, match=f"fits into policy.max_context = 3 .*the shortest has {shortest}"):
        warm_start(model_dir, rows, cfg, PolicyConfig(max_context=3), 0, tmp_path)
