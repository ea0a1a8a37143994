import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser import Browser
from steptool.config import Config
from steptool.report.run_inputs import ReportInputs
from steptool.report.run_page import build_report, describe_method

VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that every tag is closed in order; keeps visible text, scripts, ids and links."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def test_the_page_is_well_formed_and_holds_the_numbers(full):
    page = Page(build_report(full))
    for expected in (
        "StepTool solves 90% of 10 held-out tasks, 60 points more than the warm start",
        "The judge was not asked.",
        "ingest: queries dropped: no tools",
        "1,200",
        "Each round the current model made 96 attempts",
        "3 of 192 episodes had a missing score",
        "No sign of farming",
        "0.3 × (0.3 × (SuccCalling − 1) + Contribution − 0.5 if the call is redundant)",
    ):
        assert expected in page.words, expected


def test_the_tables_show_hand_computed_cells(full):
    html = build_report(full)
    rollout = re.search(r"<tr><th scope=\"row\">rollout</th>(.*?)</tr>", html, re.S).group(1)
    assert [c.strip() for c in re.findall(r"<td[^>]*>([^<]*)</td>", rollout)] == ["2", "20.0", "10,000", "500", "1,000"]
    # of 10 greedy tasks 6 were fixed, 3 solved by both, 1 by neither, none broken
    row = next(r for r in re.findall(r"<tr>.*?</tr>", html, re.S) if "StepTool − Warm start" in r)
    cells = [re.sub(r"<.*?>", "", c).strip() for c in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)]
    assert cells[:3] == ["StepTool − Warm start", "greedy", "+60"] and cells[6:] == ["10", "6", "0", "3", "1"]
    assert 0.05 < float(cells[4]) < 0.4  # 1/32 by itself, among four comparisons


def test_the_page_needs_no_network(full):
    page = Page(build_report(full))
    loading = [
        (t, k, v)
        for t, k, v in page.attributes
        if k in {"src", "srcset", "action", "data"} or (k == "href" and v[:1] != "#")
    ]
    assert not loading
    assert "@import" not in build_report(full) and not re.search(r"url\(|https?://", build_report(full))


def test_hostile_text_is_shown_as_text(full):
    page = Page(build_report(full))
    assert len(page.scripts) == 2  # the data and the viewer: none was smuggled in
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]
    data = json.loads(page.scripts[0])
    assert data["tasks"][0]["instruction"] == full.notes[1]
    assert data["tasks"][0]["before"]["steps"][0]["observation"] == full.notes[1]


def test_an_empty_run_is_a_page_that_says_so():
    page = Page(build_report(ReportInputs("nothing yet")))
    for expected in (
        "There is no result yet",
        "No model has been evaluated",
        "No round of rollouts",
        "No episodes were kept",
        "No costs",
    ):
        assert expected in page.words


def test_one_round_of_nothing_solved_is_said_plainly(results):
    config = Config().model_dump(mode="json")
    rounds = [
        {
            "round": 0,
            "episodes": 8,
            "verdicts": 0,
            "pass_rate": None,
            "mean_steps": 3.0,
            "invalid_call_rate": 1.0,
            "mean_reward": None,
            "succ_calling": None,
            "contribution": None,
            "is_solved": None,
            "idle_call_rate": None,
            "missing": 8,
        }
    ]
    rows = results(base="00", warm_start="00", steptool="00")
    page = Page(build_report(ReportInputs("dirty", config, rows, rollouts=rounds, farming={0: []})))
    assert "No model solved any of the 2 held-out tasks" in page.words
    assert (
        "There was only one round: 8 attempts, – solved, 3.0 steps on average, 100% of the calls failed." in page.words
    )
    assert "Two rounds are needed" in page.words


@pytest.mark.parametrize(
    ("ppo", "name"),
    [
        ({}, "StepTool"),
        ({"algorithm": "rft"}, "RFT"),
        ({"algorithm": "gigpo", "reward": "final"}, "GiGPO"),
        ({"reward": "final"}, "PPO"),
        (None, "StepTool"),
    ],
)
def test_the_method_has_its_own_name(ppo, name, results):
    config = {"ppo": ppo}
    assert describe_method(config)[0] == name
    page = Page(build_report(ReportInputs("x", config, results(warm_start="01", steptool="11"))))
    assert f"{name} solves 100% of 2 held-out tasks" in page.words


def test_the_viewer_runs_in_a_browser(browser: Browser, full, tmp_path: Path):
    (tmp_path / "report.html").write_text(build_report(full), encoding="utf-8")
    browser.open(tmp_path / "report.html")
    viewer = browser.js("document.getElementById('viewer').outerHTML")
    assert viewer.count('class="step ') == 5  # three steps before, two after
    assert viewer.count("<li><button") == 2 and "2 of 2 tasks" in viewer
    assert "fixed: only after training" in viewer and "not solved" in viewer
    assert "get_order" in viewer and "no call could be read" in viewer
    assert "<b>+0.75</b>" in viewer and ">+.75</button>" in viewer
    assert '<details class="fold">' in viewer  # the long observation
    assert "&lt;/script&gt;&lt;script&gt;" in viewer and "<img" not in viewer
    assert browser.js("document.title") == full.title  # the hostile script did not run
    assert not browser.faults


def test_the_page_links_to_the_files_beside_it():
    html = build_report(
        ReportInputs("x", files={"the complete configuration": ["config.yaml"], "the models": ["model/", "a b/"]})
    )
    assert re.findall(r'<a href="([^"#]+)">', html) == ["config.yaml", "model/", "a%20b/"]
    assert "the complete configuration" in html
    assert "Beside this page" not in build_report(ReportInputs("x"))
