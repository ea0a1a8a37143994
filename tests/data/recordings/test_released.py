import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.data.parsing import Record, UnusableError
from steptool.data.recordings.recording import make_query, make_trajectory
from steptool.data.recordings.toolbench import read_released
from steptool.records import FINISH, StepReward, StopReason, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records

NAMES = "['tides_for_sea', 'waves_for_sea', 'Finish']"
SYSTEM = f"Specifically, you have access to the following APIs: {NAMES}"
QUESTION = "When is high water?\nUser: me."
RESPONSES = ['{"error": "", "response": "9:12"}', "A text with\nAssistant:\nin it"]
CALLS = [
    'Thought: First the tides.\nAction: tides_for_sea\nAction Input: {"at": "Bristol"}',
    'Thought: \nAction: waves_for_sea\nAction Input: {\n  "at": "Bristol"\n}',
    'Action: Finish\nAction Input: {"return_type": "give_answer", "final_answer": "At 9:12.\\nAction: none"}',
]


def chatml(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def llama(role, text):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def vicuna(role, text):
    return f"{role.title()}:\n{text}\n"


OPENINGS = {
    chatml: "<|im_start|>assistant\n",
    llama: "<|start_header_id|>assistant<|end_header_id|>\n\n",
    vicuna: "\nAssistant:\n",
}
ENDS = {chatml: "<|im_end|>\n", llama: "<|eot_id|>", vicuna: "\n"}


def row(write=chatml, rewards=(0.9, 0.5, 1.0), responses=RESPONSES, calls=CALLS, system=SYSTEM):
    first = write("system", system) + write("user", f"\n{QUESTION}\nBegin!\n") + OPENINGS[write]
    prompts = [first, *(write("function", text) + OPENINGS[write] for text in responses)]
    return {
        "prompt": repr(prompts), "response": repr([c + ENDS[write] for c in calls]), "reward": repr(list(rewards)),
    }  # fmt: skip


def released_recording(value):
    return read_released(Record(Path("train") / "ppo.csv", 2, value))


@pytest.mark.parametrize("write", OPENINGS)
def test_a_row_becomes_a_trajectory_in_any_markup(write):
    answer = released_recording(row(write))
    query = make_query(answer)
    assert query.instruction == QUESTION and query.query_id == "train-ppo-2"
    assert [t["function"]["name"] for t in query.tools] == ["tides_for_sea", "waves_for_sea", FINISH]
    trajectory = make_trajectory(answer.turns, answer.solved, query, 0)
    assert [s.call.name for s in trajectory.steps] == ["tides_for_sea", "waves_for_sea", FINISH]
    assert [s.call.arguments for s in trajectory.steps[:2]] == [{"at": "Bristol"}] * 2
    assert [s.observation for s in trajectory.steps] == [*RESPONSES, ""]
    assert trajectory.messages[1]["content"] == "First the tides."
    assert trajectory.final_answer == "At 9:12.\nAction: none" and trajectory.stop_reason is StopReason.FINISHED
    assert answer.rewards == (0.9, 0.5, 1.0) and trajectory.solved == 1.0


def test_names_are_cut_as_toolbench_cuts_them():
    long = "x" * 70 + "_for_sea"
    calls = [f"Action: {long}\nAction Input: {{}}", CALLS[2]]
    answer = released_recording(
        row(system=SYSTEM.replace("waves_for_sea", long), calls=calls, responses=RESPONSES[:1], rewards=(1, 1))
    )
    assert answer.turns[0].name == long[-64:] == answer.tools[1]["function"]["name"]


def test_a_response_without_a_call_is_a_malformed_step():
    answer = released_recording(row(calls=["Thought: I wonder.", *CALLS[1:]]))
    trajectory = make_trajectory(answer.turns, None, make_query(answer), 0)
    assert [str(s.status) for s in trajectory.steps] == ["malformed", "ok", "finish"]
    assert trajectory.messages[1] == {"role": "assistant", "content": "Thought: I wonder."}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (row() | {"prompt": "__import__('os').system('true')"}, "not a Python literal"),
        (row() | {"prompt": "["}, "a text that was cut off"),
        (row() | {"prompt": "-" * 100_000}, "not a Python literal"),
        (row() | {"prompt": "[1]"}, "ill-typed field 'prompt'"),
        (row() | {"prompt": "[]", "response": "[]", "reward": "[]"}, "a prompt of another form"),
        (row() | {"response": "{'a': 1}"}, "ill-typed field 'response'"),
        (row() | {"reward": "['1']"}, "ill-typed field 'reward'"),
        (row() | {"reward": "[1.0, 2.0, 1.0]"}, "ill-typed field 'reward'"),
        (row() | {"reward": "[1.0, 1.0]"}, "lists of different lengths"),
        (row() | {"reward": 1.0}, "ill-typed field 'reward'"),
        (row() | {"prompt": repr(["x" * (1 << 20)])}, "a cell too large"),
        (row(system="No tools."), "tools of another form"),
        (row(system=SYSTEM.replace("'Finish'", "Finish")), "not a Python literal"),
        (row(system=SYSTEM.replace("tides_for_sea", "no name")), "tool schema that is no schema"),
        (row() | {"prompt": row()["prompt"].replace("function", "user")}, "a prompt of another form"),
        (row(calls=CALLS[:2], responses=RESPONSES[:1], rewards=(1, 1)), "a call without a response"),
        (row(calls=[CALLS[2], *CALLS[1:]]), "steps after Finish"),
    ],
)
def test_a_row_of_another_form_is_refused(value, reason):
    with pytest.raises(UnusableError) as refusal:
        released_recording(value)
    assert refusal.value.reason == reason and refusal.value.detail


