"""The viewer in a real browser, driven through its DevTools protocol."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from browser import Browser
from evaluation_rows import make_evaluation
from steptool.evaluation.results import compute_results
from steptool.records import Advantage, Query, Step, StepReward, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.tables import write_records
from steptool.report.evaluation_page import build_evaluation_page
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles

HOSTILE = '</script><script>window.owned=1</script><img src=x onerror="window.owned=1"> & <b>"\' \u2028 ünï 数'


class ViewerBrowser(Browser):
    """A browser that opens viewers and reads their list."""

    def open(
        self, page: Path, fragment: str = "", ready: str = "document.querySelector('.side, #detail .empty')"
    ) -> None:
        super().open(page, fragment, ready)

    def rows(self) -> list[int]:
        """Numbers of the trajectories that are listed, by their place in the file."""
        return [int(i) for i in self.js("[...document.querySelectorAll('.entry')].map((e) => e.id.slice(4))")]

    def set(self, control: str, value: str) -> None:
        """Give a control of the page a value, as a user would."""
        self.js(
            f"{{ const c = document.querySelector('[name={control}]'); "
            f"if (c.type === 'checkbox') c.checked = true; else c.value = {json.dumps(value)}; "
            "c.dispatchEvent(new Event('input')); }"
        )


@pytest.fixture(scope="module")
def browser(open_browser) -> ViewerBrowser:
    return open_browser(ViewerBrowser)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(queries: list[Any], *sources: EpisodeFiles) -> Path:
        file = write_records(tmp_path / "queries.parquet", queries, Query)
        return write_viewer(tmp_path / "viewer.html", file, sources, f"Test {HOSTILE}")

    return make


@pytest.fixture
def played(write, tmp_path: Path, query, trajectory, reward) -> Path:
    """Four trajectories that differ in one thing each, and one more on the first query."""
    queries = [
        query("q0", "where is order o1?"),
        replace(query("q1", "cancel Trip 7"), split="train"),
        query("q2", "what is 2 + 2?"),
    ]
    booked = Step(ToolCall("book_flight", {"to": "Oslo"}), StepStatus.OK, "seat 14C, Rate Limit near")
    last = Step(ToolCall("Finish", {}), StepStatus.FINISH, "")
    episodes = [
        trajectory("t0", ["ok", "finish"], 1.0),
        replace(trajectory("t1", ["ok", "finish"], 1.0, query="q1"), steps=[booked, last]),
        trajectory("t2", ["tool_error", "finish"], 0.0, query="q2"),
        replace(trajectory("t3", ["ok", "ok"], None, query="q2", round=-1), stop_reason=StopReason.STEP_LIMIT),
        replace(trajectory("t4", ["ok", "finish"], 0.0), sample=1),
    ]
    scores = [reward(f"t{i}", 0, 1, contribution) for i, contribution in enumerate([0.5, 1.0, 0.0])]
    scores += [reward(f"t{i}", 1, 1, None, solved) for i, solved in enumerate([1.0, 1.0, 0.0])]
    rewards = write_records(tmp_path / "rewards.parquet", scores, StepReward)
    return write(queries, EpisodeFiles(write_records(tmp_path / "a.parquet", episodes, Trajectory), rewards))


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("#split=train", [1]),
        ("#tool=BOOK", [1]),
        ("#outcome=solved", [0, 1]),
        ("#outcome=no+verdict", [3]),
        ("#stop=step_limit", [3]),
        ("#round=-1", [3]),
        ("#most=0.5", [2]),
        ("#least=0.5&outcome=solved", [0, 1]),
        ("#text=ORDER+O1", [0, 4]),
        ("#text=t2", [2]),
        ("#text=nothing+like+it", []),
        ("#text=rate+limit", []),
        ("#order=failed", [2, 0, 1, 3, 4]),
    ],
)
def test_an_address_filters(browser, played, fragment, expected):
    browser.open(played, fragment)
    assert browser.rows() == expected
    assert browser.js("document.querySelector('#count').textContent") == f"{len(expected)} of 5 trajectories"
    assert not browser.faults


def test_controls_filter_and_write_the_address(browser, played):
    browser.open(played)
    browser.set("outcome", "solved")
    assert browser.rows() == [0, 1]
    browser.set("tool", "get_")
    assert browser.rows() == [0]
    result = browser.js("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    assert result == {"query": "q0", "trajectory": "t0", "outcome": "solved", "tool": "get_"}


def test_the_steps_can_be_searched_too(browser, played):
    browser.open(played)
    browser.set("text", "rate limit")
    assert browser.rows() == []
    browser.set("deep", "1")
    browser.until("document.querySelectorAll('.entry').length === 1")
    assert browser.rows() == [1]
    browser.open(played, "#text=observation&deep=1")  # a name of a field is no word of a step
    assert browser.rows() == []


def test_the_arrow_keys_go_through_the_list(browser, played):
    browser.open(played)
    script = "document.querySelector('.entry[aria-selected=true]').id"
    browser.js("document.querySelector('#list').focus()")
    for key, expected in [
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", 4),
        ("ArrowDown", 4),
        ("Home", 0),
    ]:
        browser.press(key)
        assert browser.js(script) == f"row-{expected}"
        assert browser.js("document.querySelector('#list').getAttribute('aria-activedescendant')") == f"row-{expected}"
    unnamed = "[...document.querySelectorAll('input, select')].filter((c) => !c.labels[0]?.textContent.trim()).length"
    assert browser.js(unnamed) == 0


def test_two_models_stand_side_by_side_on_one_task(browser, write, tmp_path, query, trajectory, reward, advantage):
    def source(name: str, **episodes: Any) -> EpisodeFiles:
        rows = [replace(trajectory(f"{q}-{name}", *e, query=q), policy=name) for q, e in episodes.items()]
        return EpisodeFiles(write_records(tmp_path / f"{name}.parquet", rows, Trajectory))

    first = source("old", q0=(["ok", "finish"], 1.0), q1=(["tool_error", "finish"], 0.0), q2=(["finish"], 1.0))
    second = source("new", q1=(["ok", "ok", "finish"], 1.0), q0=(["finish"], 1.0))
    scores = [replace(reward("q1-new", 0, 1, 0.6), rationale="found the order"), reward("q1-new", 2, 1, None, 1.0)]
    gains = [advantage("q1-new", i, r, a) for i, (r, a) in enumerate([(0.3, 0.75), (-0.1, -0.25), (1.0, 0.5)])]
    second = replace(
        second,
        rewards=write_records(tmp_path / "r.parquet", scores, StepReward),
        advantages=write_records(tmp_path / "a.parquet", gains, Advantage),
    )
    page = write([query(f"q{i}", f"task {i}") for i in range(3)], first, second)

    browser.open(page, "#query=q1")
    sides = browser.js("[...document.querySelectorAll('.side')].map((s) => s.innerText)")
    assert [s.split("\n")[0] for s in sides] == ["A: old", "B: new"]
    assert "not solved in 2 steps, 1 failed" in sides[0] and "solved in 3 steps, 0 failed" in sides[1]
    assert "found the order" in sides[1] and "helped\n0.6" in sides[1] and "helped\n–" in sides[0]
    strip = browser.js("[...document.querySelectorAll('.side')[1].querySelectorAll('.cell')].map((c) => c.innerText)")
    assert strip == ["+.75", "−.25", "+.50"]
    tints = browser.js(
        "[...document.querySelectorAll('.side')[1].querySelectorAll('.cell')].map((c) => c.style.background)"
    )
    assert ["--good" in t for t in tints] == [True, False, True] and "--bad" in tints[1]

    assert browser.rows() == [0, 1, 2]  # those of the first model
    for compared, expected in [("solved by B only", [1]), ("solved by both", [0]), ("only one model tried", [2])]:
        browser.set("compared", compared)
        assert browser.rows() == expected
    browser.set("compared", "")
    browser.set("model", "all")
    assert browser.rows() == [0, 1, 2, 3, 4]
    browser.open(page, "#trajectory=q1-new&beside=none")
    assert browser.js("document.querySelectorAll('.side').length") == 1


def test_any_number_of_models_are_compared(browser, write, tmp_path, query, trajectory):
    def source(name: str, *solved: float | None) -> EpisodeFiles:
        rows = [trajectory(f"q{q}-{name}", ["finish"], s, query=f"q{q}") for q, s in enumerate(solved) if s != 9]
        return EpisodeFiles(
            write_records(tmp_path / f"{name}.parquet", [replace(t, policy=name) for t in rows], Trajectory)
        )

    models = source("old", 0, 1, 0, 1, None), source("new", 1, 1, 0, 0, 1), source("big", 1, 1, 0, 9, 1)
    page = write([query(f"q{q}", f"task {q}") for q in range(5)], *models)
    browser.open(page)
    for compared, expected in [
        ("solved by B, C only", [0]),
        ("solved by all", [1]),
        ("solved by none", [2]),
        ("solved by A only", [3]),
        ("no verdict", [4]),
    ]:
        browser.set("compared", compared)
        assert browser.rows() == expected, compared
    browser.open(page, "#model=C&query=q0&beside=B:q0-new")
    assert browser.rows() == [10, 11, 12, 13]
    headings = "[...document.querySelectorAll('.side .title')].map((h) => h.innerText)"
    assert browser.js(headings) == ["B: new", "C: big"]
    browser.open(page, "#model=all")
    assert browser.js("document.querySelector('#count').textContent") == "14 of 14 trajectories"
    assert browser.js(headings) == ["A: old", "B: new"]
    assert not browser.faults


def test_the_page_of_an_evaluation_leads_to_its_episodes(browser, write, tmp_path, query, trajectory):
    names = ["a.b", "c-d"]
    played = [replace(trajectory(name, ["finish"], 0.0), policy=name) for name in names]
    write(
        [query("q0")], *(EpisodeFiles(write_records(tmp_path / f"{t.policy}.parquet", [t], Trajectory)) for t in played)
    )
    rows = [make_evaluation("q0", 0.0, model=name) for name in names]
    page = tmp_path / "evaluation.html"
    page.write_text(build_evaluation_page(compute_results(rows, draws=100), "", "viewer.html"), encoding="utf-8")
    browser.command("Page.navigate", url=page.as_uri())
    browser.until("document.readyState === 'complete' && document.querySelector('#episodes')")
    link = browser.js("[...document.querySelectorAll('#episodes a')].find((a) => a.innerText === 'c-d').href")
    viewer = tmp_path / "viewer.html"
    assert link.startswith(viewer.as_uri())
    browser.open(viewer, link.removeprefix(viewer.as_uri()))
    assert browser.rows() == [1]


def test_an_address_of_an_unknown_query_says_so(browser, played):
    browser.open(played, "#query=q77")
    assert "No trajectory of q77 is in this file." in browser.js("document.querySelector('#detail').textContent")


def test_hostile_text_stays_text_and_nothing_leaves_the_page(browser, write, tmp_path, query, trajectory, reward):
    step = Step(ToolCall(HOSTILE, {HOSTILE: HOSTILE, "deep": [HOSTILE]}), StepStatus.OK, HOSTILE * 20)
    episode = replace(
        trajectory(HOSTILE, ["finish"], 1.0, query=HOSTILE),
        steps=[step],
        policy=HOSTILE,
        final_answer=HOSTILE,
        tier=HOSTILE,
        messages=[{"role": "assistant", "content": HOSTILE}],
    )
    rewards = write_records(
        tmp_path / "r.parquet", [replace(reward(HOSTILE, 0, 1, 0.5, 1.0), rationale=HOSTILE)], StepReward
    )
    queries = [replace(query(HOSTILE, HOSTILE), tier=HOSTILE, split=HOSTILE), replace(query("q1"), tier="other")]
    plain = trajectory("plain", ["finish"], 0.0, query="q1")
    page = write(queries, EpisodeFiles(write_records(tmp_path / "t.parquet", [episode, plain], Trajectory), rewards))

    browser.open(page)
    words = browser.js("document.querySelector('#detail').textContent")
    # instruction, query, split, tier, policy, call, what was said, arguments and a name, observation, rationale, answer
    assert words.count(HOSTILE) >= 31
    assert browser.js("document.title") == f"Test {HOSTILE}"
    assert browser.js("document.querySelectorAll('img, iframe, [onerror]').length") == 0
    assert browser.js("document.querySelectorAll('script:not([type])').length") == 1
    assert {url for url in browser.requests if not url.startswith("about:")} == {page.as_uri()}
    # Were markup ever to slip in, the page's own policy would not run it.
    browser.js("document.body.insertAdjacentHTML('beforeend', '<img src=\"x:\" onerror=\"window.owned=1\">')")
    browser.js("new Promise((done) => setTimeout(done, 50))")
    assert browser.js("window.owned") is None
    assert not browser.faults


@pytest.mark.slow
def test_twenty_thousand_trajectories_stay_usable(browser, write, tmp_path, query, trajectory):
    rng = random.Random(0)
    words = [f"{rng.randrange(1 << 24):x}" for _ in range(3000)]
    queries = [query(f"q{i}", f"task {i}: {' '.join(rng.choices(words, k=20))}") for i in range(10_000)]
    pattern = trajectory("p", ["ok", "tool_error", "ok", "finish"], 1.0)

    def episode(number: int) -> Any:
        steps = [
            replace(s, observation=f"{number} {s.status} {' '.join(rng.choices(words, k=60))}") for s in pattern.steps
        ]
        name = f"q{number % 10_000}"
        return replace(pattern, trajectory_id=f"t{number}", query_id=name, solved=float(number % 3 == 0), steps=steps)

    file = write_records(tmp_path / "t.parquet", [episode(i) for i in range(20_000)], Trajectory)
    start = time.perf_counter()
    page = write(queries, EpisodeFiles(file))
    written = time.perf_counter() - start
    start = time.perf_counter()
    browser.open(page)
    opened = time.perf_counter() - start
    assert browser.js("document.querySelectorAll('.entry').length") < 40  # of 20,000: only those in sight
    browser.js("list.scrollTop = list.scrollHeight")
    browser.until("document.querySelector('#row-19999')")
    assert browser.rows()[-1] == 19_999 and len(browser.rows()) < 40

    start = time.perf_counter()
    browser.set("text", "task 777:")
    filtered = time.perf_counter() - start
    assert browser.rows() == [777, 10_777]
    start = time.perf_counter()
    browser.js("location.hash = '#query=q9999'")
    browser.until("document.querySelector('.task code').textContent === 'q9999'")
    headings = time.perf_counter() - start
    browser.open(page)
    start = time.perf_counter()
    browser.set("text", "19999 tool_error")
    browser.set("deep", "1")
    browser.until("document.querySelectorAll('.entry').length === 1 && !count.textContent.includes('searched')", 60)
    searched = time.perf_counter() - start
    print(
        f"\n20,000 trajectories, {page.stat().st_size / 1e6:.1f} MB: written in {written:.1f} s, open in {opened:.2f} s"
    )
    print(f"filtered in {filtered:.3f} s, a deep link in {headings:.3f} s, all steps searched in {searched:.1f} s")
    assert opened < 5 and filtered < 5 and headings < 5 and searched < 30
