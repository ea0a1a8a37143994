"""A model folder that is to be published: its files, the digest of its content, and its model card."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from steptool.artifacts import lineage
from steptool.registry.documents import MODEL, Claim, RegistryError, StoredFile

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
