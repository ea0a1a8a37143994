"""Models in service: immutable versions, and the log of champions whose last entry is the model in service.

The verification lists what is wrong with a registry: damaged documents, changed and missing files, gaps in the log.
It repairs nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from steptool.artifacts import lineage
from steptool.registry.store import (
    CHAMPIONS,
    ENTRY_NAME,
    MANIFEST,
    MODEL,
    PARTIAL,
    RUNS,
    VERSIONS,
    Champion,
    Claim,
    D,
    ModelFolder,
    RegistryError,
    Store,
    Version,
    decode_document,
    encode_json,
    locate_claim,
    locate_entry,
    locate_manifest,
    locate_version,
    open_store,
)


class Conflict(RegistryError):
    """Another model was promoted since the champion was looked up. Nothing was changed."""

    def __init__(self, champion: Champion, after: int) -> None:
        super().__init__(
            f"number {after} is no longer the champion: {champion.version_id} was promoted as number "
            f"{champion.sequence} at {champion.since:%Y-%m-%d %H:%M:%S} UTC ({champion.reason}); compare with that one"
        )
        self.champion = champion
        """The entry in service now."""


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


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as JSON gives them back. Raises RegistryError naming an entry of the wrong type."""
    plain: dict[str, Any] = json.loads(encode_json(metadata))
    try:
        Metadata.model_validate(plain)
    except ValidationError as error:
        raise RegistryError(f"the metadata of a version: {error}") from error
    return plain


def make_version_id(created: datetime, digest: str) -> str:
    """Name of a version. Names sort by time."""
    return f"{created:%Y%m%dT%H%M%SZ}-{digest[:8]}"


def find_faults(store: Store) -> list[str]:
    """All faults of a registry, one in each line. Reads every byte."""
    manifests, faults = read_documents(store, list_manifest_paths(store), Version)
    for path, version in manifests.items():
        faults += find_version_faults(store, version, path)
    return [*faults, *_find_log_faults(store, {path.split("/")[1] for path in manifests}), *_find_run_faults(store)]


def find_version_faults(store: Store, version: Version, path: str = "") -> list[str]:
    """Faults of one version, whose manifest lies at the path: its name, its claim, and its files with their digests."""
    folder, path = locate_version(version.version_id), path or locate_manifest(version.version_id)
    if path != locate_manifest(version.version_id):
        return [f"{path}: names another version, {version.version_id}"]
    faults = [*_find_digest_faults(store, version, path)]
    if missing := find_missing_files(store, version):
        return faults + missing
    extra = store.sizes(folder).keys() - version.files.keys() - {MANIFEST}
    faults += [f"{folder}/{name}: not in {MANIFEST}" for name in sorted(extra)]
    for name, file in version.files.items():
        digest = store.sha256(f"{folder}/{name}")
        if digest != file.sha256:
            faults.append(f"{folder}/{name}: expected the SHA-256 {file.sha256}, found {digest}")
    return faults


def find_missing_files(store: Store, version: Version) -> list[str]:
    """Files of the manifest that are missing or have another size."""
    folder = locate_version(version.version_id)
    sizes = store.sizes(folder)
    return [
        f"{folder}/{name}: expected {file.size} bytes, found {sizes.get(name, 'no file')}"
        for name, file in version.files.items()
        if sizes.get(name) != file.size
    ]


def list_manifest_paths(store: Store) -> list[str]:
    """Paths of the manifests of all versions. That of an unfinished version does not exist yet."""
    return [locate_manifest(name) for name in store.names(VERSIONS)]


def list_entry_paths(store: Store) -> list[str]:
    """Paths of the entries of the log of champions, first to last."""
    return [f"{CHAMPIONS}/{name}" for name in store.names(CHAMPIONS) if ENTRY_NAME.fullmatch(name)]


def read_documents(store: Store, paths: list[str], kind: type[D]) -> tuple[dict[str, D], list[str]]:
    """The documents that can be read, by their path, and one fault for each file that is damaged."""
    documents: dict[str, D] = {}
    faults: list[str] = []
    for path, content in store.read(paths).items():
        try:
            documents[path] = decode_document(path, content, kind)
        except RegistryError as error:
            faults.append(" ".join(str(error).split()))
    return documents, faults


def _find_digest_faults(store: Store, version: Version, path: str) -> Iterator[str]:
    """Whether name, digest and claim of a version still belong together."""
    if version.version_id != make_version_id(version.created, version.digest):
        yield f"{path}: its digest {version.digest[:12]} or its time is not that of the name; the manifest was changed"
    place = locate_claim(version.digest)
    claims, faults = read_documents(store, [place], Claim)
    yield from faults
    if not claims and not faults:
        yield f"{place}: missing; without it {version.version_id} would be published a second time"
    elif claims and claims[place].version_id != version.version_id:
        yield f"{place}: names {claims[place].version_id} and not {version.version_id}"


