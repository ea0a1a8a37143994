import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from steptool.artifacts import lineage
from steptool.registry import Conflict, Registry, RegistryError

MakeModel = Callable[..., Path]
DAY = timedelta(days=1)


class CarelessStore(MemoryFileSystem):
    """Overwrites whatever it is asked to create."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **options)


class RacyStore(MemoryFileSystem):
    """Takes fsspec's own way to create a file: look first, write later."""

    protocol = "racy"
    pipe_file = fsspec.AbstractFileSystem.pipe_file


class SilentStore(MemoryFileSystem):
    """Does what it is asked to; once `silent` is true no response arrives any more."""

    protocol = "silent"
    silent = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, mode=mode, **options)
        self._answer()

    def exists(self, path: str, **options: Any) -> bool:
        self._answer()
        return super().exists(path, **options)

    def _answer(self) -> None:
        if SilentStore.silent:
            raise ConnectionResetError("connection reset")


for store in (CarelessStore, RacyStore, SilentStore):
    fsspec.register_implementation(store.protocol, store, clobber=True)


def in_service(registry: Registry) -> tuple[int, str]:
    champion = registry.champion()
    assert champion
    return champion.sequence, champion.version_id


def test_a_version_holds_the_model_and_what_is_known_of_it(place: str, make_model: MakeModel) -> None:
    registry, before = Registry(place), datetime.now(UTC)
    assert (registry.champion(), registry.versions(), registry.history(), registry.runs()) == (None, [], [], [])
    folder = make_model("one", **{"chat_template.jinja": "{{ messages }}", ".cache": "hidden"})
    version = registry.publish(folder, {"code_version": "abc", "night": [1, None, "ä"]})

    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", version.version_id)
    assert before <= version.created <= datetime.now(UTC)
    assert Registry(place).versions() == [version] == [Registry(place).version(version.version_id)]
    assert version.metadata == {"code_version": "abc", "night": [1, None, "ä"]}
    names = ["README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer_config.json"]
    assert sorted(version.files) == [f"model/{name}" for name in names]
    weights = version.files["model/model.safetensors"]
    assert (weights.size, weights.sha256) == (7, lineage.hash_file(folder / "model.safetensors"))

    model = registry.model_place(version.version_id)
    assert model == f"{place}/versions/{version.version_id}/model"
    with fsspec.open(f"{model}/model.safetensors") as stream:
        assert stream.read() == b"weights"
    assert registry.verify() == registry.verify(version.version_id) == []


def test_the_same_content_is_the_same_version(place: str, make_model: MakeModel) -> None:
    registry = Registry(place)
    first = registry.publish(make_model("one", "same"), {"attempt": 1})
    assert registry.publish(make_model("copy", "same"), {"attempt": 2}) == first
    other = registry.publish(make_model("other", "else"), {"attempt": 1})
    assert registry.versions() == [first, other]
    assert first.digest != other.digest


def test_an_upload_that_was_cut_off_is_no_version_and_goes_on_as_it_began(
    tmp_path: Path, make_model: MakeModel
) -> None:
    folder, model = tmp_path / "registry", make_model("one")
    lineage.sign(model, None, "base", [])
    registry = Registry(folder)
    version = registry.publish(model, {"code_version": "first"})
    whole = {path: path.read_bytes() for path in (folder / "versions").rglob("*.*")}
    (folder / "versions" / version.version_id / "version.json").unlink()
    (folder / "versions" / version.version_id / "model" / "config.json").unlink()

    assert registry.versions() == []
    with pytest.raises(RegistryError, match=r"no version .* was published; the last ones are: none"):
        registry.promote(version.version_id, after=0, reason="")
    assert registry.publish(model, {"code_version": "second"}) == version  # card and manifest too are the first's
    assert {path: path.read_bytes() for path in (folder / "versions").rglob("*.*")} == whole


