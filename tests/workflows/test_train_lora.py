"""A run with LoRA: adapters travel between the rounds, and the model in the end is whole."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flytekit import current_context
from safetensors.torch import load_file

from steptool.artifacts import lineage
from steptool.config import Config, RoundsConfig
from steptool.models.adapter import ADAPTER_COPY, name_base
from steptool.pipeline.episodes import evaluate
from steptool.records import Advantage, Cost, Evaluation, StepReward, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from workflows.train import train


def files_of_rounds() -> set[Path]:
    """What the policies of rounds have left where Flyte keeps what local stages hand to each other."""
    return set(Path(current_context().working_directory).parent.rglob("policy/*.safetensors"))


@pytest.fixture(scope="module")
def config(small: Config) -> Config:
    """Rounds in pods that change the policy clearly."""
    tree = small.model_dump(mode="json")
    tree["policy"] |= {"lora_rank": 2}
    tree["rounds"] = {"placement": "pods"}
    tree["ppo"] |= {"rounds": 3, "learning_rate": 0.01, "value_warmup_rounds": 0}
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, set[Path]]]:
    """The folder of a whole run, and the weights of policies that the run has left on the disk beside it."""
    torch.set_num_threads(1)
    folder, before = tmp_path_factory.mktemp("runs") / "lora", files_of_rounds()
    train(config=config, output=str(folder))
    yield folder, files_of_rounds() - before


def test_rounds_leave_the_last_adapter_alone(run: tuple[Path, set[Path]]) -> None:
    """The adapters before it went when nothing read them any more; no round has made a whole model."""
    _, left = run
    assert [file.name for file in left] == ["adapter_model.safetensors"]


@pytest.mark.slow
def test_rounds_placed_together_make_the_same_run(run: tuple[Path, set[Path]], config: Config, tmp_path: Path) -> None:
    """Two rounds in the first stage and one in the second."""
    apart, before = run[0], files_of_rounds()
    together = config.model_copy(update={"rounds": RoundsConfig(placement="together", per_stage=2)})
    train(config=together, output=str(tmp_path / "run"))
    assert [file.name for file in files_of_rounds() - before] == ["adapter_model.safetensors"]
    assert {f.name for f in (tmp_path / "run").iterdir()} == {f.name for f in apart.iterdir()}
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (apart, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for kind, cls in (("rewards", StepReward), ("advantages", Advantage)):
        for r in range(3):
            rows = [read_records(place / f"{kind}_round_{r:02d}.parquet", cls) for place in (apart, tmp_path / "run")]
            assert rows[0] == rows[1]
    costs = [c for c in read_records(tmp_path / "run" / "costs.parquet", Cost) if c.stage == "rollout"]
    assert [c.round for c in costs] == [0, 0, 1, 1, 2, 2]


def test_the_model_is_the_warm_start_with_the_adapter(run: tuple[Path, set[Path]]) -> None:
    folder, _ = run
    before, after = (load_file(folder / name / "model.safetensors") for name in ("warm_start", "model"))
    changed_names = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed_names and all("proj" in name for name in changed_names)
    adapter = json.loads((folder / "model" / ADAPTER_COPY / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == name_base(folder / "warm_start")
    stages = [(entry["stage"], entry["round"]) for entry in lineage.read(folder / "model")]
    assert stages == [("base", -1), ("warm_start", -1), *(("step_ppo", n) for n in range(3))]
    texts = [file.read_text() for file in (folder / "model").rglob("*") if file.suffix in (".md", ".json")]
    assert not any("/tmp" in text or str(folder.parent) in text for text in texts)


def test_the_adapter_plays_the_episodes_of_the_merged_model(run: tuple[Path, set[Path]], config: Config) -> None:
    folder, _ = run
    merged = evaluate(folder / "model", read_queries(folder / "queries.parquet", "heldout"), config)
    by_adapter = {
        t.query_id: t for t in read_records(folder / "evaluation_trajectories_steptool_greedy.parquet", Trajectory)
    }
    for episode in merged.greedy:
        other = by_adapter[episode.query_id]
        assert list(episode.input_ids) == list(other.input_ids)
        np.testing.assert_allclose(episode.logprobs, other.logprobs, atol=1e-4)
    rows = [r for r in read_records(folder / "evaluations.parquet", Evaluation) if r.model == "steptool"]
    assert {r.query_id for r in rows} == set(by_adapter)
