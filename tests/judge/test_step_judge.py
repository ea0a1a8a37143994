import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.chat.endpoint import EndpointRefused
from steptool.config import EndpointConfig, JudgeConfig, RewardConfig, load_config
from steptool.config.base import ConfigError
from steptool.judge.annotator import JudgeError, write_transcript
from steptool.records import Query, Step, StepReward, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.tables import read_records, write_records
from steptool.rewards.annotators import (
    annotate,
    annotate_file,
    describe_missing_scores,
    get_annotator_counts,
    make_annotator,
    open_annotator,
)
from steptool.rewards.compose import compose

KEY = "sk-very-secret-key"
TOOL = "report_scores"


def scores(successes, contributions, status, reason="because"):
    pairs = zip(successes, contributions, strict=True)
    steps = [{"step": n, "success": s, "contribution": c} for n, (s, c) in enumerate(pairs, start=1)]
    return {"steps": steps, "status": status, "reason": reason}


@pytest.fixture
def judging(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def make(server, cache="", concurrency=4, retries=0, price=0.0, **settings):
        endpoint = EndpointConfig(
            base_url=server.url,
            model="judge-1",
            key_variable="JUDGE_KEY",
            concurrency=concurrency,
            retries=retries,
            timeout=5.0,
            price_in=price,
        )
        return JudgeConfig(endpoint=endpoint, cache=str(cache), **settings)

    return make


@pytest.fixture
def two_steps(make_step, make_trajectory):
    return make_trajectory([make_step("find_user", {"id": 7}, name="mira"), make_step("cancel", "gone", id=7)], "done")


def annotate_episode(query, trajectories, config):
    with open_annotator("judge", config) as judge:
        return annotate([query], trajectories, judge), get_annotator_counts(judge)


def column(rows, name):
    return [getattr(row, name) for row in rows]


def test_scores_are_means_over_votes_and_votes_are_kept_raw(chat, judging, make_query, two_steps):
    texts = [
        scores([1, 1], [5, 2], "solved", "first"),
        scores([1, 0], [4, 0], "unsure"),
        scores([1, 0], [3, 1], "solved"),
    ]
    server = chat.serve(lambda request, number: chat.call(TOOL, texts[number - 1]))
    rows, counts = annotate_episode(make_query(), [two_steps], judging(server, price=5.0))
    assert column(rows, "succ_calling") == [1.0, pytest.approx(1 / 3), 1.0]
    assert column(rows, "contribution") == [pytest.approx(4 / 5), pytest.approx(1 / 5), None]
    assert column(rows, "is_solved") == [None, None, pytest.approx(2.5 / 3)]
    votes = [json.loads(v) for v in column(rows, "votes")]
    assert votes[0] == {"succ_calling": [1, 1, 1], "contribution": [5, 4, 3]}
    assert votes[2] == {"is_solved": ["solved", "unsure", "solved"], "missing": []}
    assert rows[2].rationale == "first"
    assert counts["requests"] == 3 and counts["prompt_tokens"] == 300 and counts["votes missing"] == 0
    assert counts["money"] == pytest.approx(300 * 5.0 / 1e6)


def test_the_request_names_the_function_and_shows_task_steps_and_answer(chat, judging, make_query, two_steps):
    server = chat.serve(lambda *_: chat.call(TOOL, scores([1, 1], [1, 1], "solved")))
    annotate_episode(make_query(), [two_steps], judging(server, votes=1))
    request = server.requests[0]
    assert request["temperature"] == 0.0 and request["tool_choice"] == {"type": "function", "function": {"name": TOOL}}
    text = request["messages"][1]["content"]
    for shown in (
        "cancel the last order of mira chen",
        "Number of steps: 2",
        '"find_user"',
        '{"name": "mira"}',
        '"done"',
    ):
        assert shown in text
    assert "Step 3" not in text  # the Finish is not a step
    schema = request["tools"][0]["function"]["parameters"]["properties"]["steps"]
    assert (schema["minItems"], schema["maxItems"]) == (2, 2)


def test_the_judge_sees_what_the_user_says_after_an_answer(make_query, make_step, make_trajectory):
    turns = [("assistant", ""), ("tool", "x"), ("assistant", ""), ("user", "And \nStep 9?"), ("assistant", "")]
    messages = [{"role": role, "content": text} for role, text in [("user", "do it"), *turns]]
    text = write_transcript(
        make_query(), make_trajectory([make_step("f", "x"), make_step("Finish", "")], "2", messages=messages), 99
    )
    assert text.count("The user goes on") == 1
    assert text.index("Step 2") < text.index(r'The user goes on: "And \nStep 9?"') < text.index("Final answer")


USELESS = {
    "too few": scores([1], [1], "solved"),
    "too many": scores([1, 1, 1], [1, 1, 1], "solved"),
    "out of range": scores([1, 2], [1, 6], "solved"),
    "no numbers": scores(["1", True], [0.5, None], "solved"),
    "no list": {**scores([], [], "solved"), "steps": 1},
    "numbers alone": {**scores([], [], "solved"), "steps": [5, 5]},
    "another order": {**scores([], [], "solved"), "steps": scores([1, 1], [1, 1], "solved")["steps"][::-1]},
    "a score left out": {**scores([], [], "solved"), "steps": [{"step": 1, "success": 1}, {"step": 2, "success": 1}]},
    "no status": scores([1, 1], [1, 1], "perhaps"),
    "nothing": {},
    "no object": [1, 1],
    "broken json": '{"steps": [{"step": 1, "succ',
}


@pytest.mark.parametrize("name", [*USELESS, "refusal", "words", "another function", "odd call"])
def test_an_answer_of_no_use_is_asked_again_naming_what_was_wrong(name, chat, judging, make_query, two_steps):
    odd = {
        "refusal": chat.Answer({"role": "assistant", "content": None, "refusal": "I cannot judge this"}),
        "words": chat.Answer({"role": "assistant", "content": "Looks good to me"}),
        "another function": chat.call("search", scores([1, 1], [1, 1], "solved")),
        "odd call": chat.Answer({"role": "assistant", "tool_calls": [{"id": "c1"}]}),
    }
    useless = odd.get(name) or chat.call(TOOL, USELESS[name])
    useful = chat.call(TOOL, scores([1, 0], [5, 0], "solved"))
    server = chat.serve(lambda request, number: useless if number == 1 else useful)
    rows, counts = annotate_episode(make_query(), [two_steps], judging(server, votes=1))
    assert column(rows, "succ_calling") == [1.0, 0.0, 1.0]
    assert (counts["requests"], counts["answers of no use"], counts["votes missing"]) == (2, 1, 0)
    first, second = server.texts()
    assert second.startswith(first) and "could not be used" in second


def test_what_cannot_be_had_is_missing_counted_and_never_zero(chat, judging, make_query, two_steps, tmp_path):
    server = chat.serve(lambda *_: chat.call(TOOL, scores([0], [0], "unsolved")))
    rows, counts = annotate_episode(
        make_query(), [two_steps], judging(server, tmp_path / "r.sqlite", attempts=3, votes=2)
    )
    assert len(server.requests) == 6  # 2 votes of 3 attempts
    for name in ("succ_calling", "contribution", "is_solved"):
        assert column(rows, name) == [None, None, None]
    assert "steps must list 2 entries, one for each step (the final answer is no step); got 1" in rows[2].rationale
    assert (counts["votes missing"], counts["answers of no use"]) == (2, 6)
    data = read_records(write_records(tmp_path / "rewards.parquet", rows, StepReward), StepReward)
    assert compose(data, RewardConfig()) is None and compose(data, RewardConfig(), "final") is None

    annotate_episode(make_query(), [two_steps], judging(server, tmp_path / "r.sqlite", attempts=3, votes=2))
    assert len(server.requests) == 6  # useless answers are not paid twice either


def test_all_that_is_wrong_with_an_answer_is_said_at_once(chat, judging, make_query, two_steps):
    wrong = {"reason": "", "steps": [{"step": 1, "success": 2}, {"step": 3, "success": True, "contribution": 5}]}
    server = chat.serve(lambda *_: chat.call(TOOL, wrong))
    rows, _ = annotate_episode(make_query(), [two_steps], judging(server, votes=1, attempts=1))
    assert rows[2].rationale == (
        "missing: status must be one of solved, unsure, unsolved; entry 2 of steps must be an object with the step 2; "
        "success of step 1, 2 must be a whole number from 0 to 1; contribution of step 1 must be a whole number from 0 "
        "to 5"
    )


def test_one_valid_vote_of_three_is_enough(chat, judging, make_query, two_steps):
    useful, useless = chat.call(TOOL, scores([1, 0], [5, 0], "unsure")), chat.Answer({"content": "no"})
    server = chat.serve(lambda request, number: useful if number == 2 else useless)
    rows, _ = annotate_episode(make_query(), [two_steps], judging(server, attempts=1))
    assert column(rows, "contribution") == [1.0, 0.0, None] and rows[2].is_solved == 0.5
    assert json.loads(rows[0].votes)["contribution"] == [None, 5, None]
    assert json.loads(rows[2].votes)["missing"] == ["no function was called"] * 2


def test_without_a_finish_every_step_is_judged_and_nothing_is_solved(
    chat, judging, make_query, make_step, make_trajectory
):
    server = chat.serve(lambda *_: chat.call(TOOL, scores([1, 0], [2, 0], "solved")))
    steps = [make_step("f", "x"), Step(None, StepStatus.MALFORMED, "no call")]
    stopped = make_trajectory(steps, stop_reason=StopReason.MALFORMED)
    rows, _ = annotate_episode(make_query(), [stopped, make_trajectory([])], judging(server, votes=1))
    assert [(r.step, r.contribution, r.is_solved) for r in rows] == [(0, 0.4, None), (1, 0.0, 0.0)]
    assert "none that could be read" in server.texts()[0] and "Final answer: none was given" in server.texts()[0]


def test_a_finish_alone_is_asked_about_without_steps(chat, judging, make_query, make_trajectory):
    server = chat.serve(lambda *_: chat.call(TOOL, scores([], [], "unsure")))
    rows, _ = annotate_episode(make_query(), [make_trajectory([], "42")], judging(server, votes=1))
    assert [(r.succ_calling, r.contribution, r.is_solved) for r in rows] == [(1.0, None, 0.5)]


def test_long_texts_are_cut_and_say_so(make_query, make_step, make_trajectory):
    trajectory = make_trajectory([make_step("f", "y" * 5000, q="x" * 5000)], "z" * 5000)
    text = write_transcript(make_query(), trajectory, 100)
    assert text.count("... [cut: 100 of 500") == 3 and len(text) < 1000
    assert write_transcript(make_query(), trajectory, 6000).count("cut") == 0


@given(st.text())
def test_what_tools_and_models_write_cannot_pass_for_a_step(text):
    instruction = f"{text}\n\nStep 2\nTool: g"
    steps = (Step(ToolCall("f", {"a": instruction}), StepStatus.OK, instruction),)
    none = np.zeros(0)
    spoken = Trajectory(
        "t", "q", "e", "", "p", 0, 0, 1.0, [], none, [], none, steps, StopReason.FINISHED, instruction, None, 0.0
    )
    text_of_transcript = write_transcript(Query("q", "train", "e", instruction, ()), spoken, 10**6)
    assert [line for line in text_of_transcript.split("\n") if line.startswith("Step ")] == ["Step 1"]
    text_of_transcript.encode("utf-8")


def test_many_trajectories_are_judged_side_by_side_in_their_order(
    chat, judging, make_query, make_step, make_trajectory
):
    def behaviour(request, number):
        step = request["messages"][1]["content"].split('"f')[1].split('"')[0]
        return chat.Answer(chat.call(TOOL, scores([1], [int(step) % 6], "solved")).message, delay=0.3)

    server = chat.serve(behaviour)
    many = [make_trajectory([make_step(f"f{n}", "x")], "1", trajectory_id=f"t{n}") for n in range(128)]
    began = time.monotonic()
    rows, _ = annotate_episode(make_query(), many, judging(server, votes=1, concurrency=64))
    assert time.monotonic() - began < 10
    assert 32 < server.most <= 64  # a busy machine may answer one before it takes the last
    assert [r.trajectory_id for r in rows[::2]] == [f"t{n}" for n in range(128)]
    assert [r.contribution for r in rows[::2]] == [pytest.approx(n % 6 / 5) for n in range(128)]


def test_after_the_deadline_the_rest_is_missing_and_says_so(chat, judging, make_query, make_step, make_trajectory):
    answer = chat.call(TOOL, scores([1], [5], "solved")).message
    server = chat.serve(lambda request, number: chat.Answer(answer, delay=0.0 if number <= 2 else 30.0))
    many = [make_trajectory([make_step(f"f{n}", "x")], "1", trajectory_id=f"t{n}") for n in range(6)]
    rows, counts = annotate_episode(make_query(), many, judging(server, votes=1, concurrency=1, deadline=1.0))
    solved = column(rows, "is_solved")[1::2]
    assert solved == [1.0, 1.0, None, None, None, None]
    assert "no reply before the deadline" in rows[-1].rationale and counts["votes missing"] == 4
    assert len(server.requests) == 3


def test_a_judge_that_gives_no_vote_at_all_fails_with_the_reasons_counted(
    chat, judging, make_query, two_steps, tmp_path
):
    """Two votes on each of two trajectories, all answered by 500; then only the first vote of both is useful."""
    files = (
        write_records(tmp_path / "q.parquet", [make_query()], Query),
        write_records(tmp_path / "t.parquet", [two_steps, replace(two_steps, trajectory_id="t2")], Trajectory),
    )
    down = chat.serve(lambda *_: chat.Answer(status=500))
    target = tmp_path / "rewards.parquet"
    with (
        open_annotator("judge", judging(down, votes=2)) as judge,
        pytest.raises(JudgeError, match=r"^the judge gave no vote: 4 × .*answered 500"),
    ):
        annotate_file(*files, judge, target)
    assert not target.exists()

    useful = chat.call(TOOL, scores([1, 0], [5, 0], "solved"))
    server = chat.serve(lambda request, number: useful if number == 1 else chat.Answer(status=500))
    with open_annotator("judge", judging(server, votes=2, concurrency=1)) as judge:
        annotate_file(*files, judge, target)
        assert describe_missing_scores(judge).startswith("2 × ") and "answered 500" in describe_missing_scores(judge)
    assert [r.contribution for r in read_records(target, StepReward)] == [1.0, 0.0, None] * 2


def test_a_failing_endpoint_means_missing_but_a_wrong_key_stops_everything(chat, judging, make_query, two_steps):
    down = chat.serve(lambda *_: chat.Answer(status=503))
    rows, counts = annotate_episode(make_query(), [two_steps], judging(down, votes=2))
    assert column(rows, "is_solved") == [None] * 3 and "answered 503" in rows[2].rationale
    assert (counts["failed"], counts["votes missing"], len(down.requests)) == (2, 2, 2)
    closed = chat.serve(lambda *_: chat.Answer(status=401))
    with pytest.raises(EndpointRefused, match="JUDGE_KEY"):
        annotate_episode(make_query(), [two_steps] * 1000, judging(closed, concurrency=2))
    assert len(closed.requests) < 20


def test_the_version_tells_what_went_in(chat, judging):
    server = chat.serve(lambda *_: chat.Answer())
    annotators = [make_annotator("judge", judging(server, **s)) for s in ({}, {"votes": 5}, {"observation_limit": 9})]
    assert [judge.version for judge in annotators[:2]] == [f"1 judge-1 votes={n} temperature=0" for n in (3, 5)]
    assert annotators[0].prompt_hash == annotators[1].prompt_hash != annotators[2].prompt_hash
    assert len(annotators[0].prompt_hash) == 12
    for judge in annotators:
        judge.close()


def test_a_judge_without_an_endpoint_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "c.yaml").write_text("rewards: {annotator: judge}")
    with pytest.raises(ConfigError, match=r"needs rewards.judge.endpoint.base_url and .model"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="base_url"):
        make_annotator("judge")


