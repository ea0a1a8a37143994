"""Verdicts asked of a judge behind a real HTTP server."""

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import numpy as np
import pytest

from servers import JsonHandler
from steptool.config import EndpointConfig, JudgeConfig
from steptool.judge.judges import judge_outcomes
from steptool.judge.verdicts import compute_win_rates, judged_pass_rate
from steptool.records import FINISH, Preference, Query, Step, StepStatus, StopReason, ToolCall, Trajectory, Verdict
from steptool.records.columns import to_row
from steptool.records.tables import to_table


class Judge(JsonHandler):
    """Calls an answer solved if it says 42, and prefers the one that does; of two of them the first."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        name = request["tools"][0]["function"]["name"]
        first, _, second = text.partition("The second assistant")
        better = "first" if "42" in first else "second" if "42" in second else "tie"
        value = {"better": better} if name == "report_choice" else {"status": "solved" if "42" in text else "unsolved"}
        function = {"name": name, "arguments": json.dumps({"reason": "as it is", **value})}
        message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
        self.answer({"choices": [{"index": 0, "message": message}], "model": "judge", "object": "x"})


@pytest.fixture
def judge() -> Iterator[JudgeConfig]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        endpoint = EndpointConfig(base_url=f"http://127.0.0.1:{server.server_port}/v1", model="judge", retries=0)
        yield JudgeConfig(endpoint=endpoint, votes=2)
        server.shutdown()


def episode(query: str, answer: str | None) -> Trajectory:
    call = ToolCall(FINISH, {"return_type": "give_answer", "final_answer": answer})
    return Trajectory(
        trajectory_id=f"{query}-{answer}", query_id=query, environment="none", tier="", policy="p", round=-1, sample=0,
        temperature=0.0, messages=[], input_ids=np.zeros(0, np.int32), spans=[], logprobs=np.zeros(0, np.float32),
        steps=[Step(call, StepStatus.FINISH, "")], final_answer=answer, solved=None, seconds=0.0,
        stop_reason=StopReason.FINISHED if answer else StopReason.STEP_LIMIT,
    )  # fmt: skip


def test_every_model_is_judged_and_every_two_are_compared(judge: JudgeConfig) -> None:
    """Of three queries a answers 42, 42 and nothing, b 41, 42 and 42. Where both say 42 the judge takes the first that
    it sees, so that the two orders make a tie: b wins one, loses one and ties one."""
    answers = {"a": ["42", "42", None], "b": ["41", "42", "42"]}
    queries = {f"q{n}": Query(f"q{n}", "heldout", "none", "How much?", ()) for n in range(3)}
    episodes = {model: [episode(f"q{n}", answer) for n, answer in enumerate(answers[model])] for model in answers}
    outcomes = judge_outcomes(judge, queries, episodes)
    to_table(map(to_row, outcomes.verdicts), Verdict)
    to_table(map(to_row, outcomes.preferences), Preference)
    for model in answers:
        rate = judged_pass_rate([v for v in outcomes.verdicts if v.model == model], set(queries))
        assert (rate.mean, rate.deviation, rate.repeats) == (pytest.approx(2 / 3), 0.0, 2)
    # Five answers, and two pairs of answers in two orders, twice each; equal texts are asked about once.
    counts = outcomes.counts
    assert counts["requests"] + counts["cached"] == 2 * 5 + 2 * 2 * 2 and counts["votes missing"] == 0
    (wins,) = compute_win_rates(outcomes.preferences)
    assert (wins.model, wins.other, wins.wins, wins.ties, wins.losses) == ("b", "a", 1, 1, 1)
