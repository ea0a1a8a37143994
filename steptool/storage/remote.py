"""Files and folders that a configuration names: copied from a store, and told apart by their content."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
from pydantic import BaseModel

from steptool.artifacts.lineage import sha256
from steptool.config import Config

_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "crc32c",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
)
"""Keys under which stores note what changes with the content of a file, best first."""
S = TypeVar("S", bound=BaseModel)


def is_remote(place: str) -> bool:
    """Whether a place is a url of a store."""
    return "://" in place


def fetch(place: str, folder: Path) -> str:
    """Copy a url's file or folder below `folder`, and return its place there; another place is returned as it is.

    The copy keeps the last two names of the url, since ids of recorded data are made of the name of a file and of its
    folder. Raises FileNotFoundError for a url where nothing is.
    """
    if not is_remote(place):
        return place
    fs, path = fsspec.core.url_to_fs(place)
    path = path.rstrip("/")
    target = folder.joinpath(*path.split("/")[-2:])
    target.parent.mkdir(parents=True, exist_ok=True)
    if fs.isfile(path):
        fs.get_file(path, str(target))
    elif fs.isdir(path):
        fs.get(f"{path}/", f"{target}/", recursive=True)
    else:
        raise FileNotFoundError(f"{place}: nothing is there; expected a file or a folder")
    return str(target)


def localize(config: Config, folder: Path, *fields: str) -> Config:
    """The configuration with the urls in these fields (as in data.paths) replaced by copies below `folder`."""
    for field in fields:
        config = _replace(config, field.split("."), folder / field)
    return config


def _replace(section: S, names: list[str], folder: Path) -> S:
    value: Any = getattr(section, names[0])
    if isinstance(value, BaseModel):
        value = _replace(value, names[1:], folder)
    elif isinstance(value, list):
        value = [fetch(place, folder / str(number)) for number, place in enumerate(value)]
    else:
        value = fetch(value, folder)
    return section.model_copy(update={names[0]: value})


def list_inputs(config: Config) -> list[str]:
    """The places that a run reads besides its data: models, recordings, programs of tools."""
    places = [
        config.policy.base,
        _find_program(config.data.source),
        _find_program(config.data.environment),
        _find_program(config.tools.functions),
        *config.tools.mcp.command,
        config.tools.toolbench.cache,
        config.rewards.audit.previous,
        *config.evaluation.verdicts,
        *(policy.model for policy in config.evaluation.policies),
        *(place for policy in config.evaluation.policies for place in policy.recordings),
    ]
    return [place for place in places if is_remote(place) or (place and Path(place).exists())]


def _find_program(named: str) -> str:
    """The file behind `package.module:name` or `path/to/file.py:name`; empty without one."""
    place, _, _ = named.rpartition(":")
    if not place or place.endswith(".py"):
        return place
    try:
        spec = importlib.util.find_spec(place)
    except ImportError:
        return ""
    return (spec and spec.origin) or ""


def digest_content(place: str) -> str:
    """Digest that changes with the content of a file or folder; of a url, with what the store notes of it."""
    digest = hashlib.sha256()
    for entry in _list_remote(place) if is_remote(place) else _list_local(Path(place)):
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _list_local(place: Path) -> Iterator[tuple[str, int, str]]:
    for file in sorted(f for f in (place.rglob("*") if place.is_dir() else [place]) if f.is_file()):
        yield file.relative_to(place).as_posix(), file.stat().st_size, sha256(file)


def _list_remote(place: str) -> Iterator[tuple[str, int, str]]:
    fs, path = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    for name, info in sorted(fs.find(path, detail=True).items()):
        yield name, info["size"], str(next((info[key] for key in _VERSION_KEYS if info.get(key)), ""))
