"""Rules that score a trajectory from its text alone: no environment, no judge.

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
from collections.abc import Sequence

from steptool.judge.annotator import StepScore
from steptool.records import FINISH, Query, Step, StepStatus, Trajectory
from steptool.rewards.data_flow import contributions
from steptool.rewards.observations import failure, is_solved

OVERLAP = 0.3
"""Share of a text's characters from which the overlap rules count a step as contributing."""
_OPENING = '{"error": "", "response": '
_MARK = len('{"error": "')
"""Number of first characters that identify an envelope, with an error or without."""


class DataFlowRules:
    """The rules with Contribution by changes, and by the way of values through the trajectory."""

    name = "rules"
    version = "5"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [step_failure(step) for step in trajectory.steps]
        uses = contributions(query, trajectory, failures)
        return _scores(query, trajectory, failures, [float(use != "") for use in uses], uses)


class PublishedRules:
    """The rules with Contribution as StepTool released it, by the longest common subsequence."""

    name = "lcs"
    version = "4"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [step_failure(step) for step in trajectory.steps]
        finish = finish_arguments(trajectory)
        shares = [overlap(unwrap(step.observation), finish) for step in trajectory.steps]
        notes = [f"overlap {share:.3f}" for share in shares]
        return _scores(query, trajectory, failures, [float(share >= OVERLAP) for share in shares], notes)


class OverlapRules:
    """The rules with Contribution by the longest common subsequence of observation and answer, without failed steps."""

    name = "overlap"
    version = "1"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [step_failure(step) for step in trajectory.steps]
        answer = trajectory.final_answer or ""
        shares = [
            0.0 if failed else overlap(step.observation, answer)
            for step, failed in zip(trajectory.steps, failures, strict=True)
        ]
        notes = [f"overlap {share:.3f}" for share in shares]
        return _scores(query, trajectory, failures, [float(share >= OVERLAP) for share in shares], notes)


def _scores(
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


def step_failure(step: Step) -> str:
    """Why a step failed, from its status and its observation's text; empty if it did not."""
    if step.status is StepStatus.FINISH:
        return ""
    if step.call is None or step.status is not StepStatus.OK:
        return str(step.status)
    return failure(step.observation)


def overlap(observation: str, answer: str) -> float:
    """LCS(observation, answer) / |observation| over characters, in [0, 1]; 0 for an empty observation."""
    from rapidfuzz.distance import LCSseq  # it imports pandas, half a second that most tasks can do without

    return LCSseq.similarity(observation, answer) / len(observation) if observation else 0.0


def finish_arguments(trajectory: Trajectory) -> str:
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
