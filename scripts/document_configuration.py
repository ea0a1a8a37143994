"""Write what documents the configurations, all from the docstrings of their fields.

    python -m scripts.document_configuration           writes the files
    python -m scripts.document_configuration --check   ends with 1 if one of them is not what the docstrings say

The files are configs/laptop.yaml, which shows every field; docs/configuration.md, the reference; and
configs/*.schema.json, by which editors complete and check the YAML files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from steptool.config import Config
from steptool.config.base import StrictModel, find_section
from tasks.runtime.profile import Profile

ROOT = Path(__file__).parents[1]
YAML_HEADER = """\
# yaml-language-server: $schema=steptool.schema.json
# The default run: a small model learns to use the tools of the embedded world, in minutes on two cores without a GPU.
#
#   pyflyte run workflows/train.py train --config configs/laptop.yaml --output runs/demo
#
# These are all fields with their defaults; a field that is left out keeps its default. An unknown field and a value of
# a wrong type or out of its range are refused before anything runs. make docs-config writes this file from the
# docstrings of the fields.
"""
PAGE_HEADER = """\
# Configuration

This page lists every field of a run's YAML file, section by section. A field that is left out keeps its default. An
unknown field and a value of a wrong type or out of its range are refused before anything runs.
[configs/laptop.yaml](../configs/laptop.yaml) has the same texts as comments. Editors with a YAML language server
complete and check the files in `configs/` by
[steptool.schema.json](../configs/steptool.schema.json), which their first line names.

`steptool train my.yaml --set ppo.rounds=4` replaces a field for one run, and `steptool check my.yaml` says what the run
would do. What each stage gets on a cluster stands in another file, the profile
([run on a cluster](run-on-a-cluster.md)).

This page is written from the docstrings in `steptool/config/` by `make docs-config`.
"""
_WIDTH = 120
_INDENT = "  "


@dataclass(frozen=True)
class Entry:
    """A field or a section of a configuration: `name` is its path, as in rewards.judge.votes."""

    name: str
    documentation: str
    default: Any
    section: type[StrictModel] | None
    """Class of a section; None for a field."""
    values: tuple[str, ...]
    """All values that the field can have, where these are a closed set."""

    @property
    def depth(self) -> int:
        """The number of sections around it."""
        return self.name.count(".")


def list_entries(model: type[StrictModel], prefix: str = "") -> Iterator[Entry]:
    """Every section and field, in the order of the file; a section comes right before its fields."""
    for name, field in model.model_fields.items():
        section = _find_section(field)
        own_text = _join_lines(field.description or "")
        text = own_text or _join_lines(section.__doc__ or "" if section else "")
        default = field.get_default(call_default_factory=True)
        yield Entry(f"{prefix}{name}", text, default, section, tuple(_make_field_schema(field).get("enum", ())))
        if section:
            yield from list_entries(section, f"{prefix}{name}.")


def write_yaml(model: type[StrictModel], header: str) -> str:
    """A YAML file with every field at its default, each below its documentation. `header` comes first."""
    lines = [header.rstrip("\n")]
    for entry in list_entries(model):
        indent = _INDENT * entry.depth
        if not entry.depth:
            lines.append("")
        text = entry.documentation
        if not all(value in text for value in entry.values):
            text = f"{text} One of {', '.join(map(_write_yaml_value, entry.values))}.".lstrip()
        if text:
            lines += textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=f"{indent}# ",
                subsequent_indent=f"{indent}# ",
                break_on_hyphens=False,
            )
        key = entry.name.rpartition(".")[2]
        lines.append(f"{indent}{key}:" if entry.section else f"{indent}{key}: {_write_yaml_value(entry.default)}")
    return "\n".join(lines) + "\n"


def write_schema(model: type[StrictModel], title: str) -> str:
    """The JSON schema with documentation, by which editors complete and check the YAML files."""
    schema = _tidy_schema(TypeAdapter(model).json_schema())
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema, "title": title}, indent=1) + "\n"


def write_page(model: type[StrictModel], header: str) -> str:
    """The reference in Markdown: a table of fields for each section."""
    lines = [header.rstrip("\n")]
    for name, section, text, entries in _group(model):
        lines += ["", f"## `{name}`" if name else "## At the top", ""] + ([_link(text), ""] if text else [])
        lines += ["| field | type | default | |", "|---|---|---|---|"]
        for entry in entries:
            field = section.model_fields[entry.name.rpartition(".")[2]]
            cells = (f"`{entry.name}`", _describe_type(field), _write_default(entry), _link(entry.documentation))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _write_default(entry: Entry) -> str:
    if entry.section:
        return ""
    return "required" if entry.default is PydanticUndefined else f"`{_write_yaml_value(entry.default)}`"


def _group(model: type[StrictModel]) -> Iterator[tuple[str, type[StrictModel], str, list[Entry]]]:
    """Each section with its path, its documentation and its own fields; also sections that are items of a list."""
    everything = list(list_entries(model))
    yield "", model, "", [entry for entry in everything if not entry.depth and not entry.section]
    for parent in everything:
        if parent.section:
            fields = [e for e in everything if e.name.rpartition(".")[0] == parent.name and not e.section]
            yield parent.name, parent.section, parent.documentation, fields
        elif item := _find_item(model, parent.name):
            path = f"{parent.name}[]"
            fields = [e for e in list_entries(item, f"{path}.") if e.name.rpartition(".")[0] == path]
            yield path, item, _join_lines(item.__doc__ or ""), fields


def _find_section(field: FieldInfo) -> type[StrictModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, StrictModel) else None


def _find_item(model: type[StrictModel], path: str) -> type[StrictModel] | None:
    """The class of a list's items, if they are sections."""
    section: type[BaseModel] = model
    *parents, name = path.split(".")
    for parent in parents:
        section = find_section(section.model_fields[parent].annotation) or section
    item = find_section(section.model_fields[name].annotation)
    return item if item and issubclass(item, StrictModel) else None


