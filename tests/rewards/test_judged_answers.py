"""`lcs` and `rules` on answers that a judge has judged, as StableToolBench stores them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.judged import SHARED, read_answer, read_answers, separation, split_steps
from steptool.data.parsing import Record, UnusableError
from steptool.records import StopReason
from steptool.rewards.rules import PublishedRules, unwrap

FOLDER = next(SHARED.glob("*/data_example/pass_rate_results"), None)
RESPONSE = '{"error": "", "response": "a\nStep 3: {\'name\': no step"}'
FINISH = '{\n  "return_type": "give_answer",\n  "final_answer": "done"\n}'
STEPS = [
    {"name": "f", "arguments": '{"x": 1}', "response": RESPONSE},
    {"name": "Finish", "arguments": FINISH, "response": ""},
]


def row(steps=STEPS, verdicts=("Solved", "Solved", "Unsolved")):
    text = "\n".join(f"Step {number}: {step}" for number, step in enumerate(steps, start=1))
    return {
        "query": "Do it.",
        "answer_steps": text,
        "is_solved": {str(n): f"AnswerStatus.{verdict}" for n, verdict in enumerate(verdicts)},
    }


def read(value):
    return read_answer(Record(Path("pass_rate_results/model/G1.json"), "model-1", value))


def test_a_row_becomes_a_trajectory_with_the_verdict_of_most_judgements() -> None:
    answer = read(row())
    assert [step.call.name for step in answer.trajectory.steps if step.call] == ["f", "Finish"]
    assert answer.trajectory.steps[0].observation == RESPONSE
    assert (answer.trajectory.final_answer, answer.trajectory.stop_reason) == ("done", StopReason.FINISHED)
    assert (answer.solved, answer.finish) == (True, FINISH)
    assert read(row(verdicts=("Unsure", "Unsure"))).solved is None
    assert read(row(verdicts=("Unsolved", "Unsure", "Unsolved"))).solved is False


def test_a_heading_inside_a_response_begins_a_step_only_with_the_next_number() -> None:
    text = "Step 1: {'name': 'f', 'response': 'Step 3: {'name': '}\nStep 2: {'name': 'g'}\nStep 9: {'name': 'h'}"
    assert split_steps(text) == [
        "{'name': 'f', 'response': 'Step 3: {'name': '}",
        "{'name': 'g'}\nStep 9: {'name': 'h'}",
    ]


def test_a_step_of_another_form_is_counted_by_reason() -> None:
    with pytest.raises(UnusableError, match="a step of another form"):
        read({**row(), "answer_steps": "Step 1: {'name': 'f', "})


@pytest.mark.parametrize(
    ("observation", "response"),
    [
        ('{"error": "", "response": "sunny"}', "sunny"),
        ('{"error": "", "response": {"a": true}}', "{'a': True}"),  # as Python prints it
        ('{"error": "", "response": "cut in the mid', '"cut in the mid'),  # no JSON: the opening's 26 characters
        ('{"error": "Timeout error...", "respon', '.", "respon'),  # as many of an error
        ("plain words", "plain words"),
        ('{"order_id": 7}', '{"order_id": 7}'),
    ],
)
def test_a_response_is_taken_out_of_its_envelope_as_the_released_rule_does(observation: str, response: str) -> None:
    assert unwrap(observation) == response


def common_length(one: str, other: str) -> int:
    """Length of the longest common subsequence, by the textbook's table."""
    above = [0] * (len(other) + 1)
    for letter in one:
        row = [0]
        for place, against in enumerate(other):
            row.append(above[place] + 1 if letter == against else max(above[place + 1], row[-1]))
        above = row
    return above[-1]


@pytest.mark.skipif(FOLDER is None, reason="the judged answers are not here")
def test_lcs_on_judged_answers_is_the_longest_common_subsequence_with_finish() -> None:
    assert FOLDER
    answers = list(read_answers(FOLDER, Counter()))
    assert [answer.solved for answer in answers] == [False, True, True]
    steps = 0
    for answer in answers:
        for step, score in zip(
            answer.trajectory.steps, PublishedRules().annotate(answer.query, answer.trajectory), strict=True
        ):
            if score.contribution is None or not answer.finish:
                continue
            response = json.loads(step.observation)["response"]
            text = response if isinstance(response, str) else str(response)
            assert score.contribution == float(common_length(text, answer.finish) / len(text) >= 0.3)
            steps += 1
    assert steps == 4


@pytest.mark.skipif(FOLDER is None, reason="the judged answers are not here")
def test_rules_separate_the_judged_answers() -> None:
    assert FOLDER
    area = separation(list(read_answers(FOLDER, Counter())), "rules")
    assert area and area.value == 1.0
