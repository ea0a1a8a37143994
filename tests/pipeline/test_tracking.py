"""Trackers of experiments, each by its real package; MLflow by a real server as well (make test-trackers)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

from steptool.config import Config, ConfigError
from steptool.pipeline.tracking import (
    _list_update_entries,
    check_trackers,
    name_run,
    track_configuration,
    track_evaluation,
    track_results,
    track_round,
    track_updates,
)
from steptool.records import Cost, Evaluation, Metric, StepReward, Trajectory

UPDATES = [
    Metric("ppo", 1, 0, "kl", 0.25),
    Metric("ppo", 1, 1, "kl", 0.75),
    Metric("ppo", 1, -1, "mismatch_mean", 0.01),
    Metric("annotate", 1, -1, "money", 0.02),
]
"""The second round, of two updates, with what is known of the whole round."""


def make_config(tmp_path: Path, tracker: str, **fields: Any) -> Config:
    section = {"trackers": [tracker], "folder": str(tmp_path / "tracking"), "run": "night-7", **fields}
    two_updates = {"rollout": {"episodes": 2}, "ppo": {"epochs": 2, "batch_size": 2}}
    return Config.model_validate({"tracking": section, **two_updates})


def row(passed: float | None, decoding: str = "greedy", tier: str = "long") -> Evaluation:
    return Evaluation(
        query_id="q", split="test", tier=tier, model="base", decoding=decoding, repeat=0, trajectory_id="t",
        passed=passed, verdict_source="environment", recall=None, steps=1, calls=1, invalid_calls=0, redundant_calls=0,
        tokens=1, prompt_tokens=1, money=None, seconds=1.0, stop_reason="finished",
    )  # fmt: skip


def make_episode(trajectory_id: str, solved: float) -> Trajectory:
    return Trajectory(
        trajectory_id, "q", environment="", tier="long", policy="p", round=1, sample=0, temperature=0.7, messages=[],
        input_ids=[], spans=[], logprobs=[], steps=[], stop_reason="finished", final_answer="",
        solved=solved, seconds=0.0,
    )  # fmt: skip


def track_a_run(config: Config) -> None:
    track_configuration(config)
    track_updates([Metric("warm_start", -1, 0, "loss", 2.0), Metric("warm_start", -1, 1, "loss", 1.0)], config)
    episodes = [make_episode("a", 1.0), make_episode("b", 0.0)]
    rewards = [StepReward("a", 0, "rules", "4", succ_calling=1.0), StepReward("b", 0, "rules", "4", succ_calling=0.5)]
    track_round(
        episodes, rewards, UPDATES, [Cost("ppo", 1, 3.0, 10, 1.0, {}), Cost("rollout", 1, 4.0, 5, 1.0, {})], config
    )
    track_evaluation("base", [row(1.0), row(0.0, tier="single"), row(0.5, "sampled"), row(None)], config)
    track_results("pass rate 50%", {"report.html": "runs/demo/report.html"}, config)


ROUND_FIGURES = {
    "rounds/ppo/kl": 0.5, "rounds/pass_rate": 0.5, "rounds/scores/succ_calling": 0.75, "rounds/seconds": 7.0,
    "rounds/tokens": 15.0, "rounds/steps": 0.0, "rounds/ppo/mismatch_mean": 0.01, "rounds/annotate/money": 0.02,
}  # fmt: skip
EVALUATION_FIGURES = {
    "evaluation/base/greedy/all": 0.5, "evaluation/base/greedy/long": 1.0, "evaluation/base/greedy/single": 0.0,
    "evaluation/base/sampled/all": 0.5, "evaluation/base/sampled/long": 0.5,
}  # fmt: skip


def test_updates_of_rounds_that_leave_out_trajectories_do_not_overlap(tmp_path: Path) -> None:
    config = make_config(tmp_path, "tensorboard")  # two updates in a whole round
    rounds = [[Metric("ppo", 0, 0, "kl", 0.5), Metric("ppo", 0, 1, "kl", 0.5)], [Metric("ppo", 1, 0, "kl", 0.5)]]
    assert [entry.step for metrics in rounds for entry in _list_update_entries(metrics, config)] == [0, 1, 2]


def test_tensorboard_reads_the_figures_of_all_stages_as_one_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track_a_run(make_config(tmp_path, "tensorboard"))
    events = EventAccumulator(str(tmp_path / "tracking" / "night-7")).Reload()

    def series(name: str) -> list[tuple[int, float]]:
        return [(e.step, e.value) for e in events.Scalars(name)]

    assert series("warm_start/loss") == [(0, 2.0), (1, 1.0)]
    assert series("ppo/kl") == [(2, 0.25), (3, 0.75)]  # the second round of two updates
    for name, value in ROUND_FIGURES.items():
        assert series(name) == [(1, pytest.approx(value))], name
    for name, value in EVALUATION_FIGURES.items():
        assert series(name) == [(0, value)], name
    text = events.Tensors("links/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "runs/demo/report.html" in text


def test_tensorboard_writes_one_run_into_a_bucket_and_nothing_here(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    track_a_run(make_config(tmp_path, "tensorboard", folder=f"{bucket}/tracking"))
    events = EventAccumulator(f"{bucket}/tracking/night-7").Reload()
    assert [(e.step, e.value) for e in events.Scalars("ppo/kl")] == [(2, 0.25), (3, 0.75)]
    assert events.PluginTagToContent("hparams").keys() >= {"_hparams_/session_start_info"}
    store = fsspec.filesystem("s3")
    runs = {Path(file).parent.name for file in store.find(f"{bucket}/tracking") if "tfevents" in file}
    assert runs == {"night-7"}  # the hyperparameters have no run of their own
    assert not list(tmp_path.iterdir())


def check_mlflow(config: Config, uri: str) -> None:
    import mlflow

    track_a_run(config)
    track_a_run(config)  # a stage that is tried again goes on in the same run
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("steptool")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "night-7"
    assert run.data.params["ppo.rounds"] == str(Config().ppo.rounds)
    assert {m.step: m.value for m in client.get_metric_history(run.info.run_id, "ppo/kl")} == {2: 0.25, 3: 0.75}
    figures = {**ROUND_FIGURES, **EVALUATION_FIGURES}
    assert {name: run.data.metrics[name] for name in figures} == pytest.approx(figures)
    assert "runs/demo/report.html" in run.data.tags["steptool.links"]


def test_mlflow_without_a_server_keeps_one_run_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    check_mlflow(make_config(tmp_path, "mlflow"), (tmp_path / "tracking" / "mlruns").as_uri())


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    program = os.environ.get("MLFLOW_PROGRAM") or shutil.which("mlflow")
    if not program:
        pytest.skip("no MLflow server is installed: make test-trackers installs one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:///{tmp_path}/mlflow.db"
    command = [program, "server", "--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "artifacts"),
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def test_an_mlflow_server_gets_one_run(tmp_path: Path, mlflow_server: str) -> None:
    pytest.importorskip("mlflow")
    check_mlflow(make_config(tmp_path, "mlflow", mlflow_url=mlflow_server), mlflow_server)


def test_wandb_writes_offline_what_it_can_send_later(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track_a_run(make_config(tmp_path, "wandb"))
    files = list((tmp_path / "tracking" / "wandb").glob("offline-run-*-night-7*/run-night-7.wandb"))
    assert files  # one file for each stage, all of the same run; -1 follows where two start in a second
    content = b"".join(file.read_bytes() for file in files)
    for name in ("warm_start/loss", "ppo/kl", "rounds/pass_rate", "evaluation/base/greedy/all"):
        assert name.encode() in content, name


def test_trackio_keeps_the_run_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported
    pytest.importorskip("trackio")
    track_a_run(make_config(tmp_path, "trackio"))
    content = b"".join(file.read_bytes() for file in (tmp_path / "trackio").rglob("*") if file.is_file())
    for name in ("night-7", "ppo/kl", "rounds/pass_rate"):
        assert name.encode() in content, name


def test_a_tracker_that_fails_is_named_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    config = make_config(tmp_path, "tensorboard", folder=str(tmp_path / "file"))
    track_results("table", {}, config)
    assert "tensorboard did not take these figures: " in capsys.readouterr().out


def test_a_tracker_without_its_package_is_refused_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    section = Config.model_validate({"tracking": {"trackers": ["mlflow"]}}).tracking
    with pytest.raises(ConfigError, match=r"tracking\.trackers: mlflow needs .* pip install mlflow-skinny"):
        check_trackers(section)


def test_pods_of_one_execution_and_processes_of_one_machine_share_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = Config().tracking
    for name, value in (("PROJECT", "nlp"), ("DOMAIN", "production"), ("ID", "f81")):
        monkeypatch.setenv(f"FLYTE_INTERNAL_EXECUTION_{name}", value)
    assert name_run(tracking) == "nlp-production-f81"
    monkeypatch.delenv("FLYTE_INTERNAL_EXECUTION_ID")
    monkeypatch.delenv("FLYTE_INTERNAL_EXECUTION_PROJECT")
    monkeypatch.delenv("FLYTE_INTERNAL_EXECUTION_DOMAIN")
    monkeypatch.setenv("STEPTOOL_RUN", "20261127-090000-4711")
    assert name_run(tracking) == "20261127-090000-4711"


def test_without_trackers_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    track_a_run(Config())
    assert not list(tmp_path.iterdir())
