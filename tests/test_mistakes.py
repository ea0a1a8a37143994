"""Typical mistakes through the real command line: the first line of the message says what is wrong."""

from pathlib import Path

import pytest

from benchmarks.mistakes import MISTAKES, Mistake, find_problems, make_mistake, serve


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_named_in_the_first_line(mistake: Mistake, tmp_path: Path) -> None:
    with serve() as server:
        code, lines = make_mistake(mistake, tmp_path, server)
    assert find_problems(mistake, code, lines) == [], lines


def test_a_message_without_the_words_with_a_stack_or_too_long_is_unclear() -> None:
    mistake = Mistake("a mistake", ("false",), ["paths", r"did you mean"])
    assert find_problems(mistake, 2, ["data.paths: did you mean 'b'?"]) == []
    assert find_problems(mistake, 0, ["data.paths: did you mean 'b'?"]) == ["the command ends as if all were well"]
    assert find_problems(mistake, 2, []) == ["the first line lacks 'paths'", "the first line lacks 'did you mean'"]
    stack = ["data.paths: did you mean 'b'?", "Traceback (most recent call last)", *["  File"] * 9]
    assert find_problems(mistake, 1, stack) == ["11 lines", "a stack"]
