"""Links between the pages of the documentation: files that exist and headings that exist. Needs no network."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def prose(page: Path) -> str:
    """The text of a page without its fenced code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs both make them."""
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> list[str]:
    """The links of a page that lead nowhere, external ones aside."""
    dead = []
    for link in (first or second for first, second in LINK.findall(prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_link_is_dead(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[a](#one-two) [b](#three) [c](other.md) [d](page.md) [e](https://x.y/z)\n")
    assert dead_links(page) == ["#three", "other.md"]


def test_every_page_is_in_the_navigation_and_in_the_index() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f" {name}\n" in navigation, f"{name} is not in mkdocs.yml"
        assert name == "index.md" or name.startswith("tools/") or f"({name})" in index, f"{name} is not in the index"


def test_modules_and_files_that_pages_name_exist() -> None:
    """Paths in code font: `steptool/chat/codec.py`, `configs/laptop.yaml`, `workflows/train.py`."""
    path = re.compile(r"`((?:steptool|tasks|workflows|configs|examples|benchmarks|tests|images|scripts)/[\w./-]*)`")
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for name in path.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and not name.endswith("yours.py")
    ]
    assert missing == []


def test_contributing_lists_every_target_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {target for target in targets if f"`make {target}`" not in page} == set()


def test_make_bench_runs_every_program_that_has_no_target_of_its_own() -> None:
    """As modules from the root, because some import others from `benchmarks`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (left_out,) = re.findall(r"^NOT_BENCH := (.*)$", makefile, re.MULTILINE)
    assert "$(BIN)/python -m benchmarks.$$name" in makefile
    texts = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py")}
    programs = {name for name, text in texts.items() if 'if __name__ == "__main__":' in text}
    own_targets = set(re.findall(r"\$\(BIN\)/python (?:benchmarks/|-m benchmarks\.)(\w+)", makefile)) - {"bfcl"}
    assert set(left_out.split()) == (texts.keys() - programs) | own_targets | {"contest"}
