"""Which queries are kept, and in which split."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.config import DataConfig
from steptool.data.parsing import IngestError, IngestLog
from steptool.data.recordings.recording import RecordedTurn, Recording
from steptool.data.splits import SPLITS, StagingDatabase, make_text_key
from steptool.records import Query, Reference


def query(text, split="", query_id=None):
    return Query(query_id or text, split, "replay", text, ())


def data(train, validation, heldout, exact=True):
    return DataConfig(train_queries=train, validation_queries=validation, heldout_queries=heldout, exact_splits=exact)


def draw(queries, sizes, recorded=(), log=None):
    """The queries that are kept, by id, with their splits."""
    with tempfile.TemporaryDirectory() as folder, StagingDatabase(Path(folder)) as staging:
        for one in queries:
            staging.add_query(one)
        for text in recorded:
            staging.add_recording(Recording(Path("a.json"), None, text, (), (RecordedTurn("", "", "Yes.", None),)))
        staging.draw(sizes, log or IngestLog())
        return {row["query_id"]: row["split"] for row in staging.query_rows()}


texts = st.lists(st.text(min_size=1).filter(str.strip), unique_by=make_text_key, max_size=30)


@settings(max_examples=50)
@given(texts, st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_a_text_is_in_one_split_whatever_stands_around_it(instructions, train, validation, heldout):
    sizes = data(train * 100, validation * 100, heldout * 100, exact=False)
    numbered = dict(enumerate(instructions))
    one = draw([query(t, query_id=f"{n}") for n, t in numbered.items()], sizes)
    both = [query(t, query_id=f"{n}") for n, t in numbered.items()]
    both += [query(f" {t}\n", query_id=f"again {n}") for n, t in reversed(numbered.items())]
    two = draw(both, sizes)
    assert two == one | {f"again {n}": split for n, split in one.items()}


def test_the_shares_are_those_of_the_configured_numbers():
    sizes = data(6000, 1000, 3000, exact=False)
    splits = Counter(draw([query(f"Question {n}") for n in range(4000)], sizes).values())
    assert abs(splits["train"] / 4000 - 0.6) < 0.03
    assert abs(splits["validation"] / 4000 - 0.1) < 0.03
    assert abs(splits["heldout"] / 4000 - 0.3) < 0.03


@pytest.mark.parametrize(
    ("tasks", "sizes", "expected"),
    [
        (60, (40, 5, 15), (40, 5, 15)),
        (100, (40, 5, 15), (40, 5, 15)),
        (30, (40, 5, 15), (20, 3, 7)),  # 20, 2.5 and 7.5: the largest remainders get the rest, the first of two first
        (3, (2400, 200, 400), (3, 0, 0)),  # 2.4, .2 and .4
        (10, (2400, 200, 400), (8, 1, 1)),  # 8, .67 and 1.33
    ],
)
def test_splits_are_exact_where_the_data_allow_it(tasks, sizes, expected):
    log = IngestLog()
    splits = draw([query(f"Question {n}") for n in range(tasks)], data(*sizes), log=log)
    assert tuple(Counter(splits.values())[split] for split in SPLITS) == expected
    dropped = sum(number for name, number in log.counts.items() if name.startswith("queries dropped"))
    assert dropped == tasks - sum(expected)


def test_a_group_of_which_no_task_is_kept_is_named_with_its_number():
    """The limit keeps the 2 training tasks with a recording; 'long' is kept in the held-out split, 'rare' in none."""
    tasks = [
        *(replace(query(f"Short {n}", "train"), tier="short") for n in range(2)),
        replace(query("Long 0", "train"), tier="long"),
        replace(query("Long 1", "heldout"), tier="long"),
        *(replace(query(f"Rare {n}", "train"), tier="rare") for n in range(3)),
        query("Of no group", "train"),
    ]
    log = IngestLog()
    splits = draw(tasks, data(2, 1, 1), recorded=["Short 0", "Short 1"], log=log)
    assert sorted(splits.values()) == ["heldout", "train", "train"]
    assert {name: number for name, number in log.counts.items() if name.startswith("queries")} == {
        "queries dropped: more than data.train_queries": 2,
        "queries dropped: more than data.train_queries, which leaves no task of the group 'rare'": 3,
    }


@settings(max_examples=50, deadline=None)
@given(texts, st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.data())
def test_exact_splits_move_as_few_tasks_as_they_need_and_none_that_is_given_a_split(
    instructions, train, validation, heldout, choices
):
    given_splits = {t: choices.draw(st.sampled_from(["", "", *SPLITS])) for t in instructions}
    families = {
        t: choices.draw(st.sampled_from(["a", "b", None])) if not given_splits[t] else None for t in instructions
    }
    queries = [
        replace(query(t, given_splits[t], f"{n}"), reference=Reference(family=families[t]))
        for n, t in enumerate(instructions)
    ]
    loose = draw(queries, data(train * 1000, validation * 1000, heldout * 1000, exact=False))
    exact = draw(queries, data(train, validation, heldout))
    by_id = {f"{n}": t for n, t in enumerate(instructions)}
    assert all(exact[name] == given_splits[by_id[name]] for name in exact if given_splits[by_id[name]])
    for family in ("a", "b"):
        assert len({split for name, split in exact.items() if families[by_id[name]] == family}) <= 1
    before, after = Counter(loose.values()), Counter(exact.values())
    for split, size in zip(SPLITS, (train, validation, heldout), strict=True):
        moved_in = [name for name in exact if exact[name] == split and loose[name] != split]
        assert not moved_in or (before[split] < size and after[split] <= size)


def test_the_draw_never_changes():
    splits = draw([query(f"Question {n}?") for n in range(6)], data(60, 20, 20, exact=False))
    assert list(splits.values()) == ["train", "train", "train", "validation", "validation", "train"]


def test_a_given_split_holds_for_equal_texts():
    queries = [query("a  b", query_id="1"), query("a b", "heldout", "2"), query("a b\n", query_id="3")]
    assert list(draw(queries, data(99, 1, 9)).values()) == ["heldout"] * 3


def test_a_family_stays_together_whatever_its_texts():
    variants = [replace(query(f"Question {n}?"), reference=Reference(family="Question 0?")) for n in range(1, 9)]
    splits = draw([query("Question 0?"), *variants], data(100, 100, 100))
    assert len(splits) == 9 and len(set(splits.values())) == 1


def test_one_text_in_two_splits_is_refused():
    with pytest.raises(IngestError, match=r"'1' \(train\) and '2' \(heldout\)|'2' \(heldout\) and '1' \(train\)"):
        draw([query("a", "train", "1"), query(" a ", "heldout", "2")], data(1, 1, 1))


def test_recorded_queries_are_kept_first_and_order_stays():
    queries = [query(f"Question {n}", "train") for n in range(50)]
    recorded = {"Question 41", "Question 3", "Question 17"}
    log = IngestLog()
    rows = list(draw(queries, data(5, 1, 1), recorded, log))
    assert len(rows) == 5 and recorded <= set(rows)
    assert rows == sorted(rows, key=lambda t: int(t.split()[1]))
    assert log.counts == {"queries dropped: more than data.train_queries": 45, "demonstrations kept": 3}
