from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pytest
from flytekit.bin.entrypoint import setup_execution
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.core.types import BlobType
from flytekit.models.literals import Blob, BlobMetadata, Literal, Scalar

from steptool.records import Evaluation, Trajectory
from steptool.records.tables import read_records
from tasks.episodes import rollout
from tasks.evaluate import evaluate
from tasks.ingest import ingest
from tasks.runtime.artifacts import Model, Parquet, download

KINDS = {Parquet: BlobType.BlobDimensionality.SINGLE, Model: BlobType.BlobDimensionality.MULTIPART}


def make_artifact(kind: type, uri: str) -> object:
    """An artifact as a task gets it from Flyte."""
    literal = Literal(scalar=Scalar(blob=Blob(BlobMetadata(BlobType("", KINDS[kind])), uri)))
    return TypeEngine.to_python_value(FlyteContextManager.current_context(), literal, kind)


def test_the_processes_of_a_training_download_once_and_read_the_same(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model/config.json", "rows.parquet"):
        with fsspec.open(f"{bucket}/{name}", "w") as file:
            file.write(name)
    with setup_execution(str(tmp_path)):
        rows, model = make_artifact(Parquet, f"{bucket}/rows.parquet"), make_artifact(Model, f"{bucket}/model")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        pair = [processes.submit(download, artifact) for artifact in (rows, rows, model, model)]
        one, other, folder, the_same = (place.result(timeout=60) for place in pair)
        with fsspec.open(f"{bucket}/rows.parquet", "w") as file:
            file.write("another")
        assert processes.submit(download, rows).result(timeout=60).read_text() == "rows.parquet"  # it was here already
    assert one == other and folder == the_same
    assert one.read_text() == "rows.parquet" and (folder / "config.json").read_text() == "model/config.json"


def test_an_artifact_that_is_here_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("x")
    assert download(Parquet(str(tmp_path / "rows.parquet"))) == tmp_path / "rows.parquet"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_round_and_an_evaluation_play_a_set_of_tasks(round_inputs: dict[str, Any], tmp_path: Path) -> None:
    with setup_execution(str(tmp_path)):
        execution = ingest.execute(config=round_inputs["config"], sources="", for_training=True)
        assert [path.name for path in Path(execution.tasks.path).iterdir()] == [
            "queries.parquet"
        ]  # the desk replays nothing
        model = Model(round_inputs["policy"])
        common = {"config": round_inputs["config"], "model": model, "base": model, "tasks": execution.tasks}
        shard = rollout.execute(shard=0, round_index=0, **common)
        assert len(read_records(Path(str(shard)) / "trajectories.parquet", Trajectory)) == 4
        measured = evaluate.execute(name="base", **common)
        assert len(read_records(str(measured.rows), Evaluation)) > 0
        config = common["config"]
        recorded_only = config.evaluation.model_copy(update={"recorded_only": True})
        common["config"] = config.model_copy(update={"evaluation": recorded_only})
        with pytest.raises(Exception, match=r"no query of the split 'heldout' has a recorded answer"):
            evaluate.execute(name="base", **common)
