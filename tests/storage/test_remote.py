import os
from pathlib import Path

import fsspec
import pytest

from steptool.config import Config
from steptool.data.ingest import fingerprint_sources, list_files, list_inputs
from steptool.data.parsing import IngestError
from steptool.storage.transfer import FetchError, digest_content, fetch, localize


def put(url: str, text: str) -> str:
    with fsspec.open(url, "w") as file:
        file.write(text)
    return url


def test_a_file_of_a_store_is_fetched_under_its_own_names(bucket: str, tmp_path: Path) -> None:
    place = fetch(put(f"{bucket}/logs/may/answers.jsonl", "{}"), tmp_path)
    assert place == str(tmp_path / "may" / "answers.jsonl") and Path(place).read_text() == "{}"


def test_a_folder_of_a_store_is_fetched_whole(bucket: str, tmp_path: Path) -> None:
    put(f"{bucket}/models/base/config.json", "c")
    put(f"{bucket}/models/base/deep/tokenizer.json", "t")
    place = Path(fetch(f"{bucket}/models/base/", tmp_path))
    assert place == tmp_path / "models" / "base"
    contents = {f.relative_to(place).as_posix(): f.read_text() for f in place.rglob("*") if f.is_file()}
    assert contents == {"config.json": "c", "deep/tokenizer.json": "t"}


def test_a_place_here_is_left_alone_and_a_url_of_nothing_is_refused(bucket: str, tmp_path: Path) -> None:
    for place in ("data/tasks.jsonl", "embedded", "Qwen/Qwen3-0.6B", ""):
        assert fetch(place, tmp_path / "none") == place
    assert not (tmp_path / "none").exists()
    with pytest.raises(FetchError, match=f"{bucket}/none: nothing is there"):
        fetch(f"{bucket}/none", tmp_path)


@pytest.mark.parametrize(
    ("url", "cause"),
    [("http://127.0.0.1:9/tasks.jsonl", "Cannot connect to host"), ("gopher://x/tasks.jsonl", "not known: gopher")],
)
def test_a_url_that_cannot_be_read_is_refused_with_its_field_and_its_cause(
    url: str, cause: str, tmp_path: Path
) -> None:
    config = Config.model_validate({"data": {"source": "jsonl", "paths": [url]}})
    with pytest.raises(FetchError, match=f"^data.paths: {url}: cannot be fetched .*{cause}"):
        localize(config, tmp_path, "data.paths")
    with pytest.raises(IngestError, match=f"^data.paths: '{url}' (cannot be read .*{cause}|does not exist)"):
        list_files(config.data)


def test_a_configuration_is_given_what_its_urls_hold(bucket: str, tmp_path: Path) -> None:
    url = put(f"{bucket}/data/tasks.jsonl", "x")
    config = Config.model_validate({"data": {"source": "jsonl", "paths": ["here.jsonl", url]}, "policy": {"base": url}})
    local_config = localize(config, tmp_path, "data.paths", "policy.base")
    assert local_config.data.paths[0] == "here.jsonl"
    assert [Path(place).read_text() for place in (local_config.data.paths[1], local_config.policy.base)] == ["x", "x"]
    assert local_config.data.paths[1] != local_config.policy.base
    assert localize(config, tmp_path / "again", "tools.toolbench.cache") == config


@pytest.mark.parametrize("store", [False, True])
def test_a_mark_changes_with_content_and_names_and_with_nothing_else(
    store: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue("bucket") if store else str(tmp_path)
    model = f"{root}/model"
    (tmp_path / "model").mkdir()
    put(f"{model}/config.json", "1")
    first = digest_content(model)
    assert digest_content(model) == first
    put(f"{model}/config.json", "2")
    second = digest_content(model)
    put(f"{model}/more.json", "")
    third = digest_content(model)
    assert len({first, second, third}) == 3
    if not store:
        os.utime(tmp_path / "model" / "config.json", (0, 0))
        assert digest_content(model) == third


def test_tools_of_a_package_are_known_by_their_file() -> None:
    contents = list_inputs(Config.model_validate({"tools": {"functions": "json.decoder:JSONDecoder"}}))
    assert [Path(place).name for place in contents] == ["decoder.py"]
    assert list_inputs(Config.model_validate({"tools": {"functions": "no.such.module:TOOLS"}})) == []


def test_a_fingerprint_follows_every_place_that_a_run_reads(bucket: str, tmp_path: Path) -> None:
    tools, tasks = tmp_path / "tools.py", tmp_path / "tasks.jsonl"
    world, server = tmp_path / "world.py", tmp_path / "server.py"
    for program in (tools, world, server):
        program.write_text("TOOLS = []")
    tasks.write_text("{}\n")
    verdicts = put(f"{bucket}/verdicts.parquet", "v")
    config = Config.model_validate(
        {
            "data": {"source": "jsonl", "paths": [str(tasks)], "environment": f"{world}:World"},
            "tools": {"functions": f"{tools}:TOOLS", "mcp": {"command": ["python", str(server)]}},
            "evaluation": {"verdicts": [verdicts], "policies": [{"name": "a", "model": "embedded"}]},
        }
    )
    assert list_inputs(config) == [str(world), str(tools), str(server), verdicts]
    digests = [fingerprint_sources(config)]
    assert fingerprint_sources(config) == digests[0]
    for change in (
        lambda: tasks.write_text("{ }\n"),
        lambda: tools.write_text("TOOLS = [1]"),
        lambda: world.write_text("TOOLS = [2]"),
        lambda: server.write_text("TOOLS = [3]"),
        lambda: put(verdicts, "w"),
    ):
        change()
        digests.append(fingerprint_sources(config))
    assert len(set(digests)) == 6
    tasks.unlink()
    with pytest.raises(IngestError, match=str(tasks)):
        fingerprint_sources(config)


def test_a_file_that_the_settings_of_an_environment_name_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("1")
    (tmp_path / "library.py").write_text("1")
    taskset = f"{tmp_path}/library.py:Tasks"
    settings = {"datasets": {"train": [f"{tmp_path}/train.jsonl"]}, "taskset": taskset, "url": "http://127.0.0.1:9"}
    config = Config.model_validate({"tools": {"settings": settings}})
    digests = [fingerprint_sources(config)]
    for name in ("train.jsonl", "library.py", "other.jsonl"):
        (tmp_path / name).write_text("2")
        digests.append(fingerprint_sources(config))
    assert len(set(digests)) == 3 and digests[2] == digests[3]
