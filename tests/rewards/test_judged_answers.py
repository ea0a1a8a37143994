"""`lcs` and `rules` on answers that a judge has judged, as StableToolBench stores them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.judged import SHARED, read_answer, read_answers, separation, split_steps
from benchmarks.judged_means import (
    compute_annotated_mean,
    compute_published_mean,
    compute_recorded_mean,
    compute_stored_mean,
    pool,
    read_table,
)
from steptool.data.parsing import Record, UnusableError
from steptool.records import StopReason
from steptool.rewards.annotators import PublishedRules, unwrap

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


CUT = '{"return_type": "give_answer", "final_answer": "There are 13 kettles, na'
RAW_NEWLINE = '{"return_type": "give_answer", "final_answer": "There are 13\nkettles"}'


def test_the_mean_of_a_file_is_that_of_its_verdicts_however_the_answers_end(tmp_path: Path) -> None:
    """An answer that was cut, one with a raw newline, and one without a Finish."""
    cut, newline = ([STEPS[0], {**STEPS[1], "arguments": finish}] for finish in (CUT, RAW_NEWLINE))
    rows = {
        "1": row(cut, ("Solved", "Solved", "Solved")),
        "2": row(newline, ("Solved", "Unsure", "Unsolved")),
        "3": row(STEPS[:1], ("Unsolved", "Solved", "Solved")),
    }
    file = tmp_path / "model" / "G1_tool_model.json"
    file.parent.mkdir()
    file.write_text(json.dumps(rows))
    answers = list(read_answers(file, Counter()))
    by_hand = 100 * (3 + 1.5 + 2) / 9
    assert compute_published_mean(file) == pytest.approx(by_hand)
    assert compute_stored_mean(file) == pytest.approx(by_hand)
    assert compute_recorded_mean(answers) == pytest.approx(by_hand)
    assert compute_annotated_mean(answers) == pytest.approx(by_hand)


def test_the_table_of_a_readme_is_read_and_means_are_pooled_by_query(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "| **Backbone** | Strategy | **Method** | **I1. Pass** | Recall | **I2. Pass** | Recall | I3. Pass | R |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "| Llama | CoT | **StepTool** | **61.1±0.7** | 0.87 | 56.6±2.2 | 0.89 | 45.9±1.8 | 0.77 |\n"
        "| Llama | DFSDT | PPO (Final Reward) | 59.6±1.1 | 0.8 | 54.0±1.6 | 0.8 | 39.9±0.8 | 0.7 |\n"
    )
    table = read_table(readme)
    assert table["steptool_cot G1"] == 61.1 and table["baseline-ppo_dfs G3"] == 39.9 and len(table) == 6
    pooled = pool(
        {"m/G1_tool": 50.0, "m/G1_category": 80.0, "m/G2_tool": 10.0},
        {"m/G1_tool": 1, "m/G1_category": 2, "m/G2_tool": 5},
    )
    assert pooled == pytest.approx({"m G1": 70.0, "m G2": 10.0})


@pytest.mark.skipif(FOLDER is None, reason="the shared data are not here")
def test_the_means_of_the_shared_example_are_the_published_ones() -> None:
    assert FOLDER is not None
    (file,) = FOLDER.rglob("*.json")
    expected = 100 * 2 / 3  # 588 and 608 were judged Solved three times, 1073 Unsolved
    assert [
        compute_published_mean(file),
        compute_stored_mean(file),
        compute_recorded_mean(list(read_answers(file, Counter()))),
    ] == pytest.approx([expected] * 3)
