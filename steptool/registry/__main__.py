"""The registry at the command line: list and publish models, put them in service, roll back, verify.

python -m steptool.registry list --registry /models
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steptool.artifacts.progress import printable
from steptool.registry import Champion, Registry, RegistryError, Version

Command = Callable[[Registry, argparse.Namespace], bool]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0; or 1 after one line on standard error, or where faults were found.

    Stores raise errors of their own libraries for missing credentials and unreachable addresses. Each of them ends the
    command in one line too.
    """
    options = _parse(arguments)
    try:
        registry = Registry(options.registry)
        if options.needs_registry and not registry.exists:
            raise RegistryError(f"{options.registry}: there is no registry; the first `publish` makes one")
        healthy = options.run(registry, options)
    except Exception as error:
        print(printable(f"registry: {_describe_error(error)}"), file=sys.stderr)
        return 1
    return 0 if healthy else 1


def _list(registry: Registry, _: argparse.Namespace) -> bool:
    champion = registry.champion()
    for version in registry.versions():
        mark = "*" if champion and champion.version_id == version.version_id else " "
        _print(f"{mark} {version.version_id}  {_size(version)}  {_results(version.metadata)}")
    faults = registry.damaged()
    for fault in faults:
        _print(f"! {fault}")
    _print(_in_service(champion))
    return not faults


def _show(registry: Registry, options: argparse.Namespace) -> bool:
    champion = None if options.version else registry.champion()
    if not options.version and not champion:
        raise RegistryError("nothing is in service yet: name a version")
    version = registry.version(champion.version_id if champion else options.version)
    _print(f"{version.version_id}, {_size(version)}, at {registry.model_place(version.version_id)}")
    for entry in registry.history():
        if entry.version_id == version.version_id:
            _print(f"  champion number {entry.sequence} from {entry.since:%Y-%m-%d %H:%M:%S} UTC: {entry.reason}")
    for stage in version.lineage:
        files = ", ".join(f"{name} {digest[:12]}" for name, digest in stage["files"].items())
        _print(f"  {stage['stage']}{_round(stage['round'])}: {files or stage['note']}")
    _print(json.dumps(version.metadata, indent=2, ensure_ascii=False))
    return True


def _roll_back(registry: Registry, options: argparse.Namespace) -> bool:
    _print(_in_service(registry.roll_back(options.to, options.reason)))
    return True


def _publish(registry: Registry, options: argparse.Namespace) -> bool:
    champion = registry.champion()
    version = registry.publish(options.folder, options.metadata)
    _print(f"published {version.version_id}, {_size(version)}, at {registry.model_place(version.version_id)}")
    if options.promote and not (champion and champion.version_id == version.version_id):
        after = champion.sequence if champion else 0
        champion = registry.promote(version.version_id, after=after, reason=options.reason)
    _print(_in_service(champion))
    return True


def _verify(registry: Registry, options: argparse.Namespace) -> bool:
    faults = registry.verify(options.version)
    for fault in faults:
        _print(fault)
    checked = options.version or f"versions {len(registry.versions())}, promotions {registry.promotions}"
    _print(f"{checked}, faults {len(faults)}")
    return not faults


def _prune(registry: Registry, _: argparse.Namespace) -> bool:
    removed = registry.prune()
    for path in removed:
        _print(f"removed {path}")
    _print(f"unfinished uploads removed: {len(removed)}")
    return True


def _print(text: str) -> None:
    print(printable(text))


def _in_service(champion: Champion | None) -> str:
    if not champion:
        return "nothing is in service yet"
    since = f"{champion.since:%Y-%m-%d %H:%M:%S} UTC"
    return f"in service: {champion.version_id}, number {champion.sequence}, since {since} ({champion.reason})"


def _size(version: Version) -> str:
    return f"{sum(file.size for file in version.files.values()) / 1e6:,.1f} MB"


def _results(metadata: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {result['pass_rate']:.1%}" for name, result in metadata.get("results", {}).items())


def _round(number: int) -> str:
    return f" of round {number + 1}" if number >= 0 else ""


def _describe_error(error: Exception) -> str:
    """An error in one line. Errors of other libraries stand with their name, since their text alone may say little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RegistryError) else f"{type(error).__name__}: {text}"


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: no JSON file ({error})") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--registry", required=True, metavar="PLACE", help="folder or url of the registry")
    parser = argparse.ArgumentParser(
        prog="python -m steptool.registry", description="Published models, and the one in service"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, description: str, needs_registry: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=description, description=description)
        command.set_defaults(run=run, needs_registry=needs_registry)
        return command

    add("list", _list, "list every version, and the one in service; ends with 1 if a file is damaged")
    show = add("show", _show, "show where a version lies, what it was made from, and when it was in service")
    show.add_argument("version", nargs="?", help="a version; default: the one in service")
    back = add("roll-back", _roll_back, "put a former champion in service again")
    back.add_argument("--to", metavar="VERSION", help="a former champion; default: the one before the present one")
    back.add_argument("--reason", default="", help="why, for the log of champions")
    publish = add("publish", _publish, "make a version of a model folder", needs_registry=False)
    publish.add_argument("folder", type=Path, help="a Hugging Face model folder")
    publish.add_argument("--metadata", type=_read_json, default={}, metavar="FILE", help="JSON file: where it is from")
    publish.add_argument("--promote", action="store_true", help="put it in service too, unless another was promoted")
    publish.add_argument("--reason", default="by hand", help="why, for the log of champions")
    verify = add("verify", _verify, "compare every byte with what was published; ends with 1 if anything is wrong")
    verify.add_argument("version", nargs="?", help="a version; default: the whole registry")
    add("prune", _prune, "remove uploads that were given up more than a day ago")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
