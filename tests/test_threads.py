"""Threads: each has its own parent, and one request id twice is two commands."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.trace import StatusCode

from tests.clients import connect
from tests.events import checked_in, checked_out, started, succeeded
from tests.servers.scripted import ScriptedServer
from tests.spans import Spans, attributes, commands_of, connections_of, table_of

if TYPE_CHECKING:
    from pymongo import MongoClient


def test_each_thread_is_the_parent_of_its_own_commands(client: MongoClient[Any], listeners: Any, spans: Spans) -> None:
    def request(number: int) -> None:
        with spans.tracer.start_as_current_span(f"request {number}"):
            client.shop[f"c{number}"].insert_one({})
            client.shop[f"c{number}"].find_one({})

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(request, range(100)))

    for number in range(100):
        parent = spans.one(f"request {number}").context
        for name in ("insert", "find"):
            span = spans.one(f"{name} c{number}")
            assert (span.parent, span.status.status_code) == (parent, StatusCode.UNSET)
    assert len(table_of(listeners)) == 0


def test_what_a_thread_of_the_drivers_own_sends_is_nobodys_child(listeners: Any, spans: Spans) -> None:
    commands: Any = commands_of(listeners)

    def close_cursors() -> None:
        commands.started(started({"killCursors": "orders", "cursors": [12]}))
        commands.succeeded(succeeded("killCursors"))

    with spans.tracer.start_as_current_span("request"):
        # As with `sys.flags.thread_inherit_context`: the thread has the context of whoever started it.
        inherited = contextvars.copy_context()
    for name in ("pymongo_kill_cursors_thread", "worker"):
        thread = threading.Thread(target=inherited.run, args=(close_cursors,), name=name)
        thread.start()
        thread.join()

    assert [span.parent for span in spans.named("killCursors orders")] == [None, spans.one("request").context]


def test_two_threads_with_one_request_id_are_two_commands(listeners: Any, spans: Spans) -> None:
    commands: Any = commands_of(listeners)
    pools: Any = connections_of(listeners)
    both_are_open = threading.Barrier(2)

    def run(connection: int) -> None:
        for _ in range(100):
            pools.connection_checked_out(checked_out(connection))
            commands.started(started({"find": f"c{connection}"}, request_id=1, server_connection_id=42))
            both_are_open.wait(5)
            assert len(table_of(listeners)) == 2
            both_are_open.wait(5)
            commands.succeeded(succeeded("find", request_id=1, server_connection_id=42))
            pools.connection_checked_in(checked_in(connection))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, (1, 2)))

    for connection in (1, 2):
        found = spans.named(f"find c{connection}")
        assert len(found) == 100
        assert {span.status.status_code for span in found} == {StatusCode.UNSET}
        assert {attributes(span)["db.mongodb.driver_connection_id"] for span in found} == {connection}
    assert len(table_of(listeners)) == 0


@pytest.mark.parametrize("role", ["standalone", "load_balanced"])
def test_a_cursor_that_another_context_goes_on_with_has_no_connection_of_a_third(
    role: Any, listeners: Any, spans: Spans
) -> None:
    # As with a web framework that calls each `next()` in a copy of the request's context.
    cursor_type = pymongo.CursorType.EXHAUST if role == "standalone" else pymongo.CursorType.NON_TAILABLE
    with (
        ThreadPoolExecutor(1) as threads,
        ScriptedServer(role=role, server_connection_ids=False) as server,
        connect(server.uri, event_listeners=listeners) as client,
    ):
        for name in ("cursor", "other"):
            client.shop[name].insert_many([{"_id": number} for number in range(9)])
        cursor, other = (client.shop[name].find(batch_size=2, cursor_type=cursor_type) for name in ("cursor", "other"))
        # Each context has the record of the connection of the inserts, which the other cursor gets.
        contexts = [contextvars.copy_context() for _ in range(4)]
        contexts[0].run(next, other)
        for _ in range(2):
            contexts[1].run(next, cursor)

        frozen = server.freeze("getMore")
        more = threads.submit(contexts[2].run, next, cursor)
        assert frozen.reached.wait(5)
        contexts[3].run(other.close)
        assert len(table_of(listeners)) == 1
        frozen.release()
        more.result(5)
        cursor.close()

    ids = [attributes(span).get("db.mongodb.driver_connection_id") for span in spans.finished]
    named = dict(zip(spans.names, ids, strict=True))
    assert named["insert other"] == named["find other"] != named["find cursor"]
    assert named["getMore cursor"] is None
    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}
