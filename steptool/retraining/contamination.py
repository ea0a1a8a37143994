"""Which tasks a model was trained on, kept beside its weights: it must not be measured on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from steptool.data.splits import digest, text_key
from steptool.records import Query

FILE = "trained_on.txt"
"""In the model folder: a digest of the text of each training task, one a line."""


def trained_on(place: str) -> frozenset[str]:
    """Digests of the training tasks of a model folder or url; none where it does not say."""
    fs, path = fsspec.core.url_to_fs(f"{place}/{FILE}")
    return frozenset(fs.cat_file(path).decode().split()) if fs.exists(path) else frozenset()


def known(queries: Iterable[Query], seen: frozenset[str]) -> set[str]:
    """Ids of the queries that are among the training tasks."""
    return {query.query_id for query in queries if _mark(query) in seen}


def note(folder: Path, queries: Iterable[Query], before: frozenset[str]) -> None:
    """Write the file: the training queries, and the training tasks of the model that training began with."""
    marks = before | {_mark(query) for query in queries if query.split == "train"}
    (folder / FILE).unlink(missing_ok=True)  # it may be a link to that of another folder
    (folder / FILE).write_text("".join(f"{mark}\n" for mark in sorted(marks)), encoding="utf-8")


def _mark(query: Query) -> str:
    return digest(text_key(query.instruction)).hex()
