"""The structure that CONTRIBUTING.md describes: rooms, and imports that run one way."""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOOSE = {"__init__", "records", "cli"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted((ROOT / "steptool").rglob("*.py"))}


def imported_modules(module: str) -> set[str]:
    """The modules of steptool/ that a module names in its imports, lazy ones included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return (names & MODULES.keys()) - {module, "steptool"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_module_is_loose_at_the_root() -> None:
    loose = {file.stem for file in (ROOT / "steptool").glob("*.py")}
    assert loose <= LOOSE


def test_modules_import_each_other_in_one_direction() -> None:
    graph = {module: imported_modules(module) for module in MODULES}
    for module, file in MODULES.items():
        if file.name == "__init__.py":  # a package's own names: its modules may import the package itself
            graph[module] = set()
    assert list(TopologicalSorter(graph).static_order())


def test_rooms_import_each_other_in_one_direction() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        if room(module) not in {"", "cli"}:
            graph[room(module)] |= {room(other) for other in imported_modules(module)} - {"", room(module)}
    assert list(TopologicalSorter(graph).static_order())


def test_a_room_imports_only_rooms_above_it_in_the_table_of_contributing() -> None:
    text = (
        (ROOT / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .partition("| room | what it is |")[2]
        .partition("\n\n")[0]
    )
    rooms = [
        name for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", cell)
    ]
    order = {name.removesuffix(".py"): place for place, name in enumerate(rooms)}
    assert order.keys() == {room(module) for module in MODULES} - {""}
    for module in MODULES:
        below = {
            other for other in map(room, imported_modules(module)) if order.get(other, 0) > order.get(room(module), 0)
        }
        assert not below or not room(module), f"{module} imports {', '.join(sorted(below))}, which come after it"


def test_the_library_imports_neither_flytekit_nor_the_tasks() -> None:
    forbidden = {"flytekit", "tasks", "workflows"}
    for module, file in MODULES.items():
        if module == "steptool.cli":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, module
            elif isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & forbidden, module
