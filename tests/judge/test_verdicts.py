import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from steptool.config import EndpointConfig, JudgeConfig
from steptool.judge.outcome_judge import OutcomeJudge
from steptool.judge.verdicts import Choice, preference_by_query, read_stabletoolbench
from steptool.records import FINISH, Preference, Query, Step, StepStatus, StopReason, ToolCall, Trajectory, Verdict
from steptool.records.tables import read_records, write_records

QUERY = Query("q1", "heldout", "desk", "cancel the last order", ())
STORED = Path(__file__).parents[3] / "shared/data/stabletoolbench/data_example/pass_rate_results"


def episode(answer, stop=StopReason.FINISHED):
    none = np.zeros(0)
    steps = [Step(ToolCall("find", {}), StepStatus.OK, "ord_7")]
    if answer is not None:
        steps.append(Step(ToolCall(FINISH, {"return_type": "give_answer"}), StepStatus.FINISH, ""))
    return Trajectory("t", "q1", "desk", "", "p", 0, 0, 1.0, [], none, [], none, steps, stop, answer, None, 0.0)


SILENT, GAVE_UP = episode(None, StopReason.STEP_LIMIT), episode(None, StopReason.GAVE_UP)


def judge(server, **settings):
    settings = {"votes": 2, **settings}
    endpoint = EndpointConfig(base_url=server.url, model="judge-1", key_variable="NO_SUCH_VARIABLE", retries=0)
    return closing(OutcomeJudge(JudgeConfig(endpoint=endpoint, **settings)))


def test_answers_are_judged_and_no_answer_is_unsolved_without_asking(chat, tmp_path):
    said = ["solved", "unsure"]
    server = chat.serve(lambda _, number: chat.call("report_status", {"status": said[number - 1], "reason": "so"}))
    with judge(server) as chosen:
        rows = chosen.verdicts("ours", [(QUERY, SILENT), (QUERY, episode("done")), (QUERY, GAVE_UP)])
    assert [(r.status, r.repeat, r.judge) for r in rows] == [
        ("unsolved", 0, ""),
        ("unsolved", 1, ""),
        ("solved", 0, "judge-1"),
        ("unsure", 1, "judge-1"),
        ("unsolved", 0, ""),
        ("unsolved", 1, ""),
    ]
    assert len(server.requests) == 2 and '"done"' in server.texts()[0]
    assert read_records(write_records(tmp_path / "v.parquet", rows, Verdict), Verdict) == rows


def test_a_verdict_that_cannot_be_had_is_missing(chat):
    server = chat.serve(lambda *_: chat.call("report_status", {"status": "fine"}))
    with judge(server, votes=1, attempts=2) as chosen:
        (row,) = chosen.verdicts("ours", [(QUERY, episode("done"))])
        assert chosen.counts()["votes missing"] == 1
    assert row.status is None and row.rationale.startswith("missing: status must be one of")
    assert len(server.requests) == 2


def test_preferences_are_asked_in_both_orders_and_named_by_model(chat, tmp_path):
    def better(request, _):
        text = request["messages"][1]["content"]
        first = text.index('"good"') < text.index('"bad"')
        return chat.call("report_choice", {"better": "first" if first else "second", "reason": "complete"})

    server = chat.serve(better)
    with judge(server) as chosen:
        rows = chosen.preferences("ours", "base", [(QUERY, episode("good"), episode("bad"))])
    expected = [(False, 0, "model"), (False, 1, "model"), (True, 0, "model"), (True, 1, "model")]
    assert [(r.swapped, r.repeat, r.preference) for r in rows] == expected
    texts = server.texts()
    assert texts[0].index('"good"') < texts[0].index('"bad"') and texts[2].index('"bad"') < texts[2].index('"good"')
    assert preference_by_query(rows) == {"q1": Choice.MODEL}
    assert read_records(write_records(tmp_path / "p.parquet", rows, Preference), Preference) == rows


def test_a_judge_that_always_likes_the_first_prefers_neither(chat):
    server = chat.serve(lambda *_: chat.call("report_choice", {"better": "first"}))
    with judge(server) as chosen:
        rows = chosen.preferences("ours", "base", [(QUERY, episode("a"), episode("b"))])
    assert [r.preference for r in rows] == ["model", "model", "other", "other"]
    assert preference_by_query(rows) == {"q1": Choice.TIE}


@pytest.mark.parametrize(
    ("ours", "others", "expected"),
    [(episode("a"), SILENT, "model"), (GAVE_UP, episode("b"), "other"), (GAVE_UP, SILENT, "tie")],
)
def test_an_answer_beats_none_without_asking(chat, ours, others, expected):
    server = chat.serve(lambda *_: chat.Answer())
    with judge(server) as chosen:
        rows = chosen.preferences("ours", "base", [(QUERY, ours, others)])
    assert [r.preference for r in rows] == [expected] * 4 and server.requests == []


def ballot(query, *choices, other="base"):
    return [Preference(query, "ours", other, 0, False, choice) for choice in choices]


def test_the_majority_counts_ties_and_missing_for_nobody():
    rows = ballot("q1", "other", "tie", "tie", None) + ballot("q2", "model", "other") + ballot("q3", None, None)
    assert preference_by_query(rows) == {"q1": Choice.OTHER, "q2": Choice.TIE, "q3": None}
    with pytest.raises(ValueError, match="one pair of models"):
        preference_by_query(rows + ballot("q1", "model", other="third"))


@pytest.fixture
def stored(tmp_path):
    def write(document, model="gpt"):
        file = tmp_path / model / f"G1_tool_{model}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return file

    return write


def test_stored_verdicts_become_rows_in_order(stored, tmp_path):
    file = stored({"12": {"is_solved": {"1": "AnswerStatus.Unsure", "0": "AnswerStatus.Solved"}}})
    stored({"12": {"is_solved": {"0": "AnswerStatus.Unsolved"}}}, model="abc")
    assert [(r.query_id, r.model, r.repeat, r.status) for r in read_stabletoolbench(tmp_path)] == [
        ("G1_tool-12", "abc", 0, "unsolved"),
        ("G1_tool-12", "gpt", 0, "solved"),
        ("G1_tool-12", "gpt", 1, "unsure"),
    ]
    rows = read_stabletoolbench(file)
    assert len(rows) == 2 and read_records(write_records(tmp_path / "v.parquet", rows, Verdict), Verdict) == rows


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ([1], "an object of verdicts by query, got list"),
        ({"12": {"solved": 1}}, "query 12 has no object 'is_solved'"),
        ({"12": {"is_solved": {"a": "AnswerStatus.Solved"}}}, "the number of a repeat, got 'a'"),
        ({"12": {"is_solved": {"0": None}}}, "a status of solved, unsure, unsolved, got None"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(stored, document, message):
    file = stored(document)
    with pytest.raises(ValueError, match=message) as raised:
        read_stabletoolbench(file)
    assert str(file) in str(raised.value)


def test_a_folder_without_verdicts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no JSON file of stored verdicts"):
        read_stabletoolbench(tmp_path)


@pytest.mark.skipif(not STORED.is_dir(), reason="the public data is not on this machine")
def test_the_example_verdicts_of_stabletoolbench_are_read():
    rows = read_stabletoolbench(STORED)
    assert {r.model for r in rows} == {"virtual_chatgpt_cot"} and len(rows) == 9
    solved = {r.query_id: r.status for r in rows}
    expected = {"G1_instruction-588": "unsolved", "G1_instruction-608": "solved", "G1_instruction-1073": "solved"}
    assert solved == expected