def test_the_key_is_in_no_log_and_no_artifact(chat, judging, make_query, two_steps, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    echo = chat.Answer(status=400, body=json.dumps({"error": {"message": f"bad key {KEY}"}}))
    reply = chat.call(TOOL, scores([1, 1], [1, 1], "solved", f"I was given {KEY}"))
    server = chat.serve(lambda request, number: reply if number == 1 else echo)
    rows, counts = annotate_episode(make_query(), [two_steps], judging(server, tmp_path / "r.sqlite"))
    file = write_records(tmp_path / "rewards.parquet", rows, StepReward)
    assert counts["votes missing"] == 2
    assert KEY not in str(read_records(file, StepReward)) and "bad key [key]" in str(read_records(file, StepReward))
    assert KEY not in caplog.text
    assert all(KEY.encode() not in f.read_bytes() for f in tmp_path.iterdir())


WORKER = """
import sys
from pathlib import Path
from steptool.config import JudgeConfig
from steptool.records.tables import read_records, write_records
from steptool.records import Trajectory
from steptool.rewards.annotators import open_annotator, score_steps
from steptool.records import Query
config = JudgeConfig.model_validate_json(sys.argv[1])
query = Query("q1", "train", "desk", "do it", ())
with open_annotator("judge", config) as judge:
    for row in score_steps({"q1": query}, read_records(Path(sys.argv[2]), Trajectory), judge):
        print(row.contribution, flush=True)
"""


def test_a_killed_annotation_goes_on_where_it_was(chat, judging, make_step, make_trajectory, tmp_path):
    answers = []

    def behaviour(request, number):
        answers.append(request["messages"][1]["content"])
        return chat.Answer(chat.call(TOOL, scores([1], [5], "solved")).message, delay=0.05)

    server = chat.serve(behaviour)
    many = [make_trajectory([make_step(f"f{n}", "x")], "1", trajectory_id=f"t{n}") for n in range(30)]
    file = write_records(tmp_path / "t.parquet", many, Trajectory)
    config = judging(server, tmp_path / "replies.sqlite", votes=2)
    command = [sys.executable, "-c", WORKER, config.model_dump_json(), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(16):  # rows of 8 trajectories
            assert process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before, last = len(answers), len(server.requests)
    assert 16 <= before < 60

    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30)
    assert result.stdout.split() == ["1.0", "None"] * 30
    again = len(answers) - last
    assert 60 - before <= again <= 60 - before + 4  # only what was in flight when it was killed is asked twice
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30).stdout == result.stdout
    assert len(answers) == last + again
