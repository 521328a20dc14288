"""What `make demo` shows, as far as it has a remark, and its summary."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from examples import demo
from pictures.browser import page
from pictures.files import keep
from pictures.needs import chromium, pngquant
from tests.application import console_metrics, console_spans
from tests.servers.processes import NxServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEEDS: Final = (chromium, pngquant)

COLUMNS: Final = 100
# Black, red, green, yellow, blue, magenta, cyan, white: dark enough to be read on white.
LIGHT: Final = TerminalTheme(
    (255, 255, 255),
    (36, 41, 46),
    [
        (36, 41, 46),
        (190, 30, 45),
        (20, 120, 50),
        (150, 95, 0),
        (0, 80, 180),
        (130, 50, 150),
        (0, 110, 130),
        (90, 90, 90),
    ],
)
PAGE: Final = """<!DOCTYPE html><meta charset="utf-8"><style>
body {{ margin: 0; background: {background}; color: {foreground} }}
pre {{ display: inline-block; margin: 0; padding: 12px 16px; font: 14px/1.17 "DejaVu Sans Mono", monospace }}
{stylesheet}</style><pre>{code}</pre>"""


def pictures() -> Iterator[Path]:
    """Make the picture."""
    with NxServer() as server:
        exit_code, output = demo.run_shop(server, to_console=True)
    if exit_code:
        raise RuntimeError(f"the shop failed with exit code {exit_code}")
    with page(1200, 800, pixels=1.1) as browser:
        browser.set_content(html(output))
        yield keep("demo", browser.locator("pre").screenshot())


def html(output: str) -> str:
    """What the demo shows of the shop's output, as a page."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False, force_terminal=True)
    spans = list(console_spans(output))
    told: set[str | None] = {None}
    for trace in demo.traces(spans):
        if (what := demo.remark(trace)) not in told:
            told.add(what)
            console.print(what, style="bold yellow")
            console.print(demo.tree(trace, spans))
            console.print()
    console.print("Metrics:\n")
    console.print(demo.summary(console_metrics(output)))
    return console.export_html(theme=LIGHT, code_format=PAGE)