CELL = (
    st.sampled_from(list(row().values())) | st.text(max_size=20) | st.lists(st.text(max_size=9), max_size=3).map(repr)
)


@settings(max_examples=200)
@given(st.fixed_dictionaries(dict.fromkeys(("prompt", "response", "reward"), CELL)))
def test_any_cells_are_read_or_refused(value):
    try:
        assert released_recording(value).turns
    except UnusableError as error:
        assert error.reason and error.detail


def test_nothing_in_a_cell_is_executed(tmp_path):
    trap = tmp_path / "sprung"
    cells = {name: f"open({str(trap)!r}, 'w').close()" for name in ("prompt", "response", "reward")}
    (tmp_path / "a.json").write_text(json.dumps([cells]))
    program = (
        "import sys; from steptool.data.recordings.forms import read_recordings;"
        "from steptool.data.parsing import IngestLog;"
        "log = IngestLog(); print(list(read_recordings([sys.argv[1]], 'f', tuple, log)), dict(log.counts))"
    )
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert process.stdout == "[] {'demonstrations read': 1, 'demonstrations dropped: not a Python literal': 1}\n"
    assert not trap.exists()


def test_recorded_rewards_are_kept_under_their_annotator(tmp_path):
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "response", "reward"], delimiter="\t")
    writer.writeheader()
    writer.writerows([row(), row(llama, rewards=(0.0, 0.25, 0.0)), row() | {"reward": "[]"}])
    (tmp_path / "ppo.csv").write_text(text.getvalue())
    config = Config.model_validate({"data": {"source": "recorded", "paths": [str(tmp_path / "ppo.csv")]}})
    result = ingest(config, tmp_path / "out", for_training=False)
    assert result.counts == {
        "queries read": 1, "queries kept": 1, "demonstrations read": 3, "demonstrations kept": 2,
        "demonstrations dropped: lists of different lengths": 1,
    }  # fmt: skip
    (query,) = read_queries(result.queries_path)
    one, two = read_records(result.demonstrations_path, Trajectory)
    assert (one.query_id, two.sample, one.solved, two.solved) == (query.query_id, 1, 1.0, 0.0)
    rewards = read_records(result.rewards_path, StepReward)
    assert {(r.annotator, r.annotator_version, r.prompt_hash) for r in rewards} == {("steptool-release", "1", "")}
    assert [(r.trajectory_id, r.step, json.loads(r.votes)["reward"], r.is_solved) for r in rewards] == [
        (one.trajectory_id, 0, 0.9, None), (one.trajectory_id, 1, 0.5, None), (one.trajectory_id, 2, 1.0, 1.0),
        (two.trajectory_id, 0, 0.0, None), (two.trajectory_id, 1, 0.25, None), (two.trajectory_id, 2, 0.0, 0.0),
    ]  # fmt: skip
    assert {(r.succ_calling, r.contribution) for r in rewards} == {(None, None)}
