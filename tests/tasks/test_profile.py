"""What the profile says, is what a stage's task has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from steptool.config.base import ConfigError
from tasks.runtime.profile import Amounts, Profile, StageName, StageProfile, load_profile

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "configs" / "cluster.yaml"
SHOW = """
import json
from tasks.evaluate import evaluate
from tasks.ingest import fingerprint
from tasks.training import ppo
from tasks.episodes import rollout
from workflows.train import rounds

def seen(task):
    secrets = [(s.group, s.key, s.env_var) for s in task.security_context.secrets] if task.security_context else []
    amounts = [{k: v for k, v in vars(r).items() if v} for r in (task.resources.requests, task.resources.limits)]
    gpu = task.accelerator.to_flyte_idl().device if task.accelerator else ""
    elastic = [task.task_config.nnodes, task.task_config.nproc_per_node] if task.task_config else []
    return {
        "image": task.container_image, "amounts": amounts, "gpu": gpu, "elastic": elastic, "secrets": secrets,
        "spot": task.metadata.interruptible, "retries": task.metadata.retries, "shm": task.shared_memory,
        "seconds": task.metadata.timeout.total_seconds(), "environment": task.environment, "cache": task.metadata.cache,
        "deck": not task.disable_deck,
    }

print(json.dumps({task.name.rpartition(".")[2]: seen(task) for task in (ppo, rollout, evaluate, fingerprint, rounds)}))
"""


def declare_stages(path: Path | None) -> Any:
    """How the tasks are declared in a process with that profile."""
    environment = {name: value for name, value in os.environ.items() if name != "STEPTOOL_PROFILE"}
    environment |= {"STEPTOOL_PROFILE": str(path)} if path else {}
    process = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)


def write_profile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("ppo", "several"), [({}, False), ({"gpus": 4}, False), ({"processes": 2}, True), ({"nodes": 2}, True)]
)
def test_only_the_stage_ppo_says_whether_rounds_are_trained_in_several_processes(
    ppo: dict[str, int], several: bool
) -> None:
    profile = Profile.model_validate({"stages": {"ppo": ppo, "warm_start": {"processes": 2}}})
    assert profile.trains_in_several_processes is several


def test_every_field_of_a_profile_reaches_the_task(tmp_path: Path) -> None:
    profile = """
defaults: {requests: {cpu: 2, memory: 4Gi}, limits: {memory: 8Gi}, retries: 1, timeout_hours: 0.5}
stages:
  ppo:
    image: gpu
    requests: {cpu: 8, storage: 100Gi}
    gpus: 2
    gpu_type: A100_80GB
    nodes: 2
    processes: 2
    spot: true
    retries: 5
    shared_memory: 16Gi
  rollout: {secrets: {OPENAI_API_KEY: openai/api-key, OTHER: lone}, spot: true}
"""
    path = write_profile(tmp_path, profile)
    tasks = declare_stages(path)
    ppo, rollout = tasks["ppo"], tasks["rollout"]
    assert ppo["image"] == "{{.image.gpu.fqn}}:{{.image.gpu.version}}"
    assert ppo["amounts"] == [
        {"cpu": "8", "mem": "4Gi", "gpu": "2", "ephemeral_storage": "100Gi"},
        {"mem": "8Gi", "gpu": "2"},
    ]
    assert (ppo["gpu"], ppo["elastic"], ppo["shm"]) == ("nvidia-a100-80gb", [2, 2], "16Gi")
    assert (ppo["spot"], ppo["retries"], ppo["seconds"], ppo["cache"]) == (True, 5, 1800.0, True)
    assert ppo["environment"] == {"OMP_NUM_THREADS": "4", "STEPTOOL_PROFILE": str(path)}
    assert rollout["secrets"] == [["openai", "api-key", "OPENAI_API_KEY"], ["lone", None, "OTHER"]]
    assert rollout["image"] == "{{.image.cpu.fqn}}:{{.image.cpu.version}}"
    assert (rollout["spot"], rollout["retries"], rollout["elastic"], rollout["gpu"]) == (True, 1, [], "")
    assert rollout["environment"] == {"OMP_NUM_THREADS": "2", "STEPTOOL_PROFILE": str(path)}
    assert (tasks["evaluate"]["secrets"], tasks["evaluate"]["spot"]) == ([], False)
    assert tasks["rounds"]["amounts"][0] == {"cpu": "2", "mem": "4Gi"}


def test_without_a_profile_a_stage_asks_for_nothing() -> None:
    for name, task in declare_stages(None).items():
        assert task["amounts"] == [{}, {}] and not task["elastic"] and task["environment"] == {}, name
        assert (task["retries"], task["spot"], task["seconds"], task["shm"]) == (3, False, 0.0, None), name
        assert task["deck"] is (name != "rounds") and task["cache"] is (name not in ("rounds", "fingerprint")), name


def test_the_cluster_profile_documents_every_field_and_stage() -> None:
    text = CLUSTER.read_text()
    data = yaml.safe_load(text)
    assert set(data["defaults"]) == set(StageProfile.model_fields)
    assert all(set(data["defaults"][part]) == set(Amounts.model_fields) for part in ("requests", "limits"))
    assert all(stage in text for stage in StageName)
    assert load_profile(CLUSTER).of(StageName.PPO).processes > 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("defaults: {cpus: 2}", "unknown field 'defaults.cpus': remove it, or see configs/cluster.yaml"),
        ("stages: {ppo: {retries: '3'}}", "field 'stages.ppo.retries': input should be a valid integer, got '3'"),
        ("defaults: {requests: {memory: 4 gigs}}", "field 'defaults.requests.memory'"),
        ("defaults: {image: big}", "field 'defaults.image': input should be 'cpu' or 'gpu'"),
        ("stages: {pppo: {}}", "no stage is called pppo; there are fingerprint, ingest"),
        ("stages: {ppo: {gpus: 1, gpu_type: A1000}}", "expected one of A100, A100_80GB"),
        ("stages: {ppo: {gpu_type: A100}}", "stages.ppo: gpu_type A100 without gpus"),
        ("stages: {rollout: {nodes: 2}}", "stages.rollout: 2 nodes of 1 processes: only ppo and warm_start"),
        ("defaults: {processes: 2}", "stages.evaluate: 1 nodes of 2 processes"),
        ("stages: {ppo: {gpus: 1, processes: 2}}", "stages.ppo: 2 processes on 1 gpus"),
        (
            "defaults: {timeout_hours: 1e300}",
            "field 'defaults.timeout_hours': input should be less than or equal to 8760",
        ),
        ("[1]", "expected a mapping of sections, got a list"),
    ],
)
def test_what_is_unknown_ill_typed_or_impossible_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    path = write_profile(tmp_path, text)
    with pytest.raises(ConfigError) as excinfo:
        load_profile(path)
    assert str(excinfo.value).startswith(f"{path}: ") and problem in str(excinfo.value)


def test_a_profile_that_is_not_there_is_refused_with_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; STEPTOOL_PROFILE names a profile"):
        load_profile(tmp_path / "none.yaml")


def test_a_stage_keeps_what_it_does_not_set_itself() -> None:
    profile = Profile.model_validate(
        {
            "defaults": {"requests": {"cpu": 2.0, "memory": "4Gi"}, "retries": 7},
            "stages": {"ppo": {"requests": {"cpu": 4}}},
        }
    )
    ppo = profile.of(StageName.PPO)
    assert (ppo.requests.cpu, ppo.requests.memory, ppo.retries) == (4.0, "4Gi", 7)
    assert profile.of(StageName.INGEST) == profile.defaults
