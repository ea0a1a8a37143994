import base64
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.records import Advantage, Evaluation, Query, StepReward, StopReason, Trajectory
from steptool.records.columns import ContractError, Row
from steptool.records.tables import write_records
from steptool.report.viewer import LISTED, compress_text, write_viewer
from steptool.report.viewer_pages import EpisodeFiles


def unpack_data(text: str) -> str:
    return zlib.decompress(base64.b64decode(text)).decode()


def content(page: Path) -> tuple[Row, list[list[Row]]]:
    """The index, and the records of each chunk."""
    html = page.read_text()
    index = json.loads(unpack_data(re.search(r'id="index">([^<]*)<', html).group(1)))
    chunks = re.findall(r'class="chunk">([^<]*)<', html)
    return index, [[json.loads(line) for line in unpack_data(c).split("\n")] for c in chunks]


@pytest.fixture
def write(tmp_path: Path, query) -> Callable[..., Path]:
    def make(
        *models: list[Any], rewards: list[Row] = (), advantages: list[Row] = (), size: int = 100, **queries: str
    ) -> Path:
        texts = queries or {"q0": "where is order o1?"}
        write_records(tmp_path / "queries.parquet", [query(name, text) for name, text in texts.items()], Query)
        sources = [
            EpisodeFiles(write_records(tmp_path / f"{i}.parquet", m, Trajectory), None, None)
            for i, m in enumerate(models)
        ]
        if rewards:
            sources[0] = replace(sources[0], rewards=write_records(tmp_path / "r.parquet", rewards, StepReward))
        if advantages:
            sources[0] = replace(sources[0], advantages=write_records(tmp_path / "a.parquet", advantages, Advantage))
        return write_viewer(tmp_path / "viewer.html", tmp_path / "queries.parquet", sources, page_size=size)

    return make


@given(st.text(alphabet=st.characters()))
def test_packed_text_comes_back_and_holds_nothing_a_page_could_trip_over(text):
    whole = json.dumps(text, ensure_ascii=False)
    packed = compress_text(whole)
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", packed)
    assert json.loads(unpack_data(packed)) == text  # half a surrogate pair too


def test_the_index_says_what_the_list_needs(write, trajectory, reward, advantage):
    played = trajectory("a", ["ok", "tool_error", "malformed", "finish"], None, round=3)
    rewards = [reward("a", i, 1, 0.5) for i in range(3)] + [reward("a", 3, 1, None, 1.0)]
    advantages = [advantage("a", i, r, a) for i, (r, a) in enumerate([(0.15, 0.5), (-0.09, -0.5), (0, 0.25), (1, 0)])]
    index, chunks = content(
        write([replace(played, stop_reason=StopReason.GAVE_UP)], rewards=rewards, advantages=advantages, q0="x" * 400)
    )

    assert index["models"] == ["policy"] and index["tools"] == ["get_order"]
    assert index["queries"] == [{"id": "q0", "split": "heldout", "tier": "single", "text": "x" * LISTED}]
    (row,) = index["rows"]
    assert row["verdict"] == 1.0  # the annotator's, where the environment has none
    assert row["reward"] == 1.06 and row["heat"] == [0.5, -0.5, 0.25, 0.0]
    assert (row["round"], row["stop"], row["failed"], row["tools"]) == (3, "gave_up", 2, [0])
    assert chunks[0][0]["instruction"] == "x" * 400 and chunks[0][0]["answer"] == "42"


def test_what_is_missing_is_null(write, trajectory, reward):
    (row,) = content(write([trajectory("a", ["ok", "finish"])], rewards=[reward("a", 0, None, 0.5)]))[0]["rows"]
    assert row["verdict"] is None and row["reward"] is None and row["heat"] == [None, None]


def test_every_row_leads_to_its_record_across_chunks_and_models(write, trajectory):
    def episodes(model):
        return [trajectory(f"{model}{i}", ["ok"] * 5, observation=f"{model}{i} " * 1000) for i in range(20)]

    index, chunks = content(write(episodes("before"), episodes("after")))
    assert index["models"] == ["A: policy", "B: policy"] and [r["model"] for r in index["rows"]] == [0] * 20 + [1] * 20
    assert [len(c) for c in chunks] == [10] * 4  # 5 observations cut to 6,000 characters: ten times 31,000 > CHUNK
    for row in index["rows"]:
        steps = chunks[row["chunk"]][row["line"]]["episode"]["steps"]
        assert steps[0]["observation"].startswith(row["id"] + " ")


