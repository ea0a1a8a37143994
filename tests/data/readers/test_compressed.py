"""Compressed files of text."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from steptool.data.readers.files import SUFFIXES, find_files, read_file


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
