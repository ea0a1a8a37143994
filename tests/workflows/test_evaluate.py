"""Evaluation at the command line, in a real process."""

import html
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from commands import PYFLYTE, run_command
from steptool.config import Config, load_config
from steptool.config.base import ConfigError
from steptool.data.ingest import ingest
from steptool.data.parsing import IngestError
from steptool.models.load import EMBEDDED
from steptool.records import Cost, Evaluation, Trajectory, Verdict
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, write_records
from steptool.registry import Registry
from workflows.evaluate import evaluate, evaluate_champion

ROOT = Path(__file__).parents[2]
KICKOFF = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
SETTINGS = {
    "data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 4},
    "evaluation": {
        "sampled_repeats": 2,
        "bootstrap": 200,
        "policies": [{"name": "reference", "kind": "playback"}, {"name": "small", "model": "embedded"}],
    },
}


def write(folder: Path, **evaluation: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({**SETTINGS, "evaluation": {**SETTINGS["evaluation"], **evaluation}}))
    return path


def run(config: Path, output: Path) -> subprocess.CompletedProcess[str]:
    options = ("--config", str(config), "--output", str(output))
    return run_command(PYFLYTE, "run", "workflows/evaluate.py", "evaluate", *options)


def test_policies_are_compared_on_the_same_tasks(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run(write(tmp_path), out)
    assert process.returncode == 0, process.stdout + process.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "config.yaml", "costs.parquet", "evaluation.html", "evaluations.parquet", "metrics.json", "preferences.parquet",
        "published.json", "queries.parquet", "table.csv", "table.md", "table.tex", "trajectories_reference.parquet",
        "trajectories_small.parquet", "verdicts.parquet", "viewer.html",
    ]  # fmt: skip
    assert load_config(out / "config.yaml").evaluation.policies[1].model == "embedded"
    heldout_ids = {q.query_id for q in read_queries(out / "queries.parquet", "heldout")}
    rows = read_records(out / "evaluations.parquet", Evaluation)
    played = {(r.model, r.decoding, r.repeat) for r in rows}
    assert played == {
        ("reference", "greedy", 0),
        ("small", "greedy", 0),
        ("small", "sampled", 0),
        ("small", "sampled", 1),
    }
    assert len(rows) == 16 and {r.query_id for r in rows} == heldout_ids
    assert all(r.passed == 1.0 and r.recall == 1.0 for r in rows if r.model == "reference")
    episodes = [t for n in ("reference", "small") for t in read_records(out / f"trajectories_{n}.parquet", Trajectory)]
    assert {t.trajectory_id for t in episodes} == {r.trajectory_id for r in rows} and len(episodes) == 16
    assert sum(c.tokens for c in read_records(out / "costs.parquet", Cost)) == sum(r.tokens for r in rows) > 0
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["results"][0]["model"] == "reference" and figures["results"][0]["pass_rate"] == 1.0
    assert (out / "table.md").read_text() in process.stdout
    page = (out / "evaluation.html").read_text()
    assert figures["comparisons"][0]["conclusion"] in page and 'href="viewer.html#model=B">small</a>' in page
    assert "<title>Episodes of the evaluation</title>" in (out / "viewer.html").read_text()


