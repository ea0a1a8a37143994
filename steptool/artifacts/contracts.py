"""The Parquet contracts between stages: one versioned schema each, checked when written and when read.

Every file carries in its metadata the contract's name and version and, optionally, what the stage that wrote it cost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
JSON_LIST = pa.list_(pa.json_())
"""A list of JSON documents, which Hugging Face datasets reads as what they hold."""
_PART_ROWS, _PART_SIZE = 8192, 1 << 25
"""Rows that are held in memory and written at once: at most so many, of about so many characters and list items."""


class ContractError(ValueError):
    """A file or a row does not satisfy its contract."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


@dataclass(frozen=True)
class Contract:
    """A named, versioned Parquet schema. Raise `version` with every change of `schema`."""

    name: str
    version: int
    schema: pa.Schema


QUERIES = Contract(
    "queries",
    1,
    pa.schema(
        [
            _required("query_id", pa.string()),
            _required("split", pa.string()),
            _required("environment", pa.string()),
            _required("instruction", pa.string()),
            _required("tools", pa.string()),  # JSON list of OpenAI tool schemas
            _required("reference", pa.string()),  # JSON object: answer, calls, tools
            _required("source", pa.string()),
            _required("tier", pa.string()),
            _required("max_steps", pa.int32()),
        ]
    ),
)

_STEP = pa.struct(
    [
        pa.field("call_name", pa.string()),  # null: no call could be read
        pa.field("call_arguments", pa.string()),  # JSON object
        _required("status", pa.string()),
        _required("observation", pa.string()),
    ]
)
_SPAN = pa.struct([_required("start", pa.int32()), _required("end", pa.int32())])

TRAJECTORIES = Contract(
    "trajectories",
    2,
    pa.schema(
        [
            _required("trajectory_id", pa.string()),
            _required("query_id", pa.string()),
            _required("environment", pa.string()),
            _required("tier", pa.string()),
            _required("policy", pa.string()),
            _required("round", pa.int32()),
            _required("sample", pa.int32()),
            _required("temperature", pa.float32()),
            _required("messages", pa.string()),  # JSON list of OpenAI messages
            _required("input_ids", pa.list_(pa.int32())),
            _required("spans", pa.list_(_SPAN)),
            _required("logprobs", pa.list_(pa.float32())),
            _required("steps", pa.list_(_STEP)),
            _required("stop_reason", pa.string()),
            pa.field("final_answer", pa.string()),
            pa.field("solved", pa.float32()),
            _required("seconds", pa.float64()),
            _required("abandoned_turns", pa.int32()),  # sampled on other branches of a search; 0 for a chain
            _required("abandoned_tokens", pa.int32()),
        ]
    ),
)

REWARDS = Contract(
    "rewards",
    1,
    pa.schema(
        [
            _required("trajectory_id", pa.string()),
            _required("step", pa.int32()),
            _required("annotator", pa.string()),
            _required("annotator_version", pa.string()),
            _required("prompt_hash", pa.string()),  # empty for annotators without a prompt
            pa.field("succ_calling", pa.float32()),  # null: missing, never 0
            pa.field("contribution", pa.float32()),
            pa.field("is_solved", pa.float32()),  # on the last step only
            _required("votes", pa.string()),  # JSON
            _required("rationale", pa.string()),
        ]
    ),
)

ADVANTAGES = Contract(
    "advantages",
    1,
    pa.schema(
        [
            _required("trajectory_id", pa.string()),
            _required("step", pa.int32()),
            _required("reward", pa.float32()),  # composed step reward
            _required("kl", pa.float32()),  # sum over the step's tokens of log pi - log ref
            _required("value", pa.float32()),  # V before the step's first token
            _required("advantage", pa.float32()),  # mean over the step's tokens, before whitening
        ]
    ),
)

