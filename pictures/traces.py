"""Traces in Jaeger's own page: an outage, a retried write, and a request that waited for a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pictures.browser import page
from pictures.files import keep
from pictures.needs import chromium, jaeger_ui, pngquant
from pictures.shop import failover, wait
from tests.servers.processes import Jaeger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Locator, Page

NEEDS: Final = (chromium, pngquant, jaeger_ui)

# A width at which the text is still to be read where the picture is 800 pixels wide; and more height than is needed,
# since what is out of sight isn't there.
WIDTH, HEIGHT, PIXELS = 1140, 2400, 1.5
# The column with the names of the spans, as wide as its heading needs it.
NAMES = 296

FITS: Final = """() => [...document.querySelectorAll(".VirtualizedTraceView--row")].every(
  row => row.firstElementChild.offsetHeight <= row.clientHeight)"""


def pictures() -> Iterator[Path]:
    """Make them."""
    with Jaeger(jaeger_ui()) as jaeger, page(WIDTH, HEIGHT, PIXELS) as browser:
        outage, order = failover(jaeger)

        shown = TracePage(browser, jaeger, outage)
        detail = shown.open_span(0)
        shown.open_events(detail)
        shown.open_last_event(detail, "mongodb.client.server.changed")  # which server is the primary now
        shown.open_references(detail)
        yield keep("outage", shown.picture())

        shown = TracePage(browser, jaeger, order)
        detail = shown.open_span(3)
        shown.open_tags(detail, "mongodb.client.operation.attempt")
        shown.open_references(detail)
        yield keep("retried-write", shown.picture())

        shown = TracePage(browser, jaeger, wait(jaeger))
        detail = shown.open_span(2)
        shown.open_tags(detail, "mongodb.client.connection.wait_time")
        shown.open_span(1)
        yield keep("wait", shown.picture())


class TracePage:
    """A trace as Jaeger shows it, without its menu."""

    def __init__(self, page: Page, jaeger: Jaeger, trace_id: str) -> None:
        self._page = page
        page.goto(f"{jaeger.query_url}/trace/{trace_id}?uiEmbed=v0&uiTimelineHideMinimap=1&uiTimelineHideSummary=1")
        page.locator(".span-row").first.wait_for()
        divider = page.locator(".VerticalResizer--dragger").bounding_box()
        assert divider is not None
        page.mouse.move(divider["x"] + divider["width"] / 2, divider["y"] + 10)
        page.mouse.down()
        page.mouse.move(NAMES, divider["y"] + 10, steps=5)
        page.mouse.up()

    def open_span(self, number: int) -> Locator:
        """Open the details of a span, by its place from above; those below it have to be open already."""
        self._page.locator(".span-name").nth(number).click()
        detail = self._page.locator(".detail-row").first
        detail.wait_for()
        return detail

    def open_events(self, detail: Locator) -> None:
        """Show all events: at first there are three."""
        detail.get_by_text("show more...").click()
        detail.get_by_text("show less").wait_for()
        # Those of the very end are a microsecond out of its range now and then. To show them closes the list, too.
        if (rest := detail.get_by_text("show all")).is_visible():
            rest.click()
            detail.locator(".AccordianLogs--header").click()

    def open_last_event(self, detail: Locator, name: str) -> None:
        """Show what the last event of a name tells."""
        events = detail.locator(".AccordianLogs--content .AccordianKeyValues--header")
        events.filter(has_text=name).last.click()

    def open_tags(self, detail: Locator, name: str) -> None:
        """Show the tags, and that one among them; folded, a command's text leaves room for all of them."""
        detail.get_by_text("Tags:").click()
        detail.get_by_role("button", name="collapse JSON").first.click()
        detail.locator(".KeyValueTable--keyColumn").get_by_text(name, exact=True).scroll_into_view_if_needed()

    def open_references(self, detail: Locator) -> None:
        """Show what a span is linked to."""
        detail.get_by_text("References").click()

    def picture(self) -> bytes:
        """The page, down to the last row."""
        self._page.mouse.move(0, 0)
        self._page.wait_for_function(FITS)  # it measures what was opened a moment later
        rows = [row.bounding_box() for row in self._page.locator(".VirtualizedTraceView--row").all()]
        bottom = max(row["y"] + row["height"] for row in rows if row is not None)
        png: bytes = self._page.screenshot(
            clip={"x": 0, "y": 0, "width": WIDTH, "height": round(bottom)}, animations="disabled"
        )
        return png
