"""Rules that score a trajectory from its text alone: no environment, no judge.

SuccCalling   1 if the call is well formed and neither the status nor the observation's text reports a failure.
Contribution  "lcs":   1 if LCS(observation, final answer) / |observation| >= 0.3, over characters.
              "rules": 1 if the step returned values for the first time and one of them is used in the final answer or
                       in the arguments of a later call that contributes itself (data flow), or if such a call acts on
                       a thing that this step asked about (looking before acting: what was seen decided the branch).
IsSolved      0 without an answer, 1 or 0 against the reference's answer where there is one, else 0.5 (unsure).

The overlap rule suits long prose and fails on short structured observations, where the answer repeats little of the
text ({"order_id": "ord_07"} and the answer "ref_12"). The other follows the values instead. It rewards each question
about a thing once, needed or not; a policy can gain from asking more than it must, as far as the step limit lets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product

from steptool.judge.annotator import StepScore
from steptool.records import Query, Step, StepStatus, StopReason, Trajectory
from steptool.rewards.observations import failure, leaves, mentions, normalise, parse, payload, text_of, values

OVERLAP = 0.3
"""Share of the observation's characters from which the overlap rule counts a step as contributing."""
UNSURE = 0.5

_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|apologies|as an ai|unfortunately|(i|we)('m| am| are|'re| was| were)? ?(unable|not able) to|"
    r"(i|we) (cannot|can't|can not|could not|couldn't|do not have|don't have|failed to))\b",
    re.I,
)
_OPENING = 120
"""Characters of an answer in which a refusal shows."""


class DataFlowRules:
    """The rules with Contribution by the way of values through the trajectory."""

    name = "rules"
    version = "2"
    prompt_hash = ""

    def annotate(self, query: Query, trajectory: Trajectory) -> list[StepScore]:
        """One score per step."""
        failures = [step_failure(step) for step in trajectory.steps]
        uses = contributions(query.instruction, trajectory.steps, failures, trajectory.final_answer or "")
        return _scores(query, trajectory, failures, [float(use != "") for use in uses], uses)


class OverlapRules:
    """The rules with Contribution by the longest common subsequence."""

    name = "lcs"
    version = "2"
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


def contributions(instruction: str, steps: Sequence[Step], failures: Sequence[str], answer: str) -> list[str]:
    """For each step [T], what its new values were good for; empty for a step that does not contribute.

    A value is new where neither the instruction nor the call itself holds it and no earlier call with an argument in
    common returned it: that a second order is "pending" too is news, the price of one product from two tools is not.
    Steps that failed return nothing, nor do repeats of a call that was already made and did not fail.
    """
    fresh = _fresh_values(instruction, steps, failures)
    sink = "\n".join([normalise(answer), text_of(parse(answer))])
    acted_on = set[str]()
    uses: list[str] = []
    for step, found in zip(reversed(steps), reversed(fresh), strict=True):
        arguments = text_of(step.call.arguments) if step.call else ""
        things = values(step.call.arguments) if step.call else frozenset[str]()
        use = _use(found, things, sink, acted_on)
        uses.append(use)
        if use:
            sink, acted_on = f"{sink}\n{arguments}", acted_on | things
    return uses[::-1]


def _use(found: frozenset[str], things: frozenset[str], sink: str, acted_on: set[str]) -> str:
    reached = sorted(value for value in found if mentions(sink, value))
    if reached:
        return f"used later: {', '.join(reached)}"
    looked_at = sorted(things & acted_on)
    return f"looked at before acting: {', '.join(looked_at)}" if found and looked_at else ""


def _fresh_values(instruction: str, steps: Sequence[Step], failures: Sequence[str]) -> list[frozenset[str]]:
    told, known, made = normalise(instruction), set[tuple[str, str]](), set[str]()
    fresh = []
    for step, failed in zip(steps, failures, strict=True):
        key, returned, found = _key(step), values(payload(step.observation)), frozenset[str]()
        asked = {normalise(str(leaf)) for leaf in leaves(step.call.arguments)} if step.call else set()
        facts = {value: set(product(asked or {""}, [value])) for value in returned}
        if not failed and key not in made:
            made.add(key)
            new = (value for value, about in facts.items() if value not in asked and not known & about)
            found = frozenset(value for value in new if not mentions(told, value))
        fresh.append(found)
        known.update(*facts.values())
    return fresh


def _key(step: Step) -> str:
    return json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True, default=str) if step.call else ""


def is_solved(query: Query, trajectory: Trajectory) -> float:
    """IsSolved by rule, in {0, 0.5, 1}.

    0 without a Finish, after giving up, and for an empty answer. With a reference answer as `matches_reference` says.
    Without one 0 for an answer that opens with an apology or a refusal, else 0.5.
    """
    matches = matches_reference(query, trajectory)
    if matches is not None:
        return matches
    answer = _given_answer(trajectory)
    return 0.0 if not answer or _REFUSAL.search(answer[:_OPENING]) else UNSURE


def matches_reference(query: Query, trajectory: Trajectory) -> float | None:
    """1 if the final answer equals the reference answer, else 0; None for a query without one, or with an empty one.

    Two answers are equal if they are the same text after normalisation (case, spaces, numbers written alike, marks at
    the end), or the same JSON value. JSON values compare by type: 1 equals 1.0, but neither true nor "1".
    """
    expected = query.reference.answer
    if not expected:
        return None
    answer = _given_answer(trajectory)
    if not answer:
        return 0.0
    return float(_plain(answer) == _plain(expected) or same_json(parse(answer), parse(expected)))


def same_json(one: object, other: object) -> bool:
    """Whether two parsed JSON values are equal in value and type; an integer equals the same number with a point."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same_json(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _given_answer(trajectory: Trajectory) -> str:
    """The final answer; empty where the episode ended without one."""
    return (trajectory.final_answer or "").strip() if trajectory.stop_reason is StopReason.FINISHED else ""


def _plain(answer: str) -> str:
    return normalise(answer).strip(" .!\"'")
