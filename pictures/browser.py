"""A browser without a window, for pages of this machine."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from pictures.needs import chromium

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page


@contextmanager
def page(width: int, height: int, pixels: float) -> Iterator[Page]:
    """An empty page of this size, and of so many pixels to each of CSS."""
    with (
        sync_playwright() as playwright,
        # Ctrl-C is for this program, which ends the browser then.
        playwright.chromium.launch(executable_path=chromium(), handle_sigint=False) as browser,
        browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=pixels,
            color_scheme="light",
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
        ) as context,
    ):
        yield context.new_page()
