import json
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.base import ToolResult
from steptool.environments.replay import Responses, make_call_key
from steptool.records import StepStatus

OK, FAILED = StepStatus.OK, StepStatus.TOOL_ERROR
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
WRITER = """
import sys
from steptool.environments.base import ToolResult
from steptool.environments.replay import Responses
from steptool.records import StepStatus
responses, count = Responses(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for n in range(count):
    responses.add([(f"call {n}", ToolResult(StepStatus.OK, f"{n} " * 2000))])
"""


def writer(file, count):
    command = [sys.executable, "-c", WRITER, str(file), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(*processes):
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def check(file):
    """Every response there is whole and is its call's own."""
    database = sqlite3.connect(file)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = database.execute("SELECT call, observation, times FROM responses ORDER BY id").fetchall()
    database.close()
    for call, observation, _ in rows:
        assert observation == f"{call.removeprefix('call ')} " * 2000
    return [(call, times) for call, _, times in rows]


@pytest.fixture(params=["memory", "file"])
def responses(request, tmp_path):
    opened = Responses(tmp_path / "new" / "folder" / "r.sqlite" if request.param == "file" else "")
    yield opened
    opened.close()


def responses_of(*observations, status=OK):
    return [("call", ToolResult(status, o)) for o in observations]


def test_the_most_frequent_response_wins_and_of_equals_the_first(responses):
    assert responses.get("call") is None and responses.calls() == 0
    assert responses.add(responses_of("dry", "wet", "wet", "dry")) == 4
    assert responses.get("call") == ToolResult(OK, "dry")
    responses.add(responses_of("wet"))
    assert responses.get("call") == ToolResult(OK, "wet")
    responses.add(responses_of("snow", "snow", "snow"))
    assert responses.get("call") == ToolResult(OK, "wet")
    assert responses.get("other") is None and responses.calls() == 1
    assert responses.add([]) == 0


def test_one_text_with_two_statuses_is_two_responses(responses):
    responses.add(responses_of("late", "late", status=FAILED) + responses_of("late", "late", "late"))
    assert responses.get("call") == ToolResult(OK, "late")


def test_all_is_added_or_nothing(responses):
    def break_file():
        yield "call", ToolResult(OK, "dry")
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        responses.add(break_file())
    assert responses.get("call") is None
    responses.add(responses_of("wet"))
    assert responses.get("call") == ToolResult(OK, "wet")


def test_a_file_keeps_its_responses(tmp_path):
    first = Responses(tmp_path / "r.sqlite")
    first.add(responses_of("dry"))
    second = Responses(tmp_path / "r.sqlite")
    first.add(responses_of("wet", "wet"))
    assert second.get("call") == ToolResult(OK, "wet")
    first.close()
    assert second.get("call") == ToolResult(OK, "wet")
    second.close()


@given(st.text())
def test_any_text_comes_back_as_it_was(text):
    responses = Responses()
    responses.add([("call", ToolResult(FAILED, text))])
    assert responses.get("call") == ToolResult(FAILED, text)
    responses.close()


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no database " * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        Responses(tmp_path / "notes.txt")


def test_the_key_is_the_digest_of_canonical_json():
    # printf '["a","b",{"x":[1,"\\u00e9"],"y":null}]' | sha256sum
    key = "c223710a488ea9a5f09f5422992b950f8dad27efa9c2bf7d795037d57482fcf0"
    assert make_call_key(["a", "b"], {"y": None, "x": [1, "é"]}) == key
    assert len({make_call_key(["a"], {"x": v}) for v in (1, "1", True, None, [1], 1.5)}) == 6
    assert make_call_key(["a", "b"], {}) != make_call_key(["ab"], {}) != make_call_key(["b", "a"], {})
    assert make_call_key(["a"], {"x": "\ud83d"})  # half a surrogate pair, as a model may write it


@given(ARGUMENTS, ARGUMENTS)
def test_keys_are_equal_where_the_json_is(one, other):
    def reversed_order(node):
        if isinstance(node, dict):
            return {k: reversed_order(node[k]) for k in reversed(node)}
        return [reversed_order(n) for n in node] if isinstance(node, list) else node

    assert make_call_key(["t"], one) == make_call_key(["t"], reversed_order(one))
    alike = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (make_call_key(["t"], one) == make_call_key(["t"], other)) == alike


def test_processes_and_threads_fill_one_file_at_once(tmp_path):
    file = tmp_path / "r.sqlite"
    responses = Responses(file)

    def add(n):
        responses.add([(f"call {n}", ToolResult(OK, f"{n} " * 2000))])
        return responses.get(f"call {n}")

    with writer(file, 60) as one, writer(file, 60) as other, ThreadPoolExecutor(8) as pool:
        begin(one, other)
        results = list(pool.map(add, range(60)))
        assert (one.wait(30), other.wait(30)) == (0, 0)
    assert results == [ToolResult(OK, f"{n} " * 2000) for n in range(60)]
    responses.close()
    assert sorted(check(file)) == sorted((f"call {n}", 3) for n in range(60))


def test_a_writer_that_is_killed_leaves_only_whole_responses(tmp_path):
    file = tmp_path / "r.sqlite"
    for kill in range(3):
        responses = Responses(file)
        with writer(file, 10**6) as process:
            begin(process)
            while responses.get(f"call {10 * (kill + 1)}") is None:
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        calls = [call for call, _ in check(file)]
        assert calls == [f"call {n}" for n in range(len(calls))] and len(calls) > 10
        responses.add([(f"call {len(calls)}", ToolResult(OK, f"{len(calls)} " * 2000))])  # no lock is left behind
        responses.close()
