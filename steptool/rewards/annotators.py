"""Annotators by name, and how they annotate trajectories in memory and in files.

`Truth` asks the environment. Rules score a trajectory from its text alone, without environment and judge:

SuccCalling   1 if the call is well formed and neither the status nor the observation's text reports a failure.
Contribution  "rules":   1 if the step changed what the user asked about and knew what it changed, if it returned values
                         for the first time that the final answer or a later contributing call uses, or if such a call
                         acts on a thing that this step asked about (looking before acting: what was seen decided the
                         branch), or if it told the user what tools returned and the request asks for. See `data_flow`
                         and `reports`.
              "lcs":     as released with StepTool (src/reward/annotation_by_rules.ipynb): 1 if LCS(response, Finish) /
                         |response| >= 0.3, over characters; the response without its {"error", "response"} envelope,
                         failed or not; Finish as the text of its arguments.
              "overlap": 1 if LCS(observation, final answer) / |observation| >= 0.3; else, and for a failed step, 0.
IsSolved      0 without an answer, 1 or 0 against the reference's answer where there is one, else 0.5 (unsure).

The two overlap rules suit long prose and fail on short structured observations, where the answer repeats little of the
text ({"order_id": "ord_07"} and the answer "ref_12"). The first follows the values instead. It rewards each first
question about a thing, needed or not, so a policy can gain from asking more than necessary, up to the step limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from steptool.config import JudgeConfig
from steptool.judge.annotator import (
    Annotator,
    RemoteAnnotator,
    StepScore,
    count_reasons,
    map_in_order,
    replace_surrogates,
)
from steptool.records import FINISH, Query, Step, StepReward, StepStatus, ToolCall, Trajectory
from steptool.records.tables import iterate_records, write_records
from steptool.rewards.data_flow import find_contributions
from steptool.rewards.observations import find_failure, is_solved
from steptool.storage.sqlite import QueryTable

OVERLAP = 0.3
"""Share of a text's characters from which the overlap rules count a step as contributing."""
_OPENING = '{"error": "", "response": '
_MARK = len('{"error": "')
"""Number of characters at the beginning of an envelope that identify it, with an error or without."""
SUCCEEDED = frozenset({StepStatus.OK, StepStatus.FINISH})


class DataFlowRules:
    """The rules with Contribution by changes, and by the way of values through the trajectory."""

    name = "rules"
    version = "5"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [find_step_failure(step) for step in trajectory.steps]
        uses = find_contributions(query, trajectory, failures)
        return _score_steps(query, trajectory, failures, [float(use != "") for use in uses], uses)


class PublishedRules:
    """The rules with Contribution as StepTool released it, by the longest common subsequence."""

    name = "lcs"
    version = "4"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [find_step_failure(step) for step in trajectory.steps]
        finish = read_finish_arguments(trajectory)
        shares = [overlap(unwrap(step.observation), finish) for step in trajectory.steps]
        notes = [f"overlap {share:.3f}" for share in shares]
        return _score_steps(query, trajectory, failures, [float(share >= OVERLAP) for share in shares], notes)


class OverlapRules:
    """The rules with Contribution by the longest common subsequence of observation and answer, without failed steps."""

    name = "overlap"
    version = "1"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [find_step_failure(step) for step in trajectory.steps]
        answer = trajectory.final_answer or ""
        shares = [
            0.0 if failed else overlap(step.observation, answer)
            for step, failed in zip(trajectory.steps, failures, strict=True)
        ]
        notes = [f"overlap {share:.3f}" for share in shares]
        return _score_steps(query, trajectory, failures, [float(share >= OVERLAP) for share in shares], notes)


