"""Markdown as GitHub reads it: CommonMark with GitHub's extensions."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token

_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def parsed(text: str) -> list[Token]:
    return _MARKDOWN.parse(text)


def every(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens with those inside of them."""
    for token in tokens:
        yield token
        yield from every(token.children or ())


def links(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """The kind of each link and picture, `link_open` or `image`, and where it leads."""
    return [
        (token.type, str(token.attrs["href" if token.type == "link_open" else "src"]))
        for token in every(tokens)
        if token.type in ("link_open", "image")
    ]


def texts(tokens: Sequence[Token]) -> list[str]:
    """What a reader sees as text, by paragraph, cell or heading, with a placeholder for code."""
    shown = {"softbreak": "\n", "hardbreak": "\n", "code_inline": "`code`"}
    return [
        "".join(shown.get(child.type, child.content) for child in token.children or ())
        for token in tokens
        if token.type == "inline"
    ]


def anchors(tokens: Sequence[Token], levels: int = 6) -> set[str]:
    """The anchors of the headings down to a level. GitHub and the site make them by the same rule."""
    found: Counter[str] = Counter()
    names = set()
    for token, inline in pairwise(tokens):
        if token.type != "heading_open" or int(token.tag[1]) > levels:
            continue
        text = "".join(each.content for each in inline.children or () if each.type in ("text", "code_inline"))
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return names
