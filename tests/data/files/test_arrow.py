"""Parquet and Arrow files as records, whatever is in them."""

import itertools
import struct
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steptool.data.arrow_files import measure_unfolded_sizes
from steptool.data.files import read_file
from steptool.data.parsing import UnusableError


def test_structs_of_parquet_have_only_their_own_fields(tmp_path, read_values):
    # Arrow gives every struct of a column the fields of all.
    rows = [{"m": [{"args": {"x": 1}}, {"args": {"y": None, "z": "a"}}], "n": None}, {"m": None, "n": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_values(tmp_path / "a.parquet") == [
        (0, {"m": [{"args": {"x": 1}}, {"args": {"z": "a"}}]}),
        (1, {"n": 2}),
    ]


def test_json_columns_are_read(tmp_path, read_values):
    column = pa.array([['{"x": 1}', "[null]"], ["{"]], pa.list_(pa.string())).cast(pa.list_(pa.json_()))
    pq.write_table(pa.table({"m": column}), tmp_path / "a.parquet")
    assert read_values(tmp_path / "a.parquet") == [(0, {"m": [{"x": 1}, [None]]}), (1, "not JSON")]


def test_maps_and_bytes_of_arrow_are_objects_and_texts(tmp_path, read_values):
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


def test_a_bad_cell_costs_its_row_alone(tmp_path, read_values):
    table = with_bad_cell(600, bad=300)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    write_arrow(tmp_path / "a.arrow", table)
    for name in ("a.parquet", "a.arrow"):
        values = read_values(tmp_path / name)
        assert [row for row, _ in values] == list(range(600))
        assert [row for row, value in values if value != {"messages": [{"content": "text"}]}] == [300]
        assert values[300] == (300, "not UTF-8 text")


def test_a_date_that_python_does_not_know_costs_its_row_alone(tmp_path, read_values):
    table = pa.table({"at": pa.array([0, 2**40, 1], pa.timestamp("s")), "n": [1, 2, 3]})
    values = read_values(write_arrow(tmp_path / "a.arrow", table))
    assert [row for row, _ in values] == [0, 1, 2] and values[1][1] == "an unreadable cell"
    assert values[2][1]["n"] == 3


def test_a_row_group_that_cannot_be_read_costs_itself(tmp_path, read_values):
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
        "import random, sys; from pathlib import Path; from steptool.data.files import read_file\n"
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
    process = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 1000


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
        "import resource, sys; from pathlib import Path; from steptool.data.files import read_file\n"
        "import pyarrow.parquet\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "records = [(r.row, r.fault and r.fault.reason) for r in read_file(Path(sys.argv[1]))]\n"
        "print(len(records), records[-1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    expected = {"plain": "20 (19, None)", "dictionary": "300 (299, None)", "list": "1 (None, 'a record too large')"}
    for name, beginning in expected.items():
        command = [sys.executable, "-c", program, str(tmp_path / f"{name}.parquet")]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        assert process.stdout.startswith(beginning)
        assert int(process.stdout.split()[-1]) < 500_000  # kilobytes; unfolded they take 1.2 GB


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_part_of_an_arrow_file_is_measured_before_it_is_decompressed(tmp_path, compression, read_values):
    small, large = (pa.table({"m": ["0" * size] * 20}) for size in (10, 1_000))
    dictionary = pa.table({"m": pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["0" * 20_000]))})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    for name, table in {"small": small, "large": large, "dictionary": dictionary}.items():
        with (
            pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema, options=options) as writer,
        ):
            writer.write_table(table)
    limit = 1_000  # bytes of a record: a part may take 16,000
    assert len(read_values(tmp_path / "small.arrow", limit=limit)) == 20
    for name, size in {"large": 20_000 + 84, "dictionary": 20_000 + 8 + 4}.items():
        assert read_values(tmp_path / f"{name}.arrow", limit=limit) == [(None, "a record too large")]
        assert sum(measure_unfolded_sizes(tmp_path / f"{name}.arrow")) in range(size - 100, size + 100)
        assert len(read_values(tmp_path / f"{name}.arrow")) == (20 if name == "large" else 1)


def test_the_sizes_of_a_damaged_stream_are_refused_or_few(tmp_path):
    file, schema = tmp_path / "a.arrow", pa.schema({"m": pa.string()})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table({"m": ["x"] * 5}, schema=schema))
    whole, refused = file.read_bytes(), 0
    for place, value in itertools.product(range(0, len(whole), 4), (-1, -200, -328, 2**62, 3)):
        file.write_bytes(whole[:place] + struct.pack("<q", value) + whole[place + 8 :])
        try:
            assert len(list(measure_unfolded_sizes(file))) < 10
        except UnusableError as error:
            assert error.reason == "unreadable file"
            refused += 1
    assert refused > 20


def test_the_sizes_of_a_stream_without_compression_are_nothing(tmp_path):
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        table = pa.table({"m": ["x" * 1_000] * 20})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    assert list(measure_unfolded_sizes(tmp_path / "a.arrow")) == [0] * 5  # the schema and four parts


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_of_another_kind_is_told(tmp_path, name, read_values, write_file):
    assert read_values(write_file(tmp_path / name, b"PAR1 or not")) == [(None, "unreadable file")]
