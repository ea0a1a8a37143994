import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from steptool.records import Cost, Metric, Query, StepReward, Trajectory
from steptool.records.columns import ContractError, get_schema, to_row
from steptool.records.tables import (
    concatenate,
    find_record_class,
    iterate_rows,
    open_scratch_folder,
    read_contract_name,
    read_records,
    read_table,
    to_table,
    write_records,
    write_rows,
    write_table,
    write_whole,
)

LOSS, COUNT = Metric("ppo", 0, 3, "loss", 0.5), Metric("ppo", 0, -1, "episodes", 4.0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = write_records(tmp_path / "deep" / "m.parquet", [LOSS, COUNT], Metric)
    assert read_records(file, Metric) == [LOSS, COUNT]
    assert (read_contract_name(file), find_record_class(file)) == ("metrics", Metric)
    assert list(iterate_rows(file, Metric, columns=["name"])) == [{"name": "loss"}, {"name": "episodes"}]
    cost = Cost("annotate", 1, 2.0, counts={"requests": 3, "money": 0.25})
    assert read_records(write_records(tmp_path / "c.parquet", [cost], Cost), Cost) == [cost]


def test_a_mask_selects_rows_across_parts_of_a_file(tmp_path: Path) -> None:
    metrics = (Metric("ppo", 0, step, "loss", 0.5) for step in range(20_000))
    file = write_records(tmp_path / "m.parquet", metrics, Metric)
    assert pq.read_metadata(file).num_row_groups == 3  # of 8,192 rows each
    for positions in ([], [0], [8_191, 8_192], [5, 19_999]):
        mask = np.zeros(20_000, bool)
        mask[positions] = True
        assert list(iterate_rows(file, Metric, columns=["update"], mask=mask)) == [
            {"update": step} for step in positions
        ]


def test_files_are_joined_in_their_order(tmp_path: Path) -> None:
    files = [write_records(tmp_path / f"{m.name}.parquet", [m], Metric) for m in (COUNT, LOSS)]
    assert read_records(concatenate(files, Metric, tmp_path / "both.parquet"), Metric) == [COUNT, LOSS]
    with pytest.raises(ContractError, match="metrics: nothing to join"):
        concatenate([], Metric, tmp_path / "none.parquet")


def test_a_file_without_descriptions_of_its_columns_is_joined_with_others(tmp_path: Path) -> None:
    bare = pa.schema([field.remove_metadata() for field in get_schema(Metric)])
    metadata = {"steptool.contract": "metrics", "steptool.version": "1"}
    pq.write_table(pa.Table.from_pylist([to_row(LOSS)], schema=bare.with_metadata(metadata)), tmp_path / "old.parquet")
    files = [tmp_path / "old.parquet", write_records(tmp_path / "new.parquet", [COUNT], Metric)]
    assert read_records(concatenate(files, Metric, tmp_path / "both.parquet"), Metric) == [LOSS, COUNT]


def test_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    row = to_row(LOSS)
    for rows, message in (
        ([row, {**row, "value": None}], r"metrics v1, row 1: field 'value' is missing"),
        ([row, {**row, "round": "first"}], r"metrics v1: row 1, field 'round': expected int32, got 'first'"),
        ([row, {**row, "round": 2**40}], r"metrics v1: row 1, field 'round': expected int32, got 1099511627776"),
        ([{"stage": "ppo", "step": 1}], r"row 0: missing fields \['round', .*unknown fields \['step'\]"),
    ):
        with pytest.raises(ContractError, match=message):
            write_rows(tmp_path / "m.parquet", rows, Metric)
    assert list(tmp_path.iterdir()) == []  # no part of a file is left


def test_a_stream_that_breaks_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    file = write_records(tmp_path / "m.parquet", [LOSS], Metric)

    def break_file():
        yield COUNT
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="source is gone"):
        write_records(file, break_file(), Metric)
    assert read_records(file, Metric) == [LOSS] and [f.name for f in tmp_path.iterdir()] == ["m.parquet"]


def test_a_file_of_another_contract_version_or_shape_is_refused(tmp_path: Path) -> None:
    file = write_records(tmp_path / "m.parquet", [LOSS], Metric)
    with pytest.raises(ContractError, match=r"expected contract 'rewards' version 1, found 'metrics' version 1"):
        read_records(file, StepReward)
    table = read_table(file, Metric)
    pq.write_table(table.drop_columns(["value"]), tmp_path / "few.parquet")
    with pytest.raises(ContractError, match="contract 'metrics' needs the column 'value'"):
        read_records(tmp_path / "few.parquet", Metric)
    with pytest.raises(ContractError, match=r"has no columns \['more'\]"):
        write_table(tmp_path / "more.parquet", table.append_column("more", [[1]]), Metric)
    with pytest.raises(ContractError, match=r"missing.parquet: no such file; expected .* of contract 'metrics'"):
        read_records(tmp_path / "missing.parquet", Metric)
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(ContractError, match=r"text.parquet: damaged, encrypted or not a Parquet file"):
        read_records(tmp_path / "text.parquet", Metric)


def test_many_rows_are_written_in_parts(tmp_path: Path) -> None:
    file = write_records(tmp_path / "m.parquet", (Metric("ppo", 0, n, "loss", n) for n in range(20_000)), Metric)
    assert pq.ParquetFile(file).num_row_groups == 3
    assert [m.update for m in read_records(file, Metric)] == list(range(20_000))
    assert to_table([], Metric).num_rows == 0


