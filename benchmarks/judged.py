"""How well the text rules separate answers that a judge called solved, on files as StableToolBench stores them.

    python -m benchmarks.judged pass_rate_results

Each file of a folder pass_rate_results holds the steps of a model's answers and three verdicts on each. The files are
not part of this repository: StepTool's own repository has 71 of them in data_eval/pass_rate_results. Without an
argument the program measures what lies in ../shared/data, if anything does.

Prints lines `judged MEASURE: rules lcs difference`: the AUROC of an answer's mean Contribution against solved by most
verdicts, over all answers and over those that end with an answer. Answers with as many verdicts for as against are left
out. Then how many steps `lcs` scores otherwise than the released rule, which saw the arguments of Finish as they were
written; a trajectory holds them parsed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steptool.data.parsing import Record, UnusableError
from steptool.data.recordings.recording import RecordedTurn, make_query, make_recording, make_trajectory
from steptool.judge.verdicts import STATUS_SCORE, Status
from steptool.records import FINISH, Query, StopReason, Trajectory
from steptool.rewards.annotators import OVERLAP, PublishedRules, annotate, make_annotator, overlap, unwrap
from steptool.rewards.statistics import Estimate, auroc

SHARED = Path(__file__).parents[2] / "shared" / "data"
_STEP = re.compile(r"(?:^|\n)Step (\d+): (?=\{'name': )")


@dataclass(frozen=True)
class Answer:
    """An answer, and whether most verdicts on it say solved; None where they are split."""

    query: Query
    trajectory: Trajectory
    solved: bool | None
    finish: str
    """The arguments of the Finish that ends it, as they were written; empty without one."""


def read_answers(folder: Path, skipped: Counter[str]) -> Iterator[Answer]:
    """The answers of a file, or of all JSON files below a folder. What cannot be read is counted by reason."""
    for file in sorted(folder.rglob("*.json")) if folder.is_dir() else [folder]:
        for number, row in json.loads(file.read_text(encoding="utf-8")).items():
            try:
                yield read_answer(Record(file, f"{file.parent.name}-{number}", row))
            except UnusableError as error:
                skipped[error.reason] += 1


def read_answer(record: Record) -> Answer:
    """One row of a file. Raises UnusableError for steps that are of another form."""
    row = record.value
    turns = [read_turn(text) for text in split_steps(row["answer_steps"])]
    recording = make_recording(record, row["query"], (), turns)
    query = make_query(recording)
    scores = [STATUS_SCORE[Status(text.partition(".")[2].lower())] for text in row["is_solved"].values()]
    mean = float(np.mean(scores))
    finish = turns[-1].arguments if turns and turns[-1].name == FINISH else ""
    return Answer(query, make_trajectory(recording.turns, mean, query, 0), None if mean == 0.5 else mean > 0.5, finish)


def split_steps(text: str) -> list[str]:
    """The texts of the steps; a heading inside a response counts only if it has the number that comes next."""
    starts: list[re.Match[str]] = []
    for match in _STEP.finditer(text):
        if int(match[1]) == len(starts) + 1:
            starts.append(match)
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return [text[match.end() : end] for match, end in zip(starts, ends, strict=True)]


def read_turn(text: str) -> RecordedTurn:
    """A step, which is the text of a dict in Python's notation."""
    try:
        step: dict[str, Any] = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError) as error:
        raise UnusableError("a step of another form", str(error)) from None
    return RecordedTurn("", step["name"], step["arguments"], step["response"])


def separation(answers: Sequence[Answer], annotator: str) -> Estimate | None:
    """AUROC of the mean Contribution against solved; an answer without a call before Finish has no score."""
    queries = [answer.query for answer in answers]
    scores: dict[str, list[float]] = {}
    for row in annotate(queries, [answer.trajectory for answer in answers], make_annotator(annotator)):
        if row.contribution is not None:
            scores.setdefault(row.trajectory_id, []).append(row.contribution)
    scored = [a for a in answers if a.solved is not None and a.trajectory.trajectory_id in scores]
    return auroc([float(np.mean(scores[a.trajectory.trajectory_id])) for a in scored], [bool(a.solved) for a in scored])


def count_released(answers: Iterable[Answer]) -> tuple[int, int]:
    """Steps before Finish, and those of them that `lcs` scores otherwise than the released rule."""
    steps = different = 0
    for answer in answers:
        scores = PublishedRules().annotate(answer.query, answer.trajectory)
        for step, score in zip(answer.trajectory.steps, scores, strict=True):
            if score.contribution is not None and answer.finish:
                released = overlap(unwrap(step.observation), answer.finish) >= OVERLAP
                steps, different = steps + 1, different + (released != bool(score.contribution))
    return steps, different


def main() -> None:
    """Read, annotate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="folder pass_rate_results")
    folder = parser.parse_args().folder or next(SHARED.glob("*/data_example/pass_rate_results"), None)
    if folder is None:
        print("judged: no files; name a folder pass_rate_results of StableToolBench")
        return
    skipped = Counter[str]()
    answers = list(read_answers(folder, skipped))
    finished = [answer for answer in answers if answer.trajectory.stop_reason is StopReason.FINISHED]
    print(f"judged: {len(answers)} answers, {len(finished)} end with an answer, left out: {dict(skipped) or 'none'}")
    for what, some in (("all answers", answers), ("answers given", finished)):
        ours, other = (separation(some, annotator) for annotator in ("rules", "lcs"))
        if ours is None or other is None:
            print(f"judged AUROC, {what}: not measurable, all {len(some)} have the same verdict")
        else:
            difference = ours.value - other.value
            print(f"judged AUROC, {what}: {ours.value:.3f} {other.value:.3f} {difference:+.3f}")
    steps, different = count_released(answers)
    print(f"judged steps that lcs scores otherwise than the released rule: {different} of {steps}")


if __name__ == "__main__":
    main()
