"""Evaluations as logs that other tools read: results of lm-evaluation-harness, and logs of Inspect.

This module writes them from the folder of an evaluation or of a training run, and does not need these packages. There
is one log for each model and way of decoding.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from steptool import __version__
from steptool.artifacts import lineage
from steptool.artifacts.metrics import average_known
from steptool.data.export import with_ids
from steptool.evaluation.compare import GREEDY, MEASURES, PerQuery, average_by_query
from steptool.records import Evaluation, Query, Trajectory
from steptool.records.columns import ContractError, Row, decode_value
from steptool.records.episodes import read_queries
from steptool.records.tables import iterate_rows, read_records, write_text
from steptool.storage.transfer import TargetError

NAME = "steptool"
"""Name of the task in the logs. With a tier appended it names the tasks of that tier."""
_UNSAFE = re.compile(r"[^\w.-]+")
_METADATA = (
    "trajectory_id",
    "split",
    "tier",
    "steps",
    "calls",
    "invalid_calls",
    "redundant_calls",
    "tokens",
    "stop_reason",
)
_HIGHER_IS_BETTER = {"pass_rate": True, "recall": True, "invalid_call_rate": False, "redundant_call_rate": False}
_EPISODE_COLUMNS = ("trajectory_id", "messages", "final_answer")


class LogForm(StrEnum):
    """The forms in which an evaluation can be written."""

    LM_EVAL = "lm-eval"
    """<model>/results_<time>.json and samples_<task>_<time>.jsonl, as `lm_eval --output_path --log_samples` does."""
    INSPECT = "inspect"
    """<time>_steptool_<model>_<id>.json, which `inspect view`, `inspect log` and `inspect_ai.log` read."""


@dataclass(frozen=True)
class _Part:
    """What one model did with one way of decoding."""

    label: str
    """The model, with the way of decoding where it is not greedy, as a name of files that no other part has."""
    model: str
    decoding: str
    rows: Sequence[Evaluation]
    queries: Mapping[str, Query]
    episodes: Mapping[str, Row]
    """Messages and final answer by trajectory; empty where the folder does not hold them."""
    time: datetime


def write_logs(folder: Path, target: Path, form: LogForm) -> list[Path]:
    """Write the logs of the evaluations of a folder into the folder `target`. Returns the new files.

    Raises ContractError if `folder` holds no evaluation, and TargetError if `target` cannot be written. Times in names
    and logs are those of the rows' file, so that the same folder gives the same logs.
    """
    parts = list(_read_parts(folder))
    try:
        target.mkdir(parents=True, exist_ok=True)
        return [file for part in parts for file in _WRITERS[form](part, target)]
    except OSError as error:
        raise TargetError(f"{target}: cannot be written ({error}); give --output a folder that can") from error


def _read_parts(folder: Path) -> Iterator[_Part]:
    file = folder / lineage.EVALUATED
    groups: dict[tuple[str, str], list[Evaluation]] = defaultdict(list)
    for row in read_records(file, Evaluation):
        groups[row.model, row.decoding].append(row)
    if not groups:
        raise ContractError(f"{file}: it has no rows; expected the evaluation of one model at least")
    queries = {query.query_id: query for query in read_queries(folder / lineage.QUERIES)}
    if unknown := {row.query_id for rows in groups.values() for row in rows} - queries.keys():
        raise ContractError(
            f"{folder / lineage.QUERIES}: it lacks the query '{min(unknown)}' of {file.name}; take both from one run"
        )
    time = datetime.fromtimestamp(math.floor(file.stat().st_mtime), UTC)
    labels: set[str] = set()
    for (model, decoding), rows in groups.items():
        label = _choose_label(model if decoding == GREEDY else f"{model}_{decoding}", labels)
        labels.add(label)
        yield _Part(label, model, decoding, rows, queries, _read_episodes(folder, model, decoding), time)


def _choose_label(name: str, taken: Collection[str]) -> str:
    """The name as one of a file, with underscores at its end as long as another part has it."""
    label = _UNSAFE.sub("__", name)
    while label in taken or not label.strip("."):
        label += "_"
    return label


def _read_episodes(folder: Path, model: str, decoding: str) -> dict[str, Row]:
    names = (lineage.name_evaluation_file("trajectories", f"{model}_{decoding}"), lineage.name_policy_file(model))
    files = [folder / name for name in names if (folder / name).exists()]
    return {
        row["trajectory_id"]: row for file in files for row in iterate_rows(file, Trajectory, columns=_EPISODE_COLUMNS)
    }


def _write_lm_eval(part: _Part, target: Path) -> Iterator[Path]:
    """Results and samples as lm-evaluation-harness 0.4 writes them; a task for each tier where there are several."""
    folder, stamp = target / part.label, part.time.strftime("%Y-%m-%dT%H-%M-%S.%f")
    folder.mkdir(exist_ok=True)
    by_task: dict[str, list[Evaluation]] = defaultdict(list)
    for row in sorted(part.rows, key=lambda row: row.tier):
        by_task[_make_task_name(row.tier)].append(row)
    tasks: dict[str, Sequence[Evaluation]] = {**by_task} if len(by_task) > 1 else {}
    results = {name: _make_lm_eval_metrics(name, rows) for name, rows in {NAME: part.rows, **tasks}.items()}
    counts = {name: len({row.query_id for row in rows}) for name, rows in {NAME: part.rows, **tasks}.items()}
    document = {
        "results": results,
        "groups": {NAME: results[NAME]} if tasks else {},
        "group_subtasks": {NAME: list(tasks)},
        "configs": {
            name: {"task": name, "output_type": "generate_until", "repeats": _count_repeats(part.rows)}
            for name in results
        },
        "versions": dict.fromkeys(results, __version__),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": dict.fromkeys(results, _HIGHER_IS_BETTER),
        "n-samples": {name: {"original": count, "effective": count} for name, count in counts.items()},
        "config": {"model": NAME, "model_args": {"decoding": part.decoding}, "bootstrap_iters": 0},
        "date": part.time.timestamp(),
        "model_source": NAME,
        "model_name": part.model,
        "model_name_sanitized": folder.name,
    }
    yield _write_json(folder / f"results_{stamp}.json", document)
    for name, rows in (tasks or {NAME: part.rows}).items():
        file = folder / f"samples_{name}_{stamp}.jsonl"
        lines = (
            json.dumps(sample, ensure_ascii=False, allow_nan=False) for sample in _make_lm_eval_samples(part, rows)
        )
        yield write_text(file, "".join(f"{line}\n" for line in lines))


def _make_task_name(tier: str) -> str:
    return f"{NAME}_{_UNSAFE.sub('_', tier) or 'no_tier'}"


def _make_lm_eval_metrics(name: str, rows: Sequence[Evaluation]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"alias": name}
    for measure in MEASURES:
        part = average_by_query(rows, measure)
        if part.queries:
            metrics[f"{measure},none"] = part.ratio()
            error = _compute_standard_error(part) if MEASURES[measure][1] is None else None
            metrics |= {} if error is None else {f"{measure}_stderr,none": error}
    return metrics


def _compute_standard_error(part: PerQuery) -> float | None:
    """The standard error of the mean over tasks; repeats of a task are averaged first. None with fewer than two
    tasks."""
    n = len(part.queries)
    return float(part.top_Q.std(ddof=1)) / math.sqrt(n) if n > 1 else None


def _make_lm_eval_samples(part: _Part, rows: Sequence[Evaluation]) -> Iterator[Row]:
    by_query: dict[str, list[Evaluation]] = defaultdict(list)
    for row in rows:
        by_query[row.query_id].append(row)
    for number, (query_id, repeats) in enumerate(by_query.items()):
        query = part.queries[query_id]
        answers = [part.episodes.get(row.trajectory_id, {}).get("final_answer") or "" for row in repeats]
        verdicts = [row.passed for row in repeats if row.passed is not None]
        document = {"query_id": query_id, "instruction": query.instruction, "split": query.split, "tier": query.tier}
        yield {
            "doc_id": number,
            "doc": document,
            "target": _write_answer(query),
            "arguments": {"gen_args_0": {"arg_0": query.instruction}},
            "resps": [answers],
            "filtered_resps": answers,
            "filter": "none",
            "metrics": ["pass_rate"],
            "doc_hash": _digest(json.dumps(document, ensure_ascii=False)),
            "prompt_hash": _digest(query.instruction),
            "target_hash": _digest(_write_answer(query)),
            "pass_rate": average_known(verdicts),
        }


def _write_inspect(part: _Part, target: Path) -> Iterator[Path]:
    """A log of Inspect (version 2 of its format) as JSON. A repeat of a task is an epoch."""
    created_at, log_id = part.time.isoformat(), _make_id(part.time.isoformat(), part.label)
    tasks = list(dict.fromkeys(row.query_id for row in part.rows))
    dataset = {"name": NAME, "samples": len(tasks), "sample_ids": tasks, "shuffled": False}
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": log_id,
            "run_id": log_id,
            "created": created_at,
            "task": NAME,
            "task_id": log_id,
            "task_version": __version__,
            "dataset": dataset,
            "model": f"{NAME}/{part.model}",
            "config": {"epochs": _count_repeats(part.rows)},
            "metadata": {"decoding": part.decoding},
            "packages": {NAME: __version__},
        },
        "plan": {"name": NAME, "steps": [{"solver": NAME, "params": {"decoding": part.decoding}}]},
        "results": {
            "total_samples": len(part.rows),
            "completed_samples": len(part.rows),
            "scores": [_make_inspect_score(measure, part.rows) for measure in ("pass_rate", "recall")],
        },
        "stats": {"started_at": created_at, "completed_at": created_at},
        "samples": [_make_inspect_sample(part, row) for row in part.rows],
    }  # fmt: skip
    model = part.label.replace("_", "-")  # underscores separate the parts that Inspect reads in a name
    yield _write_json(target / f"{part.time:%Y-%m-%dT%H-%M-%S}_{NAME}_{model}_{log_id}.json", log)


def _make_id(*parts: str) -> str:
    """An id of 22 letters and digits, as long as those of Inspect, that is the same for the same parts."""
    return _digest(json.dumps(parts))[:22]


def _make_inspect_score(measure: str, rows: Sequence[Evaluation]) -> Row:
    part = average_by_query(rows, measure)
    missing = sum(getattr(row, MEASURES[measure][0]) is None for row in rows)
    figures = {"mean": part.estimate(), "stderr": _compute_standard_error(part)}
    metrics = {name: {"name": name, "value": value} for name, value in figures.items() if value is not None}
    counts = {"scored_samples": len(rows) - missing, "unscored_samples": missing}
    return {"name": measure, "scorer": measure, "reducer": "mean", "metrics": metrics, **counts}


def _make_inspect_sample(part: _Part, row: Evaluation) -> Row:
    query, episode = part.queries[row.query_id], part.episodes.get(row.trajectory_id)
    messages = decode_value(Trajectory, "messages", episode["messages"]) if episode else []
    answer = (episode["final_answer"] if episode else None) or ""
    choice = {"message": {"role": "assistant", "content": answer}, "stop_reason": "stop"}
    return {
        "uuid": _make_id(part.time.isoformat(), part.label, row.query_id, str(row.repeat)),
        "id": row.query_id,
        "epoch": row.repeat + 1,
        "input": query.instruction,
        "target": _write_answer(query),
        "messages": [_make_inspect_message(message) for message in with_ids(messages)],
        "output": {"model": row.model, "choices": [choice], "completion": answer},
        "scores": {
            name: {"value": value, "answer": answer, "explanation": row.verdict_source}
            for name, value in {"pass_rate": row.passed, "recall": row.recall}.items()
            if value is not None
        },
        "metadata": {name: getattr(row, name) for name in _METADATA},
        "total_time": row.seconds,
    }


def _make_inspect_message(message: Mapping[str, Any]) -> Row:
    """A message of OpenAI's form as Inspect has it: arguments are objects, a result names its function, and developers
    speak as the system."""
    role = "system" if message["role"] == "developer" else message["role"]
    converted_message: Row = {"role": role, "content": message.get("content") or ""}
    if calls := message.get("tool_calls"):
        converted_message["tool_calls"] = [
            {"id": call["id"], "type": "function", **_make_inspect_call(call["function"])} for call in calls
        ]
    if message["role"] == "tool":
        converted_message |= {"tool_call_id": message.get("tool_call_id"), "function": message.get("name")}
    return converted_message


def _make_inspect_call(function: Mapping[str, Any]) -> Row:
    arguments = function.get("arguments")
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        value = None
    if isinstance(value, dict):
        return {"function": function["name"], "arguments": value}
    return {"function": function["name"], "arguments": {}, "parse_error": f"not an object: {arguments}"}


def _write_answer(query: Query) -> str:
    answer = query.reference.answer
    return answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer, ensure_ascii=False)


def _count_repeats(rows: Sequence[Evaluation]) -> int:
    return 1 + max(row.repeat for row in rows)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _write_json(file: Path, document: Mapping[str, Any]) -> Path:
    return write_text(file, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


_WRITERS = {LogForm.LM_EVAL: _write_lm_eval, LogForm.INSPECT: _write_inspect}
