import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from steptool.config import Config, RewardConfig
from steptool.records import Cost
from steptool.report.run_inputs import EpisodePair, ReportInputs, ScoredEpisode
from steptool.report.run_page import build_report, describe_method
from steptool.rewards.farming import FarmingPoint

VOID = {"meta", "input", "br", "link", "img"}
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & <b>"\' \u2028 ünï 数'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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


@pytest.fixture
def full(results, evaluation, metric, trajectory, reward, advantage, query) -> ReportInputs:
    """A run of two rounds with everything a page can show, hostile text included."""
    rows = results(base="0" * 10, warm_start="1" * 3 + "0" * 7, steptool="1" * 9 + "0")
    rows += [
        evaluation(f"q{i}", m, 1.0, decoding="sampled", tier="long")
        for i in range(3)
        for m in ("warm_start", "steptool")
    ]
    before = trajectory("a", ["tool_error", "malformed", "finish"], 0.0, observation=HOSTILE)
    after = trajectory("b", ["ok", "finish"], 1.0, observation="long " * 300)
    scores = [reward("b", 0, 1, 0.6), reward("b", 1, 1, None, 1.0)]
    example = EpisodePair(
        query("q0", HOSTILE), ScoredEpisode(before), ScoredEpisode(after, scores, [advantage("b", 0, 0.18, 0.75)])
    )
    plain = EpisodePair(query("q1", "a plain task"), ScoredEpisode(after), ScoredEpisode(after))
    summary = {"episodes": 96, "mean_steps": 4.5, "mean_reward": 0.5, "succ_calling": 0.9, "contribution": 0.4}
    more = {"is_solved": 0.5, "idle_call_rate": 0.25, "invalid_call_rate": 0.125}
    return ReportInputs(
        title=f"A run {HOSTILE}",
        config=Config(rewards=RewardConfig(step_weight=0.3, alpha=0.3)).model_dump(mode="json") | {"note": HOSTILE},
        evaluations=rows,
        metrics=[
            *(
                metric("ppo", r, u, n, 0.1 * r + u)
                for r in (0, 1)
                for u in (0, 1)
                for n in ("kl", "entropy", "gradient")
            ),
            *(metric("warm_start", -1, u, "loss", 2.0 / (u + 1)) for u in range(60)),
        ],
        rollouts=[{"round": r, "pass_rate": 0.25 + r / 2, "missing": 3 * r, **summary, **more} for r in (0, 1)],
        farming={r: [FarmingPoint(n, 4 * n, 0.1 * n, float(n > 3)) for n in (2, 3, 4, 5)] for r in (0, 1)},
        costs=[
            Cost("rollout", 0, 12.5, 5000, 900.0),
            Cost("rollout", 1, 7.5, 5000, 1000.0),
            Cost("ppo", 0, 20.0, 0, 800.0),
        ],
        examples=[example, plain],
        counts={"ingest": {"queries read": 1200, "queries dropped: no tools": 17}},
        notes=["The judge was not asked.", HOSTILE],
    )


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
    assert data["tasks"][0]["instruction"] == HOSTILE
    assert data["tasks"][0]["before"]["steps"][0]["observation"] == HOSTILE


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


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_viewer_runs_in_a_browser(full, tmp_path: Path):
    (tmp_path / "report.html").write_text(build_report(full), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        CHROMIUM,
        *flags.split(),
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path / 'report.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    viewer = dom[dom.index('<div id="viewer"') : dom.index('<script id="trajectories"')]
    assert viewer.count('class="step ') == 5  # three steps before, two after
    assert viewer.count("<li><button") == 2 and "2 of 2 tasks" in viewer
    assert "fixed: only after training" in viewer and "not solved" in viewer
    assert (
        "get_order" in viewer
        and "no call could be read" in viewer
        and "<b>+0.75</b>" in viewer
        and ">+.75</button>" in viewer
    )
    assert '<details class="fold">' in viewer  # the long observation
    assert "&lt;/script&gt;&lt;script&gt;" in viewer and "<img" not in viewer
    assert "<title>A run &lt;/script&gt;" in dom  # the hostile script did not run


def test_the_page_links_to_the_files_beside_it():
    html = build_report(
        ReportInputs("x", files={"config.yaml": "the complete configuration", "model/README.md": "card"})
    )
    assert re.findall(r'<a href="([^"#]+)">', html) == ["config.yaml", "model/README.md"]
    assert "the complete configuration" in html
    assert "Beside this page" not in build_report(ReportInputs("x"))
