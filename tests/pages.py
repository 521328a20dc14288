"""The pages of the documentation, for a test to read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def table(page: str, heading: str, number: int = 0) -> list[list[str]]:
    """The cells of the first table under a heading, or of a later one of its section: its head first."""
    text = f"\n{(ROOT / page).read_text()}".partition(f"\n{heading}\n")[2]
    section = re.split(r"^#{1,2} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert len(found) > number, f"{page} has no such table under {heading}"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[number].splitlines()]
    return [lines[0], *lines[2:]]


def rows(page: str, heading: str, number: int = 0) -> list[list[str]]:
    """The same without its head."""
    return table(page, heading, number)[1:]


def column(page: str, heading: str, name: str) -> dict[str, str]:
    """A column of that table by what is in the first one, without the marks of code."""
    head, *lines = table(page, heading)
    return {cells[0].strip("`"): cells[head.index(name)] for cells in lines}


def scripts(page: str) -> dict[str, str]:
    """The programs that a reader of the page is asked to save, by the names of their files."""
    text = (ROOT / page).read_text()
    return dict(re.findall(r"^Save this as `(\w+\.py)`.*?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def output_of(page: str, script: str) -> str:
    """What the page shows of a program's output: the first text after the command that runs it."""
    text = (ROOT / page).read_text().partition(f"python {script}\n")[2]
    found = re.search(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} doesn't show what {script} says"
    return found[1]
