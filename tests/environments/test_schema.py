import copy
import timeit

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.schema import SchemaError, check_arguments, check_tools

ROOMS = {
    "type": "object",
    "properties": {
        "hotel": {"type": "string"},
        "nights": {"type": "integer", "minimum": 1},
        "board": {"type": "string", "enum": ["none", "half", "full"]},
        "guests": {"type": "array", "items": {"type": "object", "properties": {"age": {"type": "integer"}}}},
    },
    "required": ["hotel", "nights"],
}
BOOK = {"type": "function", "function": {"name": "book_room", "description": "Book a room", "parameters": ROOMS}}


def change_schema(path, value):
    tool = copy.deepcopy(BOOK)
    node = tool
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tool


def find_problem(tools):
    try:
        check_tools(tools, "tasks.jsonl, line 1")
    except SchemaError as error:
        return str(error)
    return ""


def test_openai_schemas_pass():
    without_properties = change_schema(["function", "parameters"], {"type": "object"})
    for tools in ([BOOK, change_schema(["function", "name"], "a-b_9")], (), [without_properties]):
        assert find_problem(tools) == ""
    assert find_problem([BOOK, BOOK])


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["type"], "tool", r"tools\[0\]\.type"),
        (["function"], None, r"tools\[0\]\.function:"),
        (["function", "name"], "book room", r"tools\[0\]\.function\.name"),
        (["function", "name"], "x" * 65, r"tools\[0\]\.function\.name"),
        (["function", "name"], "", r"tools\[0\]\.function\.name"),
        (["function", "description"], None, r"tools\[0\]\.function\.description"),
        (["function", "parameters"], {"type": "string"}, r"tools\[0\]\.function\.parameters"),
        (["function", "parameters"], {"hotel": "string"}, r"tools\[0\]\.function\.parameters"),
        (["function", "parameters", "properties", "hotel", "type"], "text", r"parameters\.properties\.hotel\.type"),
        (["function", "parameters", "required"], "hotel", r"parameters\.required"),
        (["function", "parameters", "properties", "hotel"], 3, r"parameters\.properties\.hotel"),
        (["function", "parameters", "properties", "hotel"], {"$ref": "#/$defs/hotel"}, r"\$ref"),
        (["function", "parameters", "properties", "hotel"], {"$ref": "https://example.org/hotel.json"}, r"\$ref"),
    ],
)
def test_what_is_no_schema_is_refused_with_file_row_and_field(path, value, field):
    with pytest.raises(SchemaError, match=rf"tasks\.jsonl, line 7: .*{field}"):
        check_tools([change_schema(path, value)], "tasks.jsonl, line 7")


@pytest.mark.parametrize("tools", [None, "book_room", {"book_room": {}}, ["book_room"], [None], [{}]])
def test_what_is_no_list_of_tools_is_refused(tools):
    with pytest.raises(SchemaError, match=r"tasks\.jsonl, line 7"):
        check_tools(tools, "tasks.jsonl, line 7")


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(SchemaError, match=r"tools\[1\]\.function\.name: 'book_room' is given twice"):
        check_tools([BOOK, BOOK], "f")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nights": 2}, "missing required argument 'hotel'"),
        ({}, "missing required argument 'hotel', 'nights'"),
        ({"hotel": 4, "nights": 2}, "'hotel' must be string, got 4"),
        ({"hotel": "Sun", "nights": 1.5}, "'nights' must be integer, got 1.5"),
        ({"hotel": "Sun", "nights": True}, "'nights' must be integer, got true"),
        ({"hotel": "Sun", "nights": float("inf")}, "'nights' must be integer"),
        ({"hotel": "Sun", "nights": 0}, "nights"),
        ({"hotel": "Sun", "nights": 2, "board": "all"}, "one of"),
        ({"hotel": "Sun", "nights": 2, "sea_view": True}, "unknown argument 'sea_view'"),
        ({"hotel": "Sun", "nights": 2, "guests": [{"age": "old"}]}, "'guests.0.age' must be integer"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(arguments, words):
    problem = check_arguments(ROOMS, arguments)
    assert problem is not None and words in problem
    assert problem.endswith(".") and "\n" not in problem and len(problem) < 300


def test_right_arguments_pass():
    assert check_arguments(ROOMS, {"hotel": "Zürich\n\x00🌞", "nights": 2}) is None
    assert check_arguments(ROOMS, {"hotel": "Sun", "nights": 2, "board": "half", "guests": [{"age": 4}]}) is None
    assert check_arguments({"type": "object", "properties": {}}, {}) is None


def test_additional_arguments_pass_where_the_schema_says_so():
    assert check_arguments({**ROOMS, "additionalProperties": True}, {"hotel": "a", "nights": 1, "x": 1}) is None
    assert check_arguments({"type": "object"}, {"anything": [1]}) is None
    patterned = {"type": "object", "properties": {}, "patternProperties": {"^x-": {"type": "string"}}}
    assert check_arguments(patterned, {"x-lang": "de"}) is None
    assert check_arguments(patterned, {"lang": "de"}) is not None


def test_a_long_value_does_not_make_a_long_sentence():
    assert len(check_arguments(ROOMS, {"hotel": "a", "nights": "9" * 10_000}) or "") < 300


@given(
    st.fixed_dictionaries(
        {}, optional={n: st.text() | st.integers() | st.none() | st.lists(st.text()) for n in ("a", "b", "c")}
    )
)
def test_flat_string_schemas_accept_exactly_strings(arguments):
    schema = {"type": "object", "properties": {n: {"type": "string"} for n in "ab"}, "required": ["a"]}
    valid = "a" in arguments and set(arguments) <= {"a", "b"} and all(isinstance(v, str) for v in arguments.values())
    assert (check_arguments(schema, arguments) is None) == valid


def test_checking_is_cheap_once_a_schema_was_seen():
    arguments = {"hotel": "Sun", "nights": 2}
    check_arguments(ROOMS, arguments)
    again = min(timeit.repeat(lambda: check_arguments(ROOMS, arguments), number=50, repeat=5))
    anew = min(timeit.repeat(lambda: jsonschema.validate(arguments, ROOMS), number=50, repeat=5))
    assert again < anew / 3  # jsonschema alone checks the schema itself with every call
