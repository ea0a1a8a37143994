from collections.abc import Callable

import pytest

from steptool.policies.kv_cache import Copy, Fill, Rows
from steptool.records import Query
from steptool.rollout.episode import Episode

MakeQuery = Callable[..., Query]
TOOLS = list(range(1000, 1200))


@pytest.fixture
def episodes(make_query: MakeQuery) -> list[Episode]:
    return [Episode(make_query(f"q{n}", "go"), max_steps=8) for n in range(4)]


def plan(rows: Rows, *prompts: tuple[Episode, list[int], bool]) -> list[tuple[list[Copy], list[Fill]]]:
    return [(stage.copies, stage.fills) for stage in rows.plan(prompts)]


def test_prompts_that_begin_alike_are_copied_from_the_first_of_them(episodes: list[Episode]) -> None:
    rows = Rows(3)
    for episode in episodes[:3]:
        rows.take(episode)
    prompts = [(episodes[0], [*TOOLS, 0], True), (episodes[1], [7] * 9, True), (episodes[2], [*TOOLS, 2], True)]
    assert plan(rows, *prompts) == [
        ([], [Fill(0, 0, [*TOOLS, 0]), Fill(1, 0, [7] * 9)]),
        ([Copy(0, 2, 200)], [Fill(2, 200, [2])]),
    ]


def test_an_episode_goes_on_where_its_row_stands_and_a_later_one_takes_over_what_is_there(
    episodes: list[Episode],
) -> None:
    rows = Rows(2)
    rows.take(episodes[0])
    plan(rows, (episodes[0], [*TOOLS, 1, 2], True))
    rows.append(0, [3, 4])
    rows.take(episodes[1])
    stages = plan(rows, (episodes[0], [*TOOLS, 1, 2, 3, 4, 5, 6], False), (episodes[1], [*TOOLS, 9], True))
    assert stages == [([], [Fill(0, 204, [5, 6])]), ([Copy(0, 1, 200)], [Fill(1, 200, [9])])]
    rows.release(episodes[0])
    assert rows.take(episodes[2]) == 0 and rows.in_use == [0, 1]
    assert plan(rows, (episodes[2], [*TOOLS, 1, 8], True)) == [([], [Fill(0, 201, [8])])]


def test_equal_prompts_compute_their_last_token_each(episodes: list[Episode]) -> None:
    rows = Rows(2)
    for episode in episodes[:2]:
        rows.take(episode)
    stages = plan(rows, (episodes[0], TOOLS, True), (episodes[1], TOOLS, True))
    assert stages == [([], [Fill(0, 0, TOOLS)]), ([Copy(0, 1, 200)], [Fill(1, 199, TOOLS[199:])])]


def test_rows_that_go_on_are_numbered_anew(episodes: list[Episode]) -> None:
    rows = Rows(3)
    for episode in episodes[:3]:
        rows.take(episode)
    plan(rows, *((episode, [n, n + 1, n + 2], True) for n, episode in enumerate(episodes[:3])))
    rows.keep([2, 1])
    assert (rows.row_of(episodes[2]), rows.episode_of(1), len(rows)) == (0, episodes[1], 2)
    assert plan(rows, (episodes[2], [2, 3, 4, 5], False)) == [([], [Fill(0, 3, [5])])]
