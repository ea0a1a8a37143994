"""Files between this machine and the places that a user names: copied here, told apart by content, and published.

The folder of a run holds a manifest, `published.json`, which says what kind of run it is and which files belong to it.
A later run of the same kind takes the place of these files and of no others: what a user has put beside them stays.

A folder on a disk is swapped whole. A url and a mount point cannot be renamed: there the manifest says that the files
are incomplete, then they are written, files of the former run that the new one does not have are removed, and the
manifest is written again, last.

What former local runs have left in the temporary folder is found and removed here too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
from pydantic import BaseModel

from steptool.artifacts.errors import describe_error
from steptool.artifacts.lineage import hash_file
from steptool.config import Config
from steptool.records.tables import hold_lock, write_whole

_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "crc32c"),
    *("LastModified", "last_modified", "updated", "mtime"),
)
"""Keys under which stores note what changes with the content of a file, best first."""
S = TypeVar("S", bound=BaseModel)
MANIFEST = "published.json"
_REMEDY = "give --output a new or empty folder"


class FetchError(Exception):
    """A url whose content cannot be copied to this machine."""


def is_remote(place: str) -> bool:
    """Whether a place is a url of a store."""
    return "://" in place


def fetch(place: str, folder: Path) -> str:
    """Copy a url's file or folder below `folder`, and return its place there; another place is returned as it is.

    The copy keeps the last two names of the url, since ids of recorded data are made of the name of a file and of its
    folder. Raises FetchError for a url where nothing is, or that cannot be read; its cause is what the store raised.
    """
    if not is_remote(place):
        return place
    try:
        return _copy(place, folder)
    except FetchError:
        raise
    except Exception as error:  # of any class, since each kind of store has its own
        raise FetchError(
            f"{place}: cannot be fetched ({describe_error(error)}); expected a url that this machine can read"
        ) from error


def _copy(url: str, folder: Path) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    path = path.rstrip("/")
    target = folder.joinpath(*path.split("/")[-2:])
    target.parent.mkdir(parents=True, exist_ok=True)
    if fs.isfile(path):
        fs.get_file(path, str(target))
    elif fs.isdir(path):
        fs.get(f"{path}/", f"{target}/", recursive=True)
    else:
        raise FetchError(f"{url}: nothing is there; expected a file or a folder")
    return str(target)


def localize(config: Config, folder: Path, *fields: str) -> Config:
    """The configuration with the urls in these fields (as in data.paths) replaced by copies below `folder`.

    Raises FetchError, which names the field.
    """
    for field in fields:
        try:
            config = _replace(config, field.split("."), folder / field)
        except FetchError as error:
            raise FetchError(f"{field}: {error}") from error
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


def digest_content(place: str) -> str:
    """Digest that changes with the content of a file or folder; of a url, with what the store notes of it."""
    digest = hashlib.sha256()
    for entry in _list_remote(place) if is_remote(place) else _list_local(Path(place)):
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _list_local(place: Path) -> Iterator[tuple[str, int, str]]:
    for file in sorted(f for f in (place.rglob("*") if place.is_dir() else [place]) if f.is_file()):
        yield file.relative_to(place).as_posix(), file.stat().st_size, hash_file(file)


def _list_remote(place: str) -> Iterator[tuple[str, int, str]]:
    fs, path = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    for name, info in sorted(fs.find(path, detail=True).items()):
        yield name, info["size"], str(next((info[key] for key in _VERSION_KEYS if info.get(key)), ""))


class TargetError(ValueError):
    """The place that should receive files cannot take them."""


@dataclass(frozen=True)
class Manifest:
    """What a run has published."""

    kind: str
    """training or evaluation."""
    files: tuple[str, ...]
    """Files that belong to the run, as paths below its folder; while they are written, those of the former run too."""
    complete: bool

    @classmethod
    def read(cls, place: str) -> Manifest | None:
        """The manifest of a place; None without a readable one."""
        fs, root = _open(place)
        try:
            document = json.loads(fs.cat_file(f"{root}/{MANIFEST}").decode())
            return cls(str(document["kind"]), tuple(document["files"]), bool(document["complete"]))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def write(self, place: str) -> None:
        """Write the manifest of a place, in place of a former one."""
        fs, root = _open(place)
        fs.pipe_file(f"{root}/{MANIFEST}", (json.dumps(asdict(self), indent=1) + "\n").encode())


def expand_target(target: str) -> str:
    """A place as a user writes it, without a trailing slash: ~ becomes the home folder, file:// a path."""
    if target.startswith("file://"):
        target = target.removeprefix("file://")
    return target.rstrip("/") if is_remote(target) else str(Path(target).expanduser())


