"""Hooks of the documentation site: one API page for each package of steptool/, and links to files outside docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API pages to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{f"steptool.{name}": _make_page(name)} for name in _list_modules()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generate the API pages. mkdocstrings fills them from the docstrings."""
    for name in _list_modules():
        content = f"# steptool.{name}\n\n::: steptool.{name}\n"
        files.append(File.generated(config, _make_page(name), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show links to files outside docs/ as their paths, since the site has no pages for them."""
    folder = posixpath.dirname(page.file.src_uri)

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, link[2].partition("#")[0]))
        return link[0] if target.startswith("docs/") else f"`{target}`"

    return _LINK.sub(replace, markdown)


def _list_modules() -> list[str]:
    """The packages and modules directly in steptool/."""
    names = (
        path.stem for path in (ROOT / "steptool").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    )
    return sorted(name for name in names if name != "__init__")


def _make_page(name: str) -> str:
    return f"api/{name}.md"
