from pathlib import Path

import pytest

from steptool.artifacts.layout import CONFIG, EVALUATION_MARKS, METRICS, PAGE, check_target, publish


def built(path: Path, text: str) -> Path:
    (path / "model").mkdir(parents=True)
    for name in (CONFIG, METRICS, "model/weights"):
        (path / name).write_text(text)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_run_takes_the_place_of_a_former_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "demo"
    publish(built(tmp_path / "first", "1"), str(target))
    (target / "stale").write_text("of the first run")
    second = built(tmp_path / "second", "2")
    publish(second, str(target))
    assert contents(target) == contents(second) == {CONFIG: "2", METRICS: "2", "model/weights": "2"}
    assert [p.name for p in target.parent.iterdir()] == ["demo"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    publish(built(tmp_path / "run", "1"), str(empty))
    assert CONFIG in contents(empty)
    with pytest.raises(ValueError, match="holds something else than a former run"):
        publish(tmp_path / "run", str(full))
    assert contents(full) == {"thesis.tex": "years of work"}


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(ValueError, match="give --output a new or empty folder"):
        check_target(str(tmp_path / "demo"))


def test_a_url_is_written_through_fsspec(tmp_path: Path) -> None:
    target = tmp_path / "far" / "demo"
    publish(built(tmp_path / "run", "1"), f"file://{target}")
    assert contents(target) == contents(tmp_path / "run")


def test_an_evaluation_never_takes_the_place_of_a_run(tmp_path: Path) -> None:
    run = built(tmp_path / "run", "1")
    with pytest.raises(ValueError, match="holds something else"):
        check_target(str(run), EVALUATION_MARKS)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    for name in (CONFIG, PAGE):
        (evaluation / name).write_text("2")
    publish(evaluation, str(tmp_path / "target"), EVALUATION_MARKS)
    publish(evaluation, str(tmp_path / "target"), EVALUATION_MARKS)
    with pytest.raises(ValueError, match="holds something else"):
        check_target(str(tmp_path / "target"))
