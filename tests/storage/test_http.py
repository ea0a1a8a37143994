import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.storage.http import Redactor

KEY = 'sk/"very"\\secret-ü'


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} is wrong",
        json.dumps({"error": KEY}),
        json.dumps({"error": KEY}, ensure_ascii=False),
        json.dumps({"error": KEY}).replace("/", "\\/"),
        f"https://example.org/?key={quote(KEY, safe='')}",
        '{"error": "' + "".join(f"\\u{ord(letter):04x}" for letter in KEY) + '"}',
    ],
)
def test_a_key_is_hidden_however_it_is_written(text: str) -> None:
    hidden = Redactor([KEY]).redact_text(text)
    assert "[key]" in hidden and "secret" not in hidden and "\\u0073" not in hidden


@pytest.mark.parametrize("key", ["", "1", "zzz", "token"])
def test_a_short_key_is_no_secret_and_changes_nothing(key: str) -> None:
    text = '{"tokens": [1, 11], "pizzzza": "token"}'
    assert Redactor([key]).redact_text(text) == text
    assert Redactor([key]).redact_value(json.loads(text)) == json.loads(text)


def test_names_and_strings_at_any_depth_are_searched() -> None:
    value = {"a": [f"x{KEY}", 3, None, {KEY: True}]}
    assert Redactor([KEY, "sk/"]).redact_value(value) == {"a": ["x[key]", 3, None, {"[key]": True}]}


def test_a_secret_that_is_part_of_another_leaves_no_rest() -> None:
    assert Redactor(["long-secret", "long-secret-and-more"]).redact_text("long-secret-and-more") == "[key]"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=9))
def test_text_without_a_secret_stays_as_it_is(value: object) -> None:
    text = json.dumps(value)
    assert Redactor([KEY]).redact_text(text) == text and Redactor([KEY]).redact_value(value) == value
