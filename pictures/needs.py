"""What the pictures need beside Python: a browser, a program that makes PNGs small, and Jaeger's page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.processes import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def chromium() -> Path:
    """Where the browser is.

    Raises:
        Missing: It isn't on this machine.
    """
    return _program("chromium")


def pngquant() -> Path:
    """Where the program is that makes PNGs small.

    Raises:
        Missing: It isn't on this machine.
    """
    return _program("pngquant")


def jaeger_ui() -> Path:
    """The folder of Jaeger's built page, which the environment variable `JAEGER_UI` names.

    Raises:
        Missing: It names none.
    """
    named = os.environ.get("JAEGER_UI")
    how = (
        "the folder with index.html that `npm ci && npm run build` makes in a checkout of jaegertracing/jaeger-ui,"
        " packages/jaeger-ui/build"
    )
    if not named:
        raise Missing(f"JAEGER_UI is not set: it has to name {how}")
    folder = Path(named)
    if not (folder / "index.html").is_file():
        raise Missing(f"JAEGER_UI={named} is not Jaeger's built page: it has to name {how}")
    return folder


def missing(needs: Iterable[Callable[[], object]]) -> list[str]:
    """What isn't there, each with how to get it."""

    def told(need: Callable[[], object]) -> str | None:
        try:
            need()
        except Missing as error:
            return str(error)
        return None

    return [missing for need in needs if (missing := told(need)) is not None]


def _program(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed: as root on Debian, apt-get install --no-install-recommends {name}")
    return Path(path)
