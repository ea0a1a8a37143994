import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
from flytekit.bin.entrypoint import setup_execution
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.core.types import BlobType
from flytekit.models.literals import Blob, BlobMetadata, Literal, Scalar

from tasks.artifacts import Model, Parquet, local

WORKER = """
import pickle, sys
from pathlib import Path
from tasks.artifacts import local

for artifact in pickle.loads(Path(sys.argv[1]).read_bytes()):
    print(local(artifact).stat().st_mtime_ns, local(artifact))
"""
KINDS = {Parquet: BlobType.BlobDimensionality.SINGLE, Model: BlobType.BlobDimensionality.MULTIPART}


def given(kind: type, uri: str) -> object:
    """An artifact as a task gets it from Flyte."""
    literal = Literal(scalar=Scalar(blob=Blob(BlobMetadata(BlobType("", KINDS[kind])), uri)))
    return TypeEngine.to_python_value(FlyteContextManager.current_context(), literal, kind)


def test_the_processes_of_a_training_download_once_and_read_the_same(bucket: str, tmp_path: Path) -> None:
    for name in ("model/config.json", "rows.parquet"):
        with fsspec.open(f"{bucket}/{name}", "w") as file:
            file.write(name)
    with setup_execution(str(tmp_path)):
        artifacts = [given(Parquet, f"{bucket}/rows.parquet"), given(Model, f"{bucket}/model")]
    (tmp_path / "given").write_bytes(pickle.dumps(artifacts))
    command = [sys.executable, "-c", WORKER, tmp_path / "given"]
    environment = {**os.environ, "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    pair = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    one, two = (process.communicate(timeout=60)[0] for process in pair)
    assert one == two and len(one.splitlines()) == 2
    rows, model = (Path(line.split(" ", 1)[1]) for line in one.splitlines())
    assert rows.read_text() == "rows.parquet" and (model / "config.json").read_text() == "model/config.json"


def test_an_artifact_that_is_here_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("x")
    assert local(Parquet(str(tmp_path / "rows.parquet"))) == tmp_path / "rows.parquet"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
