import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation_rows import make_evaluation
from steptool.config import Config, EndpointConfig, JudgeConfig
from steptool.data.ingest import ingest
from steptool.evaluation.measures import measure_episodes
from steptool.judge.judges import OutcomeJudge
from steptool.judge.verdicts import (
    Choice,
    JudgedRate,
    WinRate,
    compute_win_rates,
    decide_preferences,
    find_unanswered_queries,
    judged_pass_rate,
    read_stabletoolbench,
    read_verdicts,
)
from steptool.records import FINISH, Preference, Query, Step, StepStatus, StopReason, ToolCall, Trajectory, Verdict
from steptool.records.episodes import read_queries
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
    statuses = ["solved", "unsure"]
    server = chat.serve(lambda _, number: chat.call("report_status", {"status": statuses[number - 1], "reason": "so"}))
    with judge(server) as outcome_judge:
        rows = outcome_judge.verdicts("ours", [(QUERY, SILENT), (QUERY, episode("done")), (QUERY, GAVE_UP)])
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
    with judge(server, votes=1, attempts=2) as outcome_judge:
        (row,) = outcome_judge.verdicts("ours", [(QUERY, episode("done"))])
        assert outcome_judge.counts()["votes missing"] == 1
    assert row.status is None and row.rationale.startswith("missing: status must be one of")
    assert len(server.requests) == 2


def test_preferences_are_asked_in_both_orders_and_named_by_model(chat, tmp_path):
    def better(request, _):
        text = request["messages"][1]["content"]
        first = text.index('"good"') < text.index('"bad"')
        return chat.call("report_choice", {"better": "first" if first else "second", "reason": "complete"})

    server = chat.serve(better)
    with judge(server) as outcome_judge:
        rows = outcome_judge.preferences("ours", "base", [(QUERY, episode("good"), episode("bad"))])
    expected = [(False, 0, "model"), (False, 1, "model"), (True, 0, "model"), (True, 1, "model")]
    assert [(r.swapped, r.repeat, r.preference) for r in rows] == expected
    texts = server.texts()
    assert texts[0].index('"good"') < texts[0].index('"bad"') and texts[2].index('"bad"') < texts[2].index('"good"')
    assert decide_preferences(rows) == {"q1": Choice.MODEL}
    assert read_records(write_records(tmp_path / "p.parquet", rows, Preference), Preference) == rows


def test_a_judge_that_always_likes_the_first_prefers_neither(chat):
    server = chat.serve(lambda *_: chat.call("report_choice", {"better": "first"}))
    with judge(server) as outcome_judge:
        rows = outcome_judge.preferences("ours", "base", [(QUERY, episode("a"), episode("b"))])
    assert [r.preference for r in rows] == ["model", "model", "other", "other"]
    assert decide_preferences(rows) == {"q1": Choice.TIE}


@pytest.mark.parametrize(
    ("ours", "others", "expected"),
    [(episode("a"), SILENT, "model"), (GAVE_UP, episode("b"), "other"), (GAVE_UP, SILENT, "tie")],
)
def test_an_answer_beats_none_without_asking(chat, ours, others, expected):
    server = chat.serve(lambda *_: chat.Answer())
    with judge(server) as outcome_judge:
        rows = outcome_judge.preferences("ours", "base", [(QUERY, ours, others)])
    assert [r.preference for r in rows] == [expected] * 4 and server.requests == []


def ballot(query, *choices, other="base"):
    return [Preference(query, "ours", other, 0, False, choice) for choice in choices]


def test_the_majority_counts_ties_and_missing_for_nobody():
    rows = ballot("q1", "other", "tie", "tie", None) + ballot("q2", "model", "other") + ballot("q3", None, None)
    assert decide_preferences(rows) == {"q1": Choice.OTHER, "q2": Choice.TIE, "q3": None}
    with pytest.raises(ValueError, match="preferences between one pair of models"):
        decide_preferences(rows + ballot("q1", "model", other="third"))


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
        ('{"12": {"is_solved": {}}, "12": {"is_solved": {}}}', "'12' is given 2 times"),
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
    with pytest.raises(ValueError, match="expected JSON files of stored verdicts"):
        read_stabletoolbench(tmp_path)