def _score_steps(
    query: Query,
    trajectory: Trajectory,
    failures: Sequence[str],
    contributions: Sequence[float],
    notes: Sequence[str],
) -> list[StepScore]:
    last = len(trajectory.steps) - 1
    rows = zip(trajectory.steps, failures, contributions, notes, strict=True)
    return [
        StepScore(
            succ_calling=float(not failed),
            contribution=None if step.status is StepStatus.FINISH and number == last else contribution,
            is_solved=is_solved(query, trajectory) if number == last and not trajectory.check_error else None,
            rationale=f"failed: {failed}" if failed else note,
        )
        for number, (step, failed, contribution, note) in enumerate(rows)
    ]


def find_step_failure(step: Step) -> str:
    """Why a step failed, from its status and its observation's text; empty if it did not."""
    if step.status is StepStatus.FINISH:
        return ""
    if step.call is None or step.status is not StepStatus.OK:
        return str(step.status)
    return find_failure(step.observation)


def overlap(observation: str, answer: str) -> float:
    """LCS(observation, answer) / |observation| over characters, in [0, 1]; 0 for an empty observation."""
    from rapidfuzz.distance import LCSseq  # it imports pandas, half a second that most tasks can do without

    return LCSseq.similarity(observation, answer) / len(observation) if observation else 0.0


def read_finish_arguments(trajectory: Trajectory) -> str:
    """The arguments of the Finish that ends the trajectory, as ToolBench's models write JSON; empty without one."""
    call = trajectory.steps[-1].call if trajectory.steps else None
    return json.dumps(dict(call.arguments), ensure_ascii=False, indent=2) if call and call.name == FINISH else ""


def unwrap(observation: str) -> str:
    """The response as the released rule takes it out of its envelope.

    An envelope that is not strict JSON, such as one that was cut, loses as many characters as the opening of one has.
    """
    try:
        value = json.loads(observation)
    except (ValueError, RecursionError):
        return observation[len(_OPENING) :] if observation.startswith(_OPENING[:_MARK]) else observation
    return str(value["response"]) if isinstance(value, dict) and "response" in value else observation


class Truth:
    """Scores against `Query.reference.calls` and `Trajectory.solved`.

    SuccCalling: the step's status. Contribution: the call succeeded and is one of the reference's calls that no earlier
    step has made yet; missing where the reference lists no calls. IsSolved: the environment's verdict; missing where it
    has none.
    """

    name = "truth"
    version = "1"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        last = len(trajectory.steps) - 1
        contributions = _score_contributions(query.reference.calls, trajectory.steps)
        return [
            StepScore(
                succ_calling=float(step.status in SUCCEEDED),
                contribution=None if step.status is StepStatus.FINISH and number == last else contribution,
                is_solved=trajectory.solved if number == last else None,
            )
            for number, (step, contribution) in enumerate(zip(trajectory.steps, contributions, strict=True))
        ]


def _score_contributions(calls: Sequence[ToolCall] | None, steps: Sequence[Step]) -> Iterator[float | None]:
    open_calls = list(calls or ())
    for step in steps:
        if calls is None:
            yield None
        elif step.status is StepStatus.OK and step.call in open_calls:
            open_calls.remove(step.call)
            yield 1.0
        else:
            yield 0.0


ANNOTATORS: Mapping[str, Callable[[], Annotator]] = {
    "rules": DataFlowRules,
    "lcs": PublishedRules,
    "overlap": OverlapRules,
    "truth": Truth,
}
"""Annotators by the name that a configuration uses. "judge" is not among them: it needs a configuration of its own."""


def make_annotator(name: str, judge: JudgeConfig | None = None) -> Annotator:
    """The annotator of this name. Raises ValueError for an unknown name, and for a judge without an endpoint."""
    if name == "judge":
        from steptool.judge.judges import StepJudge  # its HTTP client takes half a second to import

        return StepJudge(judge or JudgeConfig())
    if name not in ANNOTATORS:
        raise ValueError(f"unknown annotator '{name}': expected one of judge, {', '.join(sorted(ANNOTATORS))}")
    return ANNOTATORS[name]()