def check_target(target: str, kind: str) -> None:
    """Raise TargetError unless a place can take a run of this kind: a new or empty one, or one with such a run.

    Tries that it can be written, by making, renaming and removing a folder or by writing and removing a file, and
    restores what a publication that was interrupted has moved aside. An empty target is right and publishes nothing.
    """
    if not target:
        return
    place = expand_target(target)
    try:
        if not _is_overwritten(place):
            _probe_folder(Path(place).resolve())
        fs, root = _open_target(place, kind)
        if _is_overwritten(place):
            probe = f"{root}/.steptool-{uuid.uuid4().hex}"
            fs.pipe_file(probe, b"")
            fs.rm_file(probe)
    except TargetError:
        raise
    except Exception as error:  # of any class, since each kind of store has its own; a store may be reached later
        raise TargetError(
            f"{place}: cannot be written ({describe_error(error)}); {_REMEDY} in a place that can"
        ) from error


def deliver_folder(built: Path, target: str, kind: str) -> str:
    """Put a finished folder in place of `target`, and return that place; `built` itself where the target is empty."""
    if not target:
        return str(built)
    place = expand_target(target)
    if _is_overwritten(place):
        _overwrite(built, place, kind)
    else:
        _swap(built, Path(place).resolve(), kind)
    return place


def deliver(files: Mapping[str, Path], folder: str) -> dict[str, str]:
    """Copy files into a folder or url under these names, and return their places by name. Other files there stay.

    In a folder they appear when all are copied, so that a full disk leaves the former ones; a url receives one after
    the other. The last one may link to the others. Raises TargetError where a file stands in the place of the folder.
    """
    place = expand_target(folder)
    if is_remote(place):
        fs, root = fsspec.core.url_to_fs(place)
        for name, file in files.items():
            fs.put_file(str(file), f"{root}/{name}")
    elif Path(place).is_file():
        raise TargetError(f"{folder}: expected a folder, got a file; {_REMEDY}")
    else:
        Path(place).mkdir(parents=True, exist_ok=True)
        with ExitStack() as partials:
            for name, file in reversed([*files.items()]):  # a stack ends in reverse: they appear in the given order
                shutil.copyfile(file, partials.enter_context(write_whole(Path(place, name))))
    return {name: f"{place}/{name}" for name in files}


def _open(place: str) -> tuple[Any, str]:
    """The file system of a place and the path in it."""
    if not is_remote(place):
        return fsspec.filesystem("file", auto_mkdir=True), str(Path(place).absolute())
    fs, root = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    return fs, root


def _is_overwritten(place: str) -> bool:
    """Whether the folder cannot be renamed, so that its files are written one by one."""
    return is_remote(place) or os.path.ismount(place)


def _open_target(place: str, kind: str) -> tuple[Any, str]:
    """The file system of a place and the path in it. Raises TargetError unless it can take a run of this kind."""
    fs, root = _open(place)
    if fs.isfile(root):
        raise TargetError(f"{place}: is a file; {_REMEDY}")
    manifest = Manifest.read(place)
    if manifest is None and fs.exists(root) and fs.ls(root):
        raise TargetError(f"{place}: holds something else than a former run; {_REMEDY}")
    if manifest is not None and manifest.kind != kind:
        raise TargetError(f"{place}: holds a former {manifest.kind}, which a {kind} does not replace; {_REMEDY}")
    return fs, root


