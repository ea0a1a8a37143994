from typing import Any

import pytest

from steptool.chat.messages import annotate_tool, reads_only, strip_hints


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "description": "", "parameters": {}, **more}}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"annotations": {"readOnlyHint": True}}, True),
        ({"annotations": {"readOnlyHint": False}}, False),
        ({"annotations": {"readOnlyHint": "yes"}}, None),
        ({"annotations": "readOnlyHint"}, None),
        ({"x-read-only": True}, True),
        ({"x-read-only": False, "annotations": {"readOnlyHint": True}}, False),
    ],
)
def test_a_schema_says_whether_its_tool_only_reads(more: dict[str, Any], expected: bool | None) -> None:
    assert reads_only(tool(**more)) is expected
    assert strip_hints([tool(**more)]) == [tool()]


def test_a_hint_is_added_to_a_copy() -> None:
    plain = tool()
    assert annotate_tool(plain, None) is plain
    assert reads_only(annotate_tool(plain, read_only=True)) is True
    assert plain == tool()