def _find_log_faults(store: Store, versions: set[str]) -> list[str]:
    entries, faults = read_documents(store, list_entry_paths(store), Champion)
    faults += [
        f"{path}: says that it is number {entry.sequence}"
        for path, entry in entries.items()
        if path != locate_entry(entry.sequence)
    ]
    numbers = [int(path.rpartition("/")[2].removesuffix(".json")) for path in list_entry_paths(store)]
    gaps = [number for expected, number in enumerate(numbers, 1) if number != expected]
    faults += [f"{locate_entry(number)}: the one before it is missing" for number in gaps[:1]]
    unknown = {path: entry.version_id for path, entry in entries.items() if entry.version_id not in versions}
    return faults + [f"{path}: names {name}, which is no finished version" for path, name in unknown.items()]


def _find_run_faults(store: Store) -> list[str]:
    documents: Mapping[str, bytes] = store.read([f"{RUNS}/{name}" for name in store.names(RUNS)])
    faults = []
    for path, content in documents.items():
        try:
            json.loads(content)
        except ValueError as error:
            faults.append(f"{path}: not a JSON file ({error})")
    return faults


_RUN_ID = re.compile(r"\w[\w.-]*")


class Registry:
    """The registry in a folder or under a url of fsspec. Any number of processes may use it at once.

    The registry is safe because the store can create a file that is not there yet for one writer only. The creation of
    version.json makes a version, that of champions/00000002.json makes the second champion. No file is ever changed.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self._store = open_store(os.fspath(place))

    @property
    def exists(self) -> bool:
        """Whether anything was ever written to this place."""
        return self._store.exists

    @property
    def promotions(self) -> int:
        """Number of entries in the log of champions, readable or not."""
        return len(list_entry_paths(self._store))

    def publish(self, model_dir: Path, metadata: Mapping[str, Any]) -> Version:
        """Make a version of a model folder, or return the version that this content already has.

        The version keeps the metadata of the first attempt. The model card shows the entries of `Metadata`; others are
        free. Raises RegistryError for a folder without a model and for metadata that JSON cannot hold.
        """
        model = ModelFolder.read(Path(model_dir))
        claim = self._claim(model.digest, metadata)
        version = self._find_version(claim.version_id)
        if not version:
            return self._upload(model, claim)
        if version.digest != model.digest:
            raise RegistryError(f"{claim.version_id}: another content has this name; publish it again")
        return version

    def champion(self) -> Champion | None:
        """The model in service; None before the first promotion."""
        paths = list_entry_paths(self._store)
        return self._read(paths[-1], Champion) if paths else None

    def promote(self, version_id: str, *, after: int, reason: str) -> Champion:
        """Put a version in service if number `after` (0: none) still is the champion. Returns its entry in the log.

        Doing it again changes nothing and returns the first entry. Raises Conflict if another version was promoted
        since, and RegistryError for a version that is unknown or lacks a file.
        """
        if faults := find_missing_files(self._store, self.version(version_id)):
            raise RegistryError(f"{version_id} cannot be promoted: {faults[0]}")
        if after and not self._store.read([locate_entry(after)]):
            raise RegistryError(f"there is no champion number {after} to promote {version_id} after")
        entry = Champion(sequence=after + 1, version_id=version_id, since=datetime.now(UTC), reason=reason)
        try:
            self._store.create(locate_entry(entry.sequence), entry.encode())
        except FileExistsError:
            return self._find_standing_entry(entry)
        return entry

    def roll_back(self, to: str | None = None, reason: str = "") -> Champion:
        """Put a former champion in service again. Without a name it is the champion before the present one.

        Raises RegistryError without an earlier champion, and Conflict if another model is promoted at the same time.
        """
        history = self.history()
        if not history:
            raise RegistryError("there is no champion to roll back from")
        current = history[-1]
        first = next(entry.sequence for entry in history if entry.version_id == current.version_id)
        former = [entry.version_id for entry in history[: first - 1]] if to is None else [to]
        if not former:
            raise RegistryError(f"{current.version_id} was the first champion: no earlier one exists")
        if former[-1] not in {entry.version_id for entry in history}:
            names = ", ".join(dict.fromkeys(entry.version_id for entry in history))
            raise RegistryError(f"{former[-1]} never was a champion; there were {names}")
        return self.promote(
            former[-1], after=current.sequence, reason=reason or f"rolled back from {current.version_id}"
        )

    def version(self, version_id: str) -> Version:
        """A version's manifest. Raises RegistryError for a version that is unknown, unfinished or damaged."""
        version = self._find_version(version_id)
        if not version:
            latest = ", ".join(version.version_id for version in self.versions()[-3:]) or "none"
            raise RegistryError(f"no version '{version_id}' was published; the last ones are: {latest}")
        return version

    def versions(self) -> list[Version]:
        """Every version, oldest first. Versions that are unfinished or whose manifest is damaged are left out."""
        versions, _ = read_documents(self._store, list_manifest_paths(self._store), Version)
        return sorted(versions.values(), key=lambda version: (version.created, version.version_id))

    def find_damage(self) -> list[str]:
        """One line for each manifest and each entry of the log that cannot be read."""
        _, manifests = read_documents(self._store, list_manifest_paths(self._store), Version)
        _, entries = read_documents(self._store, list_entry_paths(self._store), Champion)
        return manifests + entries

    def history(self) -> list[Champion]:
        """Every promotion and roll-back, first to last. Raises RegistryError for an entry that is damaged."""
        contents = self._store.read(list_entry_paths(self._store))
        return [decode_document(path, content, Champion) for path, content in contents.items()]

    def model_place(self, version_id: str) -> str:
        """Folder or url of a version's model, in Hugging Face's layout. Raises RegistryError for an unknown version."""
        return self._store.place(f"{locate_version(self.version(version_id).version_id)}/{MODEL}")

    def record_run(self, run_id: str, document: Mapping[str, Any]) -> None:
        """Keep how a run ended. Raises RegistryError if the run was recorded with another document."""
        if not _RUN_ID.fullmatch(run_id):
            raise RegistryError(f"run '{run_id}': expected letters, digits, '_', '.' and '-', as it names a file")
        path, content = f"{RUNS}/{run_id}.json", encode_json({**document, "run_id": run_id})
        try:
            self._store.create(path, content)
        except FileExistsError:
            if self._store.read([path])[path] != content:
                raise RegistryError(f"run {run_id} was recorded before, with another document; it stays") from None

    def runs(self) -> list[dict[str, Any]]:
        """What was recorded of every run, with its `run_id`, sorted by that. Raises RegistryError for a damaged one."""
        contents = self._store.read([f"{RUNS}/{name}" for name in self._store.names(RUNS)])
        try:
            return [json.loads(content) for content in contents.values()]
        except ValueError as error:
            raise RegistryError(f"a record in {RUNS}/ is not JSON ({error}); verify names it") from error

    def verify(self, version_id: str | None = None) -> list[str]:
        """What is wrong with a version, or with the whole registry; empty if nothing is.

        Reads every byte. Each file must have the size and digest of the manifest, and there must be no others. Names,
        digests and claims must belong together. The log of champions must have no gaps and name finished versions.
        """
        if version_id:
            return find_version_faults(self._store, self.version(version_id))
        return find_faults(self._store)

    def prune(self, older_than: timedelta = timedelta(days=1)) -> list[str]:
        """Remove uploads that were given up: unfinished versions in which nothing was written for that time.

        A version that has a manifest or that a champion names is never removed. Returns the paths that were removed.
        """
        finished_ids = {path.split("/")[1] for path in self._store.read(list_manifest_paths(self._store))}
        needed_ids = finished_ids | {entry.version_id for entry in self.history()}
        unfinished_paths = [locate_version(name) for name in self._store.names(VERSIONS) if name not in needed_ids]
        partial = [f"{PARTIAL}/{name}" for name in self._store.names(PARTIAL)]
        before = datetime.now(UTC) - older_than
        return [path for path in unfinished_paths + partial if self._remove_if_stale(path, before)]

    def _remove_if_stale(self, path: str, before: datetime) -> bool:
        """Remove a path in which nothing was written since, and say whether it was removed. It may vanish meanwhile."""
        try:
            stale = self._store.modification_time(path) < before
            if stale:
                self._store.remove(path)
        except FileNotFoundError:
            return False
        return stale

    def _claim(self, digest: str, metadata: Mapping[str, Any]) -> Claim:
        """The claim of a content: this attempt's, or that of the first one."""
        now, path = datetime.now(UTC), locate_claim(digest)
        claim = Claim(version_id=make_version_id(now, digest), created=now, metadata=check_metadata(metadata))
        try:
            self._store.create(path, claim.encode())
        except FileExistsError:
            return self._read(path, Claim)
        return claim

    def _upload(self, model: ModelFolder, claim: Claim) -> Version:
        """Write the files and then the manifest. The bytes depend on the content and the claim alone."""
        folder, card = locate_version(claim.version_id), model.make_card(claim)
        for name in model.files.keys() - {lineage.CARD}:
            self._store.put(model.folder / name, f"{folder}/{MODEL}/{name}")
        self._store.write(f"{folder}/{MODEL}/{lineage.CARD}", card)
        version = Version(
            version_id=claim.version_id,
            created=claim.created,
            digest=model.digest,
            metadata=claim.metadata,
            lineage=lineage.read(model.folder),
            files=model.version_files(card),
        )
        with suppress(FileExistsError):  # another attempt at the same content has written the same manifest
            self._store.create(locate_manifest(claim.version_id), version.encode())
        return version

    def _find_standing_entry(self, entry: Champion) -> Champion:
        """The entry that already has this number, if it is the same promotion. Raises Conflict if it is another."""
        standing, champion = self._read(locate_entry(entry.sequence), Champion), self.champion()
        if standing.version_id != entry.version_id:
            raise Conflict(champion or standing, entry.sequence - 1)
        return standing

    def _find_version(self, version_id: str) -> Version | None:
        path = locate_manifest(version_id)
        return next((decode_document(path, content, Version) for content in self._store.read([path]).values()), None)

    def _read(self, path: str, kind: type[D]) -> D:
        return decode_document(path, self._store.read([path])[path], kind)
