"""What a registry keeps: its JSON documents, the paths of its files, and the errors that name them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

CHAMPIONS, CONTENTS, RUNS, VERSIONS = "champions", "contents", "runs", "versions"
"""Folders of a registry."""
MANIFEST = "version.json"
"""File of a version's folder that lists all others. It is written last."""
MODEL = "model"
"""Folder of a version with the published model."""
ENTRY_NAME = re.compile(r"\d{8,}\.json")
"""Names of the files in CHAMPIONS that are entries of the log. Files of other names, as file managers leave them, are
ignored."""


class RegistryError(Exception):
    """A registry cannot do what it was asked for. The message says why."""


class Document(BaseModel):
    """A JSON file that is written once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def encode(self) -> bytes:
        """The content of the file."""
        return self.model_dump_json(indent=1).encode() + b"\n"


class StoredFile(Document):
    """A file of a version."""

    size: int
    """Bytes."""
    sha256: str


class PassRate(BaseModel):
    """A model's pass rate with its 95% interval, all from 0 to 1."""

    pass_rate: float
    low: float
    high: float
    tasks: int


class Metadata(BaseModel):
    """What is known of a version besides its lineage. Entries of other names are kept too."""

    model_config = ConfigDict(extra="allow")

    code_version: str = ""
    config: dict[str, Any] = {}
    """The run's configuration as a tree."""
    results: dict[str, PassRate] = {}
    """By model, on the tasks on which the models were compared."""


class Claim(Document):
    """The version that a content belongs to, and all else that the version's files depend on.

    Every attempt to publish the content reads its claim, and therefore writes the same bytes.
    """

    version_id: str
    created: AwareDatetime
    metadata: dict[str, Any]


class Version(Document):
    """The manifest of a model that can be promoted."""

    version_id: str
    """Time of its first publication in UTC, and the digest's first 8 digits: 20261121T021500Z-1a2b3c4d."""
    created: AwareDatetime
    digest: str
    """SHA-256 over names and contents of the folder that was published."""
    metadata: dict[str, Any]
    lineage: list[dict[str, Any]]
    """The stages behind the model, first to last (steptool.artifacts.lineage)."""
    files: dict[str, StoredFile]
    """Every file of the version by its path below the version's folder."""


class Champion(Document):
    """An entry of the log of champions. The one with the highest number is in service."""

    sequence: int
    """1, 2, ... without gaps."""
    version_id: str
    since: AwareDatetime
    reason: str


class Conflict(RegistryError):
    """Another model was promoted since the champion was looked up. Nothing was changed."""

    def __init__(self, champion: Champion, after: int) -> None:
        super().__init__(
            f"number {after} is no longer the champion: {champion.version_id} was promoted as number "
            f"{champion.sequence} at {champion.since:%Y-%m-%d %H:%M:%S} UTC ({champion.reason}); compare with that one"
        )
        self.champion = champion
        """The entry in service now."""


def make_version_id(created: datetime, digest: str) -> str:
    """Name of a version. Names sort by time."""
    return f"{created:%Y%m%dT%H%M%SZ}-{digest[:8]}"


def version_folder(version_id: str) -> str:
    """Path of a version's folder."""
    return f"{VERSIONS}/{version_id}"


def manifest_path(version_id: str) -> str:
    """Path of a version's manifest."""
    return f"{version_folder(version_id)}/{MANIFEST}"


def claim_path(digest: str) -> str:
    """Path of the claim of a content."""
    return f"{CONTENTS}/{digest}.json"


def entry_path(sequence: int) -> str:
    """Path of an entry of the log of champions."""
    return f"{CHAMPIONS}/{sequence:08}.json"


D = TypeVar("D", bound=Document)


def parse_document(path: str, content: bytes, kind: type[D]) -> D:
    """The document in a file. Raises RegistryError naming the path."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        name = kind.__name__.lower()
        raise RegistryError(f"{path}: not a {name} as this version of steptool writes it: {error}") from error


def encode_json(document: Mapping[str, Any]) -> bytes:
    """A JSON file. Raises RegistryError for values that JSON cannot hold."""
    try:
        return json.dumps(dict(document), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise RegistryError(f"a registry keeps JSON, and this cannot be written as JSON: {error}") from error


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as JSON gives them back. Raises RegistryError naming an entry of the wrong type."""
    plain: dict[str, Any] = json.loads(encode_json(metadata))
    try:
        Metadata.model_validate(plain)
    except ValidationError as error:
        raise RegistryError(f"the metadata of a version: {error}") from error
    return plain
