"""Publishing: the same over a folder and over S3, and what a folder can do beyond."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from full_disk import stop_files_at
from steptool.artifacts.lineage import EVALUATION, TRAINING
from steptool.storage import transfer
from steptool.storage.transfer import MANIFEST, TargetError, check_target, deliver, deliver_folder

Contents = dict[str, str]
ROOT = Path(__file__).parents[2]


def built(path: Path, text: str, *names: str) -> Path:
    for name in names or ("config.yaml", "model/weights", "report.html"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def contents(place: str) -> Contents:
    """Files below a place and their text; the manifest aside."""
    fs, root = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    files = {path.removeprefix(root).lstrip("/"): path for path in fs.find(root)}
    return {name: fs.cat_file(path).decode() for name, path in files.items() if name != MANIFEST}


def manifest(place: str) -> dict[str, Any]:
    fs, root = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    return json.loads(fs.cat_file(f"{root}/{MANIFEST}"))


def write(place: str, name: str, text: str) -> None:
    fs, root = fsspec.core.url_to_fs(place)
    fs.pipe_file(f"{root}/{name}", text.encode())


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "runs" / "demo")
    return f"{request.getfixturevalue('bucket')}/runs/demo"


def test_a_run_is_whole_and_its_manifest_names_its_files(place: str, tmp_path: Path) -> None:
    check_target(place, TRAINING)
    assert deliver_folder(built(tmp_path / "run", "1"), place, TRAINING) == place
    files = ["config.yaml", "model/weights", "report.html"]
    assert contents(place) == dict.fromkeys(files, "1")
    assert manifest(place) == {"kind": "training", "files": files, "complete": True}


def test_a_run_replaces_a_former_one_and_keeps_what_the_user_put_beside_it(place: str, tmp_path: Path) -> None:
    deliver_folder(built(tmp_path / "first", "1", "config.yaml", "trajectories_round_05.parquet"), place, TRAINING)
    write(place, "notes.txt", "years of work")
    write(place, "report.html", "the user's own")
    check_target(place, TRAINING)
    deliver_folder(built(tmp_path / "second", "2", "config.yaml", "report.html"), place, TRAINING)
    user_files = {"notes.txt": "years of work", "report.html.yours": "the user's own"}
    assert contents(place) == {
        "config.yaml": "2",
        "report.html": "2",
        **user_files,
    }  # no round of the former run is left
    deliver_folder(built(tmp_path / "third", "3", "config.yaml"), place, TRAINING)
    assert contents(place) == {"config.yaml": "3", **user_files}


def test_links_that_the_user_put_beside_a_run_stay_links(tmp_path: Path) -> None:
    final, data = tmp_path / "demo", built(tmp_path / "data", "much", "a.parquet")
    deliver_folder(built(tmp_path / "first", "1", "config.yaml"), str(final), TRAINING)
    (final / "data").symlink_to(data)
    (final / "gone").symlink_to(tmp_path / "nowhere")
    deliver_folder(built(tmp_path / "second", "2", "config.yaml"), str(final), TRAINING)
    assert [(final / name).readlink() for name in ("data", "gone")] == [data, tmp_path / "nowhere"]
    assert contents(str(data)) == {"a.parquet": "much"}


def test_what_is_no_former_run_of_the_kind_is_refused_and_left_alone(place: str, tmp_path: Path) -> None:
    run = built(tmp_path / "run", "1")
    write(str(tmp_path), "unused", "")
    if "://" not in place:
        Path(place).mkdir(parents=True)
    write(place, "thesis.tex", "years of work")
    for attempt in (lambda: check_target(place, TRAINING), lambda: deliver_folder(run, place, TRAINING)):
        with pytest.raises(TargetError, match="holds something else than a former run; give --output a new or empty"):
            attempt()
    assert contents(place) == {"thesis.tex": "years of work"}
    other = f"{place}-evaluation"
    deliver_folder(run, other, EVALUATION)
    with pytest.raises(TargetError, match="holds a former evaluation, which a training does not replace"):
        check_target(other, TRAINING)


def test_a_publication_that_broke_off_is_known_and_finished_by_the_next(place: str, tmp_path: Path) -> None:
    """Over a url: the manifest still says incomplete, and files of both runs are there."""
    if "://" not in place:
        pytest.skip("a folder is swapped whole; see the kills below")
    deliver_folder(built(tmp_path / "first", "1", "config.yaml", "a.parquet"), place, TRAINING)
    write(place, MANIFEST, json.dumps({"kind": TRAINING, "files": ["a.parquet", "b.parquet"], "complete": False}))
    write(place, "b.parquet", "half of the second run")
    check_target(place, TRAINING)
    deliver_folder(built(tmp_path / "third", "3", "config.yaml"), place, TRAINING)
    assert contents(place) == {"config.yaml": "3", "config.yaml.yours": "1"} and manifest(place)["complete"]


def test_checking_a_target_leaves_nothing_behind(place: str, tmp_path: Path) -> None:
    check_target(place, TRAINING)
    assert contents(place) == {} and not (tmp_path / "runs").exists()


def test_a_file_is_delivered_beside_others(place: str, tmp_path: Path) -> None:
    page = built(tmp_path, "1", "page.html") / "page.html"
    deliver({"view.html": page}, place)
    page.write_text("2")
    assert deliver({"other.html": page}, f"{place}/") == {"other.html": f"{place}/other.html"}
    assert contents(place) == {"view.html": "1", "other.html": "2"}


def test_a_delivery_that_was_killed_leaves_nothing_after_the_next_one(tmp_path: Path) -> None:
    page = built(tmp_path, "whole", "page.html") / "page.html"
    code = (
        "import shutil, sys; from pathlib import Path; from steptool.storage import transfer\n"
        "def stop(file, partial): Path(partial).write_text('half'); print('ready', flush=True); input()\n"
        "shutil.copyfile = stop\n"
        "transfer.deliver({'view.html': Path(sys.argv[1])}, sys.argv[2])\n"
    )
    place = tmp_path / "out"
    command = [sys.executable, "-c", code, str(page), str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert [path.suffix for path in place.iterdir()] == [".partial"]
    deliver({"view.html": page}, str(place))
    assert [path.name for path in place.iterdir()] == ["view.html"]


def test_a_full_disk_leaves_the_files_of_the_former_delivery(tmp_path: Path) -> None:
    former, fresh = built(tmp_path / "1", "1", "a", "b"), built(tmp_path / "2", "2", "a", "b")
    (fresh / "b").write_bytes(b"x" * 5000)
    place = tmp_path / "out"
    deliver({name: former / name for name in ("a", "b")}, str(place))
    with stop_files_at(1000), pytest.raises(OSError, match="File too large"):
        deliver({name: fresh / name for name in ("a", "b")}, str(place))
    assert contents(str(place)) == {"a": "1", "b": "1"}
    assert sorted(path.name for path in place.iterdir()) == ["a", "b"]


def test_a_bucket_that_is_not_there_is_refused_before_anything_is_trained(bucket: str) -> None:
    with pytest.raises(TargetError, match=r"s3://no-such-bucket/x: cannot be written \("):
        check_target("s3://no-such-bucket/x", TRAINING)


def test_home_and_file_urls_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = built(tmp_path / "run", "1")
    assert deliver_folder(run, "~/out/", TRAINING) == str(tmp_path / "out")
    assert deliver_folder(run, f"file://{tmp_path}/url", TRAINING) == str(tmp_path / "url")
    assert deliver_folder(run, "", TRAINING) == str(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run", "url"]
    assert contents("out") == contents("url") == contents("run")


def test_a_link_stays_a_link_to_the_folder_that_receives_the_run(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "demo").symlink_to(tmp_path / "disk" / "demo")
    for text in "12":
        check_target(str(tmp_path / "demo"), TRAINING)
        deliver_folder(built(tmp_path / text, text), str(tmp_path / "demo"), TRAINING)
    assert (tmp_path / "demo").is_symlink() and contents(str(tmp_path / "disk" / "demo"))["config.yaml"] == "2"


@pytest.mark.parametrize("name", ["x" * 256, "file/below", "/proc/steptool/demo"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_trained(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"cannot be written \(.*; give --output a new or empty folder"):
        check_target(str(tmp_path / name), TRAINING)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_that_is_tried_is_left_as_it_was(tmp_path: Path) -> None:
    check_target(str(tmp_path / "runs" / "may" / "demo"), TRAINING)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("place", "cause"),
    [("gopher://x/demo", "not known: gopher"), ("http://127.0.0.1:9/demo", "Cannot connect to host")],
)
def test_a_store_that_cannot_be_reached_is_named(place: str, cause: str) -> None:
    with pytest.raises(TargetError, match=rf"^{place}: cannot be written \(.*{cause}.*; give --output"):
        check_target(place, TRAINING)


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(TargetError, match="is a file; give --output a new or empty folder"):
        check_target(str(tmp_path / "demo"), TRAINING)


def test_a_name_of_the_greatest_length_is_published(tmp_path: Path) -> None:
    target = str(tmp_path / ("x" * 255))
    check_target(target, TRAINING)
    deliver_folder(built(tmp_path / "run", "1"), target, TRAINING)
    deliver_folder(built(tmp_path / "run", "2"), target, TRAINING)
    assert contents(target)["config.yaml"] == "2"


def test_a_mount_point_receives_the_files_in_place(tmp_path: Path) -> None:
    mount, run = tmp_path / "mounted", built(tmp_path / "run", "1")
    mount.mkdir()
    program = (
        "import sys; from pathlib import Path; from steptool.storage.transfer import check_target, deliver_folder\n"
        "run, target = sys.argv[1:]\n"
        "for _ in range(2): check_target(target, 'training'); deliver_folder(Path(run), target, 'training')\n"
        "print(sorted(p.relative_to(target).as_posix() for p in Path(target).rglob('*') if p.is_file()))\n"
    )
    inside = 'mount -t tmpfs none "$2" || exit 77; "$0" -c "$3" "$1" "$2"'
    command = ["unshare", "-m", "sh", "-c", inside, sys.executable, str(run), str(mount), program]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode == 77 or "Operation not permitted" in process.stderr:
        pytest.skip("this user may not mount")
    assert process.stdout.strip() == str(["config.yaml", "model/weights", "published.json", "report.html"]), (
        process.stderr
    )


def test_former_and_new_folders_that_a_kill_left_are_restored_and_tidied_up(tmp_path: Path) -> None:
    final, other = tmp_path / "demo", tmp_path / "other"
    deliver_folder(built(tmp_path / "run", "1"), str(final), TRAINING)
    deliver_folder(built(tmp_path / "run", "1"), str(other), TRAINING)
    process = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; from steptool.storage import transfer as p; "
         "print(p._name_beside(Path(sys.argv[1]), 'former'))", str(final)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    former = Path(process.stdout.strip())
    final.rename(former)  # killed between the two renames, with half a new folder
    built(former.with_suffix(".partial"), "2")
    check_target(str(final), TRAINING)
    assert contents(str(final))["config.yaml"] == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo", "other", "run"]


def test_a_new_folder_whose_manifest_was_half_written_does_not_count(tmp_path: Path) -> None:
    final = tmp_path / "demo"
    fresh = built(transfer._name_beside(final, "partial"), "1")
    (fresh / transfer.MANIFEST).write_text("")  # killed between opening the manifest and writing it
    check_target(str(final), TRAINING)
    deliver_folder(built(tmp_path / "run", "2"), str(final), TRAINING)
    assert contents(str(final))["config.yaml"] == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "run"]


PUBLISHER = """
import sys
from itertools import count
from pathlib import Path
from steptool.storage.transfer import deliver_folder
runs, target = sys.argv[1:]
print("ready", flush=True)
for number in count():
    deliver_folder(Path(runs) / str(number % 2), target, "training")
