"""A model, an adapter or the data of a run for the Hugging Face Hub: the files, a card in its form, and the upload.

Nothing is sent unless `push` is called. The address is that of HF_ENDPOINT; the key is that of HF_TOKEN or of
`hf auth login`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from steptool.artifacts import lineage
from steptool.registry.documents import RegistryError

_DATA = {
    "queries": (lineage.QUERIES, "Tasks with their tools and references."),
    "demonstrations": (lineage.DEMONSTRATIONS, "Recorded episodes that solve tasks."),
    "trajectories": ("trajectories_round_*.parquet", "Episodes of the policy, by round."),
    "rewards": ("rewards_round_*.parquet", "Scores of their steps."),
    "evaluation": ("evaluation_trajectories_*.parquet", "Held-out episodes by model and decoding."),
}
"""What of a run's folder becomes a dataset: its configurations on the Hub, their files, and what they hold."""

_DATASET = """---
{metadata}
---

# {title}

Tasks, episodes and step rewards of a run of steptool, as Parquet. Each column has its description in the file's own
metadata.

| configuration | rows | content |
|---|---|---|
{rows}

Load one with `datasets.load_dataset("{repo}", "trajectories")`.
"""


class Kind(StrEnum):
    """What a repository of the Hub holds."""

    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True)
class Upload:
    """What is to be sent: files by their path in the repository, and the card."""

    repo: str
    kind: Kind
    files: Mapping[str, Path]
    card: str

    def describe(self) -> list[str]:
        """A line for each file with its size in MB, the card last."""
        lines = [f"{path}  {file.stat().st_size / 1e6:,.2f} MB" for path, file in self.files.items()]
        return [*lines, f"{lineage.CARD}  {len(self.card.encode()) / 1e6:,.2f} MB"]


def model_upload(folder: Path, repo: str, licence: str, datasets: Sequence[str] = ()) -> Upload:
    """The model or adapter of a run's folder, or of a model folder, with a card that names base, licence and results.

    Raises RegistryError for a folder without a model.
    """
    model = folder / lineage.MODEL if (folder / lineage.MODEL).is_dir() else folder
    is_adapter = (model / "adapter_config.json").is_file()
    if not is_adapter and not (model / "config.json").is_file():
        raise RegistryError(f"{folder}: no model: expected the folder of a run, or a folder with config.json")
    entries = lineage.read(model)
    facts = {"licence": licence, "datasets": list(datasets), **_results(folder)}
    card = lineage.card(entries, repo.rpartition("/")[2], facts, _adapter_base(model) if is_adapter else "")
    return Upload(repo, Kind.MODEL, _list_files(model), card)


def dataset_upload(folder: Path, repo: str, licence: str) -> Upload:
    """The tasks, episodes and rewards of a run's folder, with a card that lets `datasets` load each kind.

    Raises RegistryError for a folder without such files.
    """
    import pyarrow.parquet as pq
    from huggingface_hub import DatasetCardData

    candidates = {name: sorted(folder.glob(pattern)) for name, (pattern, _) in _DATA.items()}
    groups = {name: files for name, files in candidates.items() if files}
    if not groups:
        raise RegistryError(f"{folder}: no data of a run: expected {lineage.QUERIES}, trajectories and rewards")
    counts = {name: sum(pq.read_metadata(file).num_rows for file in files) for name, files in groups.items()}
    data = DatasetCardData(
        license=licence or None,
        pretty_name=repo.rpartition("/")[2],
        task_categories=["text-generation"],
        tags=["tool-use", "steptool"],
        configs=[
            {"config_name": name, "data_files": [f"{name}/{file.name}" for file in files]}
            for name, files in groups.items()
        ],
    )
    rows = "\n".join(f"| `{name}` | {count:,} | {_DATA[name][1]} |" for name, count in counts.items())
    card = _DATASET.format(metadata=data.to_yaml(), title=data.pretty_name, rows=rows, repo=repo)
    files = {f"{name}/{file.name}": file for name, group in groups.items() for file in group}
    return Upload(repo, Kind.DATASET, files, card)


def push(upload: Upload, *, private: bool, message: str = "Upload by steptool") -> str:
    """Make the repository unless it exists, and send the files in one commit. Returns the commit's address.

    Raises the errors of huggingface_hub for a server that refuses or is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(upload.repo, repo_type=upload.kind, private=private, exist_ok=True)
    operations = [CommitOperationAdd(path, str(file)) for path, file in upload.files.items()]
    operations.append(CommitOperationAdd(lineage.CARD, upload.card.encode()))
    commit = api.create_commit(upload.repo, operations, repo_type=upload.kind, commit_message=message)
    return str(commit.commit_url)


def _list_files(model: Path) -> dict[str, Path]:
    """The files of a model folder but for its card and what only training reads. Links out of it are not followed."""
    root = model.resolve()
    return {
        path: file
        for file in sorted(model.rglob("*"))
        if file.is_file() and root in file.resolve().parents
        for path in [file.relative_to(model).as_posix()]
        if path != lineage.CARD and not path.startswith("training/")
    }


def _results(run: Path) -> dict[str, Any]:
    """The results of a run's folder in the form of a card; empty without results."""
    figures = run / lineage.FIGURES
    if not figures.is_file():
        return {}
    results = json.loads(figures.read_text(encoding="utf-8")).get("results", {})
    return {"results": results, "result": "steptool"} if results else {}


def _adapter_base(model: Path) -> str:
    settings = json.loads((model / "adapter_config.json").read_text(encoding="utf-8"))
    return str(settings.get("base_model_name_or_path") or "unknown")