def test_a_promotion_is_the_next_entry_of_a_log(place: str, make_model: MakeModel) -> None:
    registry = Registry(place)
    one, two = (registry.publish(make_model(name, name), {}).version_id for name in ("one", "two"))
    first = registry.promote(one, after=0, reason="the first")
    assert (first.sequence, first.version_id, first.reason) == (1, one, "the first")
    second = registry.promote(two, after=1, reason="better")
    assert Registry(place).champion() == second
    assert Registry(place).history() == [first, second]
    assert first.since < second.since <= datetime.now(UTC)


def test_a_promotion_after_a_champion_that_is_no_more_is_refused(place: str, make_model: MakeModel) -> None:
    registry = Registry(place)
    one, two, three = (registry.publish(make_model(name, name), {}).version_id for name in ("one", "two", "three"))
    registry.promote(one, after=0, reason="")
    registry.promote(two, after=1, reason="the other run")
    with pytest.raises(Conflict, match=f"{two} was promoted as number 2 at .* \\(the other run\\)") as excinfo:
        registry.promote(three, after=1, reason="")
    assert excinfo.value.champion == registry.champion()
    with pytest.raises(Conflict):
        registry.promote(three, after=0, reason="")
    with pytest.raises(RegistryError, match="there is no champion number 3"):
        registry.promote(three, after=3, reason="")
    assert in_service(registry) == (2, two)


def test_a_promotion_made_again_is_the_one_that_was_made(place: str, make_model: MakeModel) -> None:
    registry = Registry(place)
    one, two = (registry.publish(make_model(name, name), {}).version_id for name in ("one", "two"))
    entry = registry.promote(one, after=0, reason="gain of 3 points")
    assert registry.promote(one, after=0, reason="gain of 3 points") == entry
    registry.promote(two, after=1, reason="")
    assert registry.promote(one, after=0, reason="gain of 3 points") == entry  # it was made, whatever came later
    assert in_service(registry) == (2, two)


def test_what_is_incomplete_is_not_promoted(tmp_path: Path, make_model: MakeModel) -> None:
    registry = Registry(tmp_path / "registry")
    version = registry.publish(make_model("one"), {})
    weights = Path(registry.model_place(version.version_id)) / "model.safetensors"
    weights.write_text("weight")
    with pytest.raises(RegistryError, match=r"cannot be promoted: .*model.safetensors: expected 7 bytes, found 6"):
        registry.promote(version.version_id, after=0, reason="")
    weights.unlink()
    with pytest.raises(RegistryError, match="expected 7 bytes, found no file"):
        registry.promote(version.version_id, after=0, reason="")
    with pytest.raises(RegistryError, match=f"no version 'x' was published; the last ones are: {version.version_id}"):
        registry.promote("x", after=0, reason="")
    assert registry.champion() is None


def test_what_somebody_else_has_left_in_a_registry_stops_nobody(tmp_path: Path, make_model: MakeModel) -> None:
    registry = Registry(tmp_path / "registry")
    version = registry.publish(make_model("one"), {})
    (Path(registry.model_place(version.version_id)) / ".DS_Store").touch()
    registry.promote(version.version_id, after=0, reason="")
    (tmp_path / "registry" / "champions" / "desktop.ini").touch()
    assert [entry.sequence for entry in registry.history()] == [1] and registry.champion() == registry.history()[0]
    (fault,) = registry.verify()
    assert fault.endswith("model/.DS_Store: not in version.json")


def test_rolling_back_goes_one_champion_further_each_time(place: str, make_model: MakeModel) -> None:
    registry = Registry(place)
    with pytest.raises(RegistryError, match="no champion to roll back from"):
        registry.roll_back()
    ids = [registry.publish(make_model(name, name), {}).version_id for name in ("one", "two", "three", "four")]
    one, two, three, four = ids
    for after, version_id in enumerate((one, two, three)):
        registry.promote(version_id, after=after, reason="")

    back = registry.roll_back(reason="wrong dates")
    assert (back.sequence, back.version_id, back.reason) == (4, two, "wrong dates")
    assert registry.roll_back().reason == f"rolled back from {two}"
    assert in_service(registry) == (5, one)
    with pytest.raises(RegistryError, match=f"{one} was the first champion"):
        registry.roll_back()
    assert registry.roll_back(to=three).sequence == 6
    with pytest.raises(RegistryError, match=f"{four} never was a champion; there were {one}, {two}, {three}"):
        registry.roll_back(to=four)
    assert [entry.version_id for entry in registry.history()] == [one, two, three, two, one, three]


