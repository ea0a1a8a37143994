"""The command line of the registry, in real processes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steptool.artifacts import lineage
from steptool.registry import Registry

MakeModel = Callable[..., Path]


def call(place: Path, *arguments: object) -> tuple[int, str]:
    """Exit status and output, with the place and all times made equal."""
    command = [sys.executable, "-m", "steptool.cli", "registry", *map(str, arguments), "--registry", str(place)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    output = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", process.stdout + process.stderr)
    return process.returncode, output.replace(str(place), "PLACE")


def test_from_the_first_champion_to_a_roll_back(tmp_path: Path, make_model: MakeModel) -> None:
    place, metadata = tmp_path / "registry", tmp_path / "known.json"
    code, output = call(place, "publish", make_model("one"), "--promote")
    one = Registry(place).versions()[0].version_id
    assert code == 0
    published = f"published {one}, 0.0 MB, at PLACE/versions/{one}/model\n"
    assert output == f"{published}in service: {one}, number 1, since TIME UTC (by hand)\n"
    assert call(place, "publish", tmp_path / "one", "--promote")[1] == output  # once more changes nothing

    results = {"steptool": {"pass_rate": 0.714, "low": 0.66, "high": 0.76, "tasks": 400}}
    metadata.write_text(json.dumps({"results": results}))
    better = make_model("two", "better")
    lineage.sign(better, None, "step_ppo", [metadata], round_index=1)
    call(place, "publish", better, "--metadata", metadata, "--promote", "--reason", "first night")
    two = Registry(place).versions()[1].version_id
    assert call(place, "list") == (
        0,
        f"  {one}  0.0 MB  \n* {two}  0.0 MB  steptool 71.4%\n"
        f"in service: {two}, number 2, since TIME UTC (first night)\n",
    )
    output = call(place, "show")[1]
    assert f"{two}, 0.0 MB, at PLACE/versions/{two}/model\n  champion number 2 from TIME UTC: first night\n" in output
    assert f"  step_ppo of round 2: known.json {lineage.hash_file(metadata)[:12]}\n" in output
    assert json.loads(output[output.index("{") :]) == {"results": results}

    back = f"in service: {one}, number 3, since TIME UTC (wrong dates)\n"
    assert call(place, "roll-back", "--reason", "wrong dates") == (0, back)
    assert call(place, "roll-back") == (
        1,
        f"steptool: {one} was the first champion: no earlier one exists\n",
    )
    assert (
        call(place, "roll-back", "--to", two)[1]
        == f"in service: {two}, number 4, since TIME UTC (rolled back from {one})\n"
    )


def test_verify_says_what_is_damaged_and_prune_what_it_removed(tmp_path: Path, make_model: MakeModel) -> None:
    place = tmp_path / "registry"
    version = Registry(place).publish(make_model("one"), {})
    assert call(place, "verify") == (0, "versions 1, promotions 0, faults 0\n")
    assert call(place, "prune") == (0, "unfinished uploads removed: 0\n")
    (place / "versions" / version.version_id / "model" / "config.json").write_text("{ }")
    fault = f"versions/{version.version_id}/model/config.json: expected 2 bytes, found 3\n"
    assert call(place, "verify", version.version_id) == (1, f"{fault}{version.version_id}, faults 1\n")
    assert call(place, "verify", "x")[0] == 1


@pytest.mark.parametrize("command", ["list", "show", "verify", "prune", "roll-back"])
def test_a_place_without_a_registry_is_named(tmp_path: Path, command: str) -> None:
    expected = "steptool: PLACE: there is no registry; the first `publish` makes one\n"
    assert call(tmp_path / "registri", command) == (1, expected)


def test_before_the_first_promotion_nothing_is_in_service(tmp_path: Path, make_model: MakeModel) -> None:
    version = Registry(tmp_path).publish(make_model("one"), {}).version_id
    assert call(tmp_path, "list") == (0, f"  {version}  0.0 MB  \nnothing is in service yet\n")
    assert call(tmp_path, "show") == (1, "steptool: nothing is in service yet: name a version\n")


def test_a_damaged_manifest_stops_neither_list_nor_verify(tmp_path: Path, make_model: MakeModel) -> None:
    registry = Registry(tmp_path)
    old, new = (registry.publish(make_model(name, name), {}).version_id for name in ("old", "new"))
    registry.promote(new, after=0, reason="better")
    (tmp_path / "versions" / old / "version.json").write_text("{")
    code, output = call(tmp_path, "list")
    lines = output.splitlines()
    assert (code, lines[0]) == (1, f"* {new}  0.0 MB  ")
    assert lines[1].startswith(f"! versions/{old}/version.json: not a version") and lines[2].startswith("in service:")
    code, output = call(tmp_path, "verify")
    assert (code, output.splitlines()[-1]) == (1, "versions 1, promotions 1, faults 1")
    assert call(tmp_path, "prune") == (0, "unfinished uploads removed: 0\n")
    assert (tmp_path / "versions" / old).is_dir()


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("nosuch://bucket/registry", "steptool: nosuch://bucket/registry: expected a folder or a url of a store"),
        ("s3://bucket/registry", "steptool: "),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(place: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    command = [sys.executable, "-m", "steptool.cli", "registry", "list", "--registry", place]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (process.returncode, process.stdout, len(process.stderr.splitlines())) == (1, "", 1)
    assert process.stderr.startswith(problem)


def test_escapes_in_a_reason_do_not_reach_the_terminal(tmp_path: Path, make_model: MakeModel) -> None:
    code, output = call(tmp_path, "publish", make_model("one"), "--promote", "--reason", "\x1b[2Jgone \x9b31m")
    assert code == 0
    assert "(\\x1b[2Jgone \\x9b31m)" in output and "\x1b" not in output


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, make_model: MakeModel) -> None:
    torn = tmp_path / "known.json"
    torn.write_text("{")
    code, output = call(tmp_path / "registry", "publish", make_model("one"), "--metadata", torn)
    assert code == 1
    assert "known.json: no JSON file" in output.splitlines()[-1]
    code, output = call(tmp_path / "registry", "publish", tmp_path / "none")
    assert (code, len(output.splitlines())) == (1, 1)
    assert "none: no config.json in the folder" in output
