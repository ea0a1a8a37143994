import json

import pytest

from steptool.config import Config, EvaluatedPolicy
from steptool.data.parsing import IngestError
from steptool.data.recordings.forms import find_policy_recordings
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_query
from steptool.policies.catalog import open_policy
from steptool.policies.text_policies import list_reference_calls
from steptool.records import FINISH, ToolCall
from steptool.rollout.runner import roll_out

CONFIG = Config.model_validate({"data": {"environment": "desk"}})
QUERIES = [draw_query("heldout", "single", f"matching.{number}") for number in range(3)]


def conversation(query, calls):
    messages = [{"role": "user", "content": query.instruction}]
    for number, call in enumerate(calls):
        function = {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
        tool_call = {"id": f"c{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "tool_calls": [tool_call]})
        messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": "done"})
    return {"messages": messages}


@pytest.fixture
def files(tmp_path):
    """Answers of two policies: one that solves every task, and one that only gives up."""
    give_up = ToolCall(FINISH, {"return_type": "give_up_and_restart"})
    records = {
        "good": [conversation(query, list_reference_calls(query)) for query in QUERIES],
        "bad": [conversation(query, [give_up]) for query in QUERIES],
    }
    for name, answers in records.items():
        lines = "".join(json.dumps(answer) + "\n" for answer in answers[::-1])
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def play(folder, name):
    settings = EvaluatedPolicy(name=name, kind="playback", recordings=[str(folder / f"{name}.jsonl")])
    recordings = find_policy_recordings(settings, QUERIES, CONFIG, folder)
    with open_policy(settings, CONFIG, recordings) as policy:
        return [episode.trajectory for episode in roll_out(policy, QUERIES, DeskEnvironment())]


def test_two_playbacks_of_the_same_tasks_play_each_its_own_recordings(files):
    assert [t.solved for t in play(files, "good")] == [1.0] * 3
    bad = play(files, "bad")
    assert [(t.solved, len(t.steps)) for t in bad] == [(0.0, 1)] * 3
    assert [t.query_id for t in bad] == [q.query_id for q in QUERIES]


def test_a_query_that_was_not_recorded_is_named(files):
    settings = EvaluatedPolicy(name="good", kind="playback", recordings=[str(files / "good.jsonl")])
    other = draw_query("heldout", "long", "matching.other")
    with pytest.raises(IngestError, match=rf"recordings of 'good': 1 of 4 queries .*'{other.query_id}'"):
        find_policy_recordings(settings, [*QUERIES, other], CONFIG, files)


def test_only_a_playback_has_recordings(tmp_path):
    with pytest.raises(ValueError, match="recordings are for the kind playback only"):
        EvaluatedPolicy(name="small", model="embedded", recordings=["a.jsonl"])
    assert find_policy_recordings(EvaluatedPolicy(name="small", model="embedded"), QUERIES, CONFIG, tmp_path) == []
