"""A model, an adapter or the data of a run for the Hugging Face Hub: the files, a card in its form, and the upload.

Nothing is sent unless `push` is called. The address is that of HF_ENDPOINT; the key is that of HF_TOKEN or of
`hf auth login`.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import Any

from steptool.artifacts import lineage
from steptool.artifacts.errors import describe_error
from steptool.registry.store import MANIFEST, RegistryError

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


_SILENCE = 120.0
"""Seconds that the Hub may be silent. A wait that it asks for before a request is repeated may take as long."""
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
"""Ends of the names of files with weights."""


class HubError(RegistryError):
    """The Hub did not take an upload. The message says what to do."""


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


def prepare_model_upload(folder: Path, repo: str, licence: str, datasets: Sequence[str] = ()) -> Upload:
    """The model or adapter of a run, of a version of a registry or of a model folder, with its card.

    The card names base, licence and results. A model that was not trained here keeps its own card, with the licence and
    the datasets added. Raises RegistryError for a folder without a model, for files of it that cannot be read or are
    links out of it, and for a name that no repository or dataset can have.
    """
    for name in (repo, *datasets):
        _check_name(name)
    model = folder / lineage.MODEL if (folder / lineage.MODEL).is_dir() else folder
    is_adapter = (model / "adapter_config.json").is_file()
    if not is_adapter and not (model / "config.json").is_file():
        raise RegistryError(f"{folder}: no model: expected the folder of a run, or a folder with config.json")
    files = _list_files(model)
    try:
        card = _make_card(folder, model, repo, licence, datasets, is_adapter=is_adapter)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RegistryError(
            f"{folder}: {lineage.FILE}, {lineage.FIGURES} or {MANIFEST} is not what a run writes ({reason}); take an "
            "intact copy of the folder"
        ) from error
    return Upload(repo, Kind.MODEL, files, card)


def _make_card(folder: Path, model: Path, repo: str, licence: str, datasets: Sequence[str], *, is_adapter: bool) -> str:
    entries = lineage.read(model)
    if not entries and (model / lineage.CARD).is_file():
        return _complete_card(model / lineage.CARD, licence, datasets)
    facts = {"licence": licence, "datasets": list(datasets), **(_read_results(folder) if entries else {})}
    title, base = repo.rpartition("/")[2], _read_adapter_base(model) if is_adapter else ""
    return lineage.make_card(entries, title, facts, base)


def prepare_dataset_upload(folder: Path, repo: str, licence: str) -> Upload:
    """The tasks, episodes and rewards of a run's folder, with a card that lets `datasets` load each kind.

    Raises RegistryError for a folder without such files, for a file that is no Parquet, and for a name that no
    repository can have.
    """
    from huggingface_hub import DatasetCardData

    _check_name(repo)
    candidates = {name: sorted(folder.glob(pattern)) for name, (pattern, _) in _DATA.items()}
    groups = {name: files for name, files in candidates.items() if files}
    if not groups:
        raise RegistryError(f"{folder}: no data of a run: expected {lineage.QUERIES}, trajectories and rewards")
    counts = {name: sum(map(_count_rows, files)) for name, files in groups.items()}
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


def push(upload: Upload, *, private: bool, message: str = "Upload by steptool", seconds: float = _SILENCE) -> str:
    """Make the repository unless it exists, and send the files in one commit. Returns the commit's address.

    The server may be silent for `seconds`, and a wait that it asks for may take as long; these limits then hold for
    huggingface_hub in this process. Raises HubError for a server that refuses, is too busy or is out of reach, for a
    repository with weights that would stay beside the new ones, for a key that no request can carry, and where
    huggingface_hub is told to stay offline.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token, set_client_factory

    HTTPError, InvalidURL = _find_client_errors()
    if not (get_token() or "").isascii():
        raise HubError("the key of the Hub has characters that no key has; copy it into HF_TOKEN again")
    set_client_factory(lambda: _make_client(seconds))
    api = HfApi()
    operations = [CommitOperationAdd(path, str(file)) for path, file in upload.files.items()]
    operations.append(CommitOperationAdd(lineage.CARD, upload.card.encode()))
    has_begun = False
    try:
        api.create_repo(upload.repo, repo_type=upload.kind, private=private, exist_ok=True)
        has_begun = True
        _check_present_weights(api, upload)
        commit = api.create_commit(upload.repo, operations, repo_type=upload.kind, commit_message=message)
        return str(commit.commit_url)
    except (HTTPError, InvalidURL, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        problem = _describe_failure(error, api.endpoint, has_begun=has_begun)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # ends the line of a bar of progress
        raise
    gc.collect()  # ends the bars of progress that the library leaves open and would draw over the problem
    raise HubError(problem)


def _make_client(seconds: float) -> Any:
    """The library's own client with limits of time. Without them it waits as long as the server is silent."""
    from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status

    def refuse_long_wait(response: Any) -> None:
        if response.is_error and _read_wait(response) > seconds:
            response.read()
            hf_raise_for_status(response)

    client = default_client_factory()
    client.timeout = seconds
    client.event_hooks = {**client.event_hooks, "response": [refuse_long_wait]}
    return client


def _read_wait(response: Any) -> int:
    """Seconds after which the server says that a request may be repeated; 0 if it does not say."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    limit, wait = parse_ratelimit_headers(response.headers), response.headers.get("Retry-After", "").strip()
    if limit and not limit.remaining:
        return limit.reset_in_seconds
    return int(wait) if wait.isdecimal() else 0


def _check_present_weights(api: Any, upload: Upload) -> None:
    """Raise HubError if the repository holds weights that the upload does not replace."""
    if upload.kind is not Kind.MODEL:
        return
    present = api.list_repo_files(upload.repo, repo_type=upload.kind)
    stale = [file for file in present if file.endswith(_WEIGHTS) and file not in upload.files]
    if stale:
        raise HubError(
            f"{upload.repo} holds {', '.join(stale)}, which would stay there and might be loaded in place of what is "
            "pushed: delete it there, or push to another repository"
        )


def _find_client_errors() -> tuple[type[Exception], type[Exception]]:
    """HTTPError and InvalidURL of the HTTP client that huggingface_hub uses: httpx2, or httpx in older versions."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its client; HfHubHTTPError derives from it

    client = import_module(HTTPError.__module__.partition(".")[0])
    return HTTPError, client.InvalidURL


def _describe_failure(error: Exception, endpoint: str, *, has_begun: bool) -> str:
    """Why nothing was committed, and what helps. The upload has begun where the server has answered before."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    HTTPError, InvalidURL = _find_client_errors()
    if isinstance(error, OfflineModeIsEnabled):
        return "huggingface_hub is offline: unset HF_HUB_OFFLINE to push"
    if isinstance(error, HfHubHTTPError):
        return _explain_refusal(error, endpoint)
    cause = error.__cause__ or error
    if isinstance(error, RuntimeError) and isinstance(cause, HfHubHTTPError):  # of a file
        return _explain_refusal(cause, endpoint)
    if isinstance(cause, HfHubHTTPError):  # the Hub checks a card before anything else is sent
        return f"{endpoint} refused the card: {' '.join(str(error).split())}; see --licence and --dataset"
    if isinstance(error, RuntimeError) or (has_begun and isinstance(error, (HTTPError, OSError))):
        return f"the upload to {endpoint} broke off ({describe_error(cause)}); push again: what has arrived is kept"
    if isinstance(error, (HTTPError, InvalidURL, OSError)):
        return f"{endpoint} cannot be reached ({error or type(error).__name__}); HF_ENDPOINT names another server"
    return f"{endpoint} does not answer as the Hub does ({error}); see HF_ENDPOINT"


def _explain_refusal(error: Any, endpoint: str) -> str:
    """What the server answered, and what helps where the key may not write or the server is busy."""
    from huggingface_hub import get_token

    status = error.response.status_code
    answer = " ".join((error.server_message or str(error)).split())
    advice = ""
    if status in (401, 403):
        key = "its key may not write there" if get_token() else "there is no key"
        advice = f"; {key}: set HF_TOKEN to one that may, or log in with `hf auth login`"
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        seconds = _read_wait(error.response)
        advice = f"; push again {f'in {seconds} seconds' if seconds else 'later'}"
    return f"{endpoint} refused with status {status}: {answer}{advice}"


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is public, and not in __all__

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RegistryError(f"'{repo}' is no name of a repository: {error}") from error


def _complete_card(file: Path, licence: str, datasets: Sequence[str]) -> str:
    """The card of a model that was not trained here, with licence and datasets where they are given."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        card = ModelCard(file.read_text(encoding="utf-8"))
    except (ValueError, YAMLError) as error:
        raise RegistryError(f"{file}: no card of a model: {error}") from error
    if licence:
        card.data["license"] = licence
    if datasets:
        card.data["datasets"] = list(datasets)
    return str(card)


def _count_rows(file: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: int = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as error:
        raise RegistryError(f"{file}: no Parquet file: {error}") from error
    return rows


def _list_files(model: Path) -> dict[str, Path]:
    """The files of a model folder, without its card, hidden files and folders, and what only training reads.

    Hidden ones, such as .git and .env, may hold keys. Raises RegistryError for a link out of the folder, whose content
    would be missing, and for empty weights.
    """
    root = model.resolve()
    files: dict[str, Path] = {}
    for file in sorted(model.rglob("*")):
        path = file.relative_to(model)
        hidden = any(part.startswith(".") for part in path.parts)
        if hidden or path.parts[0] == "training" or path.as_posix() == lineage.CARD:
            continue
        if root not in file.resolve().parents or not file.exists():
            raise RegistryError(
                f"{file} is a link out of the folder: copy what it names in its place (cp -rL), or remove it"
            )
        if file.suffix == ".safetensors" and file.stat().st_size == 0:
            raise RegistryError(f"{file} is empty: the model was not saved whole")
        if file.is_file():
            files[path.as_posix()] = file
    return files


def _read_results(folder: Path) -> dict[str, Any]:
    """The results of a run or of a version of a registry, in the form of a card; empty without results.

    `folder` is the run, the version, or the folder `model` in one of them.
    """
    whole = folder.resolve().parent if folder.resolve().name == lineage.MODEL else folder
    figures, manifest = whole / lineage.FIGURES, whole / MANIFEST
    results: Mapping[str, Any] = {}
    if figures.is_file():
        results = _read_object(figures).get("results", {})
    elif manifest.is_file():
        results = _read_object(manifest)["metadata"].get("results", {})
    return {"results": results, "result": "steptool"} if results else {}


def _read_adapter_base(model: Path) -> str:
    return str(_read_object(model / "adapter_config.json").get("base_model_name_or_path") or "unknown")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RegistryError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RegistryError(f"{file}: expected an object, got {str(value)[:80]}")
    return value
