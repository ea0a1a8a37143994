"""What is wrong with a registry: damaged documents, changed and missing files, gaps in the log. Nothing is repaired."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from steptool.registry.documents import (
    CHAMPIONS,
    ENTRY_NAME,
    MANIFEST,
    RUNS,
    VERSIONS,
    Champion,
    Claim,
    D,
    RegistryError,
    Version,
    claim_path,
    entry_path,
    make_version_id,
    manifest_path,
    parse_document,
    version_folder,
)
from steptool.registry.store import Store


def find_faults(store: Store) -> list[str]:
    """All faults of a registry, one in each line. Reads every byte."""
    manifests, faults = read_documents(store, manifest_paths(store), Version)
    for path, version in manifests.items():
        faults += find_version_faults(store, version, path)
    return [*faults, *_find_log_faults(store, {path.split("/")[1] for path in manifests}), *_find_run_faults(store)]


def find_version_faults(store: Store, version: Version, path: str = "") -> list[str]:
    """Faults of one version, whose manifest lies at the path: its name, its claim, and its files with their digests."""
    folder, path = version_folder(version.version_id), path or manifest_path(version.version_id)
    if path != manifest_path(version.version_id):
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
    folder = version_folder(version.version_id)
    sizes = store.sizes(folder)
    return [
        f"{folder}/{name}: expected {file.size} bytes, found {sizes.get(name, 'no file')}"
        for name, file in version.files.items()
        if sizes.get(name) != file.size
    ]


def manifest_paths(store: Store) -> list[str]:
    """Paths of the manifests of all versions. That of an unfinished version does not exist yet."""
    return [manifest_path(name) for name in store.names(VERSIONS)]


def entry_paths(store: Store) -> list[str]:
    """Paths of the entries of the log of champions, first to last."""
    return [f"{CHAMPIONS}/{name}" for name in store.names(CHAMPIONS) if ENTRY_NAME.fullmatch(name)]


def read_documents(store: Store, paths: list[str], kind: type[D]) -> tuple[dict[str, D], list[str]]:
    """The documents that can be read, by their path, and one fault for each file that is damaged."""
    documents: dict[str, D] = {}
    faults: list[str] = []
    for path, content in store.read(paths).items():
        try:
            documents[path] = parse_document(path, content, kind)
        except RegistryError as error:
            faults.append(" ".join(str(error).split()))
    return documents, faults


def _find_digest_faults(store: Store, version: Version, path: str) -> Iterator[str]:
    """Whether name, digest and claim of a version still belong together."""
    if version.version_id != make_version_id(version.created, version.digest):
        yield f"{path}: its digest {version.digest[:12]} or its time is not that of the name; the manifest was changed"
    place = claim_path(version.digest)
    claims, faults = read_documents(store, [place], Claim)
    yield from faults
    if not claims and not faults:
        yield f"{place}: missing; without it {version.version_id} would be published a second time"
    elif claims and claims[place].version_id != version.version_id:
        yield f"{place}: names {claims[place].version_id} and not {version.version_id}"


def _find_log_faults(store: Store, versions: set[str]) -> list[str]:
    entries, faults = read_documents(store, entry_paths(store), Champion)
    faults += [
        f"{path}: says that it is number {entry.sequence}"
        for path, entry in entries.items()
        if path != entry_path(entry.sequence)
    ]
    numbers = [int(path.rpartition("/")[2].removesuffix(".json")) for path in entry_paths(store)]
    gaps = [number for expected, number in enumerate(numbers, 1) if number != expected]
    faults += [f"{entry_path(number)}: the one before it is missing" for number in gaps[:1]]
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
