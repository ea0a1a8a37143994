"""Which stages the rounds become on a cluster. tests/workflows/test_train.py runs them locally."""

from __future__ import annotations

from pathlib import Path

import pytest
from flytekit.bin.entrypoint import setup_execution
from flytekit.configuration import SERIALIZED_CONTEXT_ENV_VAR, Image, ImageConfig, SerializationSettings
from flytekit.models.core.workflow import Node
from flytekit.models.dynamic_job import DynamicJobSpec

from steptool.config import Config
from tasks.runtime.artifacts import Model, Parquet, Tasks
from workflows.train import rounds


def name_stage(node: Node) -> str:
    """The task of a node. Flyte calls a mapped one `map_NAME_DIGEST`."""
    mapped = node.array_node.node if node.array_node else node
    name = str(mapped.task_node.reference_id.name).rpartition(".")[2]
    return name.removeprefix("map_").rpartition("_")[0] if node.array_node else name


def test_a_pod_lays_out_stages_for_each_step_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image("cpu", "localhost/steptool", "cpu")
    settings = SerializationSettings(image_config=ImageConfig(default_image=image, images=[image]))
    monkeypatch.setenv(SERIALIZED_CONTEXT_ENV_VAR, settings.serialized_context)
    config = Config.model_validate({"ppo": {"rounds": 2}})
    with setup_execution(str(tmp_path)):
        spec = rounds.execute(
            config=config, start=Model("s3://bucket/m"), tasks=Tasks("s3://bucket/t"), queries=Parquet("s3://bucket/q")
        )
    assert isinstance(spec, DynamicJobSpec)
    assert [name_stage(node) for node in spec.nodes] == 2 * ["rollout", "annotate_shard", "audit", "ppo"]
