"""The table of timeouts in docs/troubleshooting.md: each timeout is provoked, and recorded as the table says."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import event_listeners
from tests.clients import connect
from tests.pages import rows
from tests.spans import Spans, attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.scripted import ScriptedServer

HEADING = "## Timeouts"


def find(server: ScriptedServer, spans: Spans, **options: Any) -> None:
    """Run a find that fails, on a client with those options."""
    listeners = event_listeners(tracer_provider=spans.provider, selections=True, exclude_commands="endSessions")
    with (
        connect(server.uri, event_listeners=listeners, retryReads=False, **options) as client,
        pytest.raises(PyMongoError),
    ):
        client.shop.orders.find_one({})


def server_selection(server: ScriptedServer, spans: Spans) -> None:
    if pymongo.version_tuple < (4, 7):
        pytest.skip("the driver logs no selections")
    server.stop()
    find(server, spans, serverSelectionTimeoutMS=100)
    spans.wait_for("select server")  # it is recorded in the background


def wait_queue(server: ScriptedServer, spans: Spans) -> None:
    frozen = server.freeze("find")
    listeners = event_listeners(tracer_provider=spans.provider, exclude_commands="find, endSessions")
    options: dict[str, Any] = {"maxPoolSize": 1, "waitQueueTimeoutMS": 100, "retryReads": False}
    with connect(server.uri, event_listeners=listeners, **options) as client:
        holding = threading.Thread(target=client.shop.orders.find_one)
        holding.start()
        assert frozen.reached.wait(20)
        with pytest.raises(PyMongoError):
            client.shop.orders.find_one({})
        frozen.release()
        holding.join()


def socket(server: ScriptedServer, spans: Spans) -> None:
    frozen = server.freeze("find")
    find(server, spans, socketTimeoutMS=200)
    frozen.release()


def max_time(server: ScriptedServer, spans: Spans) -> None:
    server.fail("find", code=50)
    find(server, spans)


TIMEOUTS: dict[str, Callable[[ScriptedServer, Spans], None]] = {
    "serverSelectionTimeoutMS": server_selection,
    "waitQueueTimeoutMS": wait_queue,
    "socketTimeoutMS": socket,
    "maxTimeMS": max_time,
}


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_a_timeout_looks_as_the_page_says(timeout: str, server: ScriptedServer) -> None:
    (said,) = [cells[3] for cells in rows("docs/troubleshooting.md", HEADING) if cells[0].startswith(f"`{timeout}`")]
    spans = Spans()
    TIMEOUTS[timeout](server, spans)

    failed = {
        span.name.split(" ")[0]: attributes(span)["error.type"]
        for span in spans.finished
        if "error.type" in attributes(span) and not span.name.startswith("mongodb.client.")
    }
    ((name, error_type),) = failed.items()
    assert f"`error.type` = `{error_type}`" in said
    assert {"select": "[`select server`]", "checkout": "[`checkout`]", "find": "[command span]"}[name] in said
