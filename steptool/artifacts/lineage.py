"""The names of the files of a run, and where a model comes from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.records.tables import write_text

CONFIG, QUERIES, DEMONSTRATIONS = "config.yaml", "queries.parquet", "demonstrations.parquet"
LESSONS = "lessons.parquet"
METRICS, COSTS, EVALUATED = "metrics.parquet", "costs.parquet", "evaluations.parquet"
MODEL, WARM_START = "model", "warm_start"
REPORT, FIGURES, QUARANTINE = "report.html", "metrics.json", "quarantine.jsonl"
VERDICTS, PREFERENCES = "verdicts.parquet", "preferences.parquet"
PAGE, TABLE, CSV, LATEX = "evaluation.html", "table.md", "table.csv", "table.tex"
VIEWER, RECORDED_REWARDS = "viewer.html", "recorded_rewards.parquet"
TRAINING, EVALUATION = "training", "evaluation"
"""What is published into a folder; one kind does not take the place of the other."""


def name_round_file(kind: str, round_index: int) -> str:
    """Name of a round's file; kind: trajectories, rewards or advantages."""
    return f"{kind}_round_{round_index:02d}.parquet"


def name_round_files(kind: str) -> str:
    """Pattern of the names of the files of all rounds; kind as in `name_round_file`."""
    return f"{kind}_round_*.parquet"


def name_evaluation_file(kind: str, episodes: str) -> str:
    """Name of an evaluation's file; kind: trajectories or rewards; episodes: model and decoding, as in base_greedy."""
    return f"evaluation_{kind}_{episodes}.parquet"


def name_policy_file(name: str) -> str:
    """Name of the file of the episodes of a policy in an evaluation."""
    return f"trajectories_{name}.parquet"


FILE = "lineage.json"
CARD = "README.md"
Entry = dict[str, Any]

_CARD = """---
{metadata}
---

# {title}

{origin} {how_to_load}
{lineage}{made_by}{results}"""
_TRAINED_HERE = "A policy for multi-step tool use, trained by steptool."
_OF_UNKNOWN_ORIGIN = "A model for tool use, whose folder says nothing of how it was made."
_LINEAGE = f"""
## Lineage

Each row is a stage, first to last; rounds that differ in their files alone share a row. A file stands with the first 12
digits of its SHA-256. `{FILE}` holds the table for programs.

| stage | round | made from | note |
|---|---|---|---|
{{rows}}
"""
_LOAD_MODEL = "Load it with `AutoModelForCausalLM.from_pretrained`; the tokenizer's chat template renders the tools."
_LOAD_ADAPTER = (
    "It is a LoRA adapter over the model whose weights have the digest `{base}`, which has the tokenizer as well. Load "
    "it with `PeftModel.from_pretrained`."
)
_MADE_BY = """
## Made by

| | |
|---|---|
{rows}
"""
_RESULTS = """
## Results

Pass rate on tasks that it was not trained on, one greedy episode each, with its 95% interval.

| model | pass rate | 95% interval | tasks |
|---|---|---|---|
{rows}
"""


