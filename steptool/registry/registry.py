"""Models in service: immutable versions, and the log of champions whose last entry is the model in service."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from steptool.artifacts import lineage
from steptool.registry.content import MODEL, Content
from steptool.registry.documents import Champion, Claim, Document, Metadata, Version, version_id
from steptool.registry.errors import Conflict, RegistryError
from steptool.registry.store import PARTIAL, open_store

_CHAMPIONS, _CONTENTS, _RUNS, _VERSIONS = "champions", "contents", "runs", "versions"
_MANIFEST = "version.json"
_ENTRY = re.compile(r"\d{8,}\.json")
_RUN_ID = re.compile(r"\w[\w.-]*")
D = TypeVar("D", bound=Document)


class Registry:
    """The registry in a folder or under a url of fsspec. Any number of processes may use it at once.

    Everything rests on one act of the store, to create a file that is not there yet: version.json makes a version,
    champions/00000002.json makes the second champion. Nothing that was created is ever changed.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self._store = open_store(os.fspath(place))

    def publish(self, model_dir: Path, metadata: Mapping[str, Any]) -> Version:
        """Make a version of a model folder; of a content that was published before, the version that it has.

        Its metadata are those of the first attempt; the entries of `Metadata` stand on the model card, others are free.
        Raises RegistryError for a folder that is no model and for metadata that are no JSON.
        """
        content = Content.of(Path(model_dir))
        claim = self._claim(content.digest, metadata)
        finished = self._version(claim.version_id)
        if not finished:
            return self._upload(content, claim)
        if finished.digest != content.digest:
            raise RegistryError(f"{claim.version_id}: another content has this name; publish it again")
        return finished

    def champion(self) -> Champion | None:
        """The model in service; None before the first promotion."""
        paths = self._entries()
        return self._read(paths[-1], Champion) if paths else None

    def promote(self, version_id: str, *, after: int, reason: str) -> Champion:
        """Put a version in service if number `after` (0: none) still is the champion. Returns its entry in the log.

        Doing it again changes nothing and returns the entry of the first time. Raises Conflict if somebody promoted
        another version since, RegistryError for a version that is unknown or lacks a file.
        """
        if faults := self._absent(self.version(version_id)):
            raise RegistryError(f"{version_id} cannot be promoted: {faults[0]}")
        if after and not self._store.read([_entry(after)]):
            raise RegistryError(f"there is no champion number {after} to promote {version_id} after")
        entry = Champion(sequence=after + 1, version_id=version_id, since=datetime.now(UTC), reason=reason)
        try:
            self._store.create(_entry(entry.sequence), entry.encoded())
        except FileExistsError:
            return self._promoted_before(entry)
        return entry

    def roll_back(self, to: str | None = None, reason: str = "") -> Champion:
        """Put a former champion in service again: the one before the present one came, unless another is named.

        Raises RegistryError if there is none, Conflict if somebody promotes at the same time.
        """
        history = self.history()
        if not history:
            raise RegistryError("there is no champion to roll back from")
        current = history[-1]
        first = next(entry.sequence for entry in history if entry.version_id == current.version_id)
        former = [entry.version_id for entry in history[: first - 1]] if to is None else [to]
        if not former:
            raise RegistryError(f"{current.version_id} was the first champion: there is none before it")
        if former[-1] not in {entry.version_id for entry in history}:
            raise RegistryError(f"{former[-1]} never was a champion; there were {_listed(history)}")
        why = reason or f"rolled back from {current.version_id}"
        return self.promote(former[-1], after=current.sequence, reason=why)

    def version(self, version_id: str) -> Version:
        """A version's manifest. Raises RegistryError where there is no such version, or it was never finished."""
        found = self._version(version_id)
        if not found:
            known = ", ".join(version.version_id for version in self.versions()[-3:]) or "none"
            raise RegistryError(f"no version '{version_id}' was published; the last ones are: {known}")
        return found

    def versions(self) -> list[Version]:
        """Every version, oldest first. What is half uploaded is none."""
        paths = [f"{_VERSIONS}/{name}/{_MANIFEST}" for name in self._store.names(_VERSIONS)]
        found = [_parsed(path, content, Version) for path, content in self._store.read(paths).items()]
        return sorted(found, key=lambda version: (version.created, version.version_id))

    def history(self) -> list[Champion]:
        """Every promotion and roll-back, first to last."""
        paths = self._entries()
        return [_parsed(path, content, Champion) for path, content in self._store.read(paths).items()]

    def model_place(self, version_id: str) -> str:
        """Folder or url of a version's model: a Hugging Face model folder. Raises RegistryError for an unknown one."""
        return self._store.place(f"{_folder(self.version(version_id).version_id)}/{MODEL}")

    def record_run(self, run_id: str, document: Mapping[str, Any]) -> None:
        """Keep how a run ended. Raises RegistryError if the run was recorded with another document."""
        if not _RUN_ID.fullmatch(run_id):
            raise RegistryError(f"run '{run_id}': expected letters, digits, '_', '.' and '-', as it names a file")
        path, content = f"{_RUNS}/{run_id}.json", _json({**document, "run_id": run_id})
        try:
            self._store.create(path, content)
        except FileExistsError:
            if self._store.read([path])[path] != content:
                raise RegistryError(f"run {run_id} was recorded before, with another document; it stays") from None

    def runs(self) -> list[dict[str, Any]]:
        """What was recorded of every run, with its `run_id`, sorted by that."""
        found = self._store.read([f"{_RUNS}/{name}" for name in self._store.names(_RUNS)])
        return [json.loads(content) for content in found.values()]

    def verify(self, version_id: str | None = None) -> list[str]:
        """What is wrong with a version, or with the whole registry: nothing, if the list is empty.

        Reads every byte: each file has the size and digest of the manifest, there are no others, and the log of
        champions has no gaps and names finished versions.
        """
        if version_id:
            return self._faults(self.version(version_id))
        versions = self.versions()
        faults = [fault for version in versions for fault in self._faults(version)]
        return faults + self._log_faults({version.version_id for version in versions})

    def prune(self, older_than: timedelta = timedelta(days=1)) -> list[str]:
        """Remove uploads that were given up: unfinished versions in which nothing was written for that time.

        Never a version that is finished or that a champion names. Returns the paths that were removed.
        """
        kept = {version.version_id for version in self.versions()} | {entry.version_id for entry in self.history()}
        unfinished = [_folder(name) for name in self._store.names(_VERSIONS) if name not in kept]
        partial = [f"{PARTIAL}/{name}" for name in self._store.names(PARTIAL)]
        before = datetime.now(UTC) - older_than
        return [path for path in unfinished + partial if self._removed(path, before)]

    def _removed(self, path: str, before: datetime) -> bool:
        """Remove a path in which nothing was written since. Whether it was; not if it is gone by now."""
        try:
            stale = self._store.changed(path) < before
            if stale:
                self._store.remove(path)
        except FileNotFoundError:
            return False
        return stale

    def _claim(self, digest: str, metadata: Mapping[str, Any]) -> Claim:
        """The content's claim: ours, or that of whoever came first."""
        now, path = datetime.now(UTC), f"{_CONTENTS}/{digest}.json"
        claim = Claim(version_id=version_id(now, digest), created=now, metadata=_checked(metadata))
        try:
            self._store.create(path, claim.encoded())
        except FileExistsError:
            return self._read(path, Claim)
        return claim

    def _upload(self, content: Content, claim: Claim) -> Version:
        """Write the files and then the manifest. What is written depends on content and claim alone."""
        folder, card = _folder(claim.version_id), _card(content.folder, claim).encode()
        for name in content.files.keys() - {lineage.CARD}:
            self._store.put(content.folder / name, f"{folder}/{MODEL}/{name}")
        self._store.write(f"{folder}/{MODEL}/{lineage.CARD}", card)
        version = Version(
            version_id=claim.version_id,
            created=claim.created,
            digest=content.digest,
            metadata=claim.metadata,
            lineage=lineage.read(content.folder),
            files=content.stored(card),
        )
        with suppress(FileExistsError):  # another attempt at the same content: the same manifest
            self._store.create(f"{folder}/{_MANIFEST}", version.encoded())
        return version

    def _entries(self) -> list[str]:
        """Paths of the log's entries, first to last. What else somebody's file manager has left there is none."""
        return [f"{_CHAMPIONS}/{name}" for name in self._store.names(_CHAMPIONS) if _ENTRY.fullmatch(name)]

    def _promoted_before(self, entry: Champion) -> Champion:
        """The entry that stands where ours should: the same promotion. Raises Conflict if it is another."""
        standing, champion = self._read(_entry(entry.sequence), Champion), self.champion()
        if standing.version_id != entry.version_id:
            raise Conflict(champion or standing, entry.sequence - 1)
        return standing

    def _version(self, version_id: str) -> Version | None:
        path = f"{_folder(version_id)}/{_MANIFEST}"
        return next((_parsed(path, content, Version) for content in self._store.read([path]).values()), None)

    def _absent(self, version: Version) -> list[str]:
        """Files of the manifest that are missing or of another size."""
        folder = _folder(version.version_id)
        sizes = self._store.sizes(folder)
        wanted = {name: file.size for name, file in version.files.items()}
        faults = [
            f"{folder}/{name}: expected {size} bytes, found {sizes.get(name, 'no file')}"
            for name, size in wanted.items()
            if sizes.get(name) != size
        ]
        return faults

    def _faults(self, version: Version) -> list[str]:
        folder, faults = _folder(version.version_id), self._absent(version)
        if faults:
            return faults
        more = self._store.sizes(folder).keys() - version.files.keys() - {_MANIFEST}
        faults = [f"{folder}/{name}: not in {_MANIFEST}" for name in sorted(more)]
        for name, file in version.files.items():
            found = self._store.sha256(f"{folder}/{name}")
            if found != file.sha256:
                faults.append(f"{folder}/{name}: expected the SHA-256 {file.sha256}, found {found}")
        return faults

    def _log_faults(self, versions: set[str]) -> list[str]:
        history = self.history()
        gaps = [entry.sequence for number, entry in enumerate(history, 1) if entry.sequence != number]
        unknown = [entry for entry in history if entry.version_id not in versions]
        return [f"{_entry(number)}: the one before it is missing" for number in gaps[:1]] + [
            f"{_entry(entry.sequence)}: names {entry.version_id}, which is no finished version" for entry in unknown
        ]

    def _read(self, path: str, kind: type[D]) -> D:
        return _parsed(path, self._store.read([path])[path], kind)