"""


def test_a_kill_at_any_moment_leaves_one_whole_run_or_what_the_next_start_restores(tmp_path: Path) -> None:
    runs, target = tmp_path / "runs", tmp_path / "out" / "demo"
    for number in range(2):
        built(runs / str(number), str(number), *(f"{n}.parquet" for n in range(40)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for attempt in range(12):
        command = [sys.executable, "-c", PUBLISHER, str(runs), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout and process.stdout.readline() == "ready\n"
            time.sleep(0.05 + 0.02 * attempt)
            process.send_signal(signal.SIGKILL)
        check_target(str(target), TRAINING)
        files = contents(str(target))
        assert len(files) in (0, 40) and len(set(files.values())) <= 1
        assert [p.name for p in target.parent.iterdir()] in ([], ["demo"])
    assert len(files) == 40


def test_a_full_disk_is_one_cause_and_leaves_the_former_run_whole(tmp_path: Path) -> None:
    former, built = tmp_path / "former", tmp_path / "built"
    for folder, size in ((former, 10), (built, 5000)):
        (folder / "model").mkdir(parents=True)
        for name in ("a", "b"):
            (folder / "model" / name).write_bytes(b"x" * size)
    deliver_folder(former, str(tmp_path / "out"), "training")
    with (
        stop_files_at(1000),
        pytest.raises(OSError, match=r"/out: cannot be written, and the former files stay; .*File too large: '"),
    ):
        deliver_folder(built, str(tmp_path / "out"), "training")
    assert (tmp_path / "out" / "model" / "a").stat().st_size == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "former", "out"]