def test_a_group_that_ingest_dropped_whole_is_named_beside_the_tables(tmp_path: Path) -> None:
    """Of two held-out tasks of two groups the limit keeps one."""
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    tasks = [
        {"instruction": f"Do {tier}", "tools": [tool], "tier": tier, "split": "heldout", "reference": {"answer": "1"}}
        for tier in ("easy", "hard")
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    data = {"source": "jsonl", "paths": [str(tmp_path / "tasks.jsonl")], "heldout_queries": 1}
    policies = [{"name": "small", "model": "embedded"}]
    evaluation = {"policies": policies, "sampled_repeats": 0, "bootstrap": 50}
    out = tmp_path / "out"
    evaluate(config=Config.model_validate({"data": data, "evaluation": evaluation}), output=str(out))
    (row,) = read_records(out / "evaluations.parquet", Evaluation)
    lost = {"easy": "hard", "hard": "easy"}[row.tier]
    gap = f"1 queries were dropped: more than data.heldout_queries, which leaves no task of the group '{lost}'."
    assert json.loads((out / "metrics.json").read_text())["left_out"][-1] == gap
    assert gap.replace("_", "\\_") in (out / "table.md").read_text()  # Markdown escapes it
    assert gap in html.unescape((out / "evaluation.html").read_text())


def test_stored_verdicts_give_the_judged_pass_rate(tmp_path: Path) -> None:
    """In this process: the reference's four answers, of which a judge calls one unsure and one unsolved."""
    first = evaluate(config=load_config(write(tmp_path, policies=SETTINGS["evaluation"]["policies"][:1])))
    queries = sorted(r.query_id for r in read_records(str(first.rows), Evaluation))
    verdicts_by_query = dict(zip(queries, ["unsure", "unsolved", "solved", "solved"], strict=True))
    verdicts = write_records(
        tmp_path / "v.parquet", [Verdict(q, "reference", 0, s) for q, s in verdicts_by_query.items()], Verdict
    )
    path = write(tmp_path, policies=SETTINGS["evaluation"]["policies"][:1], verdicts=[str(verdicts)])
    second = evaluate(config=load_config(path), output=str(tmp_path / "out"))
    assert json.loads(Path(str(second.figures)).read_text())["results"][0]["judged_pass_rate"] == 2.5 / 4
    assert read_records(tmp_path / "out" / "verdicts.parquet", Verdict) == read_records(verdicts, Verdict)


def test_what_cannot_be_evaluated_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(Exception, match="holds something else"):
        evaluate(config=load_config(write(tmp_path)), output=str(tmp_path / "thesis"))
    with pytest.raises(Exception, match=r"evaluation\.policies is empty"):
        evaluate(config=load_config(write(tmp_path, policies=[])))


@pytest.mark.parametrize(
    ("policies", "problem"),
    [
        ([{"name": "a"}], "the policy 'a' of the kind model needs the field model"),
        ([{"name": "a", "kind": "endpoint"}], "needs endpoint.base_url and .model"),
        ([{"name": "a", "kind": "playback", "strategy": "dfsdt"}], "the strategy dfsdt is for the kind model only"),
        ([{"name": "a", "kind": "playback"}] * 2, "policies need names of their own"),
        ([{"name": "a", "kind": "playback", "cache": "x"}], "a cache of replies is for the kind endpoint only"),
        ([{"name": "a/b", "kind": "playback"}], "evaluation.policies.0.name"),
    ],
)
def test_a_policy_that_is_not_whole_is_refused(tmp_path: Path, policies: list[object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(write(tmp_path, policies=policies))


@pytest.mark.parametrize("name", ["evaluate.yaml", "evaluate_toolbench.yaml"])
def test_the_shipped_configurations_name_policies(name: str) -> None:
    assert load_config(ROOT / "configs" / name).evaluation.require_policies()


def test_training_is_never_measured_on_training_queries(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"evaluation\.split is all"):
        ingest(load_config(write(tmp_path, split="all")), tmp_path / "out")


def test_starting_the_workflow_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'openai'}"
    program = f"import sys, workflows.evaluate; print(sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


@pytest.fixture
def champion_config() -> Config:
    return Config.model_validate(
        {
            "data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 4},
            "evaluation": {
                "sampled_repeats": 0,
                "bootstrap": 200,
                "policies": [{"name": "reference", "kind": "playback"}],
            },
        }
    )


def test_the_champion_is_compared_in_a_folder_named_after_the_kickoff(champion_config: Config, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    champion = registry.publish(EMBEDDED, {}).version_id
    registry.promote(champion, after=0, reason="the first")
    result = evaluate_champion(
        config=champion_config, registry=str(tmp_path / "registry"), output=str(tmp_path / "runs"), kickoff=KICKOFF
    )
    folder = tmp_path / "runs" / "evaluation-20260301T060000Z"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    assert Path(str(result.page)) == folder / "evaluation.html"
    rows = read_records(folder / "evaluations.parquet", Evaluation)
    passed = {name: [row.passed for row in rows if row.model == name] for name in {row.model for row in rows}}
    assert set(passed) == {"reference", "base", "champion"} and all(len(values) == 4 for values in passed.values())
    assert passed["champion"] == passed["base"]  # they are the same model
    assert passed["reference"] == [1.0] * 4
    assert champion in (folder / "config.yaml").read_text()
    assert json.loads((folder / "metrics.json").read_text())


def test_before_the_first_promotion_the_base_is_evaluated_alone(champion_config: Config, tmp_path: Path) -> None:
    result = evaluate_champion(
        config=champion_config, registry=str(tmp_path / "registry"), output=str(tmp_path / "runs"), kickoff=KICKOFF
    )
    rows = read_records(Path(str(result.rows)), Evaluation)
    assert {row.model for row in rows} == {"reference", "base"}