def test_a_damaged_file_is_refused_by_name_and_no_wrong_number_is_read(tmp_path: Path) -> None:
    whole = write_records(tmp_path / "m.parquet", (Metric("ppo", 0, n, f"loss {n}", n) for n in range(500)), Metric)
    records, data = read_records(whole, Metric), whole.read_bytes()
    damaged, rng, refusals = tmp_path / "damaged.parquet", random.Random(0), 0
    for _ in range(300):
        content = bytearray(data)
        content[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content if rng.random() < 0.9 else content[: rng.randrange(len(data))])
        for result in (read_records, lambda path, cls: read_table(path, cls).to_pylist()):
            try:
                values = result(damaged, Metric)
            except ContractError as error:
                refusals += "damaged.parquet" in str(error)
                continue
            assert values in (records, [to_row(m) for m in records])  # a bit that means nothing to the reader
    assert refusals > 300


def test_an_encrypted_file_is_refused_by_name(tmp_path: Path) -> None:
    class Keys(pe.KmsClient):
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            return key_bytes.hex()

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            return bytes.fromhex(wrapped_key)

    factory = pe.CryptoFactory(lambda _: Keys())
    settings = pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["name"]})
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    table = to_table([to_row(LOSS)], Metric)
    with pq.ParquetWriter(tmp_path / "e.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(ContractError, match=r"e.parquet: damaged, encrypted or not a Parquet file"):
        read_records(tmp_path / "e.parquet", Metric)


def episode(**columns: object) -> dict[str, object]:
    texts = dict.fromkeys(get_schema(Trajectory).names, "") | {"messages": "[]", "stop_reason": "finished"}
    counts = ("round", "sample", "temperature", "seconds", "abandoned_turns", "abandoned_tokens")
    empty = {"input_ids": [], "spans": [], "logprobs": [], "steps": [], "solved": None}
    return {**texts, **dict.fromkeys(counts, 0), **empty, **columns}


def query(**columns: object) -> dict[str, object]:
    texts = dict.fromkeys(get_schema(Query).names, "") | {"tools": "[]", "reference": "{}"}
    return {**texts, "max_steps": 0, **columns}


DEEP = "[" * 3_000 + "]" * 3_000


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("messages", ["5", "null", "{}", "[5]", '[{"content": "x"}]', '[{"role": 5}]', "[NaN]", DEEP]),
        (
            "messages",
            [f'[{{"role": "assistant", "tool_calls": {calls}}}]' for calls in ("5", "[5]", '[{"function": 5}]')],
        ),
        (
            "steps",
            [[{"call_name": "f", "call_arguments": text, "status": "ok", "observation": ""}] for text in ("5", None)],
        ),
        ("tools", ["5", "null", "{}", "[5]", '[{"function": 5}]', DEEP]),
        ("reference", ["5", "null", "[]", '{"answer": 5}', '{"family": []}', '{"calls": 5}', '{"calls": [5]}', DEEP]),
    ],
)
def test_json_of_another_shape_is_refused_with_file_and_column(
    tmp_path: Path, column: str, values: list[object]
) -> None:
    make, cls = (episode, Trajectory) if column in ("messages", "steps") else (query, Query)
    for value in values:
        file = write_rows(tmp_path / "x.parquet", [make(), make(**{column: value})], cls)
        assert len(list(iterate_rows(file, cls))) == 2
        with pytest.raises(ContractError, match=rf"x.parquet: \w+ v\d: column '{column}' cannot be read"):
            read_records(file, cls)


def test_a_value_outside_a_closed_set_is_refused_with_file_and_column(tmp_path: Path) -> None:
    assert len(read_records(write_rows(tmp_path / "t.parquet", [episode()], Trajectory), Trajectory)) == 1
    step = {"call_name": None, "call_arguments": None, "status": "lost", "observation": ""}
    for column, value in (("stop_reason", "bored"), ("steps", [step]), ("messages", "{not json")):
        file = write_rows(tmp_path / f"{column}.parquet", [episode(), episode(**{column: value})], Trajectory)
        with pytest.raises(
            ContractError, match=rf"{column}.parquet: trajectories v\d: column '{column}' cannot be read"
        ):
            read_records(file, Trajectory)


ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from steptool.records.tables import open_scratch_folder, write_whole

place = Path(sys.argv[1])
with open_scratch_folder(place, "export") as folder, write_whole(place / "rows.jsonl") as partial:
    (folder / "scratch.sqlite").write_text("much")
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@contextmanager
def start_writer(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing, which is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout and process.stdout.readline() == "writing\n"
        yield process
        process.send_signal(signal.SIGKILL)


def write(place: Path, text: str) -> None:
    with open_scratch_folder(place, "export"), write_whole(place / "rows.jsonl") as partial:
        partial.write_text(text)


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with start_writer(tmp_path):
        pass
    assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path, "whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rows.jsonl": "whole"}


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with start_writer(tmp_path):
        before = sorted(tmp_path.iterdir())
        assert len(before) == 2
        write(tmp_path, "whole")
        assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "rows.jsonl"]


def test_an_error_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "former")
    with (
        pytest.raises(ZeroDivisionError),
        open_scratch_folder(tmp_path, "x"),
        write_whole(tmp_path / "rows.jsonl") as partial,
    ):
        partial.write_text("half")
        raise ZeroDivisionError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"rows.jsonl": "former"}


def test_only_what_belongs_to_the_same_name_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".steptool-mine.partial").touch()
    write(tmp_path, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".steptool-mine.partial", "rows.jsonl"]