EVALUATIONS = Contract(
    "evaluations",
    2,
    pa.schema(
        [
            _required("query_id", pa.string()),
            _required("split", pa.string()),
            _required("tier", pa.string()),
            _required("model", pa.string()),
            _required("decoding", pa.string()),  # greedy | sampled
            _required("repeat", pa.int32()),
            _required("trajectory_id", pa.string()),
            _required("passed", pa.float32()),
            _required("recall", pa.float32()),
            _required("steps", pa.int32()),
            _required("calls", pa.int32()),
            _required("invalid_calls", pa.int32()),
            _required("redundant_calls", pa.int32()),
            _required("tokens", pa.int64()),  # written by the model
            pa.field("prompt_tokens", pa.int64()),  # read by the model, where an endpoint counts them
            pa.field("money", pa.float64()),  # null: the price is not known
            _required("seconds", pa.float64()),
            _required("stop_reason", pa.string()),
        ]
    ),
)

VERDICTS = Contract(
    "verdicts",
    1,
    pa.schema(
        [
            _required("query_id", pa.string()),
            _required("model", pa.string()),  # that answered
            _required("repeat", pa.int32()),  # number of the judgement
            pa.field("status", pa.string()),  # solved | unsure | unsolved; null: missing
            _required("judge", pa.string()),  # model that judged; empty: none was asked, or it is not known
            _required("prompt_hash", pa.string()),
            _required("rationale", pa.string()),
        ]
    ),
)

PREFERENCES = Contract(
    "preferences",
    1,
    pa.schema(
        [
            _required("query_id", pa.string()),
            _required("model", pa.string()),
            _required("other", pa.string()),
            _required("repeat", pa.int32()),  # number of the judgement
            _required("swapped", pa.bool_()),  # whether the judge saw the other's answer first
            pa.field("preference", pa.string()),  # model | other | tie; null: missing
            _required("judge", pa.string()),  # empty: none was asked
            _required("prompt_hash", pa.string()),
            _required("rationale", pa.string()),
        ]
    ),
)

METRICS = Contract(
    "metrics",
    1,
    pa.schema(
        [
            _required("stage", pa.string()),  # warm_start | ppo | ...
            _required("round", pa.int32()),
            _required("update", pa.int32()),
            _required("name", pa.string()),
            _required("value", pa.float64()),
        ]
    ),
)


@dataclass(frozen=True)
class Cost:
    """What a stage took."""

    stage: str
    round: int = -1
    seconds: float = 0.0
    tokens: int = 0
    """Tokens generated, or trained on."""
    peak_memory_mb: float = 0.0
    """Peak resident memory of the process so far."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What else was counted, by name: requests to an endpoint, money."""