@pytest.mark.skipif(not STORED.is_dir(), reason="the public data is not on this machine")
def test_the_example_verdicts_of_stabletoolbench_are_read():
    rows = read_stabletoolbench(STORED)
    assert {r.model for r in rows} == {"virtual_chatgpt_cot"} and len(rows) == 9
    solved = {r.query_id: r.status for r in rows}
    expected = {"G1_instruction-588": "unsolved", "G1_instruction-608": "solved", "G1_instruction-1073": "solved"}
    assert solved == expected


REAL = Path(__file__).parents[3] / "shared" / "data" / "stabletoolbench"
JUDGED = "data_example/pass_rate_results"


def verdicts(**statuses):
    """Verdicts from {query: status by repeat}."""
    return [
        Verdict(query, "m", repeat, status, "j")
        for query, query_statuses in statuses.items()
        for repeat, status in enumerate(query_statuses)
    ]


def test_the_pass_rate_by_hand():
    """Repeats give (1 + .5 + 0)/3, (1 + 1 + 0)/3 and (0 + .5 + 0)/3, that is 9/18, 12/18 and 3/18: mean 8/18, and the
    deviations from it 1/18, 4/18 and 5/18."""
    rows = verdicts(
        a=["solved", "solved", "unsolved"], b=["unsure", "solved", "unsure"], c=["unsolved", "unsolved", "unsolved"]
    )
    rate = judged_pass_rate(rows, {"a", "b", "c"})
    assert rate.mean == pytest.approx(8 / 18)
    assert rate.deviation == pytest.approx(((1 + 16 + 25) / 3) ** 0.5 / 18)
    assert (rate.repeats, rate.queries, rate.missing) == (3, 3, 0)


def test_a_stored_verdict_is_the_verdict_and_without_one_an_episode_without_an_answer_is_unsolved():
    rows = verdicts(a=["solved"], b=["solved"])
    assert judged_pass_rate(rows, {"a", "b"}, {"b"}) == JudgedRate(1.0, 0.0, 1, 2, 0)
    assert judged_pass_rate(rows, {"a", "b", "never asked"}, {"never asked"}).mean == pytest.approx(2 / 3)
    ended = [make_evaluation(n, None, stop_reason=n) for n in ("finished", "gave_up", "step_limit", "malformed")]
    assert find_unanswered_queries(ended) == {"gave_up", "step_limit", "malformed"}


def test_a_missing_verdict_is_left_out_and_counted():
    rows = verdicts(a=["solved", None], b=["unsolved", "unsolved"])
    assert judged_pass_rate(rows, {"a", "b"}) == JudgedRate(0.25, 0.25, 2, 2, 1)
    assert judged_pass_rate(rows, {"a", "b", "c"}).missing == 3
    assert judged_pass_rate(verdicts(a=[None]), {"a"}) is None
    assert judged_pass_rate([], {"a"}) is None
    with pytest.raises(ValueError, match="expected verdicts on one model"):
        judged_pass_rate([*rows, replace(rows[0], model="other")], {"a"})


statuses = st.sampled_from(["solved", "unsure", "unsolved", None])


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(statuses, statuses), min_size=1), st.randoms())
def test_rates_are_shares_and_know_no_order(given_statuses, random):
    rows = verdicts(**given_statuses)
    rate = judged_pass_rate(rows, set(given_statuses))
    random.shuffle(rows)
    assert judged_pass_rate(rows, set(given_statuses)) == rate
    assert rate is None or (0 <= rate.mean <= 1 and 0 <= rate.deviation <= 0.5)


