"""The rules on recorded responses of real tools."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steptool.rewards.observations import find_failure, find_values, flatten_text, mentions, read_payload

ANSWERS = Path(__file__).parents[3] / "shared" / "data"
FILES = sorted(ANSWERS.glob("*/data_example/answer/**/*.json"))


def nodes(tree: Any) -> Iterator[tuple[int | None, str]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("observation"), str) and node["observation"]:
                yield node.get("observation_code"), node["observation"]
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


@pytest.mark.skipif(not FILES, reason="the recorded answers are not here")
def test_recorded_responses_are_read_and_their_failures_found():
    recorded = {(code, text) for path in FILES for code, text in nodes(json.loads(path.read_text(encoding="utf-8")))}
    assert len(recorded) > 40
    for code, text in recorded:
        texts = find_values(read_payload(text))
        assert all(mentions(flatten_text(read_payload(text)), v) for v in texts)
        # Codes of the recording: 0 the tool ran, 1 no such tool, 5 timeout, 11 the tool reported an error.
        if code in (1, 5, 11):
            assert find_failure(text), text[:200]
    ran = [find_failure(text) for code, text in recorded if code == 0]
    hidden = [reason for reason in ran if reason]
    assert 0 < len(hidden) < len(ran) / 2
