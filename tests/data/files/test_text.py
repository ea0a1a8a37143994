"""JSON lists, lines and documents as records."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steptool.data.files import SUFFIXES, find_files, read_file


def test_a_bad_line_costs_that_line_only(tmp_path, read_values, write_file):
    lines = [b'\xef\xbb\xbf{"n": 1}\r', b"", b"{n: 2}", b'{"n": "\xff"}', b'{"n": 3}', b'{"n": 4, "te']
    assert read_values(write_file(tmp_path / "a.jsonl", b"\n".join(lines))) == [
        (1, {"n": 1}), (3, "not JSON"), (4, "not UTF-8 text"), (5, {"n": 3}), (6, "not JSON"),
    ]  # fmt: skip


def test_a_huge_line_is_not_held_and_its_beginning_is_shown(tmp_path, read_values, write_file):
    huge = b'{"n": "' + b"x" * 5_000_000 + b'"}'
    file = write_file(tmp_path / "a.jsonl", b"\n".join([b'{"n": 1}', huge, b'{"n": 3}']))
    assert read_values(file, limit=1000) == [(1, {"n": 1}), (2, "a record too large"), (3, {"n": 3})]
    text = next(r for r in read_file(file, limit=1000) if r.fault).value
    assert text.startswith('{"n": "xxx') and len(text) <= 2000


@pytest.mark.parametrize("first", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 2_500_000])
def test_lines_are_recognised_however_long_the_first_one_is(tmp_path, read_values, write_file, first):
    row = {"text": "x" * (first - len('{"text": ""}'))}
    line = json.dumps(row)
    assert len(line) == first
    lines = write_file(tmp_path / "lines.json", f'{line}\n{{"n": 2}}\n')
    assert read_values(lines) == [(1, row), (2, {"n": 2})]
    for name, text in (("one.json", line), ("end.json", f"{line}\n"), ("spread.json", line[:-1] + "\n}\n")):
        assert read_values(write_file(tmp_path / name, text)) == [(None, row)]


def test_a_list_of_any_size_is_read_record_by_record(tmp_path, read_values, write_file):
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
def test_a_damaged_list_gives_what_stands_before_the_damage(tmp_path, read_values, write_file, rows, data):
    text = json.dumps(rows)
    cut = data.draw(st.integers(1, len(text) - 1))
    *before, (row, reason) = read_values(write_file(tmp_path / "a.json", text[:cut]))
    assert before == list(enumerate(rows))[: len(before)] and (row, reason) == (None, "not JSON")


@pytest.mark.parametrize("tail", ["]", "{}", ", 4]", "x"])
def test_text_after_a_list_is_told(tmp_path, tail, read_values, write_file):
    assert read_values(write_file(tmp_path / "a.json", f"[1, 2] {tail}")) == [(0, 1), (1, 2), (None, "not JSON")]


@pytest.mark.parametrize("text", ["[,]", "[1,]", "[1 2]", "[value]", "[1, }", "[[1]"])
def test_a_list_with_a_slip_is_told(tmp_path, text, read_values, write_file):
    assert read_values(write_file(tmp_path / "a.json", text))[-1] == (None, "not JSON")


def test_an_element_too_large_ends_the_reading(tmp_path, read_values, write_file):
    text = json.dumps([{"n": 1}, {"n": "x" * 3_000_000}, {"n": 3}])
    assert read_values(write_file(tmp_path / "a.json", text), limit=1000) == [
        (0, {"n": 1}),
        (None, "a record too large"),
    ]


def test_a_document_too_large_is_one_fault(tmp_path, read_values, write_file):
    file = write_file(tmp_path / "a.json", json.dumps({"n": list(range(500))}, indent=1))
    assert read_values(file, limit=1000) == [(None, "a record too large")]


def test_json_lines_under_another_name(tmp_path, read_values, write_file):
    assert read_values(write_file(tmp_path / "a.json", '{"n": 1}\n{"n": 2}\n')) == [(1, {"n": 1}), (2, {"n": 2})]
    assert read_values(write_file(tmp_path / "a.txt", '{"n": 1}\n{"n": 2}\n')) == [(1, {"n": 1}), (2, {"n": 2})]


def test_a_document_is_one_record(tmp_path, read_values, write_file):
    assert read_values(write_file(tmp_path / "a.json", '\ufeff {"n":\n 1}')) == [(None, {"n": 1})]


def test_rows_of_a_table(tmp_path, read_values, write_file):
    text = b'a\tb\n1\t"two\nlines ""x"""\n3\n\xff\t5\n6\t7\n'
    assert read_values(write_file(tmp_path / "a.csv", text)) == [
        (3, {"a": "1", "b": 'two\nlines "x"'}), (4, "a row of another width"), (5, "not UTF-8 text"),
        (6, {"a": "6", "b": "7"}),
    ]  # fmt: skip
    assert read_values(write_file(tmp_path / "b.csv", "a,b\n1,2\n")) == [(2, {"a": "1", "b": "2"})]