def to_table(rows: Iterable[Mapping[str, Any]], contract: Contract, first: int = 0) -> pa.Table:
    """Rows as a table of the contract. Raises ContractError naming the row and the field that does not fit.

    JSON documents are given as text. `first` is the number of the first row, for the message.
    """
    listed = list(rows)
    names = contract.schema.names
    required = [n for n in names if not contract.schema.field(n).nullable]
    for number, row in enumerate(listed, start=first):
        if row.keys() != set(names):
            missing, unknown = [n for n in names if n not in row], [n for n in row if n not in names]
            raise ContractError(
                f"{contract.name} v{contract.version}, row {number}: missing fields {missing}, unknown fields {unknown}"
            )
        for name in required:
            if row[name] is None:
                raise ContractError(f"{contract.name} v{contract.version}, row {number}: field '{name}' is missing")
    try:
        text = [f.with_type(pa.list_(pa.string())) if f.type == JSON_LIST else f for f in contract.schema]
        return pa.Table.from_pylist(listed, schema=pa.schema(text)).cast(contract.schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        culprit = _culprit(listed, contract, first)
        raise ContractError(f"{contract.name} v{contract.version}: {culprit} ({error})") from error


def _culprit(rows: Sequence[Mapping[str, Any]], contract: Contract, first: int) -> str:
    for number, row in enumerate(rows, start=first):
        for name in contract.schema.names:
            kind = contract.schema.field(name).type
            try:
                pa.array([row[name]], type=kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
                return f"row {number}, field '{name}': expected {kind}, got {row[name]!r}"
    return "the rows do not fit the schema"


def write_rows(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    contract: Contract,
    cost: Cost | Callable[[], Cost] | None = None,
) -> Path:
    """Check and write rows, a part at a time: they need not fit into memory.

    The file appears whole under its name or not at all. A cost that is a function is asked for when all is written.
    """
    costs = (lambda: [cost()]) if callable(cost) else [cost] if cost else []
    return write_tables(path, _tables(rows, contract), contract, costs)


def write_table(path: str | os.PathLike[str], table: pa.Table, contract: Contract, costs: Sequence[Cost] = ()) -> Path:
    """Write a table that already has the contract's schema."""
    return write_tables(path, [table], contract, costs)


def write_tables(
    path: str | os.PathLike[str],
    tables: Iterable[pa.Table],
    contract: Contract,
    costs: Sequence[Cost] | Callable[[], Sequence[Cost]] = (),
) -> Path:
    """Write tables that already have the contract's schema into one file, in their order."""
    metadata = {"steptool.contract": contract.name, "steptool.version": str(contract.version)}
    schema = contract.schema.with_metadata(metadata)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for table in tables:
                _check_schema(table.schema, contract, str(path))
                writer.write_table(table.select(schema.names).cast(schema))
            spent = costs() if callable(costs) else costs
            writer.add_key_value_metadata({"steptool.costs": json.dumps([asdict(c) for c in spent])})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _tables(rows: Iterable[Mapping[str, Any]], contract: Contract) -> Iterator[pa.Table]:
    """Rows in tables of a bounded size."""
    part: list[Mapping[str, Any]] = []
    done = size = 0
    for row in rows:
        part.append(row)
        size += sum(len(value) for value in row.values() if hasattr(value, "__len__"))
        if len(part) == _PART_ROWS or size >= _PART_SIZE:
            yield to_table(part, contract, done)
            done, size, part = done + len(part), 0, []
    if part:
        yield to_table(part, contract, done)


def read_table(path: str | os.PathLike[str], contract: Contract) -> pa.Table:
    """Read a file and check that it is of this contract and version. Raises ContractError otherwise."""
    _check_metadata(path, contract)
    table = pq.read_table(path)
    _check_schema(table.schema, contract, str(path))
    return table


def read_rows(path: str | os.PathLike[str], contract: Contract) -> list[Row]:
    """Rows of a file of this contract."""
    rows: list[Row] = read_table(path, contract).to_pylist()
    return rows


def iter_rows(
    path: str | os.PathLike[str], contract: Contract, batch_size: int = 1024, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a file of this contract, streamed; of these columns alone if they are given."""
    _check_metadata(path, contract)
    with pq.ParquetFile(path) as file:
        _check_schema(file.schema_arrow, contract, str(path))
        for batch in file.iter_batches(batch_size=batch_size, columns=columns):
            yield from batch.to_pylist()


def read_costs(path: str | os.PathLike[str]) -> list[Cost]:
    """What the stages behind a file cost."""
    metadata = pq.read_metadata(path).metadata or {}
    return [Cost(**c) for c in json.loads(metadata.get(b"steptool.costs", b"[]"))]


def concat(paths: Sequence[str | os.PathLike[str]], contract: Contract, target: str | os.PathLike[str]) -> Path:
    """Join files of one contract into one, costs included."""
    if not paths:
        raise ContractError(f"{contract.name}: nothing to join into {target}")
    table = pa.concat_tables([read_table(p, contract).replace_schema_metadata(None) for p in paths])
    costs = [c for p in paths for c in read_costs(p)]
    return write_table(target, table, contract, costs)


def contract_name(path: str | os.PathLike[str]) -> str:
    """Name of the contract that a Parquet file carries; "(none)" if it carries none."""
    return _metadata(path).get(b"steptool.contract", b"(none)").decode()


def _metadata(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise ContractError(f"{path}: not a Parquet file ({error})") from error


def _check_metadata(path: str | os.PathLike[str], contract: Contract) -> None:
    if not Path(path).is_file():
        raise ContractError(f"{path}: no such file; expected a Parquet file of contract '{contract.name}'")
    name = contract_name(path)
    version = _metadata(path).get(b"steptool.version", b"(none)").decode()
    if (name, version) != (contract.name, str(contract.version)):
        raise ContractError(
            f"{path}: expected contract '{contract.name}' version {contract.version}, found '{name}' "
            f"version {version}; make the file anew with this version of steptool"
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
