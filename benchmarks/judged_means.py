"""Whether stored verdicts stay what they are: the mean of each file of StableToolBench's folder pass_rate_results.

    python -m benchmarks.judged_means pass_rate_results --table README.md

Each file holds verdicts of a judge on the answers of one model to one test set. Its published mean is taken from the
words of the file alone: Solved 1, Unsure .5, Unsolved 0, the mean over queries of each repeat, then over repeats. It is
compared with what the library makes of it in three ways: the pass rate of stored verdicts (`evaluation.verdicts`),
the verdicts of the answers as recorded trajectories, and IsSolved of the annotator `rules`. With `--table` the pooled
means of each model are compared with the table in the README.md of StepTool's repository, where the files come from.

Prints lines `judged means WHAT: compared, agree, largest difference`, in percentage points.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.judged import SHARED, Answer, read_answers
from steptool.evaluation.measures import find_verdict
from steptool.judge.verdicts import judged_pass_rate, read_stabletoolbench
from steptool.rewards.annotators import annotate, make_annotator

_SCORES = {"AnswerStatus.Solved": 100.0, "AnswerStatus.Unsure": 50.0, "AnswerStatus.Unsolved": 0.0}
_SAME = 1e-6
"""Points below which two means are the same."""
_ROUNDED = 0.05 + 1e-9
"""Points that a table's rounding to one digit may make."""
_MODELS = {"SFT": "toolllama_sft", "RFT": "baseline-rft", "PPO": "baseline-ppo", "ETO": "baseline-eto"}
_MODELS |= {"ArCHer": "baseline-archer", "StepTool": "steptool"}
_STRATEGIES = {"CoT": "cot", "DFSDT": "dfs"}
_GROUPS = ("G1", "G2", "G3")
Means = dict[str, float]
"""Percent by what they are of."""


def compute_published_mean(file: Path) -> float:
    """The mean of a file by its words, in percent."""
    verdicts = [row["is_solved"] for row in json.loads(file.read_text(encoding="utf-8")).values()]
    repeats = sorted({repeat for row in verdicts for repeat in row})
    return float(np.mean([np.mean([_SCORES[row[r]] for row in verdicts if r in row]) for r in repeats]))


def compute_stored_mean(file: Path) -> float:
    """The pass rate that an evaluation makes of the file, in percent; NaN without verdicts."""
    rows = read_stabletoolbench(file)
    rate = judged_pass_rate(rows, {row.query_id for row in rows})
    return 100 * rate.mean if rate else float("nan")


def compute_recorded_mean(answers: list[Answer]) -> float:
    """The mean of the answers' verdicts as trajectories, in percent; NaN where one is missing."""
    verdicts = (find_verdict(answer.query, answer.trajectory)[0] for answer in answers)
    return 100 * float(np.mean([float("nan") if verdict is None else verdict for verdict in verdicts]))


def compute_annotated_mean(answers: list[Answer]) -> float:
    """The mean IsSolved of the annotator `rules`, in percent."""
    queries, trajectories = [a.query for a in answers], [a.trajectory for a in answers]
    rows = annotate(queries, trajectories, make_annotator("rules"))
    return 100 * float(np.mean([row.is_solved for row in rows if row.is_solved is not None]))


def read_table(path: Path) -> Means:
    """The pass rates of a README's table, in percent, by folder and group of test sets."""
    means = Means()
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" *") for cell in line.strip("| ").split("|")]
        method = re.match(r"\w+", cells[2]) if len(cells) > 8 else None
        if method and method[0] in _MODELS and cells[1] in _STRATEGIES:
            folder = f"{_MODELS[method[0]]}_{_STRATEGIES[cells[1]]}"
            for group, cell in zip(_GROUPS, cells[3:8:2], strict=True):
                means[f"{folder} {group}"] = float(cell.partition("±")[0])
    return means


def pool(files: Mapping[str, float], sizes: Mapping[str, int]) -> Means:
    """The means of all queries of a model and a group of test sets, from those of its files."""
    pooled = Means()
    for name in {f"{n.partition('/')[0]} {group}" for n in files for group in _GROUPS if f"/{group}" in n}:
        folder, group = name.split()
        parts = [n for n in files if n.startswith(f"{folder}/{group}")]
        pooled[name] = float(np.average([files[n] for n in parts], weights=[sizes[n] for n in parts]))
    return pooled


def compare(what: str, ours: Mapping[str, float], theirs: Mapping[str, float], tolerance: float) -> None:
    """Print how many of the means agree, and where they differ most."""
    differences = {name: abs(ours[name] - theirs[name]) for name in ours.keys() & theirs.keys()}
    if not differences:
        print(f"judged means {what}: nothing to compare")
        return
    worst = max(differences, key=lambda name: differences[name])
    agree = sum(difference <= tolerance for difference in differences.values())
    where = f" ({worst}: {ours[worst]:.1f} here, {theirs[worst]:.1f} there)" if differences[worst] > tolerance else ""
    print(f"judged means {what}: {len(differences)}, {agree} agree, largest difference {differences[worst]:.1f}{where}")


def main() -> None:
    """Read, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="folder pass_rate_results")
    parser.add_argument("--table", type=Path, help="README.md of StepTool's repository")
    args = parser.parse_args()
    folder = args.folder or next(SHARED.glob("*/data_example/pass_rate_results"), None)
    if folder is None:
        print("judged means: no files; name a folder pass_rate_results of StableToolBench")
        return
    published, stored, recorded, annotated = Means(), Means(), Means(), Means()
    sizes, skipped = dict[str, int](), Counter[str]()
    for file in sorted(folder.rglob("*.json")):
        name, answers = f"{file.parent.name}/{file.stem}", list(read_answers(file, skipped))
        published[name], stored[name], sizes[name] = (
            compute_published_mean(file),
            compute_stored_mean(file),
            len(answers),
        )
        recorded[name], annotated[name] = compute_recorded_mean(answers), compute_annotated_mean(answers)
    print(f"judged means: {len(sizes)} files, {sum(sizes.values())} answers, left out: {dict(skipped) or 'none'}")
    compare("as stored verdicts against the files'", stored, published, _SAME)
    compare("as recorded trajectories against the files'", recorded, published, _SAME)
    compare("as IsSolved of rules against the files'", annotated, published, _SAME)
    if args.table:
        compare("against the README's table", pool(stored, sizes), read_table(args.table), _ROUNDED)


if __name__ == "__main__":
    main()
