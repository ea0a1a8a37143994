"""The environment's own truth: what the reference solution and the final check know. No text is judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steptool.judge.annotator import StepScore
from steptool.records import Query, Step, StepStatus, ToolCall, Trajectory

SUCCEEDED = frozenset({StepStatus.OK, StepStatus.FINISH})


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
        contributions = _contributions(query.reference.calls, trajectory.steps)
        return [
            StepScore(
                succ_calling=float(step.status in SUCCEEDED),
                contribution=None if step.status is StepStatus.FINISH and number == last else contribution,
                is_solved=trajectory.solved if number == last else None,
            )
            for number, (step, contribution) in enumerate(zip(trajectory.steps, contributions, strict=True))
        ]


def _contributions(calls: Sequence[ToolCall] | None, steps: Sequence[Step]) -> Iterator[float | None]:
    open_calls = list(calls or ())
    for step in steps:
        if calls is None:
            yield None
        elif step.status is StepStatus.OK and step.call in open_calls:
            open_calls.remove(step.call)
            yield 1.0
        else:
            yield 0.0
