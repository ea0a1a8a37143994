"""All pages in a real browser: axe-core finds nothing, nothing is cut off, tables sort, a model keeps its colour."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from browser import AXE, Browser
from evaluation_rows import make_evaluation
from steptool.config import Config
from steptool.evaluation.results import compute_results
from steptool.records import Cost, Evaluation, Trajectory
from steptool.records.episodes import Query
from steptool.records.tables import write_records
from steptool.report.elements import read_asset
from steptool.report.evaluation_page import build_evaluation_page, build_retraining_page, tabulate_judge_costs
from steptool.report.labelling import build_labelling_form, label_table
from steptool.report.rewards_page import build_rewards_page
from steptool.report.run_inputs import ReportInputs
from steptool.report.run_page import build_report
from steptool.report.stage_page import build_stage_page
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles
from steptool.retraining.plan import Criterion, Decision, Result, RetrainingPlan, RunOutcome
from steptool.rewards.audit_figures import Audit

Make = Callable[..., Any]
NAMES = ("report", "evaluation", "viewer", "label", "retraining", "rewards", "stage")
DECK = """<!doctype html><html lang="en"><head><meta name="viewport" content="width=device-width"><title>Deck</title>
    </head><body>{}</body></html>"""
"""What the console puts around a stage's page."""


TOOLS = [{"type": "function", "function": {"name": "get_" + "order_" * 20, "description": "Looks an order up."}}]
FINDINGS = """axe.run(document).then((found) => [found.passes.length, found.violations.map((v) => [v.id,
    v.nodes.map((n) => n.html.slice(0, 150) + ": " + n.any.map((a) => a.message).join())])])"""
OVERFLOW = """[
    Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth),
    [...document.querySelectorAll("table")].filter((table) => table.offsetParent !== null && (
        table.scrollWidth > table.parentElement.clientWidth ||
        [...table.querySelectorAll("td, th")].some((cell) => cell.scrollWidth > cell.clientWidth + 1)
    )).map((table) => table.innerText.slice(0, 200))]"""
SWATCHES = """Object.fromEntries([...document.querySelectorAll("td .swatch, .title .swatch")].map((swatch) => [
    swatch.parentElement.textContent.replace(/^[A-Z]: /, ""), getComputedStyle(swatch).backgroundColor]))"""
TABLE = """<div class="scroll"><table><thead><tr><th scope="col">Name</th><th scope="col">Share</th></tr></thead>
    <tbody>{}</tbody><tfoot><tr><th scope="row">total</th><td>99%</td></tr></tfoot></table></div>"""
CELLS = zip("abcde", ("9.5% (8 to 11)", "1,000%", "10%", "\u22122%", "\u2013"), strict=True)
SORTED = """<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">
    <style>{}</style><main class=report>{}</main><script>{}</script>""".format(
    read_asset("theme.css", "page.css"),
    TABLE.format("".join(f'<tr><th scope="row">{name}</th><td>{share}</td></tr>' for name, share in CELLS)),
    read_asset("tables.js"),
)


@pytest.fixture
def pages(tmp_path: Path, full: ReportInputs, audited: Audit, trajectory: Make, query: Make) -> dict[str, Path]:
    """Every page, with as much on it as it can show."""
    models = ("base", "warm_start", "steptool", "gpt-large-2026-01-01-with-a-long-name")
    rows = [
        make_evaluation(f"q{n}", float((n + place) % (place + 2) == 0), model=model, tier=("single", "long")[n % 2],
                        decoding=decoding, repeat=repeat, money=0.5)
        for place, model in enumerate(models)
        for n in range(12)
        for decoding, repeat in (("greedy", 0), ("sampled", 0), ("sampled", 1))
    ]  # fmt: skip
    costs = [Cost("annotate", round, counts={"requests": 41, "prompt_tokens": 61_500}) for round in (0, -1)]
    judged = tabulate_judge_costs({"training": costs[:1], "held-out": costs[1:]})
    evaluations = write_records(tmp_path / "evaluations.parquet", rows, Evaluation)
    queries = [query(f"q{n}", f"task {n}: " + "a long instruction " * 20) for n in range(3)]
    episodes = [trajectory(f"t{n}", ["ok", "tool_error", "ok", "finish"], n % 2, query=f"q{n}") for n in range(3)]
    sources = [
        EpisodeFiles(write_records(tmp_path / f"{m}.parquet", [replace(t, policy=m) for t in episodes], Trajectory))
        for m in models[:3]
    ]
    write_viewer(tmp_path / "viewer.html", write_records(tmp_path / "queries.parquet", queries, Query), sources)
    texts = {
        "report": build_report(replace(full, audits={0: audited}, costs=[*full.costs, *costs])),
        "evaluation": build_evaluation_page(compute_results(rows, draws=200), "seed: 0", "viewer.html", judged),
        "label": build_labelling_form([*label_table({q.query_id: q for q in queries}, episodes)], tools={"t0": TOOLS}),
        "retraining": build_retraining_page(_plan(), _refusal(), "training/report.html"),
        "rewards": build_rewards_page(audited),
        "stage": DECK.format(
            build_stage_page(
                "evaluate", {"config": Config(), "far": "s3://" + "deep/" * 50}, {"rows": evaluations}, costs[0]
            )
        ),
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: tmp_path / f"{name}.html" for name in NAMES}


