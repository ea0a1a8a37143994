"""Tables of text as records."""

from steptool.data.readers.files import read_file


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