def test_runs_are_recorded_once(place: str) -> None:
    registry = Registry(place)
    registry.record_run("20261122T020000Z-b", {"result": "skipped"})
    registry.record_run("20261121T020000Z-a", {"result": "promoted", "seen": ["x.jsonl"]})
    registry.record_run("20261122T020000Z-b", {"result": "skipped"})
    assert Registry(place).runs() == [
        {"result": "promoted", "seen": ["x.jsonl"], "run_id": "20261121T020000Z-a"},
        {"result": "skipped", "run_id": "20261122T020000Z-b"},
    ]
    with pytest.raises(RegistryError, match="recorded before, with another document"):
        registry.record_run("20261122T020000Z-b", {"result": "failed"})
    with pytest.raises(RegistryError, match=r"run '\.\./x': expected letters"):
        registry.record_run("../x", {})


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"share": float("nan")}, "keeps JSON"),
        ({"where": Path("x")}, "keeps JSON"),
        ({"results": {"base": {"pass_rate": 0.5}}}, "results.base.low"),
    ],
)
def test_metadata_that_cannot_be_kept_are_refused(
    tmp_path: Path, make_model: MakeModel, metadata: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RegistryError, match=problem):
        Registry(tmp_path / "registry").publish(make_model("one"), metadata)
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, make_model: MakeModel, lacking: str) -> None:
    folder = make_model("one")
    (folder / lacking).unlink()
    with pytest.raises(
        RegistryError, match=r"no (config.json|model\*.safetensors|tokenizer_config.json) in the folder"
    ):
        Registry(tmp_path / "registry").publish(folder, {})


@pytest.mark.parametrize("target", ["secret", "folder"])
def test_a_link_out_of_the_model_folder_is_refused_and_nothing_is_published(
    tmp_path: Path, make_model: MakeModel, target: str
) -> None:
    (tmp_path / "secret").write_text("key")
    (tmp_path / "folder").mkdir()
    folder = make_model("one")
    (folder / "vocab.json").symlink_to(tmp_path / target)
    with pytest.raises(RegistryError, match=rf"vocab.json: is a link to .*/{target}, out of the model folder"):
        Registry(tmp_path / "registry").publish(folder, {})
    assert not (tmp_path / "registry").exists()


def test_a_link_within_the_model_folder_is_published_as_a_file(tmp_path: Path, make_model: MakeModel) -> None:
    folder = make_model("one")
    (folder / "alias.json").symlink_to("config.json")
    version = Registry(tmp_path / "registry").publish(folder, {})
    assert version.files["model/alias.json"] == version.files["model/config.json"]


def test_verifying_finds_what_was_damaged(tmp_path: Path, make_model: MakeModel) -> None:
    folder = tmp_path / "registry"
    registry = Registry(folder)
    one, two, three = (registry.publish(make_model(name, name), {}).version_id for name in ("one", "two", "three"))
    for after, version_id in enumerate((one, two, three)):
        registry.promote(version_id, after=after, reason="")
    assert registry.verify() == []
    (folder / "versions" / one / "model" / "model.safetensors").write_text("oen")  # the same size
    (folder / "versions" / two / "version.json").unlink()
    (folder / "champions" / "00000001.json").unlink()
    faults = registry.verify()
    assert [re.sub(r"(SHA-256) .*", r"\1 ...", fault) for fault in faults] == [
        f"versions/{one}/model/model.safetensors: expected the SHA-256 ...",
        "champions/00000002.json: the one before it is missing",
        f"champions/00000002.json: names {two}, which is no finished version",
    ]
    assert registry.verify(three) == []
    (folder / "champions" / "00000002.json").write_text('{"sequence": 2')
    with pytest.raises(RegistryError, match=r"champions/00000002.json: not a champion"):
        registry.history()


