"""Schemas that nobody checked: what they say is found out in time, and never ends a run."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.schema import (
    CHECK_SECONDS,
    SchemaError,
    check_arguments,
    check_tools,
    choose_validator,
    compile_pattern,
)

DRAFT_4, DRAFT_7 = "http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"


def parameters(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def check(schema: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": schema}}
    check_tools([tool], "tasks.jsonl, line 7")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "$ref": "#"}, "refers to itself without end"),
        (parameters(x={"$ref": "#/properties/x"}), "refers to itself without end"),
        (parameters(x={"anyOf": [{"$ref": "#/properties/x"}, {"$ref": "#/properties/x"}]}), "refers to itself"),
        (parameters(x={"$dynamicRef": "#nothing"}), r"\$ref \"nothing\" points to nothing"),
        (parameters(x={"$dynamicRef": "https://example.org/a"}), "points to nothing"),
        (parameters(x={"$id": "https://example.org/a", "$ref": "#/properties/x"}), "points to nothing"),
        (parameters(x={"multipleOf": 10**400}), "cannot be used: OverflowError"),
        (parameters(x={"pattern": "(a"}), "the pattern is not a regular expression"),
        (parameters(x={"pattern": "(((a{99}){99}){99}){99}"}), "longer than 100000 characters"),
        ({"type": "object", "patternProperties": {"(": {}}}, "the pattern is not a regular expression"),
        (parameters(x=nested(900)), "nested too deeply"),
        (
            {**parameters(), "patternProperties": {"^x-": {}}, "unevaluatedProperties": False},
            "use additionalProperties",
        ),
        ({"$schema": DRAFT_7, **parameters(x={"exclusiveMinimum": True})}, r"properties\.x\.exclusiveMinimum"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_when_it_is_read(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=rf"tasks\.jsonl, line 7: .*parameters.*{message}"):
        check(schema)
    check_arguments(schema, {"x": 1.5})  # a caller that did not look gets an answer, and no exception


def test_a_recursive_schema_that_ends_is_accepted() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}, "required": ["left"]}
    schema = {**parameters(tree={"$ref": "#/$defs/tree"}), "$defs": {"tree": tree}}
    check(schema)
    assert check_arguments(schema, {"tree": {"left": {"left": {}}}}) is not None
    assert "points to nothing" not in str(check_arguments(schema, {"tree": 3}))


def test_a_nested_id_and_values_that_look_like_references_are_no_fault() -> None:
    inner = {"$id": "https://example.org/inner", "$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}
    schema = parameters(x=inner, y={"default": {"$ref": "nowhere"}, "enum": [{"$ref": "nowhere"}]}, **{"$ref": {}})
    check(schema)
    assert check_arguments(schema, {"x": 1, "$ref": 2}) is None
    assert "must be integer" in str(check_arguments(schema, {"x": "one"}))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (parameters(x={"type": "string", "pattern": "^(a+)+$"}), "a" * 34 + "!"),
        (parameters(x={"type": "object", "patternProperties": {"^(a|aa)+$": {}}}), {"a" * 60 + "!": 1}),
        (
            parameters(x={"type": "object", "patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False}),
            {"a" * 60 + "!": 1},
        ),
        (
            {
                **parameters(x={"$ref": "#/$defs/x"}),
                "$defs": {"x": {"anyOf": [{"items": {"$ref": "#/$defs/x"}, "maxItems": 0}] * 9}},
            },
            [[[[[[[[[[[[1]]]]]]]]]]]],
        ),
    ],
)
def test_a_check_ends_in_time(schema: dict[str, Any], value: Any) -> None:
    check(schema)
    start = time.process_time()
    problem = check_arguments(schema, {"x": value})
    assert problem is not None and time.process_time() - start < 10 * CHECK_SECONDS
    assert "takes too long" in problem or "not valid" in problem


def test_uniqueness_of_many_objects_is_decided_fast() -> None:
    schema = parameters(x={"type": "array", "uniqueItems": True})
    items = [{"name": str(n), "tags": [n, True]} for n in range(3_000)]
    assert check_arguments(schema, {"x": items}) is None
    assert "all different" in str(check_arguments(schema, {"x": [*items, {"tags": [7, True], "name": "7"}]}))


@given(st.lists(st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, "", "1"]), max_size=5))
def test_values_are_unique_as_json_compares_them(items: list[Any]) -> None:
    def same(one: Any, two: Any) -> bool:
        return isinstance(one, bool) == isinstance(two, bool) and one == two

    expected = not any(same(a, b) for i, a in enumerate(items) for b in items[:i])
    for wrap in (lambda item: item, lambda item: [item], lambda item: {"a": item}):
        assert (check_arguments(parameters(x={"uniqueItems": True}), {"x": [*map(wrap, items)]}) is None) == expected


def test_whatever_is_raised_while_checking_is_a_problem() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    for schema in ({"const": 1}, {"type": "anything"}):  # the text of the error of the second cannot be read
        problem = check_arguments(parameters(x=schema), {"x": value})
        assert problem is not None and len(problem) < 300


def test_a_schema_has_the_meaning_of_the_draft_that_it_declares() -> None:
    limits = {"type": "number", "minimum": 1, "exclusiveMinimum": True}
    schema = {"$schema": DRAFT_4, **parameters(x=limits)}
    check(schema)
    assert check_arguments(schema, {"x": 2}) is None and check_arguments(schema, {"x": 1}) is not None
    with pytest.raises(SchemaError, match="exclusiveMinimum"):
        check(parameters(x=limits))
    tuples = {"$schema": DRAFT_7, **parameters(x={"type": "array", "items": [{"type": "integer"}]})}
    check(tuples)
    assert check_arguments(tuples, {"x": [1, "a"]}) is None and check_arguments(tuples, {"x": ["a"]}) is not None
    assert "unknown argument 'y'" in str(check_arguments(tuples, {"y": 1}))


def test_an_inner_draft_does_not_bring_back_an_unbounded_validator() -> None:
    schema = parameters(x={"$schema": DRAFT_7, "type": "string", "pattern": "^(a+)+$", "allOf": [{"pattern": "a"}]})
    check(schema)
    start = time.process_time()
    assert check_arguments(schema, {"x": "a" * 40 + "!"}) is not None
    assert time.process_time() - start < 10 * CHECK_SECONDS


@pytest.mark.parametrize(
    "declared", [None, "", "https://example.org/draft", 7, "http://json-schema.org/draft-03/schema#"]
)
def test_an_unknown_draft_is_read_as_the_newest(declared: Any) -> None:
    assert choose_validator({"$schema": declared}) is choose_validator({})


def test_patterns_of_other_engines_are_read() -> None:
    assert compile_pattern(r"^\p{L}+$").search("Zürich")
    assert compile_pattern(r"^(?!.*\.\.)[\w\-.]{1,64}@(?:[a-z]{1,9}\.){1,9}[a-z]{2,9}$").search("mira@post.example.org")
