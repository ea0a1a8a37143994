"""A model folder on its way into a registry: its files, and what tells one content from another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from steptool.artifacts.lineage import CARD, sha256
from steptool.registry.documents import StoredFile
from steptool.registry.errors import RegistryError

MODEL = "model"
"""Folder of a version with what was published."""
_NEEDED = ("config.json", "model*.safetensors", "tokenizer_config.json")


@dataclass(frozen=True)
class Content:
    """A model folder, read once."""

    folder: Path
    files: dict[str, StoredFile]
    """Every file by its path in the folder; hidden ones are left out."""

    @classmethod
    def of(cls, folder: Path) -> Content:
        """Read a folder. Raises RegistryError for one that transformers could not load."""
        for pattern in _NEEDED:
            if not any(folder.glob(pattern)):
                wanted = "a version is a Hugging Face model folder, as save_pretrained of model and tokenizer writes it"
                raise RegistryError(f"{folder}: no {pattern} in the folder; {wanted}")
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        seen = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
        return cls(folder, {name: _described(folder / name) for name in seen})

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents."""
        listed = "".join(f"{file.sha256}  {name}\n" for name, file in self.files.items())
        return hashlib.sha256(listed.encode()).hexdigest()

    def stored(self, card: bytes) -> dict[str, StoredFile]:
        """The files of the version, by their path in it, with this model card in place of the folder's."""
        marked = {**self.files, CARD: StoredFile(size=len(card), sha256=hashlib.sha256(card).hexdigest())}
        return {f"{MODEL}/{name}": marked[name] for name in sorted(marked)}


def _described(path: Path) -> StoredFile:
    return StoredFile(size=path.stat().st_size, sha256=sha256(path))