def sign(
    folder: str | os.PathLike[str],
    parent: str | os.PathLike[str] | None,
    stage: str,
    files: Sequence[str | os.PathLike[str]],
    round_index: int = -1,
    note: str = "",
    rewards: Mapping[str, Any] | None = None,
    base: str = "",
) -> None:
    """Write the model card and the lineage into a model folder: those of the parent, and this stage.

    `files` are what the stage was made from; `rewards` says who scored it and how scores became rewards; `base` is the
    name of the base where the folder holds an adapter.
    """
    entry = {"stage": stage, "round": round_index, "files": {Path(p).name: hash_file(p) for p in files}, "note": note}
    entry |= {"rewards": rewards} if rewards else {}
    entries = [*(read(parent) if parent else []), entry]
    target = Path(folder)
    write_text(target / FILE, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    write_card(target, base)


def write_card(folder: str | os.PathLike[str], base: str = "") -> None:
    """Write the model card that follows from a folder's lineage, if it has one; `base` as in `sign`."""
    if not (entries := read(folder)):
        return
    stage, round_index = entries[-1]["stage"], entries[-1]["round"]
    title = f"{stage} of round {round_index + 1}" if round_index >= 0 else stage
    write_text(Path(folder) / CARD, make_card(entries, title, base=base))


def make_card(entries: Sequence[Entry], title: str, facts: Mapping[str, Any] | None = None, base: str = "") -> str:
    """The model card of a model with this lineage, or of an adapter over the base of this name.

    `facts` may hold `code_version`, `config` (the run's configuration as a tree), `results` (by model: `pass_rate`,
    `low`, `high`, `tasks`), `result` (the name among them of the card's own model), `licence` and `datasets` (ids of
    the Hub); other entries do not stand on the card. The metadata have the form that the Hub reads.
    """
    facts = facts or {}
    made_by = {"code": facts.get("code_version"), "configuration, SHA-256": _digest_tree(facts.get("config"))}
    results = [_write_result(name, figures) for name, figures in facts.get("results", {}).items()]
    return _CARD.format(
        title=title,
        origin=_TRAINED_HERE if entries else _OF_UNKNOWN_ORIGIN,
        metadata=_write_metadata(entries, title, facts, is_adapter=bool(base)),
        how_to_load=_LOAD_ADAPTER.format(base=base) if base else _LOAD_MODEL,
        lineage=_write_section(_LINEAGE, [_write_row(group) for group in _group_rounds(entries)]),
        made_by=_write_section(_MADE_BY, [f"| {name} | {value} |" for name, value in made_by.items() if value]),
        results=_write_section(_RESULTS, results),
    )


def read(folder: str | os.PathLike[str]) -> list[Entry]:
    """The stages behind a model folder, first to last; empty for a model that was not made here."""
    path = Path(folder) / FILE
    entries: list[Entry] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return entries


def hash_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_hub_base(entries: Sequence[Entry]) -> str:
    """The Hub id of the model that training began with; empty where it has none, such as a folder."""
    name = str(entries[0]["note"]) if entries and entries[0]["stage"] == "base" else ""
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists() else ""


def _write_metadata(entries: Sequence[Entry], title: str, facts: Mapping[str, Any], *, is_adapter: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    own_result = facts.get("results", {}).get(facts.get("result"), {})
    result = own_result.get("pass_rate") is not None and EvalResult(
        task_type="text-generation",
        task_name="multi-step tool use",
        dataset_type="steptool",
        dataset_name="held-out tasks",
        metric_type="pass_rate",
        metric_name="pass rate, one greedy episode a task",
        metric_value=round(own_result["pass_rate"], 4),
    )
    data = ModelCardData(
        base_model=find_hub_base(entries) or None,
        datasets=facts.get("datasets") or None,
        eval_results=[result] if result else None,
        library_name="peft" if is_adapter else "transformers",
        license=facts.get("licence") or None,
        model_name=title if result else None,
        pipeline_tag="text-generation",
        tags=["tool-use", "steptool"],
    )
    return str(data.to_yaml())


def _group_rounds(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries in groups: consecutive rounds of the same stage, scored and noted in the same way, are one."""
    groups: list[list[Entry]] = []
    for entry in entries:
        last = groups[-1][-1] if groups else None
        if last and entry["round"] >= 0 and _remove_files(last) == _remove_files(entry):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _remove_files(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if key not in ("files", "round")}


def _write_row(group: Sequence[Entry]) -> str:
    first, last = group[0], group[-1]
    files = ", ".join(f"{name} {digest[:12]}" for name, digest in first["files"].items())
    if len(group) > 1:
        files = f"{sum(len(entry['files']) for entry in group)} files, named in {FILE}"
    rounds = f"{first['round'] + 1} to {last['round'] + 1}" if len(group) > 1 else first["round"] + 1
    annotations = [f"scored by {name}" for name in first.get("rewards", {}).get("annotators", ())]
    notes = "; ".join(part for part in (*annotations, first["note"]) if part)
    return f"| {first['stage']} | {rounds if first['round'] >= 0 else ''} | {files} | {notes} |"


def _write_section(text: str, rows: Sequence[str]) -> str:
    """A section with its table, or nothing where there is nothing to show."""
    return text.format(rows="\n".join(rows)) if rows else ""


def _write_result(name: str, figures: Mapping[str, Any]) -> str:
    if figures["pass_rate"] is None:
        return f"| {name} | not measurable | | {figures['tasks']} |"
    interval = f"{figures['low']:.1%} to {figures['high']:.1%}"
    return f"| {name} | {figures['pass_rate']:.1%} | {interval} | {figures['tasks']} |"


def _digest_tree(tree: Any) -> str:
    """The first 12 digits of the SHA-256 of a tree as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12] if tree else ""
