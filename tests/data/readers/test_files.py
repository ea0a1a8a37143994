import gzip
import json
import os
import subprocess
import sys
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


def test_maps_and_bytes_of_arrow_are_objects_and_texts(tmp_path):
    maps = pa.array([[("town", "Bath"), ("days", None)], None], pa.map_(pa.string(), pa.string()))
    table = pa.table({"arguments": maps, "text": pa.array([b"caf\xc3\xa9", b"\xff"])})
    pq.write_table(table, tmp_path / "a.parquet")
    first = {"arguments": {"town": "Bath", "days": None}, "text": "café"}
    assert read_values(tmp_path / "a.parquet") == [(0, first), (1, "not UTF-8 text")]


def with_bad_cell(rows, bad):
    """Rows of a list of structs with text, one of which is no UTF-8."""
    texts = pa.array([b"\xff" if n == bad else b"text" for n in range(rows)]).view(pa.string())
    structs = pa.StructArray.from_arrays([texts], ["content"])
    lists = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), structs)
    return pa.table({"messages": lists})


def write_arrow(path, table, rows=1000):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def test_a_bad_cell_costs_its_row_alone(tmp_path):
    table = with_bad_cell(600, bad=300)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    write_arrow(tmp_path / "a.arrow", table)
    for name in ("a.parquet", "a.arrow"):
        values = read_values(tmp_path / name)
        assert [row for row, _ in values] == list(range(600))
        assert [row for row, value in values if value != {"messages": [{"content": "text"}]}] == [300]
        assert values[300] == (300, "not UTF-8 text")


def test_a_date_that_python_does_not_know_costs_its_row_alone(tmp_path):
    table = pa.table({"at": pa.array([0, 2**40, 1], pa.timestamp("s")), "n": [1, 2, 3]})
    values = read_values(write_arrow(tmp_path / "a.arrow", table))
    assert [row for row, _ in values] == [0, 1, 2] and values[1][1] == "an unreadable cell"
    assert values[2][1]["n"] == 3


def test_a_row_group_that_cannot_be_read_costs_itself(tmp_path):
    table = pa.table({"n": list(range(30)), "text": [f"text {n}" for n in range(30)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="gzip", use_dictionary=False)
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(1)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    begin = column.data_page_offset
    content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(bytes(content))
    values = read_values(tmp_path / "a.parquet")
    assert [row for row, _ in values] == [*range(10), None, *range(20, 30)]
    fault = next(record.fault for record in read_file(tmp_path / "a.parquet") if record.fault)
    assert fault.reason == "unreadable file" and fault.detail.startswith("rows 10 to 19: ")


def test_changed_offsets_of_an_arrow_file_are_refused_and_never_end_the_process(tmp_path):
    """Many bytes changed at random; before, some ended the process by a bus error or read beyond the buffer."""
    table = pa.table({"m": [[{"role": "user", "content": "hello" * n}] for n in range(50)], "n": list(range(50))})
    write_arrow(tmp_path / "good.arrow", table)
    program = (
        "import random, sys; from pathlib import Path; from steptool.data.readers.files import read_file\n"
        "good, odd, rng = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(1)\n"
        "rows = 0\n"
        "for _ in range(300):\n"
        "    content = bytearray(good)\n"
        "    for _ in range(rng.choice([1, 1, 2, 4])):\n"
        "        content[rng.randrange(len(content))] = rng.randrange(256)\n"
        "    odd.write_bytes(bytes(content))\n"
        "    rows += sum(1 for _ in read_file(odd))\n"
        "print(rows)\n"
    )
    files = [str(tmp_path / "good.arrow"), str(tmp_path / "odd.arrow")]
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_a_small_file_that_unfolds_to_gigabytes_stays_small_in_memory(tmp_path):
    text = "0" * 4_000_000
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([text]))
    columns = {
        "plain": pa.array([f"{text}{n}" for n in range(20)]),
        "dictionary": same,
        "list": pa.ListArray.from_arrays(pa.array([0, 300], pa.int32()), same),
    }
    for name, column in columns.items():
        file, use = tmp_path / f"{name}.parquet", name != "plain"
        pq.write_table(pa.table({"m": column}), file, compression="gzip", use_dictionary=use, store_schema=False)
        assert file.stat().st_size < 500_000
    program = (
        "import resource, sys; from pathlib import Path; from steptool.data.readers.files import read_file\n"
        "import pyarrow.parquet\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "records = [(r.row, r.fault and r.fault.reason) for r in read_file(Path(sys.argv[1]))]\n"
        "print(len(records), records[-1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    expected = {"plain": "20 (19, None)", "dictionary": "300 (299, None)", "list": "1 (None, 'a record too large')"}
    for name, beginning in expected.items():
        command = [sys.executable, "-c", program, str(tmp_path / f"{name}.parquet")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(beginning)
        assert int(done.stdout.split()[-1]) < 500_000  # kilobytes; unfolded they take 1.2 GB


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read_like_others(tmp_path, name, suffix):
    texts = {
        ".jsonl": '{"n": "1"}\n{"n": "2"}\n',
        ".json": '[{"n": "1"}, {"n": "2"}]',
        ".csv": "n\n1\n2\n",
        ".tsv": "n\tx\n1\ta\n",
    }
    plain = write_file(tmp_path / "plain" / name, texts[Path(name).suffix])
    packed = tmp_path / "packed" / (name + suffix)
    packed.parent.mkdir()
    codec = "gzip" if suffix == ".gz" else "zstd"
    with pa.output_stream(str(packed), compression=codec) as sink:
        sink.write(plain.read_bytes())
    assert read_values(packed) == read_values(plain)
    assert list(find_files([str(tmp_path / "packed")], "data.paths", SUFFIXES)) == [packed]
    packed.write_bytes(packed.read_bytes()[:-6])
    assert read_values(packed)[-1] == (None, "unreadable file")


def test_a_compressed_line_of_gigabytes_is_not_held(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wb", compresslevel=1) as sink:
        sink.write(b"a,b\n1,2\n")
        for _ in range(300):
            sink.write(b"0" * 1_000_000)
    assert read_values(tmp_path / "a.csv.gz", limit=1000) == [(2, {"a": "1", "b": "2"}), (None, "a record too large")]


def test_a_header_in_another_encoding_is_told(tmp_path):
    file = write_file(tmp_path / "a.csv", "név,wörter\n1,2\n".encode("latin-1"))
    assert read_values(file) == [(None, "not UTF-8 text")]
    (record,) = read_file(file)
    assert record.fault.detail.endswith("save the file as UTF-8") and "header" in record.fault.detail


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