def _make_field_schema(field: FieldInfo) -> dict[str, Any]:
    """The JSON schema of a field's type, without its bounds."""
    adapter: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)
    return adapter.json_schema()


def _describe_type(field: FieldInfo) -> str:
    """The type in a few words, from the JSON schema of the field alone."""
    if _find_section(field):
        return "section"
    schema = _make_field_schema(field)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{_write_yaml_value(value)}`" for value in schema.get("enum", [schema.get("const")]))
    names = {"string": "text", "boolean": "true or false", "array": "list", "object": "mapping"}
    name: str = names.get(schema.get("type", ""), schema.get("type", "any"))
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    texts = {"Gt": "above {0.gt:,g}", "Ge": "at least {0.ge:,g}", "Le": "at most {0.le:,.7g}"}
    limits = [texts[kind].format(bound) for kind, bound in bounds.items() if kind in texts]
    return ", ".join([name, *limits])


def _write_yaml_value(value: Any) -> str:
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w./-]+", value) and yaml.safe_load(value) == value
        return value if plain else json.dumps(value)
    if isinstance(value, float):
        return _write_float(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _write_float(value: float) -> str:
    """A number that YAML's older readers too take for one: with a point."""
    if not value or abs(value) > 1e-3:
        return repr(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa)}e{int(exponent)}"


def _link(text: str) -> str:
    """The text with the pages that it names as links of a page in docs/."""
    return re.sub(r"docs/([\w/-]+\.md)", r"[\1](\1)", text)


def _join_lines(text: str) -> str:
    return " ".join(text.split())


def _tidy_schema(schema: Any) -> Any:
    """The schema with texts in one line and without the titles that repeat the names of fields."""
    if isinstance(schema, dict):
        entries = {k: v for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
        return {
            k: _join_lines(v) if k == "description" and isinstance(v, str) else _tidy_schema(v)
            for k, v in entries.items()
        }
    return [_tidy_schema(item) for item in schema] if isinstance(schema, list) else schema


def documents() -> dict[Path, str]:
    """Every file with its text."""
    return {
        ROOT / "configs" / "laptop.yaml": write_yaml(Config, YAML_HEADER),
        ROOT / "configs" / "steptool.schema.json": write_schema(Config, "The configuration of a run"),
        ROOT / "configs" / "profile.schema.json": write_schema(Profile, "What each stage gets on a cluster"),
        ROOT / "docs" / "configuration.md": write_page(Config, PAGE_HEADER),
    }


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a file is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in documents().items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(documents()[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'out of date, run make docs-config' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
