"""The command line of the registry, in real processes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from steptool.artifacts import lineage
from steptool.registry import Registry

MakeModel = Callable[..., Path]


def call(place: Path, *arguments: object) -> tuple[int, str]:
    """Exit status and all that was said, with names and times made equal."""
    command = [sys.executable, "-m", "steptool.registry", *map(str, arguments), "--registry", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", done.stdout + done.stderr)
    return done.returncode, said.replace(str(place), "PLACE")


def test_from_the_first_champion_to_a_roll_back(tmp_path: Path, make_model: MakeModel) -> None:
    place, metadata = tmp_path / "registry", tmp_path / "known.json"
    assert call(place, "list") == (0, "nothing is in service yet\n")
    assert call(place, "show") == (1, "registry: nothing is in service yet: name a version\n")
    code, said = call(place, "publish", make_model("one"), "--promote")
    one = Registry(place).versions()[0].version_id
    assert code == 0
    published = f"published {one}, 0.0 MB, at PLACE/versions/{one}/model\n"
    assert said == f"{published}in service: {one}, number 1, since TIME UTC (by hand)\n"
    assert call(place, "publish", tmp_path / "one", "--promote")[1] == said  # once more changes nothing

    results = {"steptool": {"pass_rate": 0.714, "low": 0.66, "high": 0.76, "tasks": 400}}
    metadata.write_text(json.dumps({"results": results}))
    better = make_model("two", "better")
    lineage.sign(better, None, "step_ppo", [metadata], round=1)
    call(place, "publish", better, "--metadata", metadata, "--promote", "--reason", "first night")
    two = Registry(place).versions()[1].version_id
    assert call(place, "list") == (
        0,
        f"  {one}  0.0 MB  \n* {two}  0.0 MB  steptool 71.4%\n"
        f"in service: {two}, number 2, since TIME UTC (first night)\n",
    )
    shown = call(place, "show")[1]
    assert f"{two}, 0.0 MB, at PLACE/versions/{two}/model\n  champion number 2 from TIME UTC: first night\n" in shown
    assert f"  step_ppo of round 2: known.json {lineage.sha256(metadata)[:12]}\n" in shown
    assert json.loads(shown[shown.index("{") :]) == {"results": results}

    back = f"in service: {one}, number 3, since TIME UTC (wrong dates)\n"
    assert call(place, "roll-back", "--reason", "wrong dates") == (0, back)
    assert call(place, "roll-back") == (1, f"registry: {one} was the first champion: there is none before it\n")
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


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, make_model: MakeModel) -> None:
    torn = tmp_path / "known.json"
    torn.write_text("{")
    code, said = call(tmp_path / "registry", "publish", make_model("one"), "--metadata", torn)
    assert code == 2
    assert "known.json: no JSON file" in said.splitlines()[-1]
    code, said = call(tmp_path / "registry", "publish", tmp_path / "none")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "none: no config.json in the folder" in said