@contextmanager
def open_annotator(name: str, judge: JudgeConfig | None = None) -> Iterator[Annotator]:
    """The annotator of this name; its connections are closed in the end."""
    annotator = make_annotator(name, judge)
    try:
        yield annotator
    finally:
        if isinstance(annotator, RemoteAnnotator):
            annotator.close()


def get_annotator_counts(annotator: Annotator) -> dict[str, float]:
    """Requests, replies and costs of an annotator until now; empty for an annotator that sends no requests."""
    return annotator.counts() if isinstance(annotator, RemoteAnnotator) else {}


def describe_missing_scores(annotator: Annotator) -> str:
    """Why scores are missing, counted by reason, in one line; empty if none are."""
    reasons = annotator.missing_reasons() if isinstance(annotator, RemoteAnnotator) else {}
    return count_reasons(reasons)


def annotate(queries: Iterable[Query], trajectories: Iterable[Trajectory], annotator: Annotator) -> list[StepReward]:
    """Rows of StepReward: one per step of each trajectory, in order.

    Raises ValueError for a trajectory whose query is not among `queries` and for an annotator that skips a step.
    """
    return list(score_steps({q.query_id: q for q in queries}, trajectories, annotator))


def score_steps(
    queries: Mapping[str, Query], trajectories: Iterable[Trajectory], annotator: Annotator
) -> Iterator[StepReward]:
    """The rows of `annotate` as a stream: it takes a trajectory when the rows of the one before have been used.

    For a remote annotator it takes some trajectories ahead, so that several wait for the server at the same time.
    """
    if isinstance(annotator, RemoteAnnotator):
        parts = map_in_order(lambda t: _make_rows(queries, t, annotator), trajectories, annotator.concurrency)
    else:
        parts = (_make_rows(queries, t, annotator) for t in trajectories)
    return (row for rows in parts for row in rows)


def _make_rows(queries: Mapping[str, Query], trajectory: Trajectory, annotator: Annotator) -> list[StepReward]:
    if trajectory.query_id not in queries:
        raise ValueError(
            f"trajectory '{trajectory.trajectory_id}' answers the query '{trajectory.query_id}', which is not "
            f"among the {len(queries)} queries given; annotate trajectories with the queries they were rolled out on"
        )
    scores = annotator.annotate(queries[trajectory.query_id], trajectory)
    if len(scores) != len(trajectory.steps):
        raise ValueError(
            f"annotator '{annotator.name}' gave {len(scores)} scores for the {len(trajectory.steps)} steps of "
            f"trajectory '{trajectory.trajectory_id}'; one per step was expected"
        )
    return [_make_row(trajectory, number, score, annotator) for number, score in enumerate(scores)]


def _make_row(trajectory: Trajectory, number: int, score: StepScore, annotator: Annotator) -> StepReward:
    return StepReward(
        trajectory_id=trajectory.trajectory_id,
        step=number,
        annotator=annotator.name,
        annotator_version=annotator.version,
        prompt_hash=annotator.prompt_hash,
        succ_calling=score.succ_calling,
        contribution=score.contribution,
        is_solved=score.is_solved,
        votes=replace_surrogates(json.dumps(dict(score.votes), ensure_ascii=False)),
        rationale=replace_surrogates(score.rationale),
    )


def annotate_file(
    queries: str | os.PathLike[str],
    trajectories: str | os.PathLike[str],
    annotator: Annotator,
    target: str | os.PathLike[str],
) -> Path:
    """Write the rewards of a file of trajectories as a stream, in the order of the file.

    Raises what `annotate` raises, and JudgeError for a judge that gives no vote at all; then there is no file.
    """
    rows = score_steps(QueryTable(queries), iterate_records(trajectories, Trajectory), annotator)
    return write_records(target, _require_votes(rows, annotator), StepReward)


def _require_votes(rows: Iterable[StepReward], annotator: Annotator) -> Iterator[StepReward]:
    """The rows, and an error after the last one if a remote annotator could score none of them."""
    yield from rows
    if isinstance(annotator, RemoteAnnotator):
        annotator.require_votes()
