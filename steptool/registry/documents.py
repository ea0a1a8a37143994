"""What a registry keeps: JSON documents, the paths of its files, and model folders to publish."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from steptool.artifacts import lineage

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


_REQUIRED = ("config.json", "model*.safetensors", "tokenizer_config.json")


@dataclass(frozen=True)
class ModelFolder:
    """A model folder and the size and digest of each of its files, read once."""

    folder: Path
    files: dict[str, StoredFile]
    """Every file by its path in the folder. Hidden files are left out."""

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        """Read a folder.

        Raises RegistryError for a folder that transformers could not load, and for a link that leads out of the folder:
        whoever made the folder could have any file of this machine published.
        """
        for pattern in _REQUIRED:
            if not any(folder.glob(pattern)):
                form = "a version is a Hugging Face model folder, as save_pretrained of model and tokenizer writes it"
                raise RegistryError(f"{folder}: no {pattern} in the folder; {form}")
        _check_links(folder)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        visible = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
        return cls(folder, {name: _describe_file(folder / name) for name in visible})

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents."""
        lines = "".join(f"{file.sha256}  {name}\n" for name, file in self.files.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def version_files(self, card: bytes) -> dict[str, StoredFile]:
        """The files of the version by their path in it. The given model card replaces the folder's own."""
        card_file = StoredFile(size=len(card), sha256=hashlib.sha256(card).hexdigest())
        files = {**self.files, lineage.CARD: card_file}
        return {f"{MODEL}/{name}": files[name] for name in sorted(files)}

    def make_card(self, claim: Claim) -> bytes:
        """The model card of the version. A model that was trained elsewhere keeps its own card."""
        entries, card = lineage.read(self.folder), self.folder / lineage.CARD
        if not entries and card.is_file():
            return card.read_bytes()
        return lineage.card(entries, claim.version_id, claim.metadata).encode()


def _describe_file(path: Path) -> StoredFile:
    return StoredFile(size=path.stat().st_size, sha256=lineage.sha256(path))


def _check_links(folder: Path) -> None:
    top = os.path.realpath(folder)
    for path in sorted(folder.rglob("*")):
        target = os.path.realpath(path)
        if path.is_symlink() and not Path(target).is_relative_to(top):
            raise RegistryError(
                f"{path}: is a link to {target}, out of the model folder; if that file belongs to the model, copy "
                f"the folder with its files in place of links (cp -rL {folder} COPY) and publish the copy"
            )
