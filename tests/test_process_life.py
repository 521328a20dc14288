"""The life of a process: forks, threads at its end, exits of each kind, and modules that are loaded again."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import StatusCode

from opentelemetry_mongo_events import event_listeners
from tests.clients import connect
from tests.forks import in_child
from tests.spans import Spans, table_of

if TYPE_CHECKING:
    from pymongo import MongoClient

    from tests.servers.scripted import ScriptedServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def test_the_child_forgets_what_its_parent_has_open_and_traces_its_own(
    client: MongoClient[Any], server: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    client.admin.command("ping")
    frozen = server.freeze("find")
    thread = threading.Thread(target=client.shop.command, args=("find", "orders"))
    thread.start()
    assert frozen.reached.wait(5)
    assert len(table_of(listeners)) == 1
    spans.clear()

    def child() -> bool:
        forgotten = len(table_of(listeners)) == 0
        mine = Spans()
        with connect(server.uri, event_listeners=event_listeners(tracer_provider=mine.provider)) as own:
            own.shop.orders.insert_one({})
            return forgotten and mine.names == ["insert orders"] and spans.names == []

    assert in_child(child)

    frozen.release()
    thread.join(5)
    assert spans.one("find orders").status.status_code is StatusCode.UNSET
    assert len(table_of(listeners)) == 0


def test_listeners_that_are_gone_are_no_trouble(capfd: pytest.CaptureFixture[str]) -> None:
    listeners = event_listeners()
    gone = weakref.ref(table_of(listeners))
    del listeners
    gc.collect()
    assert gone() is None

    assert in_child(lambda: True)
    assert capfd.readouterr().err == ""
