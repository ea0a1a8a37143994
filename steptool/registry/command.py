"""The registry at the command line: list and publish models, put them in service, roll back, verify.

steptool registry list --registry /models

`push`, which sends a model or data to the Hugging Face Hub, is a command of its own beside `steptool registry`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steptool.artifacts.errors import refuse_by_findings
from steptool.artifacts.metrics import escape_controls
from steptool.config import ConfigError
from steptool.registry import Champion, Registry, RegistryError, Version, hub

app = typer.Typer(no_args_is_help=True, help="Published models, and the one in service.")

Place = Annotated[str, typer.Option("--registry", metavar="PLACE", help="Folder or url of the registry.")]
Reason = Annotated[str, typer.Option(help="Why, for the log of champions.")]


@app.command("list")
def list_versions(place: Place) -> None:
    """List every version, and the one in service; ends with 1 if a file is damaged."""
    registry = _open(place)
    champion = registry.champion()
    for version in registry.versions():
        mark = "*" if champion and champion.version_id == version.version_id else " "
        _print(f"{mark} {version.version_id}  {_write_size(version)}  {_write_results(version.metadata)}")
    faults = registry.find_damage()
    for fault in faults:
        _print(f"! {fault}")
    _print(_describe_champion(champion))
    _end_with(faults)


@app.command()
def show(
    place: Place,
    version_id: Annotated[str, typer.Argument(metavar="[VERSION]", help="Default: the one in service.")] = "",
) -> None:
    """Show where a version lies, what it was made from, and when it was in service."""
    registry = _open(place)
    champion = None if version_id else registry.champion()
    if not version_id and not champion:
        raise RegistryError("nothing is in service yet: name a version")
    version = registry.version(champion.version_id if champion else version_id)
    _print(f"{version.version_id}, {_write_size(version)}, at {registry.model_place(version.version_id)}")
    for entry in registry.history():
        if entry.version_id == version.version_id:
            _print(f"  champion number {entry.sequence} from {entry.since:%Y-%m-%d %H:%M:%S} UTC: {entry.reason}")
    for stage in version.lineage:
        files = ", ".join(f"{name} {digest[:12]}" for name, digest in stage["files"].items())
        _print(f"  {stage['stage']}{_write_round(stage['round'])}: {files or stage['note']}")
    _print(json.dumps(version.metadata, indent=2, ensure_ascii=False))


@app.command("roll-back")
def roll_back(
    place: Place,
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="Default: the champion before this one.")] = None,
    reason: Reason = "",
) -> None:
    """Put a former champion in service again."""
    _print(_describe_champion(_open(place).roll_back(to, reason)))


@app.command()
def publish(
    place: Place,
    folder: Annotated[Path, typer.Argument(help="A Hugging Face model folder.")],
    metadata: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file: where the model is from.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Put it in service too, unless another was.")] = False,
    reason: Reason = "by hand",
) -> None:
    """Make a version of a model folder."""
    registry = Registry(place)
    champion = registry.champion()
    version = registry.publish(folder, _read_json(metadata) if metadata else {})
    _print(f"published {version.version_id}, {_write_size(version)}, at {registry.model_place(version.version_id)}")
    if promote and not (champion and champion.version_id == version.version_id):
        after = champion.sequence if champion else 0
        champion = registry.promote(version.version_id, after=after, reason=reason)
    _print(_describe_champion(champion))


@app.command()
def verify(
    place: Place, version: Annotated[str | None, typer.Argument(help="Default: the whole registry.")] = None
) -> None:
    """Compare every byte with what was published; ends with 1 if anything is wrong."""
    registry = _open(place)
    faults = registry.verify(version)
    for fault in faults:
        _print(fault)
    contents = version or f"versions {len(registry.versions())}, promotions {registry.promotions}"
    _print(f"{contents}, faults {len(faults)}")
    _end_with(faults)


@app.command()
def prune(place: Place) -> None:
    """Remove uploads that were given up more than a day ago."""
    paths = _open(place).prune()
    for path in paths:
        _print(f"removed {path}")
    _print(f"unfinished uploads removed: {len(paths)}")


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of a run, of a version of a registry, or of a model.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository of the Hub, such as my-team/my-model.")],
    kind: Annotated[
        hub.Kind, typer.Option(help="A model or adapter; or tasks, episodes and rewards.")
    ] = hub.Kind.MODEL,
    licence: Annotated[str, typer.Option(help="Licence by the Hub's name, such as apache-2.0.")] = "",
    dataset: Annotated[list[str] | None, typer.Option(help="Dataset of the Hub that the card names.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files and the card; send nothing.")] = False,
) -> None:
    """Send a model, an adapter or the data of a run to the Hugging Face Hub, with its card."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    with refuse_by_findings():
        if kind is hub.Kind.MODEL:
            upload = hub.prepare_model_upload(folder, repo, licence, dataset or ())
        else:
            upload = hub.prepare_dataset_upload(folder, repo, licence)
    for line in upload.describe():
        _print(line)
    if not licence:
        print("the card names no licence: give one with --licence")
    if dry_run:
        _print(f"\n{upload.card}")
    else:
        _print(hub.push(upload, private=not public))


def _open(place: str) -> Registry:
    """The registry at a place. Raises RegistryError if the place holds no registry."""
    registry = Registry(place)
    if not registry.exists:
        raise RegistryError(f"{place}: there is no registry; the first `publish` makes one")
    return registry


def _end_with(faults: list[str]) -> None:
    if faults:
        raise typer.Exit(1)


def _print(text: str) -> None:
    print(escape_controls(text))


def _describe_champion(champion: Champion | None) -> str:
    if not champion:
        return "nothing is in service yet"
    since = f"{champion.since:%Y-%m-%d %H:%M:%S} UTC"
    return f"in service: {champion.version_id}, number {champion.sequence}, since {since} ({champion.reason})"


def _write_size(version: Version) -> str:
    return f"{sum(file.size for file in version.files.values()) / 1e6:,.1f} MB"


def _write_results(metadata: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {result['pass_rate']:.1%}" for name, result in metadata.get("results", {}).items())


def _write_round(number: int) -> str:
    return f" of round {number + 1}" if number >= 0 else ""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: no JSON file ({error})") from error
