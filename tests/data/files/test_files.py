"""Which files are read, and what is counted."""

import json
import os
from pathlib import Path

import pytest

from quarantine import read_quarantine
from steptool.data.files import SUFFIXES, find_files, parse_records, read_file
from steptool.data.parsing import IngestError, IngestLog, UnusableError, parse_if_text, parse_json
from steptool.records import Query, Reference
from steptool.records.columns import from_row, to_row


def test_a_saved_dataset_is_its_data_files_alone(tmp_path, read_values):
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"n": n} for n in rows]) for name, rows in (("a", [1, 2]), ("b", [3]))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    stale = tmp_path / "d" / "a" / "cache-0123.arrow"
    stale.write_bytes((tmp_path / "d" / "b" / "data-00000-of-00001.arrow").read_bytes())
    matches = list(find_files([str(tmp_path)], "data.paths", SUFFIXES))
    assert [read_values(file) for file in matches] == [[(0, {"n": 1}), (1, {"n": 2})], [(0, {"n": 3})]]


def test_a_broken_state_of_a_saved_dataset_is_refused(tmp_path, write_file):
    for name in ("state.json", "dataset_info.json"):
        write_file(tmp_path / name, "{}")
    with pytest.raises(IngestError, match=r"state\.json"):
        list(find_files([str(tmp_path)], "data.paths", SUFFIXES))


def test_a_name_that_is_no_text_is_refused(tmp_path, write_file):
    write_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")), "[]")
    with pytest.raises(IngestError, match="not UTF-8"):
        list(find_files([str(tmp_path)], "data.paths", SUFFIXES))


def test_what_is_read_is_kept_and_dropped_together(tmp_path, write_file):
    write_file(tmp_path / "a.jsonl", "1\n{\n2\n3\n")
    write_file(tmp_path / "b.json", b"\xff")

    def even(record):
        if record.value % 2:
            raise UnusableError("odd", "not even")
        return record.value

    log = IngestLog()
    assert list(parse_records(find_files([str(tmp_path)], "f", SUFFIXES), even, "numbers", log)) == [2]
    assert log.counts == {
        "numbers read": 3, "numbers dropped: odd": 2, "numbers dropped: not JSON": 1,
        "files dropped: not UTF-8 text": 1,
    }  # fmt: skip
    aside = [(Path(a["file"]).name, a["row"], a["reason"], a["record"]) for a in read_quarantine(log)]
    assert aside == [
        ("a.jsonl", 1, "odd", 1), ("a.jsonl", 2, "not JSON", "{\n"), ("a.jsonl", 4, "odd", 3),
        ("b.json", None, "not UTF-8 text", None),
    ]  # fmt: skip
    assert log.write(tmp_path / "q").read_text().count("\n") == 4


def test_many_records_set_aside_are_all_written(tmp_path, write_file):
    file = write_file(tmp_path / "a.jsonl", "".join(f"{{ {'é' * 500}\n" for _ in range(3000)))
    log = IngestLog()
    assert list(parse_records([file], lambda r: r.value, "numbers", log)) == []
    lines = log.write(tmp_path / "q.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(1, 3001))


def test_numbers_and_names_are_read_and_written_as_python_does(tmp_path, read_values, write_file):
    text = '{"big": 123456789012345678901, "half": "\\ud83d", "whole": "\\ud83d\\ude00", "f": 1.0}'
    expected = {"big": 123456789012345678901, "half": "\ufffd", "whole": "😀", "f": 1.0}
    for name, content in (("a.jsonl", text), ("a.json", f"[{text}]"), ("b.json", text)):
        (value,) = (value for _, value in read_values(write_file(tmp_path / name, content)))
        assert value == expected and type(value["f"]) is float
    values = Query(
        "q", "train", "replay", "x", ({"default": [value, float("inf"), True]},), Reference(environment={"n": value})
    )
    assert from_row(to_row(values), Query) == values


TWICE = '{"instruction": "a", "reference": {"answer": "3", "answer": "4"}}'


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("tasks.jsonl", f'{{"instruction": "b"}}\n{TWICE}\n{{"instruction": "c"}}\n', 2),
        ("tasks.json", f'[{{"instruction": "b"}}, {TWICE}, {{"instruction": "c"}}]', 1),
    ],
)
def test_a_record_with_a_key_given_twice_is_set_aside_alone(tmp_path, write_file, name, text, place):
    path, log = write_file(tmp_path / name, text), IngestLog()
    records = list(read_file(path))
    assert [record.value.get("instruction") for record in records if not record.fault] == ["b", "c"]
    (refused,) = (record for record in records if record.fault)
    assert refused.row == place and refused.fault.reason == "a key given twice"
    assert refused.fault.detail == ''''answer' with the values "3" and "4"'''
    assert list(parse_records([path], lambda record: record.value["instruction"], "tasks", log)) == ["b", "c"]
    assert log.counts["tasks dropped: a key given twice"] == 1


def test_a_document_and_tools_as_text_with_a_key_given_twice_are_refused(tmp_path, write_file):
    (record,) = read_file(write_file(tmp_path / "one.json", TWICE))
    assert record.fault and record.fault.reason == "a key given twice"
    with pytest.raises(UnusableError, match='tools: \'name\' with the values "f" and "g"'):
        parse_if_text('[{"name": "f", "name": "g"}]', "tools")
    assert parse_json('{"error": "", "error": "gone"}') == {"error": "gone"}  # what a tool said is as it is
