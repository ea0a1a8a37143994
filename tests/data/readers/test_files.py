import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steptool.contracts.columns import from_row, to_row
from steptool.data.ingest_log import IngestError, IngestLog, UnusableError
from steptool.data.readers.files import SUFFIXES, find_files, parse_records, read_file
from steptool.records import Query, Reference


def read_values(file, **limits):
    """What was read, with its rows, and the reasons of faults in place of what was not."""
    return [(r.row, r.fault.reason if r.fault else r.value) for r in read_file(file, **limits)]


def write_file(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_bad_line_costs_that_line_only(tmp_path):
    lines = [b'\xef\xbb\xbf{"n": 1}\r', b"", b"{n: 2}", b'{"n": "\xff"}', b'{"n": 3}', b'{"n": 4, "te']
    assert read_values(write_file(tmp_path / "a.jsonl", b"\n".join(lines))) == [
        (1, {"n": 1}), (3, "not JSON"), (4, "not UTF-8 text"), (5, {"n": 3}), (6, "not JSON"),
    ]  # fmt: skip


def test_a_huge_line_is_not_held_and_its_beginning_is_shown(tmp_path):
    huge = b'{"n": "' + b"x" * 5_000_000 + b'"}'
    file = write_file(tmp_path / "a.jsonl", b"\n".join([b'{"n": 1}', huge, b'{"n": 3}']))
    assert read_values(file, limit=1000) == [(1, {"n": 1}), (2, "a record too large"), (3, {"n": 3})]
    shown = next(r for r in read_file(file, limit=1000) if r.fault).value
    assert shown.startswith('{"n": "xxx') and len(shown) <= 2000


def test_a_list_of_any_size_is_read_record_by_record(tmp_path):
    rows = [{"n": n, "text": "☔é\\" * (n % 40)} for n in range(30_000)] + [{"long": "y" * 2_500_000}, 7, [], "z", None]
    file = write_file(tmp_path / "a.json", json.dumps(rows, indent=1, ensure_ascii=False))
    assert file.stat().st_size > 4 << 20
    assert read_values(file) == list(enumerate(rows))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, max_size=4), st.data())
def test_a_damaged_list_gives_what_stands_before_the_damage(tmp_path, rows, data):
    text = json.dumps(rows)
    cut = data.draw(st.integers(1, len(text) - 1))
    *before, (row, reason) = read_values(write_file(tmp_path / "a.json", text[:cut]))
    assert before == list(enumerate(rows))[: len(before)] and (row, reason) == (None, "not JSON")


@pytest.mark.parametrize("tail", ["]", "{}", ", 4]", "x"])
def test_text_after_a_list_is_told(tmp_path, tail):
    assert read_values(write_file(tmp_path / "a.json", f"[1, 2] {tail}")) == [(0, 1), (1, 2), (None, "not JSON")]


@pytest.mark.parametrize("text", ["[,]", "[1,]", "[1 2]", "[value]", "[1, }", "[[1]"])
def test_a_list_with_a_slip_is_told(tmp_path, text):
    assert read_values(write_file(tmp_path / "a.json", text))[-1] == (None, "not JSON")


def test_an_element_too_large_ends_the_reading(tmp_path):
    text = json.dumps([{"n": 1}, {"n": "x" * 3_000_000}, {"n": 3}])
    assert read_values(write_file(tmp_path / "a.json", text), limit=1000) == [
        (0, {"n": 1}),
        (None, "a record too large"),
    ]


def test_a_document_too_large_is_one_fault(tmp_path):
    file = write_file(tmp_path / "a.json", json.dumps({"n": list(range(500))}, indent=1))
    assert read_values(file, limit=1000) == [(None, "a record too large")]


def test_json_lines_under_another_name(tmp_path):
    assert read_values(write_file(tmp_path / "a.json", '{"n": 1}\n{"n": 2}\n')) == [(1, {"n": 1}), (2, {"n": 2})]
    assert read_values(write_file(tmp_path / "a.txt", '{"n": 1}\n{"n": 2}\n')) == [(1, {"n": 1}), (2, {"n": 2})]


def test_a_document_is_one_record(tmp_path):
    assert read_values(write_file(tmp_path / "a.json", '\ufeff {"n":\n 1}')) == [(None, {"n": 1})]


