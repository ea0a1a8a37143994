"""What is in service, and the way back: the registry at the command line.

python -m steptool.registry list --registry /models
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steptool.registry import Champion, Registry, RegistryError, Version


def main() -> None:
    """Do what the arguments say. Ends with 1 and one line of text where that cannot be done."""
    asked = _arguments()
    try:
        healthy = asked.act(Registry(asked.registry), asked)
    except (RegistryError, OSError) as error:
        sys.exit(f"registry: {error}")
    sys.exit(0 if healthy else 1)


def _list(registry: Registry, _: argparse.Namespace) -> bool:
    champion = registry.champion()
    for version in registry.versions():
        mark = "*" if champion and champion.version_id == version.version_id else " "
        print(f"{mark} {version.version_id}  {_size(version)}  {_results(version.metadata)}")
    print(_in_service(champion))
    return True


def _show(registry: Registry, asked: argparse.Namespace) -> bool:
    champion = None if asked.version else registry.champion()
    if not asked.version and not champion:
        raise RegistryError("nothing is in service yet: name a version")
    version = registry.version(champion.version_id if champion else asked.version)
    print(f"{version.version_id}, {_size(version)}, at {registry.model_place(version.version_id)}")
    for entry in registry.history():
        if entry.version_id == version.version_id:
            print(f"  champion number {entry.sequence} from {entry.since:%Y-%m-%d %H:%M:%S} UTC: {entry.reason}")
    for stage in version.lineage:
        files = ", ".join(f"{name} {digest[:12]}" for name, digest in stage["files"].items())
        print(f"  {stage['stage']}{_round(stage['round'])}: {files or stage['note']}")
    print(json.dumps(version.metadata, indent=2, ensure_ascii=False))
    return True


def _roll_back(registry: Registry, asked: argparse.Namespace) -> bool:
    print(_in_service(registry.roll_back(asked.to, asked.reason)))
    return True


def _publish(registry: Registry, asked: argparse.Namespace) -> bool:
    champion = registry.champion()
    version = registry.publish(asked.folder, asked.metadata)
    print(f"published {version.version_id}, {_size(version)}, at {registry.model_place(version.version_id)}")
    if asked.promote and not (champion and champion.version_id == version.version_id):
        after = champion.sequence if champion else 0
        champion = registry.promote(version.version_id, after=after, reason=asked.reason)
    print(_in_service(champion))
    return True


def _verify(registry: Registry, asked: argparse.Namespace) -> bool:
    faults = registry.verify(asked.version)
    for fault in faults:
        print(fault)
    checked = asked.version or f"versions {len(registry.versions())}, promotions {len(registry.history())}"
    print(f"{checked}, faults {len(faults)}")
    return not faults


def _prune(registry: Registry, _: argparse.Namespace) -> bool:
    removed = registry.prune()
    for path in removed:
        print(f"removed {path}")
    print(f"unfinished uploads removed: {len(removed)}")
    return True


def _in_service(champion: Champion | None) -> str:
    if not champion:
        return "nothing is in service yet"
    since = f"{champion.since:%Y-%m-%d %H:%M:%S} UTC"
    return f"in service: {champion.version_id}, number {champion.sequence}, since {since} ({champion.reason})"


def _size(version: Version) -> str:
    return f"{sum(file.size for file in version.files.values()) / 1e6:,.1f} MB"


def _results(metadata: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {found['pass_rate']:.1%}" for name, found in metadata.get("results", {}).items())


def _round(number: int) -> str:
    return f" of round {number + 1}" if number >= 0 else ""


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: no JSON file ({error})") from error


def _arguments() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--registry", required=True, metavar="PLACE", help="folder or url of the registry")
    parser = argparse.ArgumentParser(prog="python -m steptool.registry", description="Models and who is in service")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Any, said: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=said, description=said)
        made.set_defaults(act=act)
        return made

    command("list", _list, "every version, and the one in service")
    show = command("show", _show, "where a version lies, what it was made from, when it was in service")
    show.add_argument("version", nargs="?", help="a version; the one in service if left out")
    back = command("roll-back", _roll_back, "put a former champion in service again")
    back.add_argument("--to", metavar="VERSION", help="a former champion; the one before the present one if left out")
    back.add_argument("--reason", default="", help="why, for the log of champions")
    publish = command("publish", _publish, "make a version of a model folder")
    publish.add_argument("folder", type=Path, help="a Hugging Face model folder")
    publish.add_argument("--metadata", type=_json, default={}, metavar="FILE", help="JSON file: where it comes from")
    publish.add_argument("--promote", action="store_true", help="put it in service too, unless somebody is faster")
    publish.add_argument("--reason", default="by hand", help="why, for the log of champions")
    verify = command("verify", _verify, "compare every byte with what was published; ends with 1 if anything is wrong")
    verify.add_argument("version", nargs="?", help="a version; the whole registry if left out")
    command("prune", _prune, "remove uploads that were given up more than a day ago")
    return parser.parse_args()


if __name__ == "__main__":
    main()