def _list_files_below(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _probe_folder(final: Path) -> None:
    """Make, rename and remove a folder where the final one will stand, and the folders above it that are missing."""
    missing = [folder for folder in final.parents if not folder.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(final.parent):
        _restore(final)
        probe = _name_beside(final, "probe")
        probe.mkdir()
        renamed_path = _name_beside(final, "probe") if final.exists() else final
        try:
            probe.rename(renamed_path)
        except OSError:
            probe.rmdir()
            raise
        renamed_path.rmdir()
    for folder in missing:
        with suppress(OSError):  # another run may write there already
            folder.rmdir()


def _swap(built: Path, final: Path, kind: str) -> None:
    """Copy the folder beside the final one, and exchange the two by renaming. A kill leaves what `_restore` mends."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(final.parent):
        _restore(final)
        _open_target(str(final), kind)
        fresh, former = _name_beside(final, "partial"), _name_beside(final, "former")
        try:
            shutil.copytree(built, fresh)
            manifest = Manifest(kind, tuple(_list_files_below(fresh)), complete=True)
            _keep_files_of_the_user(final, fresh)
            manifest.write(str(fresh))
            if final.exists():
                final.rename(former)
            fresh.rename(final)
        except shutil.Error as error:  # it lists every file with its reason
            first = error.args[0][0][2]
            raise OSError(f"{final}: cannot be written, and the former files stay; {first}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _keep_files_of_the_user(former: Path, fresh: Path) -> None:
    """Copy files and links that a former run did not publish; beside a file of the same name as NAME.yours."""
    manifest = Manifest.read(str(former))
    published_files = {MANIFEST, *(manifest.files if manifest else ())}
    for path in sorted(path for path in former.rglob("*") if path.is_file() or path.is_symlink()):
        name = path.relative_to(former).as_posix()
        if name not in published_files:
            target = fresh / name
            target = target.with_name(f"{target.name}.yours") if target.exists() else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)


def _restore(final: Path) -> None:
    """Tidy up after a publication that was killed, under the lock: a whole new folder stays, else the former."""
    partial, former = (sorted(final.parent.glob(f"{_make_prefix(final)}*.{end}")) for end in ("partial", "former"))
    if not final.exists():
        whole = [folder for folder in partial if Manifest.read(str(folder))]  # none while it is written
        for folder in [*whole, *former][:1]:
            folder.rename(final)
    for folder in (*partial, *former, *final.parent.glob(f"{_make_prefix(final)}*.probe")):
        shutil.rmtree(folder, ignore_errors=True)


def _make_prefix(final: Path) -> str:
    """What the names of the folders beside the final one begin with; as short for a long name as for another."""
    return f".steptool-{hashlib.sha256(final.name.encode()).hexdigest()[:12]}-"


def _name_beside(final: Path, end: str) -> Path:
    return final.with_name(f"{_make_prefix(final)}{uuid.uuid4().hex}.{end}")


def _overwrite(built: Path, place: str, kind: str) -> None:
    """Write the files one by one, the manifest first and last."""
    fs, root = _open_target(place, kind)
    former = Manifest.read(place)
    stale, files = set(former.files if former else ()), _list_files_below(built)
    present = {path.removeprefix(root).lstrip("/") for path in fs.find(root)} if fs.exists(root) else set()
    for name in sorted((present & set(files)) - stale):
        fs.copy(f"{root}/{name}", f"{root}/{name}.yours")
    Manifest(kind, tuple(sorted(stale | set(files))), complete=False).write(place)
    fs.put([str(built / name) for name in files], [f"{root}/{name}" for name in files])
    for name in sorted((stale - set(files)) & present):
        fs.rm_file(f"{root}/{name}")
    Manifest(kind, tuple(files), complete=True).write(place)


_PATTERN = re.compile(r"flyte-?\w{8}|steptool-run-\w{8}|steptool-[\w-]+\.txt")
"""Folders in which flytekit runs workflows locally, those of the command, and files with the stack of an error."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that no run has touched for a while."""

    path: Path
    size: int
    """Bytes, of all files below a folder."""


def find_leftovers(hours: float) -> list[Leftover]:
    """The files and folders of this user that were not touched for so many hours."""
    latest = time.time() - hours * 3600
    folder = Path(tempfile.gettempdir())
    leftovers = []
    for path in sorted(path for path in folder.iterdir() if _PATTERN.fullmatch(path.name)):
        with suppress(FileNotFoundError):  # a run that ends removes its folder meanwhile
            leftover, changed_at = _measure(path)
            if changed_at <= latest and _is_own(path):
                leftovers.append(leftover)
    return leftovers


def remove_leftovers(leftovers: Iterable[Leftover]) -> None:
    """Remove them. One that has vanished already is no error."""
    for leftover in leftovers:
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path, ignore_errors=True)
        else:
            leftover.path.unlink(missing_ok=True)


def _is_own(path: Path) -> bool:
    return not path.is_symlink() and path.lstat().st_uid == os.getuid()


def _measure(path: Path) -> tuple[Leftover, float]:
    """The size of a file or folder, and when something in it was last changed. What vanishes meanwhile is left out."""
    states = [path.lstat()]
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                states.append(Path(folder, name).lstat())
    return Leftover(path, sum(s.st_size for s in states)), max(s.st_mtime for s in states)