def test_what_the_model_wrote_beside_its_calls_is_kept(write, trajectory):
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "First the order."},
        {"role": "tool", "content": "{}"},
        {"role": "assistant", "content": None},
    ]
    whole, torn = replace(trajectory("a", ["ok", "finish"]), messages=messages), trajectory("b", ["ok"])
    _, ((first, second),) = content(write([whole, replace(torn, messages=messages)]))
    assert [s["text"] for s in first["episode"]["steps"]] == ["First the order.", ""]
    assert [s["text"] for s in second["episode"]["steps"]] == [""]  # no telling which of the two it was


def test_a_trajectory_of_an_unknown_query_is_refused_and_the_former_page_stays(write, trajectory, tmp_path: Path):
    page = write([trajectory("a", ["finish"])])
    former = page.read_text()
    with pytest.raises(ValueError, match=r"'b' is of the query 'q9', which is not in .*queries.parquet"):
        write([trajectory("a", ["finish"]), trajectory("b", ["finish"], query="q9")])
    assert page.read_text() == former and not list(tmp_path.glob(".*partial"))


def test_attempts_at_a_task_share_a_page_and_bring_their_scores_along(write, trajectory, reward, tmp_path: Path):
    def played(model, *tasks):
        return [trajectory(f"{model}{task}", ["finish"], None, query=f"q{task}") for task in tasks]

    scores = [reward(f"a{task}", 0, 1, None, solved) for task, solved in [(2, 0.25), (0, 0.0), (1, 0.125)]]
    texts = {f"q{task}": f"task {task}" for task in range(4)}
    first = write(played("a", 0, 1, 2), played("b", 2, 0, 3), rewards=scores, size=3, **texts)
    pages = [first, tmp_path / "viewer-2.html"]
    assert sorted(tmp_path.glob("*.html")) == sorted(pages)
    indices = [content(page)[0] for page in pages]
    ids = [[row["id"] for row in index["rows"]] for index in indices]
    assert ids == [["a0", "a1", "b0"], ["a2", "b2", "b3"]]  # q0 has two attempts and q1 one: that is a page
    assert [[query["id"] for query in index["queries"]] for index in indices] == [["q0", "q1"], ["q2", "q3"]]
    assert [[row["verdict"] for row in index["rows"]] for index in indices] == [[0.0, 0.125, None], [0.25, None, None]]
    assert content(pages[1])[1][0][2]["instruction"] == "task 3"
    links = [re.findall(r'<a href="([^"]*)">(\w+)</a>', page.read_text()) for page in pages]
    assert links == [
        [("viewer-2.html", "next"), ("viewer-2.html", "last")],
        [("viewer.html", "first"), ("viewer.html", "previous")],
    ]


def test_one_page_has_no_links_to_others(write, trajectory):
    assert 'class="pages"' not in write([trajectory("a", ["finish"])], size=1).read_text()


def test_scores_by_two_annotators_are_refused(write, trajectory, reward):
    other = replace(reward("a", 0, 1, 0.5), annotator="lcs")
    with pytest.raises(ValueError, match=r"scores of one annotator, got those of .*lcs.*rules"):
        write([trajectory("a", ["ok"])], rewards=[reward("a", 0, 1, 0.5), other])


def test_more_sets_than_letters_are_refused(write, trajectory):
    with pytest.raises(ValueError, match="1 to 26 files of trajectories, got 27"):
        write(*[[trajectory("a", ["finish"])]] * 27)


def test_the_verdicts_of_an_evaluation_count_before_all_others(write, trajectory, reward, evaluation, tmp_path: Path):
    played = [trajectory("a", ["finish"], 1.0), trajectory("b", ["finish"], None), trajectory("c", ["finish"], None)]
    write(played, rewards=[reward(name, 0, 1, None, 0.5) for name in "abc"])
    rows = [evaluation("q0", "m", passed, trajectory_id=name) for name, passed in {"a": 0.0, "b": 1.0}.items()]
    judged = write_records(tmp_path / "e.parquet", rows, Evaluation)
    source = EpisodeFiles(tmp_path / "0.parquet", tmp_path / "r.parquet", evaluations=judged)
    page = write_viewer(tmp_path / "viewer.html", tmp_path / "queries.parquet", [source])
    assert [row["verdict"] for row in content(page)[0]["rows"]] == [0.0, 1.0, 0.5]


def test_a_file_of_another_contract_is_refused(write, trajectory, tmp_path: Path):
    write([trajectory("a", ["finish"])])
    with pytest.raises(ContractError, match="expected contract 'trajectories'"):
        write_viewer(tmp_path / "x.html", tmp_path / "queries.parquet", [EpisodeFiles(tmp_path / "queries.parquet")])


def test_no_trajectories_make_a_page_too(write):
    assert content(write([]))[0]["rows"] == []