def test_pruning_removes_uploads_that_were_given_up_and_nothing_else(place: str, make_model: MakeModel) -> None:
    registry = Registry(place)
    kept_version, champion = (registry.publish(make_model(name, name), {}).version_id for name in ("kept", "champion"))
    registry.promote(champion, after=0, reason="")
    fs, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    fs.rm(f"{root}/versions/{champion}/version.json")  # damaged, but in service
    fs.makedirs(f"{root}/versions/half/model", exist_ok=True)
    fs.pipe_file(f"{root}/versions/half/model/config.json", b"{}")

    assert registry.prune() == []  # it may still be on its way
    assert registry.prune(timedelta(0)) == ["versions/half"]
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in fs.ls(f"{root}/versions", detail=False))
    assert names == sorted([kept_version, champion])


def test_an_upload_is_as_old_as_its_newest_file(tmp_path: Path) -> None:
    registry, model = Registry(tmp_path), tmp_path / "versions" / "half" / "model"
    model.mkdir(parents=True)
    partial = tmp_path / ".partial" / "abandoned"
    partial.parent.mkdir()
    for path, hours in ((model / "a", 30), (model / "b", 20), (partial, 30), (model, 40), (model.parent, 40)):
        path.touch()
        moment = (datetime.now() - timedelta(hours=hours)).timestamp()
        os.utime(path, (moment, moment))
    assert registry.prune() == [".partial/abandoned"]
    assert registry.prune(timedelta(hours=19)) == ["versions/half"]


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("careless://registry", "overwrites a file that it was asked to create only if absent"),
        ("racy://registry", "fsspec cannot create a file there for one writer only"),
        ("s3", "overwrites a file that it was asked to create only if absent"),
    ],
)
def test_a_store_that_cannot_create_a_file_once_is_refused(
    place: str, problem: str, make_model: MakeModel, request: pytest.FixtureRequest
) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
        place = "s3://careless/registry"
    registry = Registry(place)
    assert registry.champion() is None  # reading is allowed
    with pytest.raises(RegistryError, match=problem):
        registry.publish(make_model("one"), {})
    with pytest.raises(RegistryError, match=problem):
        registry.record_run("run", {})
    assert (registry.versions(), registry.runs()) == ([], [])


def test_a_promotion_whose_response_is_lost_is_said_to_be_unknown_and_can_be_repeated(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry("silent://registry")
    version = registry.publish(make_model("one"), {})
    monkeypatch.setattr(SilentStore, "silent", True)
    with pytest.raises(RegistryError, match=r"whether it has created champions/00000001.json is unknown.*repeat the"):
        registry.promote(version.version_id, after=0, reason="better")
    monkeypatch.setattr(SilentStore, "silent", False)
    assert registry.promote(version.version_id, after=0, reason="better") == registry.champion()
    assert in_service(registry) == (1, version.version_id)


def test_a_place_is_one_place() -> None:
    with pytest.raises(RegistryError, match=r"without \* \? and \["):
        Registry("s3://bucket/*")


def test_files_are_those_that_another_program_expects(tmp_path: Path, make_model: MakeModel) -> None:
    registry = Registry(tmp_path / "registry")
    version = registry.publish(make_model("one"), {})
    registry.promote(version.version_id, after=0, reason="first")
    entry = json.loads((tmp_path / "registry" / "champions" / "00000001.json").read_text())
    assert (entry["sequence"], entry["version_id"], entry["reason"]) == (1, version.version_id, "first")
    assert datetime.fromisoformat(entry["since"]).utcoffset() == timedelta(0)
    paths = [path.relative_to(tmp_path / "registry").as_posix() for path in (tmp_path / "registry").rglob("*.json")]
    assert sorted(path for path in paths if not path.startswith("versions")) == [
        "champions/00000001.json",
        f"contents/{version.digest}.json",
        "registry.json",
    ]
    assert list((tmp_path / "registry" / ".partial").iterdir()) == []
