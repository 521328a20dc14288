"""GitHub and the site show each Markdown file as it is meant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from tests.markdown import anchors, every, links, parsed, texts
from tests.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FILES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md")),
]
FILES = [path for path in FILES if "_build" not in path.parts]
CONFIGURATION = (ROOT / "docs" / "conf.py").read_text()
LEVELS = int(re.findall(r"^myst_heading_anchors = (\d)$", CONFIGURATION, re.MULTILINE)[0])

# What other dialects of Markdown make of a text, and GitHub shows as it stands.
FOREIGN = {
    "a role": r"\{[\w:+-]+\}`",
    "a target": r"^\([\w-]+\)=$",
    "a directive": r"^:::|^\.\. ",
    "a definition": r"^: ",
    "a substitution": r"\{\{|\{%",
}


def foreign(text: str) -> list[str]:
    """What of the text GitHub doesn't render."""
    tokens = parsed(text)
    found = [
        name for name, pattern in FOREIGN.items() for each in texts(tokens) if re.search(pattern, each, re.MULTILINE)
    ]
    for token in every(tokens):
        if token.type == "fence" and token.info.startswith("{"):
            found.append("a directive")
        if token.type in ("html_block", "html_inline") and token.content.startswith("<!--"):
            found.append("a comment")
    return found


def leads_somewhere(path: Path, link: str) -> bool:
    if re.match(r"(https?|mailto):", link):
        return True
    file, _, anchor = unquote(link).partition("#")
    target = (path.parent / file).resolve() if file else path
    if not target.is_file() or not target.is_relative_to(ROOT):  # the site can't link to a folder
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(parsed(target.read_text()), LEVELS))


def dead(path: Path) -> list[str]:
    """The links and pictures of a file that lead nowhere."""
    return [link for _, link in links(parsed(path.read_text())) if not leads_somewhere(path, link)]


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in FILES])
def test_a_file_has_nothing_that_github_shows_as_it_stands(path: Path) -> None:
    assert foreign(path.read_text()) == []


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in FILES])
def test_no_link_and_no_picture_is_dead(path: Path) -> None:
    assert dead(path) == []


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in FILES])
def test_a_table_has_a_cell_for_each_column(path: Path) -> None:
    """GitHub drops the cells that are too many. A `|` in code begins a new one unless it is escaped."""
    text = path.read_text()
    for token in every(parsed(text)):
        if token.type != "table_open" or token.map is None:
            continue
        lines = text.splitlines()[token.map[0] : token.map[1]]
        counts = {len(re.findall(r"(?<!\\)\|", line.strip())) for line in lines}
        assert len(counts) == 1, lines


def test_what_github_does_not_render_is_found() -> None:
    assert foreign("See {doc}`spans`.") == ["a role"]
    assert foreign("| a |\n| --- |\n| {ref}`x` |") == ["a role"]
    assert foreign("A term\n: what it means") == ["a definition"]
    assert foreign("```{toctree}\nspans\n```") == ["a directive"]
    assert foreign(":::{note}\nText\n:::") == ["a directive"]
    assert foreign("<!-- later -->") == ["a comment"]
    assert foreign("(a-target)=\n# A heading") == ["a target"]
    assert foreign("`{operation} {collection}`, or a plain: text") == []
    assert foreign("```text\n: not a definition, {doc}`x`\n```") == []


def test_a_dead_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_markdown.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# One\n\n## Two `three`\n\n## Two three\n\n#### Too deep\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[1](other.md) [2](other.md#two-three) [3](other.md#two-three-1) [4](#page) [5](https://a.example)\n"
        "[6](other.md#two-three-2) [7](none.md) ![8](none.png) [9](#none) [10](.) [11](other.md#too-deep)\n"
        "[12](../x.md)\n"
    )

    assert dead(page) == ["other.md#two-three-2", "none.md", "none.png", "#none", ".", "other.md#too-deep", "../x.md"]


def test_each_page_is_in_the_navigation_of_the_site() -> None:
    """The first page is the table of contents: docs/conf.py makes the navigation of the links in its sections."""
    page = (ROOT / "docs" / "index.md").read_text()
    linked = {
        (ROOT / "docs" / link).resolve() for link in re.findall(r"^- \[[^\]]+\]\(([^():]+)\)", page, re.MULTILINE)
    }
    outside = dict(re.findall(r'^    "([\w-]+)": DOCS.parent / (.*),$', CONFIGURATION, re.MULTILINE))
    stubs = {ROOT / "docs" / f"{name}.md" for name in outside}

    pages = {
        path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".rst") and "_build" not in path.parts
    }
    files = {ROOT.joinpath(*re.findall(r'"([^"]+)"', parts)) for parts in outside.values()}
    assert linked == (pages - stubs - {ROOT / "docs" / "index.md"}) | files
    for name, parts in outside.items():
        file = "/".join(re.findall(r'"([^"]+)"', parts))
        stub = (ROOT / "docs" / f"{name}.md").read_text()
        assert links(parsed(stub)) == [("link_open", f"../{file}")]


@pytest.mark.parametrize("word", ["failover", "timeout", "kubernetes", "lambda", "gevent", "celery", "motor"])
def test_a_word_that_users_search_for_is_on_a_page(word: str) -> None:
    assert [path for path in FILES if path.is_relative_to(ROOT / "docs") and word in path.read_text().lower()]
