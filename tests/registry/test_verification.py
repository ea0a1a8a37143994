"""Damage to a registry's files, one kind at a time, and the line that `verify` has for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from steptool.registry import Registry, RegistryError, Version

MakeModel = Callable[..., Path]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def version(registry: Registry, make_model: MakeModel) -> Version:
    return registry.publish(make_model("one"), {})


def test_a_changed_digest_in_a_manifest_is_a_fault(tmp_path: Path, registry: Registry, version: Version) -> None:
    path = tmp_path / "versions" / version.version_id / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "ab" * 32}))
    variant, unclaimed = registry.verify()
    assert variant.startswith(f"versions/{version.version_id}/version.json: its digest abababababab")
    assert unclaimed.startswith(f"contents/{'ab' * 32}.json: missing")


def test_a_lost_claim_is_a_fault(tmp_path: Path, registry: Registry, version: Version) -> None:
    (tmp_path / "contents" / f"{version.digest}.json").unlink()
    (fault,) = registry.verify()
    assert fault == (
        f"contents/{version.digest}.json: missing; without it {version.version_id} would be published a second time"
    )
    assert registry.verify(version.version_id) == [fault]


def test_a_claim_of_another_version_is_a_fault(tmp_path: Path, registry: Registry, version: Version) -> None:
    path = tmp_path / "contents" / f"{version.digest}.json"
    path.write_text(path.read_text().replace(version.version_id, "20200101T000000Z-00000000"))
    expected = f"contents/{version.digest}.json: names 20200101T000000Z-00000000 and not {version.version_id}"
    assert registry.verify() == [expected]


def test_a_manifest_in_the_folder_of_another_version_is_a_fault(
    tmp_path: Path, registry: Registry, version: Version
) -> None:
    (tmp_path / "versions" / version.version_id).rename(tmp_path / "versions" / "renamed")
    assert registry.verify() == [f"versions/renamed/version.json: names another version, {version.version_id}"]


def test_a_damaged_entry_of_the_log_is_a_fault_and_no_champion_is_guessed(
    tmp_path: Path, registry: Registry, version: Version
) -> None:
    registry.promote(version.version_id, after=0, reason="")
    (tmp_path / "champions" / "00000001.json").write_text('{"sequence": 1')
    (fault,) = registry.verify()
    assert fault.startswith("champions/00000001.json: not a champion")
    assert registry.find_damage() == [fault]
    with pytest.raises(RegistryError, match="not a champion"):
        registry.champion()


def test_an_entry_under_another_number_is_a_fault(tmp_path: Path, registry: Registry, version: Version) -> None:
    registry.promote(version.version_id, after=0, reason="")
    entry = tmp_path / "champions" / "00000001.json"
    entry.write_text(entry.read_text().replace('"sequence": 1', '"sequence": 2'))
    assert registry.verify() == ["champions/00000001.json: says that it is number 2"]


def test_a_damaged_record_of_a_run_is_a_fault(tmp_path: Path, registry: Registry) -> None:
    registry.record_run("run", {"result": "skipped"})
    (tmp_path / "runs" / "run.json").write_text("{")
    (fault,) = registry.verify()
    assert fault.startswith("runs/run.json: not a JSON file")
    with pytest.raises(RegistryError, match="a record in runs/ is not JSON"):
        registry.runs()
