"""What a registry keeps, and where: JSON documents and model folders, below a folder or url.

There a file is created whole, once, and by one writer only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, TypeVar

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
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
PARTIAL = ".partial"
"""Folder of files that are being written, on a local store."""
_REQUIRED = ("config.json", "model*.safetensors", "tokenizer_config.json")
"""Files that a model folder has to hold."""
_MARK, _LAYOUT = "registry.json", b'{"layout": 1}\n'
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV})
"""Numbers of the errors by which a file system without hard links refuses to make one."""


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

    @classmethod
    def describe(cls, path: Path) -> Self:
        """The entry of a file on this machine."""
        return cls(size=path.stat().st_size, sha256=lineage.hash_file(path))


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


def locate_version(version_id: str) -> str:
    """Path of a version's folder."""
    return f"{VERSIONS}/{version_id}"


def locate_manifest(version_id: str) -> str:
    """Path of a version's manifest."""
    return f"{locate_version(version_id)}/{MANIFEST}"


def locate_claim(digest: str) -> str:
    """Path of the claim of a content."""
    return f"{CONTENTS}/{digest}.json"


def locate_entry(sequence: int) -> str:
    """Path of an entry of the log of champions."""
    return f"{CHAMPIONS}/{sequence:08}.json"


D = TypeVar("D", bound=Document)


def decode_document(path: str, content: bytes, kind: type[D]) -> D:
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
        return cls(folder, {name: StoredFile.describe(folder / name) for name in visible})

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
        return lineage.make_card(entries, claim.version_id, claim.metadata).encode()


def _check_links(folder: Path) -> None:
    top = os.path.realpath(folder)
    for path in sorted(folder.rglob("*")):
        target = os.path.realpath(path)
        if path.is_symlink() and not Path(target).is_relative_to(top):
            raise RegistryError(
                f"{path}: is a link to {target}, out of the model folder; if that file belongs to the model, copy "
                f"the folder with its files in place of links (cp -rL {folder} COPY) and publish the copy"
            )


def open_store(place: str) -> Store:
    """The store of a folder or of any url that fsspec reads.

    Raises RegistryError for a pattern in place of a name, and for a protocol that is unknown or not installed.
    """
    if set(place) & set("*?["):
        raise RegistryError(f"{place}: a registry's place is one folder or url, without * ? and [")
    try:
        fs, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise RegistryError(f"{place}: expected a folder or a url of a store that fsspec knows ({error})") from error
    return LocalStore(fs, root) if isinstance(fs, LocalFileSystem) else Store(fs, root)


class Store:
    """Files below a url. All paths are relative to it.

    Before the first write the store has to prove that it creates a file for one writer only: it must refuse to create a
    file that exists. Raises RegistryError for a store that does not refuse, and for one for which fsspec looks whether
    a file exists and writes it later.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root, self._proved = fs, root.rstrip("/"), False

    @property
    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return bool(self._fs.exists(self._join(_MARK)))

    def place(self, path: str) -> str:
        """The path as other programs name it: a url with its protocol, or a plain path on this machine."""
        return str(self._fs.unstrip_protocol(self._join(path)))

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders directly in a folder, sorted; empty for a folder that does not exist."""
        try:
            paths = self._fs.ls(self._join(folder), detail=False)
        except FileNotFoundError:
            return []
        inside = (path.rstrip("/") for path in paths)
        return sorted(path.rpartition("/")[2] for path in inside if path != self._join(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path relative to the folder."""
        top = self._join(folder)
        files = self._fs.find(top, detail=True)
        return {path.removeprefix(top).lstrip("/"): int(info["size"]) for path, info in files.items()}

    def modification_time(self, path: str) -> datetime:
        """When a file, or the newest file below a folder, was written. Raises FileNotFoundError."""
        full = self._join(path)
        times: list[datetime] = [self._fs.modified(file) for file in self._fs.find(full) or [full]]
        return max(times)

    def read(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Contents of the files that exist. Raises every other error of the store."""
        whole = [None] * len(paths)
        results = self._fs.cat_ranges([self._join(path) for path in paths], whole, whole, on_error="return")
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, FileNotFoundError):
                raise result
        return {path: content for path, content in zip(paths, results, strict=True) if isinstance(content, bytes)}

    def sha256(self, path: str) -> str:
        """Digest of a file, read as a stream."""
        with self._fs.open(self._join(path), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def create(self, path: str, content: bytes) -> None:
        """Write a new file, whole or not at all. Of several writers one succeeds; the others get FileExistsError."""
        self._prove()
        self._create(path, content)

    def put(self, file: Path, path: str) -> None:
        """Copy a file here: whole or not at all, in place of an older one."""
        self._fs.put_file(str(file), self._join(path))

    def write(self, path: str, content: bytes) -> None:
        """Write a file: whole or not at all, in place of an older one."""
        self._fs.pipe_file(self._join(path), content)

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all below it."""
        self._fs.rm(self._join(path), recursive=True)

    def _join(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _create(self, path: str, content: bytes) -> None:
        if getattr(self._fs.pipe_file, "__func__", None) is fsspec.AbstractFileSystem.pipe_file:
            raise RegistryError(f"{self._root}: fsspec cannot create a file there for one writer only")
        try:
            self._fs.pipe_file(self._join(path), content, mode="create")
        except OSError as error:  # stores name this failure differently, and a second attempt may meet the first one's
            if isinstance(error, FileExistsError) or self._check_created(path, error):
                raise FileExistsError(path) from error
            raise

    def _check_created(self, path: str, error: OSError) -> bool:
        """Whether a file exists whose creation failed. Raises RegistryError where the store does not answer."""
        try:
            return bool(self._fs.exists(self._join(path)))
        except OSError:
            raise RegistryError(
                f"{self._root}: the store does not answer, and whether it has created {path} is unknown ({error}); "
                "repeat the command once the store answers: it changes nothing if the file was created"
            ) from error

    def _prove(self) -> None:
        """Create the registry's mark twice, or once where it exists. The last attempt must fail."""
        if self._proved:
            return
        for _ in range(2):
            try:
                self._create(_MARK, _LAYOUT)
            except FileExistsError:
                self._proved = True
                return
        raise RegistryError(
            f"{self._root}: the store overwrites a file that it was asked to create only if absent "
            "(on S3: If-None-Match), so that two runs could undo each other's promotion; use another store"
        )


class LocalStore(Store):
    """Files in a folder of this machine or of a network drive."""

    def place(self, path: str) -> str:
        """The path on this machine."""
        return self._join(path)

    def put(self, file: Path, path: str) -> None:
        """Copy a file here: whole or not at all, in place of an older one."""
        with file.open("rb") as source:
            self._settle(path, lambda target: shutil.copyfileobj(source, target, 1 << 20), os.replace)

    def write(self, path: str, content: bytes) -> None:
        """Write a file: whole or not at all, in place of an older one."""
        self._settle(path, lambda target: target.write(content), os.replace)

    def _create(self, path: str, content: bytes) -> None:
        try:
            self._settle(path, lambda target: target.write(content), os.link)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            reason = (
                f"no hard links there ({error.strerror}); a registry needs them to create a file for one writer only"
            )
            raise RegistryError(f"{self._root}: {reason}") from error

    def _settle(self, path: str, fill: Callable[[BinaryIO], Any], move: Callable[[Path, Path], None]) -> None:
        """Write a file under a temporary name, flush it to the disk, and then give it its name."""
        fresh, final = Path(self._join(f"{PARTIAL}/{uuid.uuid4().hex}")), Path(self._join(path))
        fresh.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            move(fresh, final)
            _flush(final.parent)
        finally:
            fresh.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
