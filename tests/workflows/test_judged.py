"""A run whose steps a judge scores, and an evaluation of an endpoint that it judges, against real HTTP servers."""

import json
from pathlib import Path
from typing import Any

from steptool.config import Config
from steptool.records import Cost, Metric, StepReward, Verdict
from steptool.records.tables import read_records
from workflows.evaluate import evaluate
from workflows.train import train

Request = dict[str, Any]


def requested_call(request: Request) -> tuple[str, dict[str, Any]]:
    """The function that a request offers, and the schema of its arguments."""
    function = request["tools"][0]["function"]
    return function["name"], function["parameters"]["properties"]


def test_a_judge_scores_a_run_and_the_report_says_what_it_was_asked(chat, small: Config, tmp_path: Path) -> None:
    def judge(request: Request, number: int) -> Any:
        name, fields = requested_call(request)
        if number == 3:
            return chat.Answer({"role": "assistant", "content": "I would rather not."})
        count = fields["steps"]["minItems"]
        steps = [{"step": n, "success": n % 2, "contribution": 4} for n in range(1, count + 1)]
        return chat.call(name, {"reason": "as it is", "steps": steps, "status": "unsure"})

    server = chat.serve(judge)
    endpoint = {"base_url": server.url, "model": "j", "price_in": 10.0}
    judged = {
        "annotator": "judge",
        "judge": {"endpoint": endpoint, "votes": 1, "cache": str(tmp_path / "replies.sqlite")},
    }
    ppo = {**small.model_dump()["ppo"], "rounds": 1}
    out = tmp_path / "run"
    train(config=Config.model_validate({**small.model_dump(), "ppo": ppo, "rewards": judged}), output=str(out))

    rows = read_records(out / "rewards_round_00.parquet", StepReward)
    assert {round(r.contribution, 6) for r in rows if r.contribution is not None} == {0.8}
    assert all(r.annotator == "judge" and r.prompt_hash for r in rows)
    counts = [c.counts for c in read_records(out / "costs.parquet", Cost) if c.stage == "annotate"]
    assert sum(c["sent"] for c in counts) == len(server.requests) and sum(c["answers of no use"] for c in counts) == 1
    counts = {m.name: m.value for m in read_records(out / "metrics.parquet", Metric) if m.stage == "annotate"}
    assert counts["prompt_tokens"] == 100 * counts["requests"] and counts["money"] == counts["prompt_tokens"] * 10 / 1e6
    page = (out / "report.html").read_text()
    assert "Requests to the judge" in page and "replies that could not be used, asked again" in page


def test_an_endpoint_plays_and_is_judged(chat, tmp_path: Path) -> None:
    def player(request: Request, number: int) -> Any:
        return chat.call("Finish", {"return_type": "give_answer", "final_answer": "7"})

    def judge(request: Request, number: int) -> Any:
        name, fields = requested_call(request)
        answer = {"status": "solved"} if "status" in fields else {"better": "first"}
        return chat.call(name, {"reason": "", **answer})

    far, jury = chat.serve(player), chat.serve(judge)
    policies = [
        {"name": "far", "kind": "endpoint", "endpoint": {"base_url": far.url, "model": "m", "price_in": 1.0},
         "cache": str(tmp_path / "far.sqlite")},
        {"name": "reference", "kind": "playback"},
    ]  # fmt: skip
    settings = {
        "data": {"train_queries": 2, "validation_queries": 2, "heldout_queries": 4},
        "rewards": {"judge": {"endpoint": {"base_url": jury.url, "model": "j"}, "votes": 2}},
        "evaluation": {"policies": policies, "judged": True, "bootstrap": 200, "sampled_repeats": 0},
    }
    out = tmp_path / "out"
    evaluate(config=Config.model_validate(settings), output=str(out))
    assert len(far.requests) == 4
    statuses = {r.status for r in read_records(out / "verdicts.parquet", Verdict)}
    (cost,) = (c for c in read_records(out / "costs.parquet", Cost) if c.stage == "judge")
    # Two policies of four answers, and four pairs in two orders, two votes each.
    assert statuses == {"solved"} and cost.counts["requests"] == len(jury.requests) == 2 * (2 * 4 + 2 * 4)
    far_line, reference_line = json.loads((out / "metrics.json").read_text())["results"][:2]
    assert (far_line["pass_rate"], far_line["judged_pass_rate"]) == (0.0, 1.0)
    assert (reference_line["pass_rate"], reference_line["judged_pass_rate"]) == (1.0, 1.0)
    assert "Requests to the judge" in (out / "evaluation.html").read_text()

    evaluate(config=Config.model_validate(settings), output=str(out))
    assert len(far.requests) == 4  # the replies were kept
