"""What a registry keeps as JSON files."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict


class Document(BaseModel):
    """A JSON file that is written once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def encoded(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(indent=1).encode() + b"\n"


class StoredFile(Document):
    """A file of a version."""

    size: int
    """Bytes."""
    sha256: str


class Measured(BaseModel):
    """A model's pass rate with its 95% interval, all from 0 to 1."""

    pass_rate: float
    low: float
    high: float
    tasks: int


class Metadata(BaseModel):
    """What is known of a version besides its lineage; entries of other names are kept too."""

    model_config = ConfigDict(extra="allow")

    code_version: str = ""
    config: dict[str, Any] = {}
    """The run's configuration as a tree."""
    results: dict[str, Measured] = {}
    """By model, on the tasks that it was compared on."""


class Claim(Document):
    """Which version a content has, and all that its files depend on besides: every attempt writes the same bytes."""

    version_id: str
    created: AwareDatetime
    metadata: dict[str, Any]


class Version(Document):
    """The manifest of a model that can be promoted. It is written after every file that it names."""

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


def version_id(created: datetime, digest: str) -> str:
    """Name of a version; names sort by time."""
    return f"{created:%Y%m%dT%H%M%SZ}-{digest[:8]}"