def _folder(version_id: str) -> str:
    return f"{_VERSIONS}/{version_id}"


def _entry(sequence: int) -> str:
    return f"{_CHAMPIONS}/{sequence:08}.json"


def _listed(history: list[Champion]) -> str:
    return ", ".join(dict.fromkeys(entry.version_id for entry in history))


def _card(folder: Path, claim: Claim) -> str:
    """The model card of a version. Of a model from elsewhere, its own."""
    entries, card = lineage.read(folder), folder / lineage.CARD
    if not entries and card.is_file():
        return card.read_text(encoding="utf-8")
    return lineage.card(entries, claim.version_id, claim.metadata)


def _checked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as JSON gives them back. Raises RegistryError naming an entry that is ill-typed."""
    plain: dict[str, Any] = json.loads(_json(metadata))
    try:
        Metadata.model_validate(plain)
    except ValidationError as error:
        raise RegistryError(f"the metadata of a version: {error}") from error
    return plain


def _json(document: Mapping[str, Any]) -> bytes:
    """A JSON file. Raises RegistryError for what JSON does not hold."""
    try:
        return json.dumps(dict(document), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise RegistryError(f"a registry keeps JSON, and this is none: {error}") from error


def _parsed(path: str, content: bytes, kind: type[D]) -> D:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RegistryError(
            f"{path}: not a {kind.__name__.lower()} as this version of steptool writes them: {error}"
        ) from error
