"""The plan of a run, in words and numbers that follow from its configuration."""

from pathlib import Path

import pytest

from steptool.check.plan import describe_plan, read_base_shape
from steptool.config import Config
from steptool.data.ingest_log import IngestError


def test_files_and_their_sizes_are_those_that_ingest_would_read(tmp_path: Path) -> None:
    for name, size in (("a.jsonl", 1_500_000), ("b.jsonl", 500_000), ("c.txt", 9_000_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    data = {"source": "jsonl", "paths": [str(tmp_path)], "train_queries": 5}
    (line, *_) = describe_plan(Config.model_validate({"data": data}))
    assert line.endswith("at most 5 training, 200 validation and 400 held-out queries from 2 files of 2.0 MB")
    with pytest.raises(IngestError, match="does not exist"):
        describe_plan(Config.model_validate({"data": {**data, "paths": ["/nowhere"]}}))


def test_endpoints_are_listed_with_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m", "key_variable": "STEPTOOL_TEST_KEY"}
    config = Config.model_validate({"rewards": {"annotator": "judge", "judge": {"endpoint": endpoint}}})
    line = "endpoint    judge: m at http://localhost:1/v1; STEPTOOL_TEST_KEY is"
    assert describe_plan(config)[-1] == f"{line} not set, which suits a server without keys"
    monkeypatch.setenv("STEPTOOL_TEST_KEY", "secret")
    assert describe_plan(config)[-1] == f"{line} set"


@pytest.mark.parametrize("base", ["scratch", "s3://bucket/model", "/no/such/model"])
def test_a_model_that_is_not_here_has_no_shape(base: str) -> None:
    assert read_base_shape(Config.model_validate({"policy": {"base": base}}).policy) is None
