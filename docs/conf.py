"""How the documentation is built: `make docs`."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.addnodes import pending_xref

from opentelemetry_mongo_events import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "opentelemetry-mongo-events"
author = "The opentelemetry-mongo-events authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_copy_source = False  # the source of some pages only links to another file
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
default_role = "code"  # the docstrings mark code with single backticks
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = "div:not(.highlight-text):not(.highlight-json) > div.highlight > pre"  # what is typed, not output

# The files list the names that the API page links to. Nothing is downloaded, so a build needs no network. A name that
# is missing in them is a warning.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.txt"),
    "pymongo": ("https://pymongo.readthedocs.io/en/stable/", "inventories/pymongo.txt"),
    "opentelemetry": ("https://opentelemetry-python.readthedocs.io/en/latest/", "inventories/opentelemetry.txt"),
}

# Names in signatures that only type checkers import, so that autodoc doesn't know whose they are.
FULL_NAMES = {
    "MeterProvider": "opentelemetry.metrics.MeterProvider",
    "TracerProvider": "opentelemetry.trace.TracerProvider",
}

# Pages of the site that are files outside of this folder, where GitHub expects them. Each has a page in this folder
# with a link to the file; the site shows the file's contents instead.
DOCS = Path(__file__).resolve().parent
OUTSIDE = {
    "changelog": DOCS.parent / "CHANGELOG.md",
    "code-of-conduct": DOCS.parent / "CODE_OF_CONDUCT.md",
    "contributing": DOCS.parent / "CONTRIBUTING.md",
    "examples": DOCS.parent / "examples" / "README.md",
    "releasing": DOCS.parent / "RELEASING.md",
    "security": DOCS.parent / "SECURITY.md",
}


def with_links_of_the_site(text: str, path: Path) -> str:
    """Return the text of a Markdown file with its relative links changed into those of the site."""
    pages = {outside: f"/{page}.md" for page, outside in OUTSIDE.items()}

    def changed(link: re.Match[str]) -> str:
        target = (path.parent / link[1]).resolve()
        if target in pages:
            return f"]({pages[target]}"
        if path in pages and ":" not in link[1]:
            inside = target.is_relative_to(DOCS)
            return f"](/{target.relative_to(DOCS)}" if inside else f"](../{target.relative_to(DOCS.parent)}"
        return link[0]

    return re.sub(r"\]\(([^()#\s]+)", changed, text)


def with_navigation(text: str) -> str:
    """Return the text of the first page with the tables of contents of its sections, which GitHub needn't show."""
    toctrees = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        pages = re.findall(r"^- \[[^\]]+\]\(([^():]+)\.(?:md|rst)\)", section, re.MULTILINE)
        if pages:
            caption = section.partition("\n")[0]
            toctrees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join([text, *toctrees])


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Make the source of a page out of what GitHub shows."""
    path = Path(app.env.doc2path(name))
    if name in OUTSIDE:
        path = OUTSIDE[name]
        source[0] = path.read_text(encoding="utf-8")
        app.env.note_dependency(path)
    source[0] = with_links_of_the_site(source[0], path)
    if name == "index":
        source[0] = with_navigation(source[0])


def complete(app: Sphinx, doctree: nodes.document) -> None:
    """Give the references in signatures their full names."""
    for reference in doctree.findall(pending_xref):
        reference["reftarget"] = FULL_NAMES.get(reference["reftarget"], reference["reftarget"])


def with_breaks(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Let the long names in tables break after their punctuation, so that the tables fit."""
    if app.builder.format != "html":
        return
    for entry in doctree.findall(nodes.entry):
        for literal in list(entry.findall(nodes.literal)):
            code = re.sub(r"(?<=[_.,(/=-])(?=\w)", "<wbr>", html.escape(literal.astext()))
            code = f'<code class="docutils literal notranslate">{code}</code>'
            literal.replace_self(nodes.raw("", code, format="html"))


def setup(app: Sphinx) -> None:
    """Connect the functions of this file."""
    app.connect("source-read", read)
    app.connect("doctree-read", complete)
    app.connect("doctree-resolved", with_breaks)
