"""How a frozen dataclass becomes a Parquet contract: each field declares its Arrow type and says what it holds.

    @contract("verdicts", version=1)
    @dataclass(frozen=True)
    class Verdict:
        query_id: Annotated[str, "Task that was answered"]
        status: Annotated[str | None, "solved, unsure or unsolved; null: missing"]

The order of the fields is the order of the columns, and `| None` makes a column nullable. The text travels in the
metadata of the Parquet file and makes the reference page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import pyarrow as pa

R = TypeVar("R")
Row = dict[str, Any]
"""One record in the form that the file stores: Arrow values, and JSON documents as text."""
DESCRIPTION = b"description"
"""The key of a field's metadata that holds its description."""
JSON_LIST = pa.list_(pa.json_())
"""A list of JSON documents. Hugging Face datasets reads each as the value that it encodes."""


class ContractError(ValueError):
    """A file or a row does not satisfy its contract."""


@dataclass(frozen=True)
class Stored:
    """The Arrow type of a field, and the functions that encode and decode it where the file stores another form."""

    type: pa.DataType
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None


to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
"""Writes the same text as json.dumps in three quarters of the time."""

Int32 = Annotated[int, Stored(pa.int32())]
Int64 = Annotated[int, Stored(pa.int64())]
Float32 = Annotated[float, Stored(pa.float32())]
Float64 = Annotated[float, Stored(pa.float64())]
Int32Array = Annotated[npt.NDArray[np.int32], Stored(pa.list_(pa.int32()))]
Float32Array = Annotated[npt.NDArray[np.float32], Stored(pa.list_(pa.float32()))]
JSON_ARRAY = Stored(pa.string(), lambda values: to_json(list(values)), json.loads)
JSON_OBJECT = Stored(pa.string(), lambda mapping: to_json(dict(mapping)), json.loads)
JSON_TUPLE = Stored(pa.string(), lambda values: to_json(list(values)), lambda text: tuple(json.loads(text)))
_PLAIN = {str: Stored(pa.string()), bool: Stored(pa.bool_())}


@dataclass(frozen=True)
class Column:
    """One column of a contract."""

    name: str
    stored: Stored
    nullable: bool
    description: str

    @property
    def field(self) -> pa.Field:
        """The column in an Arrow schema."""
        return describe_field(self.name, self.stored.type, self.description, nullable=self.nullable)


@dataclass(frozen=True)
class Contract:
    """A named, versioned Parquet schema. Raise `version` with every change of a column."""

    name: str
    version: int
    columns: tuple[Column, ...]
    schema: pa.Schema

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


_DECLARED: dict[type, tuple[str, int]] = {}
_cached: Callable[[Callable[[type], R]], Callable[[type], R]] = cache


def contract(name: str, version: int) -> Callable[[type[R]], type[R]]:
    """Declare that records of a dataclass are stored under a contract of this name and version."""

    def declare(cls: type[R]) -> type[R]:
        _DECLARED[cls] = (name, version)
        return cls

    return declare


def find_class(name: str) -> type | None:
    """The dataclass that was declared under a contract's name, if there is one."""
    return next((cls for cls, (declared, _) in _DECLARED.items() if declared == name), None)


@_cached
def get_contract(cls: type) -> Contract:
    """The contract of a dataclass that was declared by `contract`."""
    name, version = _DECLARED[cls]
    hints = get_type_hints(cls, include_extras=True)
    columns = tuple(_make_column(field, hints[field]) for field in cls.__dataclass_fields__)  # type: ignore[attr-defined]
    return Contract(name, version, columns, pa.schema([column.field for column in columns]))


def get_schema(cls: type) -> pa.Schema:
    """The Arrow schema of a dataclass that was declared by `contract`, with the description of every column."""
    return get_contract(cls).schema


def describe_field(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    """An Arrow field that carries its description."""
    return pa.field(name, kind, nullable=nullable, metadata={DESCRIPTION: description.encode()})


def get_description(field: pa.Field) -> str:
    """The description that `describe_field` stored; empty for other fields."""
    text: bytes = (field.metadata or {}).get(DESCRIPTION, b"")
    return text.decode()


def to_row(record: Any) -> Row:
    """The row that the file stores for a record."""
    row = {name: getattr(record, name) for name in _list_names(type(record))}
    for name, encode in _make_encoders(type(record)):
        if row[name] is not None:
            row[name] = encode(row[name])
    return row


def from_row(row: Mapping[str, Any], cls: type[R]) -> R:
    """The record of a row. Raises ContractError naming the column that cannot be read."""
    fields = {name: _decode_all(cls, name, decode, [row[name]])[0] for name, decode in _make_decoders(cls)}
    return cls(**{**row, **fields})


def decode_value(cls: type, name: str, value: Any) -> Any:
    """The value of one column as records of a class hold it. Raises ContractError where it cannot be read."""
    decode = dict(_make_decoders(cls)).get(name)
    return _decode_all(cls, name, decode, [value])[0] if decode else value


def _decode_all(cls: type, name: str, decode: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    try:
        return [None if value is None else decode(value) for value in values]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContractError(f"{get_contract(cls)}: column '{name}' cannot be read: {error}") from error


def from_batch(batch: pa.RecordBatch, cls: type[R]) -> Iterator[R]:
    """The records of a part of a file, column by column. Raises ContractError naming the column that cannot be read."""
    columns = [_decode_values(cls, column, batch.column(column.name)) for column in get_contract(cls).columns]
    return map(cls, *columns)


def _decode_values(cls: type, column: Column, array: pa.Array) -> Iterable[Any]:
    if column.stored.decode is None:
        values: list[Any] = array.to_pylist()
        return values
    if _holds_numbers(column.stored.type):
        numbers, ends = array.flatten().to_numpy(zero_copy_only=False), np.cumsum(array.value_lengths().to_numpy())
        return [part.copy() for part in np.split(numbers, ends[:-1])] if len(ends) else []
    return _decode_all(cls, column.name, column.stored.decode, array.to_pylist())


def _holds_numbers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_primitive(kind.value_type))


@_cached
def _list_names(cls: type) -> tuple[str, ...]:
    return tuple(column.name for column in get_contract(cls).columns)


@_cached
def _make_encoders(cls: type) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    return [(c.name, c.stored.encode) for c in get_contract(cls).columns if c.stored.encode]


@_cached
def _make_decoders(cls: type) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    return [(c.name, c.stored.decode) for c in get_contract(cls).columns if c.stored.decode]


def _make_column(name: str, hint: Any) -> Column:
    """The column of a field with this type hint: Annotated[type, Stored unless the type implies it, description]."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    parts = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
    if get_origin(parts[0]) is Annotated:
        parts[0], *inner = get_args(parts[0])
        notes = [*inner, *notes]
    description = " ".join(note for note in notes if isinstance(note, str))
    storage = next((note for note in notes if isinstance(note, Stored)), None) or _find_stored(parts[0])
    if storage is None or not description:
        raise TypeError(f"field '{name}': expected Annotated with a description and an Arrow type, got {hint}")
    return Column(name, _decode_to_array(storage), NoneType in get_args(kind), description)


def _find_stored(kind: Any) -> Stored | None:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return Stored(pa.string(), str, kind)
    return _PLAIN.get(kind)


def _decode_to_array(storage: Stored) -> Stored:
    """The same storage, except that it decodes lists of numbers to arrays."""
    if _holds_numbers(storage.type) and storage.decode is None:
        dtype = storage.type.value_type.to_pandas_dtype()
        return Stored(storage.type, storage.encode, lambda values: np.asarray(values, dtype=dtype))
    return storage
