import hashlib
import json
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.config import Config
from steptool.data.ingest import ingest, keep_first_files, list_files
from steptool.data.parsing import IngestError
from steptool.records.episodes import read_queries

TIDES = {
    "type": "function",
    "function": {"name": "tides", "description": "Tides.", "parameters": {"type": "object", "properties": {}}},
}


def write_tasks(path: Path, texts: list[str], **more: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"instruction": t, "tools": [TIDES], **more}) + "\n" for t in texts))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def config(folder: Path, train: int = 60, heldout: int = 30, **data: object) -> Config:
    sizes = {"train_queries": train, "validation_queries": 10, "heldout_queries": heldout}
    return Config.model_validate({"data": {"source": "jsonl", "paths": [str(folder)], **sizes, **data}})


def test_every_file_that_ingest_reads_is_listed_with_its_digest(tmp_path: Path) -> None:
    digest = write_tasks(tmp_path / "tasks" / "a.jsonl", ["Who?"])
    (tmp_path / "tasks" / "notes.txt").write_text("not read")
    (tmp_path / "log.json").write_text("{}")
    files = list_files(config(tmp_path / "tasks", recorded_answers=[str(tmp_path / "log.json")]).data)
    assert [(Path(s.place).name, s.size) for s in files] == [
        ("a.jsonl", len((tmp_path / "tasks" / "a.jsonl").read_bytes())),
        ("log.json", 2),
    ]
    assert [s.sha256 for s in files] == [digest, hashlib.sha256(b"{}").hexdigest()]


def test_urls_are_listed_like_folders(tmp_path: Path) -> None:
    digest = write_tasks(tmp_path / "a.jsonl", ["Who?"])
    memory = fsspec.filesystem("memory")
    memory.put_file(str(tmp_path / "a.jsonl"), "/bucket/tasks/new/a.jsonl")
    memory.pipe_file("/bucket/tasks/readme.md", b"not read")
    (by_folder,) = list_files(config(Path("x"), paths=["memory://bucket/tasks"]).data)
    (by_file,) = list_files(config(Path("x"), paths=["memory://bucket/tasks/new/a.jsonl"]).data)
    assert by_folder == by_file
    assert (by_file.place, by_file.sha256) == ("memory:///bucket/tasks/new/a.jsonl", digest)
    with pytest.raises(IngestError, match=r"data\.paths: 'memory://bucket/none' does not exist or has no \.jsonl"):
        list_files(config(Path("x"), paths=["memory://bucket/none"]).data)


def test_a_source_without_files_is_what_its_section_says() -> None:
    (one,), (same,), (other,) = (
        list_files(Config.model_validate({"data": {"source": "desk", **more}}).data)
        for more in ({}, {"first": ["0" * 64]}, {"train_queries": 7})
    )
    assert (one.place, one.size) == ("desk", 0)
    assert one == same and one.sha256 != other.sha256


def test_files_that_come_first_are_found_by_their_content(tmp_path: Path) -> None:
    write_tasks(tmp_path / "a.jsonl", ["old"])
    digest = write_tasks(tmp_path / "b.jsonl", ["new"])
    assert keep_first_files(config(tmp_path, first=[digest, "f" * 64]).data).paths == [str(tmp_path / "b.jsonl")]


def split_of(settings: Config, out: Path) -> dict[str, str]:
    return {q.instruction: q.split for q in read_queries(ingest(settings, out).queries_path)}


def test_new_tasks_are_kept_before_old_ones(tmp_path: Path) -> None:
    write_tasks(tmp_path / "in" / "old.jsonl", [f"old {n}" for n in range(300)])
    digest = write_tasks(tmp_path / "in" / "new.jsonl", [f"new {n}" for n in range(60)])
    splits = split_of(config(tmp_path / "in"), tmp_path / "one")
    first = split_of(config(tmp_path / "in", first=[digest]), tmp_path / "two")
    assert len(splits) == len(first) == 100  # as many of each split as configured
    assert sum(text.startswith("new") for text in splits) < 30
    assert sum(text.startswith("new") for text in first) == 60
    queries = read_queries(tmp_path / "two" / "queries.parquet")
    assert all(q.instruction.startswith("new") for q in queries[:60])  # before others, so that limits further on agree


def test_a_new_recording_brings_its_task_to_the_front(tmp_path: Path) -> None:
    write_tasks(tmp_path / "in" / "old.jsonl", [f"old {n}" for n in range(300)], split="train")
    write_tasks(tmp_path / "in" / "rest.jsonl", ["a"], split="validation")
    write_tasks(tmp_path / "in" / "held.jsonl", ["b"], split="heldout")
    log = tmp_path / "log.jsonl"
    messages = [{"role": "user", "content": "old 7"}, {"role": "assistant", "content": "Done."}]
    log.write_text(json.dumps({"messages": messages, "tools": [TIDES]}) + "\n")
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    settings = config(tmp_path / "in", train=1, recorded_answers=[str(log)], first=[digest])
    assert split_of(settings, tmp_path / "out") == {"old 7": "train", "a": "validation", "b": "heldout"}


texts = st.lists(st.integers(0, 10**6).map("Task {}".format), unique=True, min_size=40, max_size=60)


@settings(max_examples=15, deadline=None)
@given(texts, texts, st.booleans())
def test_a_task_keeps_its_split_whatever_files_are_added(
    tmp_path_factory: pytest.TempPathFactory, old: list[str], added: list[str], named: bool
) -> None:
    """A night's files make tasks appear and disappear, but none is ever trained on that was held out, or back."""
    folder = tmp_path_factory.mktemp("nights")
    write_tasks(folder / "in" / "old.jsonl", old)
    stable = {"train": 12, "heldout": 9, "exact_splits": False}
    before = split_of(config(folder / "in", **stable), folder / "one")
    digest = write_tasks(folder / "in" / "new.jsonl", added)
    both = config(folder / "in", **stable, first=[digest] if named else [])
    after = split_of(both, folder / "two")
    unlimited = config(
        folder / "in", train=1200, heldout=900, validation_queries=1000, exact_splits=False
    )  # the same shares
    splits = split_of(unlimited, folder / "three")
    for drawn in (before, after):
        assert drawn == {text: splits[text] for text in drawn}
