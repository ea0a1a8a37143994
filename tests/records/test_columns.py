from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steptool.records import (
    Advantage,
    Cost,
    Evaluation,
    Metric,
    Preference,
    Query,
    Reference,
    StepReward,
    StepStatus,
    StopReason,
    ToolCall,
    Trajectory,
    Verdict,
)
from steptool.records.columns import (
    JSON_OBJECT,
    ContractError,
    Float32,
    Int32,
    Int32Array,
    contract,
    find_class,
    from_row,
    get_contract,
    get_description,
    get_schema,
    to_row,
)
from steptool.records.tables import write_records

RECORDS = (Query, Trajectory, StepReward, Advantage, Evaluation, Verdict, Preference, Metric, Cost)


class Colour(StrEnum):
    RED = "red"


@contract("tests/things", version=3)
@dataclass(frozen=True)
class Thing:
    name: Annotated[str, "Its name"]
    weight: Annotated[Float32 | None, "In kg; null: not weighed"]
    colour: Annotated[Colour, "red"]
    ids: Annotated[Int32Array, "[N] ids"]
    notes: Annotated[dict[str, int], JSON_OBJECT, "Counts by name"]
    size: Annotated[Int32, "In cm"] = 0


def test_types_nullability_and_descriptions_follow_from_the_fields() -> None:
    assert (get_contract(Thing).name, get_contract(Thing).version) == ("tests/things", 3)
    fields = [(f.name, f.type, f.nullable, get_description(f)) for f in get_schema(Thing)]
    assert fields == [
        ("name", pa.string(), False, "Its name"),
        ("weight", pa.float32(), True, "In kg; null: not weighed"),
        ("colour", pa.string(), False, "red"),
        ("ids", pa.list_(pa.int32()), False, "[N] ids"),
        ("notes", pa.string(), False, "Counts by name"),
        ("size", pa.int32(), False, "In cm"),
    ]
    assert find_class("tests/things") is Thing and find_class("unknown") is None


def test_a_record_lies_in_the_file_as_text_and_numbers_and_comes_back() -> None:
    row = to_row(Thing("a", None, Colour.RED, [1, 2], {"é": 1}, 5))
    assert row == {"name": "a", "weight": None, "colour": "red", "ids": [1, 2], "notes": '{"é": 1}', "size": 5}
    thing = from_row(row, Thing)
    assert (thing.colour, thing.notes, thing.ids.tolist(), thing.ids.dtype) == (Colour.RED, {"é": 1}, [1, 2], "int32")


def test_a_value_outside_a_closed_set_is_refused_with_contract_and_column() -> None:
    row = to_row(Thing("a", None, Colour.RED, [], {}))
    with pytest.raises(ContractError, match=r"^tests/things v3: column 'colour' cannot be read: 'blue' is not a valid"):
        from_row({**row, "colour": "blue"}, Thing)


def test_a_field_without_a_description_or_a_width_is_refused() -> None:
    @contract("tests/bare", version=1)
    @dataclass(frozen=True)
    class Bare:
        count: Annotated[int, "An int of which width?"]

    with pytest.raises(TypeError, match="field 'count': expected Annotated with a description and an Arrow type"):
        get_contract(Bare)


@pytest.mark.parametrize("cls", RECORDS)
def test_every_column_says_what_it_holds_in_the_file(cls: type, tmp_path: Path) -> None:
    schema = pq.read_schema(write_records(tmp_path / "x.parquet", [], cls))
    assert schema.names == list(get_schema(cls).names)
    for field in schema:
        assert len(get_description(field)) > 4, field.name
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            assert all(len(get_description(inner)) > 4 for inner in field.type.value_type)


def test_the_columns_of_the_closed_sets_name_their_values() -> None:
    stop = get_description(get_schema(Trajectory).field("stop_reason"))
    steps = get_schema(Trajectory).field("steps").type.value_type
    assert all(reason in stop for reason in StopReason)
    assert all(status in get_description(steps.field("status")) for status in StepStatus)


def test_what_is_absent_in_a_reference_is_none_and_what_is_empty_stays_empty() -> None:
    assert Reference.from_json({}) == Reference() and Reference().to_json() == {}
    empty = {"answer": "", "calls": [], "turns": [[]], "tools": []}
    reference = Reference.from_json(empty)
    assert (reference.answer, reference.calls, reference.turns, reference.tools) == ("", (), ((),), ())
    assert reference.to_json() == empty


def test_keys_of_the_environment_stay_beside_the_named_fields() -> None:
    document = {"calls": [{"name": "f", "arguments": {"x": 1}}], "family": "g", "database": "d1", "goals": [[1]]}
    reference = Reference.from_json(document)
    assert reference.calls == (ToolCall("f", {"x": 1}),) and reference.family == "g"
    assert reference.environment == {"database": "d1", "goals": [[1]]}
    assert reference.to_json() == document
    query = Query("q", "train", "desk", "go", (), reference)
    assert from_row(to_row(query), Query) == query != replace(query, reference=Reference())


def test_a_reference_loses_no_key_named_environment():
    assert Reference.from_json({"environment": {"lamp": "kitchen"}, "room": "hall"}).environment == {
        "lamp": "kitchen",
        "room": "hall",
    }
    assert Reference.from_json({"environment": "production"}).environment == {"environment": "production"}


@pytest.mark.parametrize("name", ["answer", "calls", "tools", "family", "environment", "state"])
def test_a_value_of_the_environment_never_becomes_a_field_of_the_reference(name: str) -> None:
    reference = Reference(answer="42", environment={name: "7", "room": "hall"})
    assert Reference.from_json(reference.to_json()) == reference
