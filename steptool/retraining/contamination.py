"""Which tasks a model was trained on. The list lies beside its weights, and these tasks do not count as held out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from steptool.data.splits import digest, text_key
from steptool.records import Query

FILE = "trained_on.txt"
"""File in the model folder with the digest of each training task's text, one a line."""


def read_trained_on(place: str) -> frozenset[str]:
    """Digests of the training tasks of a model folder or url; empty where the model has no such list."""
    fs, path = fsspec.core.url_to_fs(f"{place}/{FILE}")
    return frozenset(fs.cat_file(path).decode().split()) if fs.exists(path) else frozenset()


def write_trained_on(folder: Path, queries: Iterable[Query], before: frozenset[str]) -> None:
    """Write the list of a model: its training queries, and the digests `before` of the model that it was made from."""
    digests = before | {_digest(query) for query in queries if query.split == "train"}
    (folder / FILE).unlink(missing_ok=True)  # the file may be a hard link into the folder of another model
    (folder / FILE).write_text("".join(f"{digest}\n" for digest in sorted(digests)), encoding="utf-8")


def find_contaminated(queries: Iterable[Query], trained_on: frozenset[str]) -> set[str]:
    """Ids of the queries that are among the training tasks."""
    return {query.query_id for query in queries if _digest(query) in trained_on}


def _digest(query: Query) -> str:
    return digest(text_key(query.instruction)).hex()
