"""Print a software bill of materials of this Python environment: CycloneDX 1.5 as JSON.

python scripts/bill_of_materials.py > build/sbom.json
docker run --rm --interactive IMAGE python - < scripts/bill_of_materials.py    # of an image, which lacks this file

It needs nothing but Python and lists what is installed: every package with its version, its licence as the package
states it, and the packages that it requires. What the operating system of an image brings is not in it.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from typing import Any

PROJECT = "steptool"


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def make_bill(packages: list[metadata.Distribution]) -> dict[str, Any]:
    """The bill of the packages, sorted by name, without a time or a random number: the same packages, the same bill."""
    by_name = {canonical(package.name): package for package in packages}
    addresses = {name: f"pkg:pypi/{name}@{package.version}" for name, package in sorted(by_name.items())}
    components = {name: describe_component(by_name[name], name, address) for name, address in addresses.items()}
    project = components.pop(PROJECT, None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**project, "type": "application"}} if project else {},
        "components": list(components.values()),
        "dependencies": [
            {"ref": addresses[name], "dependsOn": list_requirements(by_name[name], addresses)} for name in addresses
        ],
    }


def describe_component(package: metadata.Distribution, name: str, address: str) -> dict[str, Any]:
    """One package of the bill."""
    component = {"type": "library", "bom-ref": address, "name": name, "version": package.version, "purl": address}
    expressions, texts, classifiers = (
        package.metadata.get_all(field) or [] for field in ("License-Expression", "License", "Classifier")
    )
    licences = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    licence = next((text for text in [*expressions, *texts, *licences] if text and "\n" not in text), "")
    return {**component, "licenses": [{"license": {"name": licence}}]} if licence else component


def list_requirements(package: metadata.Distribution, addresses: dict[str, str]) -> list[str]:
    """Addresses of the installed packages that a package requires; those of its extras too where they are installed."""
    required = (re.match(r"[\w.-]+", text) for text in package.requires or ())
    names = {canonical(match[0]) for match in required if match}
    return sorted(addresses[name] for name in names & addresses.keys())


if __name__ == "__main__":
    json.dump(make_bill(list(metadata.distributions())), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
