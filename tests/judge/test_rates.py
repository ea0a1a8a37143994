import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation_rows import make_evaluation
from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.evaluation.measures import measure_episodes
from steptool.judge.verdicts import (
    JudgedRate,
    WinRate,
    judged_pass_rate,
    read_verdicts,
    unanswered_queries,
    win_rates,
)
from steptool.records import Preference, Trajectory, Verdict
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, write_records

REAL = Path(__file__).parents[3] / "shared" / "data" / "stabletoolbench"
JUDGED = "data_example/pass_rate_results"


def verdicts(**statuses):
    """Verdicts from {query: status by repeat}."""
    return [
        Verdict(query, "m", repeat, status, "j")
        for query, listed in statuses.items()
        for repeat, status in enumerate(listed)
    ]


def test_the_pass_rate_by_hand():
    """Repeats give (1 + .5 + 0)/3, (1 + 1 + 0)/3 and (0 + .5 + 0)/3, that is 9/18, 12/18 and 3/18: mean 8/18, and the
    deviations from it 1/18, 4/18 and 5/18."""
    rows = verdicts(
        a=["solved", "solved", "unsolved"], b=["unsure", "solved", "unsure"], c=["unsolved", "unsolved", "unsolved"]
    )
    got = judged_pass_rate(rows, {"a", "b", "c"})
    assert got.mean == pytest.approx(8 / 18)
    assert got.deviation == pytest.approx(((1 + 16 + 25) / 3) ** 0.5 / 18)
    assert (got.repeats, got.queries, got.missing) == (3, 3, 0)


def test_a_stored_verdict_is_the_verdict_and_without_one_an_episode_without_an_answer_is_unsolved():
    rows = verdicts(a=["solved"], b=["solved"])
    assert judged_pass_rate(rows, {"a", "b"}, {"b"}) == JudgedRate(1.0, 0.0, 1, 2, 0)
    assert judged_pass_rate(rows, {"a", "b", "never asked"}, {"never asked"}).mean == pytest.approx(2 / 3)
    ended = [make_evaluation(n, None, stop_reason=n) for n in ("finished", "gave_up", "step_limit", "malformed")]
    assert unanswered_queries(ended) == {"gave_up", "step_limit", "malformed"}


def test_a_missing_verdict_is_left_out_and_counted():
    rows = verdicts(a=["solved", None], b=["unsolved", "unsolved"])
    assert judged_pass_rate(rows, {"a", "b"}) == JudgedRate(0.25, 0.25, 2, 2, 1)
    assert judged_pass_rate(rows, {"a", "b", "c"}).missing == 3
    assert judged_pass_rate(verdicts(a=[None]), {"a"}) is None
    assert judged_pass_rate([], {"a"}) is None
    with pytest.raises(ValueError, match="of one model"):
        judged_pass_rate([*rows, replace(rows[0], model="other")], {"a"})


statuses = st.sampled_from(["solved", "unsure", "unsolved", None])


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(statuses, statuses), min_size=1), st.randoms())
def test_rates_are_shares_and_know_no_order(given_statuses, random):
    rows = verdicts(**given_statuses)
    got = judged_pass_rate(rows, set(given_statuses))
    random.shuffle(rows)
    assert judged_pass_rate(rows, set(given_statuses)) == got
    assert got is None or (0 <= got.mean <= 1 and 0 <= got.deviation <= 0.5)


def preferences(model, other, **votes):
    return [
        Preference(q, model, other, i // 2, bool(i % 2), p) for q, listed in votes.items() for i, p in enumerate(listed)
    ]


def test_the_win_rate_by_hand():
    """a: 2 to 1 for the model; b: one each in both orders, a tie; c: for the other; d: nothing came: (1 + .5) / 3."""
    rows = preferences(
        "x", "y",
        a=["model", "model", "other", None], b=["model", "other"], c=["tie", "other"], d=[None, None],
    )  # fmt: skip
    assert win_rates(rows) == [WinRate("x", "y", 0.5, 1, 1, 1, 1)]
    both = win_rates([*preferences("z", "x", a=["model"]), *reversed(rows)])
    assert [(w.model, w.other, w.rate) for w in both] == [("x", "y", 0.5), ("z", "x", 1.0)]


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from(["model", "other", "tie", None]), min_size=1)))
def test_the_other_sides_win_rate_is_the_rest(votes):
    turned = {"model": "other", "other": "model"}
    back = {q: [turned.get(p, p) for p in listed] for q, listed in votes.items()}
    for one, two in zip(
        win_rates(preferences("x", "y", **votes)), win_rates(preferences("y", "x", **back)), strict=True
    ):
        assert one.ties == two.ties and (one.rate is None) == (two.rate is None)
        assert one.rate is None or one.rate + two.rate == pytest.approx(1.0)


def test_a_win_rate_over_nothing_is_missing():
    (wins,) = win_rates(preferences("x", "y", a=[None, None]))
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
    read = ingest(config, tmp_path / "read", for_training=False)
    answers = read_records(read.demonstrations_path, Trajectory)
    rows = measure_episodes(read_queries(read.queries_path), answers, "virtual_chatgpt_cot", "greedy")
    queries = {r.query_id for r in rows}
    assert queries == {"G1_instruction-588", "G1_instruction-608", "G1_instruction-1073"}
    assert unanswered_queries(rows) == {"G1_instruction-588"}
    expected = JudgedRate(pytest.approx(2 / 3), pytest.approx(0.0), 3, 3, 0)
    assert judged_pass_rate(read_verdicts([REAL / JUDGED]), queries, unanswered_queries(rows)) == expected

    generous = tmp_path / "results"
    shutil.copytree(REAL / JUDGED, generous)
    (file,) = generous.rglob("*.json")
    judged = json.loads(file.read_text())
    judged["588"]["is_solved"] = dict.fromkeys("012", "AnswerStatus.Solved")
    judged["608"]["is_solved"] = {"0": "AnswerStatus.Unsure", "1": "AnswerStatus.Solved", "2": "AnswerStatus.Unsolved"}
    file.write_text(json.dumps(judged))
    got = judged_pass_rate(read_verdicts([generous]), queries, unanswered_queries(rows))
    # repeats (1 + .5 + 1)/3, (1 + 1 + 1)/3, (1 + 0 + 1)/3: mean 5/6, deviation sqrt(2/3)/6
    assert got.mean == pytest.approx(5 / 6) and got.deviation == pytest.approx((2 / 3) ** 0.5 / 6)


def test_verdicts_come_back_from_their_contract(tmp_path):
    rows = verdicts(a=["solved", None])
    assert read_verdicts([write_records(tmp_path / "v.parquet", rows, Verdict)]) == rows