def _plan() -> RetrainingPlan:
    new = [{"place": "logs/" + "folder/" * 20 + "a.jsonl", "size": 7, "sha256": "ab" * 32}]
    return RetrainingPlan.model_validate(
        {"run_id": "20261121T020000Z-1", "kickoff": "2026-11-21T02:00:00Z", "sequence": 0, "champion": "old",
         "base": "embedded", "new": new, "files": 3, "forced": False}
    )  # fmt: skip


def _refusal() -> RunOutcome:
    statement = "The lower end of the interval is −10 points; it has to be above 0 points. " * 3
    figures = {"tasks": 60, "measured": True, "mean": 0.01, "low": -0.1, "high": 0.1}
    gain = Criterion(name="gain in pass rate", passed=False, statement=statement, **figures)
    tasks = Criterion(name="held-out tasks", passed=True, statement="60 in the comparison", tasks=60)
    decision = Decision(criteria=[tasks, gain], left_out=3)
    return RunOutcome(result=Result.REFUSED, reasons=decision.reasons, decision=decision)


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_axe_finds_nothing(browser: Browser, pages: dict[str, Path], width: int, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("no axe-core: make test-pages brings it")
    violations = {}
    for name, page in pages.items():
        show(browser, page, width, scheme)
        browser.js(AXE.read_text(encoding="utf-8"))
        passed, violations[name] = browser.js(FINDINGS)
        assert passed > 10
    assert violations == {name: [] for name in pages}


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_off(browser: Browser, pages: dict[str, Path], width: int) -> None:
    for name, page in pages.items():
        show(browser, page, width)
        wide, cut = browser.js(OVERFLOW)
        assert (wide, cut) == (0, []), name


def test_a_heading_sorts_its_table_with_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    page = pages["label"].with_name("sort.html")
    page.write_text(SORTED, encoding="utf-8")
    browser.resize(1400)
    browser.open(page)
    browser.js("document.querySelectorAll('thead button')[1].focus()")
    orders = {}
    for _ in range(3):
        browser.press("Enter", text="\r")
        order = browser.js("document.querySelectorAll('thead th')[1].ariaSort")
        orders[order] = browser.js("[...document.querySelectorAll('tbody th')].map((c) => c.textContent).join('')")
    # 9.5%, 10%, 1,000% and −2%; what is missing stays last
    assert orders == {"ascending": "dacbe", "descending": "bcade", "none": "abcde"}
    assert browser.js("document.querySelector('thead th').ariaSort") == "none"
    assert browser.js("document.querySelector('tfoot').innerText.trim()").startswith("total")
    browser.js("document.querySelector('.orders select').value = '0 descending'")
    browser.js("document.querySelector('.orders select').dispatchEvent(new Event('change'))")
    assert browser.js("[...document.querySelectorAll('tbody th')].map((c) => c.textContent).join('')") == "edcba"
    assert browser.js("getComputedStyle(document.querySelector('.orders')).display") == "none"
    browser.resize(60)
    browser.until("getComputedStyle(document.querySelector('.orders')).display !== 'none'")
    assert not browser.faults


def test_a_model_has_one_colour_on_every_page(browser: Browser, pages: dict[str, Path]) -> None:
    colours = {}
    for name in ("report", "evaluation", "viewer"):
        show(browser, pages[name], 1400)
        colours[name] = browser.js(SWATCHES)
    assert colours["report"]["StepTool"] == colours["evaluation"]["steptool"]
    assert colours["report"]["Warm start"] == colours["evaluation"]["warm_start"] == colours["viewer"]["warm_start"]
    assert colours["report"]["Base"] == colours["evaluation"]["base"] == colours["viewer"]["base"]
    assert len({*colours["evaluation"].values()}) == 4


def show(browser: Browser, page: Path, width: int, scheme: str = "light") -> None:
    """Open a page at a width, with all that it folds away."""
    browser.resize(width)
    browser.prefer(scheme)
    browser.open(page)
    browser.until("!document.querySelector('body.viewer') || document.querySelector('.side')")
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