def preferences(model, other, **votes):
    return [
        Preference(q, model, other, i // 2, bool(i % 2), p)
        for q, query_votes in votes.items()
        for i, p in enumerate(query_votes)
    ]


def test_the_win_rate_by_hand():
    """a: 2 to 1 for the model; b: one each in both orders, a tie; c: for the other; d: nothing came: (1 + .5) / 3."""
    rows = preferences(
        "x", "y",
        a=["model", "model", "other", None], b=["model", "other"], c=["tie", "other"], d=[None, None],
    )  # fmt: skip
    assert compute_win_rates(rows) == [WinRate("x", "y", 0.5, 1, 1, 1, 1)]
    both = compute_win_rates([*preferences("z", "x", a=["model"]), *reversed(rows)])
    assert [(w.model, w.other, w.rate) for w in both] == [("x", "y", 0.5), ("z", "x", 1.0)]


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from(["model", "other", "tie", None]), min_size=1)))
def test_the_other_sides_win_rate_is_the_rest(votes):
    turned = {"model": "other", "other": "model"}
    back = {q: [turned.get(p, p) for p in query_votes] for q, query_votes in votes.items()}
    for one, two in zip(
        compute_win_rates(preferences("x", "y", **votes)), compute_win_rates(preferences("y", "x", **back)), strict=True
    ):
        assert one.ties == two.ties and (one.rate is None) == (two.rate is None)
        assert one.rate is None or one.rate + two.rate == pytest.approx(1.0)


def test_a_win_rate_over_nothing_is_missing():
    (wins,) = compute_win_rates(preferences("x", "y", a=[None, None]))
    assert (wins.rate, wins.missing) == (None, 1)


@pytest.mark.skipif(not REAL.is_dir(), reason="the public data is not on this machine")
def test_toolbench_example_data_from_raw_answers_to_the_pass_rate(tmp_path):
    """Three raw answers: 608 and 1073 end with Finish and were judged Solved three times; 588 ends with a call of
    list_artist_concerts_for_theclique, without Finish. Pass rate 2/3 in each repeat: 66.7% with deviation 0."""
    config = Config.model_validate(
        {
            "data": {
                "source": "toolbench",
                "paths": [str(REAL / "solvable_queries/test_instruction/G1_instruction.json")],
                "recorded_answers": [str(REAL / "data_example/answer")],
            }
        }
    )
    result = ingest(config, tmp_path / "read", for_training=False)
    answers = read_records(result.demonstrations_path, Trajectory)
    rows = measure_episodes(read_queries(result.queries_path), answers, "virtual_chatgpt_cot", "greedy")
    queries = {r.query_id for r in rows}
    assert queries == {"G1_instruction-588", "G1_instruction-608", "G1_instruction-1073"}
    assert find_unanswered_queries(rows) == {"G1_instruction-588"}
    expected = JudgedRate(pytest.approx(2 / 3), pytest.approx(0.0), 3, 3, 0)
    assert judged_pass_rate(read_verdicts([REAL / JUDGED]), queries, find_unanswered_queries(rows)) == expected

    generous = tmp_path / "results"
    shutil.copytree(REAL / JUDGED, generous)
    (file,) = generous.rglob("*.json")
    judged = json.loads(file.read_text())
    judged["588"]["is_solved"] = dict.fromkeys("012", "AnswerStatus.Solved")
    judged["608"]["is_solved"] = {"0": "AnswerStatus.Unsure", "1": "AnswerStatus.Solved", "2": "AnswerStatus.Unsolved"}
    file.write_text(json.dumps(judged))
    rate = judged_pass_rate(read_verdicts([generous]), queries, find_unanswered_queries(rows))
    # repeats (1 + .5 + 1)/3, (1 + 1 + 1)/3, (1 + 0 + 1)/3: mean 5/6, deviation sqrt(2/3)/6
    assert rate.mean == pytest.approx(5 / 6) and rate.deviation == pytest.approx((2 / 3) ** 0.5 / 6)


def test_verdicts_come_back_from_their_contract(tmp_path):
    rows = verdicts(a=["solved", None])
    assert read_verdicts([write_records(tmp_path / "v.parquet", rows, Verdict)]) == rows
