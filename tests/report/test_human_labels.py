import csv
import json

import pyarrow.parquet as pq
import pytest

from steptool.records import StepReward
from steptool.records.tables import read_records, write_records
from steptool.report.labelling import LabelError, label_rows, label_table, read_labels, write_label_table

NASTY = '=1+1, "two"\nthree </script> ünï \ud800'


@pytest.fixture
def episode(make_step, make_trajectory):
    return make_trajectory([make_step("look", NASTY, x="a,b")], "yes", solved=1.0)


def test_a_sheet_asks_for_what_a_step_can_have_and_shows_no_score(episode, make_query):
    first, last = label_table({"q1": make_query()}, [episode])
    assert (first["tool"], first["arguments"], first["asked"]) == ("look", '{"x": "a,b"}', "succ_calling contribution")
    assert (last["asked"], last["answer"]) == ("is_solved", "yes")
    assert {first[name] for name in ("succ_calling", "contribution", "is_solved")} == {None}


@pytest.mark.parametrize("name", ["steps.csv", "steps.parquet"])
def test_a_filled_table_comes_back_as_rewards(name, tmp_path, make_query, make_step, make_trajectory):
    episode = make_trajectory([make_step("look", 'a "b"\nc', x="a,b")], "yes")
    rows = list(label_table({"q1": make_query()}, [episode]))
    rows[0] |= {"succ_calling": 1.0, "contribution": 0.5, "labelled_by": "ana", "comment": "half"}
    rows[1] |= {"is_solved": 1.0, "labelled_by": "ana"}
    labels = read_labels(write_label_table(rows, tmp_path / name))
    path = write_records(tmp_path / "rewards.parquet", label_rows([episode], labels), StepReward)
    first, last = read_records(path, StepReward)
    assert (first.annotator, first.succ_calling, first.contribution) == ("human", 1.0, 0.5)
    assert json.loads(first.votes) == {
        "labelled_by": ["ana"], "succ_calling": {"ana": 1.0}, "contribution": {"ana": 0.5}
    }  # fmt: skip
    assert first.rationale == "ana: half"
    assert (last.contribution, last.is_solved) == (None, 1.0)


def test_no_cell_of_the_csv_table_is_a_formula(tmp_path, make_query, make_step, make_trajectory):
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "'=1", "plain"]
    episodes = [make_trajectory([make_step("look", name)], "=1+1", trajectory_id=name) for name in names]
    rows = list(label_table({"q1": make_query()}, episodes))
    path = write_label_table(rows, tmp_path / "steps.csv")
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell]
    assert [label["trajectory_id"] for label in read_labels(path)][::2] == names


def test_several_labellers_are_votes_and_a_mean_and_silence_is_missing(episode):
    def label(who, **scores):
        return {"trajectory_id": "t1", "labelled_by": who, **scores}

    labels = [
        label("ana", step=0, contribution=1),
        label("ben", step=0, contribution=0.5, succ_calling=1),
        label("ana", step=0, contribution=0),  # changed her mind
    ]
    first, last = label_rows([episode], _read(labels))
    assert (first.contribution, first.succ_calling) == (0.25, 1.0)
    assert json.loads(first.votes)["contribution"] == {"ana": 0.0, "ben": 0.5}
    assert (last.is_solved, last.votes) == (None, "{}")
    assert list(label_rows([episode], [])) == []


def _read(labels, folder=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "labels.json"
        path.write_text(json.dumps(labels))
        return read_labels(path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"step": 0, "contribution": 2, "labelled_by": "a"}, "row 1: 'contribution': expected a number from 0 to 1"),
        ({"step": 0, "contribution": "much", "labelled_by": "a"}, "got 'much'"),
        ({"step": 0, "contribution": 1}, "has labels but no name of the labeller"),
        ({"step": "x", "labelled_by": "a"}, "expected trajectory_id and step"),
        ({"step": 7, "contribution": 1, "labelled_by": "a"}, "'t1' has steps 0 to 1, got 7"),
        ({"step": 0, "is_solved": 1, "labelled_by": "a"}, "takes succ_calling and contribution, got .'is_solved'"),
        ({"trajectory_id": "t9", "step": 0, "contribution": 1, "labelled_by": "a"}, "is not among the trajectories"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_with_its_row(label, message, episode):
    with pytest.raises(LabelError, match=message):
        list(label_rows([episode], _read([{"trajectory_id": "t1", **label}])))


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name, text in (("a.json", "{"), ("b.json", "3"), ("c.parquet", "PAR")):
        (tmp_path / name).write_text(text)
        with pytest.raises(LabelError, match=name):
            read_labels(tmp_path / name)


def test_text_that_no_file_can_hold_does_not_stop_the_csv(episode, tmp_path, make_query):
    path = write_label_table(list(label_table({"q1": make_query()}, [episode])), tmp_path / "steps.csv")
    with path.open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["observation"] == "'" + NASTY.replace("\ud800", "?")
    clean = list(label_table({"q1": make_query()}, [episode]))
    clean[0]["observation"] = "plain"
    assert pq.read_table(write_label_table(clean, tmp_path / "steps.parquet")).num_rows == 2