def test_a_header_in_another_encoding_is_told(tmp_path, read_values, write_file):
    file = write_file(tmp_path / "a.csv", "név,wörter\n1,2\n".encode("latin-1"))
    assert read_values(file) == [(None, "not UTF-8 text")]
    (record,) = read_file(file)
    assert record.fault.detail.endswith("save the file as UTF-8") and "header" in record.fault.detail


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_compressed_files_are_read_like_others(tmp_path, name, suffix, read_values, write_file):
    texts = {
        ".jsonl": '{"n": "1"}\n{"n": "2"}\n',
        ".json": '[{"n": "1"}, {"n": "2"}]',
        ".csv": "n\n1\n2\n",
        ".tsv": "n\tx\n1\ta\n",
    }
    plain = write_file(tmp_path / "plain" / name, texts[Path(name).suffix])
    packed = tmp_path / "packed" / (name + suffix)
    packed.parent.mkdir()
    codecs = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
    with pa.output_stream(str(packed), compression=codecs[suffix]) as sink:
        sink.write(plain.read_bytes())
    assert read_values(packed) == read_values(plain)
    assert list(find_files([str(tmp_path / "packed")], "data.paths", SUFFIXES)) == [packed]
    packed.write_bytes(packed.read_bytes()[:-6])
    assert read_values(packed)[-1] == (None, "unreadable file")


def test_a_compressed_line_of_gigabytes_is_not_held(tmp_path, read_values):
    with gzip.open(tmp_path / "a.csv.gz", "wb", compresslevel=1) as sink:
        sink.write(b"a,b\n1,2\n")
        for _ in range(300):
            sink.write(b"0" * 1_000_000)
    assert read_values(tmp_path / "a.csv.gz", limit=1000) == [(2, {"a": "1", "b": "2"}), (None, "a record too large")]


@pytest.mark.parametrize("name", ["b.zip", "b.tar.gz", "b.parquet.gz", "b.jsonl.xz"])
def test_an_archive_beside_other_files_is_counted_with_its_reason(tmp_path, name, write_file):
    write_file(tmp_path / "data" / "a.jsonl", '{"instruction": "x"}\n')
    write_file(tmp_path / "data" / name, "anything")
    write_file(tmp_path / "data" / "notes.txt", "anything")
    files = list(find_files([str(tmp_path / "data")], "data.paths", SUFFIXES))
    assert [file.name for file in files] == ["a.jsonl", name]
    fault = next(read_file(files[1])).fault
    assert (fault.reason, fault.detail) == ("an archive", "files in archives are not read: unpack it")
    write_file(tmp_path / "data" / "own.txt", "anything")
    assert all(file.suffix == ".txt" for file in find_files([str(tmp_path / "data")], "data.paths", (".txt",)))
