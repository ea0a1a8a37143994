"""The store of a registry: a folder or url in which a file is created whole, once, and by one writer only."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from steptool.registry.documents import RegistryError

PARTIAL = ".partial"
"""Folder of files that are being written, on a local store."""
_MARK, _LAYOUT = "registry.json", b'{"layout": 1}\n'
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV})
"""How file systems without hard links refuse one."""


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
        return bool(self._fs.exists(self._full(_MARK)))

    def place(self, path: str) -> str:
        """The path as other programs name it: a url with its protocol, or a plain path on this machine."""
        return str(self._fs.unstrip_protocol(self._full(path)))

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders directly in a folder, sorted; empty for a folder that does not exist."""
        try:
            paths = self._fs.ls(self._full(folder), detail=False)
        except FileNotFoundError:
            return []
        inside = (path.rstrip("/") for path in paths)
        return sorted(path.rpartition("/")[2] for path in inside if path != self._full(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path relative to the folder."""
        top = self._full(folder)
        files = self._fs.find(top, detail=True)
        return {path.removeprefix(top).lstrip("/"): int(info["size"]) for path, info in files.items()}

    def modification_time(self, path: str) -> datetime:
        """When a file, or the newest file below a folder, was written. Raises FileNotFoundError."""
        full = self._full(path)
        times: list[datetime] = [self._fs.modified(file) for file in self._fs.find(full) or [full]]
        return max(times)

    def read(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Contents of the files that exist. Raises every other error of the store."""
        whole = [None] * len(paths)
        results = self._fs.cat_ranges([self._full(path) for path in paths], whole, whole, on_error="return")
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, FileNotFoundError):
                raise result
        return {path: content for path, content in zip(paths, results, strict=True) if isinstance(content, bytes)}

    def sha256(self, path: str) -> str:
        """Digest of a file, read as a stream."""
        with self._fs.open(self._full(path), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def create(self, path: str, content: bytes) -> None:
        """Write a new file, whole or not at all. Of several writers one succeeds; the others get FileExistsError."""
        self._prove()
        self._create(path, content)

    def put(self, file: Path, path: str) -> None:
        """Copy a file here: whole or not at all, in place of an older one."""
        self._fs.put_file(str(file), self._full(path))

    def write(self, path: str, content: bytes) -> None:
        """Write a file: whole or not at all, in place of an older one."""
        self._fs.pipe_file(self._full(path), content)

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all below it."""
        self._fs.rm(self._full(path), recursive=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _create(self, path: str, content: bytes) -> None:
        if getattr(self._fs.pipe_file, "__func__", None) is fsspec.AbstractFileSystem.pipe_file:
            raise RegistryError(f"{self._root}: fsspec cannot create a file there for one writer only")
        try:
            self._fs.pipe_file(self._full(path), content, mode="create")
        except OSError as error:  # stores name this failure differently, and a second attempt may meet the first one's
            if isinstance(error, FileExistsError) or self._check_created(path, error):
                raise FileExistsError(path) from error
            raise

    def _check_created(self, path: str, error: OSError) -> bool:
        """Whether a file exists whose creation failed. Raises RegistryError where the store does not answer."""
        try:
            return bool(self._fs.exists(self._full(path)))
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
        return self._full(path)

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
            why = f"no hard links there ({error.strerror}); a registry needs them to create a file for one writer only"
            raise RegistryError(f"{self._root}: {why}") from error

    def _settle(self, path: str, fill: Callable[[BinaryIO], Any], move: Callable[[Path, Path], None]) -> None:
        """Write a file under a temporary name, flush it to the disk, and then give it its name."""
        fresh, final = Path(self._full(f"{PARTIAL}/{uuid.uuid4().hex}")), Path(self._full(path))
        fresh.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            move(fresh, final)
            _sync(final.parent)
        finally:
            fresh.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