def test_rows_of_a_table(tmp_path):
    text = b'a\tb\n1\t"two\nlines ""x"""\n3\n\xff\t5\n6\t7\n'
    assert read_values(write_file(tmp_path / "a.csv", text)) == [
        (3, {"a": "1", "b": 'two\nlines "x"'}), (4, "a row of another width"), (5, "not UTF-8 text"),
        (6, {"a": "6", "b": "7"}),
    ]  # fmt: skip
    assert read_values(write_file(tmp_path / "b.csv", "a,b\n1,2\n")) == [(2, {"a": "1", "b": "2"})]


def test_structs_of_parquet_have_only_their_own_fields(tmp_path):
    # Arrow gives every struct of a column the fields of all.
    rows = [{"m": [{"args": {"x": 1}}, {"args": {"y": None, "z": "a"}}], "n": None}, {"m": None, "n": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_values(tmp_path / "a.parquet") == [
        (0, {"m": [{"args": {"x": 1}}, {"args": {"z": "a"}}]}),
        (1, {"n": 2}),
    ]


def test_json_columns_are_read(tmp_path):
    column = pa.array([['{"x": 1}', "[null]"], ["{"]], pa.list_(pa.string())).cast(pa.list_(pa.json_()))
    pq.write_table(pa.table({"m": column}), tmp_path / "a.parquet")
    assert read_values(tmp_path / "a.parquet") == [(0, {"m": [{"x": 1}, [None]]}), (1, "not JSON")]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_of_another_kind_is_told(tmp_path, name):
    assert read_values(write_file(tmp_path / name, b"PAR1 or not")) == [(None, "unreadable file")]


def test_a_saved_dataset_is_its_data_files_alone(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"n": n} for n in rows]) for name, rows in (("a", [1, 2]), ("b", [3]))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    stale = tmp_path / "d" / "a" / "cache-0123.arrow"
    stale.write_bytes((tmp_path / "d" / "b" / "data-00000-of-00001.arrow").read_bytes())
    found = list(find_files([str(tmp_path)], "data.paths", SUFFIXES))
    assert [read_values(file) for file in found] == [[(0, {"n": 1}), (1, {"n": 2})], [(0, {"n": 3})]]


def test_a_broken_state_of_a_saved_dataset_is_refused(tmp_path):
    for name in ("state.json", "dataset_info.json"):
        write_file(tmp_path / name, "{}")
    with pytest.raises(IngestError, match=r"state\.json"):
        list(find_files([str(tmp_path)], "data.paths", SUFFIXES))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    write_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")), "[]")
    with pytest.raises(IngestError, match="not UTF-8"):
        list(find_files([str(tmp_path)], "data.paths", SUFFIXES))


def test_what_is_read_is_kept_and_dropped_together(tmp_path):
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
    aside = [(Path(a["file"]).name, a["row"], a["reason"], a["record"]) for a in log.set_aside]
    assert aside == [
        ("a.jsonl", 1, "odd", 1), ("a.jsonl", 2, "not JSON", "{\n"), ("a.jsonl", 4, "odd", 3),
        ("b.json", None, "not UTF-8 text", None),
    ]  # fmt: skip
    assert log.write(tmp_path / "q").read_text().count("\n") == 4


def test_many_records_set_aside_are_all_written(tmp_path):
    file = write_file(tmp_path / "a.jsonl", "".join(f"{{ {'é' * 500}\n" for _ in range(3000)))
    log = IngestLog()
    assert list(parse_records([file], lambda r: r.value, "numbers", log)) == []
    lines = log.write(tmp_path / "q.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(1, 3001))


def test_numbers_and_names_are_read_and_written_as_python_does(tmp_path):
    text = (
        '{"big": 123456789012345678901, "twice": 1, "twice": 2, "half": "\\ud83d", "whole": "\\ud83d\\ude00", "f": 1.0}'
    )
    expected = {"big": 123456789012345678901, "twice": 2, "half": "\ufffd", "whole": "😀", "f": 1.0}
    for name, content in (("a.jsonl", text), ("a.json", f"[{text}]"), ("b.json", text)):
        (value,) = (value for _, value in read_values(write_file(tmp_path / name, content)))
        assert value == expected and type(value["f"]) is float
    found = Query(
        "q", "train", "replay", "x", ({"default": [value, float("inf"), True]},), Reference(environment={"n": value})
    )
    assert from_row(to_row(found), Query) == found
