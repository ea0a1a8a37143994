"""The bill of materials names what is installed, and its references lead somewhere."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "scripts" / "bill_of_materials.py"


def test_the_bill_lists_every_installed_package_with_version_licence_and_requirements() -> None:
    # as in an image: the program comes through standard input
    source = PROGRAM.read_text(encoding="utf-8")
    printed = [
        subprocess.run([sys.executable, "-"], input=source, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    bill = json.loads(printed[0])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    components = {component["name"]: component for component in bill["components"]}
    pyarrow = metadata.version("pyarrow")
    assert components["pyarrow"] == {
        "type": "library",
        "bom-ref": f"pkg:pypi/pyarrow@{pyarrow}",
        "name": "pyarrow",
        "version": pyarrow,
        "purl": f"pkg:pypi/pyarrow@{pyarrow}",
        "licenses": [{"license": {"name": "Apache-2.0"}}],
    }
    project = bill["metadata"]["component"]
    assert (project["type"], project["name"]) == ("application", "steptool")
    installed = {package.name.lower().replace("_", "-").replace(".", "-") for package in metadata.distributions()}
    assert components.keys() | {"steptool"} == installed
    references = {component["bom-ref"] for component in bill["components"]} | {project["bom-ref"]}
    by_reference = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert by_reference.keys() == references and set().union(*by_reference.values()) <= references
    assert f"pkg:pypi/pyarrow@{pyarrow}" in by_reference[project["bom-ref"]]
