"""Records in Parquet files: written whole or not at all, checked against their contract when written and when read.

A process writes under a temporary name and locks that file or folder. The lock ends with the process, even if it is
killed. A later writer to the same place removes leftovers without a lock, and leaves what another process still writes.

Every file carries the contract's name and version in its metadata.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from steptool.records.columns import (
    JSON_LIST,
    Contract,
    ContractError,
    Row,
    find_class,
    from_batch,
    get_contract,
    to_row,
)


@contextmanager
def write_whole(target: Path) -> Iterator[Path]:
    """Give a temporary path beside the target, and rename it to the target at the end unless an error is raised."""
    name = hashlib.sha256(target.name.encode()).hexdigest()[:12]
    with _open_partial(target.parent, name, Path.touch) as partial:
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> Path:
    """Write a text into a file in UTF-8. The file appears whole under its name or not at all."""
    with write_whole(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target


@contextmanager
def open_scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make an empty folder in `parent`, and remove it at the end."""
    with _open_partial(parent, name, Path.mkdir) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _open_partial(parent: Path, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Remove what former processes have left under the name; make a file or folder and hold its lock."""
    with ExitStack() as stack:
        with hold_lock(parent):  # so that no other process removes it before it is locked
            for path in parent.glob(f".steptool-{name}-*.partial"):
                with suppress(OSError), hold_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB):  # a locked one is still written
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            partial = parent / f".steptool-{name}-{uuid.uuid4().hex}.partial"
            make(partial)
            stack.enter_context(hold_lock(partial))
        yield partial


@contextmanager
def hold_lock(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock of a file or folder; the lock ends with the process that holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


R = TypeVar("R")
Place = str | os.PathLike[str]
_PART_ROWS, _PART_SIZE = 8192, 1 << 25
"""Limits of what is held in memory and written at once: rows, and about how many characters and list items."""
_FLAT_BATCH, _NESTED_BATCH = 1024, 64
"""Records that are read at once; those with lists, such as tokens, may be large."""
_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)


def write_records(path: Place, records: Iterable[R], cls: type[R]) -> Path:
    """Write records under the contract of their class, a part at a time: they need not fit into memory.

    The file appears whole under its name or not at all.
    """
    return write_rows(path, map(to_row, records), cls)


def write_rows(path: Place, rows: Iterable[Mapping[str, Any]], cls: type) -> Path:
    """Write rows that have the form of the file already."""
    return _write_tables(path, _split_into_parts(rows, cls), get_contract(cls))


def write_table(path: Place, table: pa.Table, cls: type) -> Path:
    """Write a table that already has the contract's schema."""
    return _write_tables(path, [table], get_contract(cls))


def read_records(path: Place, cls: type[R]) -> list[R]:
    """The records of a file. Raises ContractError if it is not of this contract and version."""
    return list(iterate_records(path, cls))


def iterate_records(path: Place, cls: type[R]) -> Iterator[R]:
    """The records of a file, a few at a time in memory."""
    has_nested = any(pa.types.is_nested(field.type) for field in get_contract(cls).schema)
    for batch in _read_batches(path, cls, _NESTED_BATCH if has_nested else _FLAT_BATCH):
        try:
            records = from_batch(batch, cls)
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error
        yield from records


def read_rows(path: Place, cls: type) -> list[Row]:
    """The rows of a file in the form that it stores."""
    rows: list[Row] = read_table(path, cls).to_pylist()
    return rows


def iterate_rows(
    path: Place,
    cls: type,
    batch_size: int = _FLAT_BATCH,
    columns: Sequence[str] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Iterator[Row]:
    """The rows of a file as a stream, in the form that it stores; with `columns`, only these columns.

    `mask` [rows] selects rows; row groups without a selected row are not read.
    """
    for batch in _read_batches(path, cls, batch_size, columns, mask):
        with _name_damage(path):
            rows = batch.to_pylist()
        yield from rows


def _read_batches(
    path: Place,
    cls: type,
    batch_size: int,
    columns: Sequence[str] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Iterator[pa.RecordBatch]:
    contract = get_contract(cls)
    _check_metadata(path, contract)
    with _name_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        _check_schema(file.schema_arrow, contract, str(path))
        if mask is None:
            yield from file.iter_batches(batch_size=batch_size, columns=columns)
        else:
            yield from _select_batches(file, mask, batch_size, columns)


def _select_batches(
    file: pq.ParquetFile, mask: npt.NDArray[np.bool_], batch_size: int, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    """The rows of a mask [rows], from those row groups that have one."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if mask[first : first + rows].any():
            place = first
            for batch in file.iter_batches(batch_size=batch_size, columns=columns, row_groups=[group]):
                yield batch.filter(pa.array(mask[place : place + len(batch)]))
                place += len(batch)
        first += rows


def read_table(path: Place, cls: type) -> pa.Table:
    """A file as an Arrow table. Raises ContractError if it is not of this contract and version."""
    contract = get_contract(cls)
    _check_metadata(path, contract)
    with _name_damage(path):
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    _check_schema(table.schema, contract, str(path))
    return table


def concatenate(paths: Sequence[Place], cls: type, target: Place) -> Path:
    """Join files of one contract into one."""
    if not paths:
        raise ContractError(f"{get_contract(cls).name}: nothing to join into {target}")
    return _write_tables(target, (read_table(path, cls) for path in paths), get_contract(cls))


def read_contract_name(path: Place) -> str:
    """Name of the contract that a Parquet file carries; "(none)" if it carries none."""
    return _read_metadata(path).get(b"steptool.contract", b"(none)").decode()


def find_record_class(path: Place) -> type | None:
    """The class whose contract a Parquet file carries; None if it carries none that is known."""
    return find_class(read_contract_name(path))


def to_table(rows: Iterable[Mapping[str, Any]], cls: type, first: int = 0) -> pa.Table:
    """Rows as a table of a contract. Raises ContractError naming the row and the field that does not fit.

    `first` is the number of the first row, for the message.
    """
    row_list, contract = list(rows), get_contract(cls)
    _check_fields(row_list, contract, first)
    try:
        text = [f.with_type(pa.list_(pa.string())) if f.type == JSON_LIST else f for f in contract.schema]
        return pa.Table.from_pylist(row_list, schema=pa.schema(text)).cast(contract.schema)
    except _ARROW_ERRORS as error:
        raise ContractError(f"{contract}: {_find_culprit(row_list, contract, first)} ({error})") from error


def _check_fields(rows: Sequence[Mapping[str, Any]], contract: Contract, first: int) -> None:
    names = [column.name for column in contract.columns]
    required_names = [column.name for column in contract.columns if not column.nullable]
    expected = set(names)
    for number, row in enumerate(rows, start=first):
        if row.keys() != expected:
            missing, unknown = [n for n in names if n not in row], [n for n in row if n not in names]
            raise ContractError(f"{contract}, row {number}: missing fields {missing}, unknown fields {unknown}")
        for name in required_names:
            if row[name] is None:
                raise ContractError(f"{contract}, row {number}: field '{name}' is missing")


def _find_culprit(rows: Sequence[Mapping[str, Any]], contract: Contract, first: int) -> str:
    for number, row in enumerate(rows, start=first):
        for column in contract.columns:
            try:
                pa.array([row[column.name]], type=column.stored.type)
            except _ARROW_ERRORS:
                value = row[column.name]
                return f"row {number}, field '{column.name}': expected {column.stored.type}, got {repr(value)[:200]}"
    return "the rows do not fit the schema"


def _split_into_parts(rows: Iterable[Mapping[str, Any]], cls: type) -> Iterator[pa.Table]:
    """Rows in tables of a bounded size."""
    part: list[Mapping[str, Any]] = []
    count = size = 0
    for row in rows:
        part.append(row)
        size += sum(len(value) for value in row.values() if hasattr(value, "__len__"))
        if len(part) == _PART_ROWS or size >= _PART_SIZE:
            yield to_table(part, cls, count)
            count, size, part = count + len(part), 0, []
    if part:
        yield to_table(part, cls, count)


def _write_tables(path: Place, tables: Iterable[pa.Table], contract: Contract) -> Path:
    metadata = {"steptool.contract": contract.name, "steptool.version": str(contract.version)}
    schema = contract.schema.with_metadata(metadata)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        write_whole(target) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            _check_schema(table.schema, contract, str(path))
            writer.write_table(table.select(schema.names).cast(schema))
    return target


@contextmanager
def _name_damage(path: Place) -> Iterator[None]:
    """Turn what Arrow raises for a damaged file into an error that names it."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a fault of the disk, not of the file's content
        raise ContractError(f"{path}: damaged, encrypted or not a Parquet file ({error})") from error


def _read_metadata(path: Place) -> dict[bytes, bytes]:
    with _name_damage(path):
        return pq.read_schema(path).metadata or {}


def _check_metadata(path: Place, contract: Contract) -> None:
    if not Path(path).is_file():
        raise ContractError(f"{path}: no such file; expected a Parquet file of contract '{contract.name}'")
    metadata = _read_metadata(path)
    name, version = (metadata.get(key, b"(none)").decode() for key in (b"steptool.contract", b"steptool.version"))
    if (name, version) != (contract.name, str(contract.version)):
        raise ContractError(
            f"{path}: expected contract '{contract.name}' version {contract.version}, found '{name}' "
            f"version {version}; write the file again with this version of steptool"
        )


def _check_schema(schema: pa.Schema, contract: Contract, where: str) -> None:
    for expected in contract.schema:
        index = schema.get_field_index(expected.name)
        if index < 0:
            raise ContractError(f"{where}: contract '{contract.name}' needs the column '{expected.name}'")
        if schema.field(index).type != expected.type:
            raise ContractError(
                f"{where}: column '{expected.name}' should be {expected.type}, is {schema.field(index).type}"
            )
    unknown = [n for n in schema.names if n not in contract.schema.names]
    if unknown:
        raise ContractError(f"{where}: contract '{contract.name}' has no columns {unknown}")
