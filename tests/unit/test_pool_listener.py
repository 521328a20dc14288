"""The pool listener, with the driver's events as they come."""

from __future__ import annotations

import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bson import ObjectId
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import StatusCode
from pymongo.monitoring import ConnectionCheckOutFailedEvent, PoolClearedEvent

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._commands import connections
from opentelemetry_mongo_events._driver import identity
from opentelemetry_mongo_events._driver.versions import POOL_EVENTS_HAVE_DURATIONS
from opentelemetry_mongo_events._pools import listener as listener_module
from opentelemetry_mongo_events._pools import state
from opentelemetry_mongo_events._pools.listener import PoolEvents
from opentelemetry_mongo_events._runtime import process
from opentelemetry_mongo_events._telemetry.telemetry import telemetry_from
from tests.events import (
    ADDRESS,
    check_out_failed,
    check_out_started,
    checked_in,
    checked_out,
    connection_closed,
    connection_created,
    connection_ready,
    pool_cleared,
    pool_closed,
    pool_created,
    started,
    succeeded,
)
from tests.metrics import POOL, Metrics
from tests.spans import Spans, attributes, commands_of, connections_of
from tests.waiting import until

NAME = "db.example:27017"
PENDING = "db.client.connection.pending_requests"
CLOSED = "mongodb.client.connection.closed"
FAILURES = "mongodb.client.connection.checkout_failures"


@pytest.fixture
def pools(listeners: Any) -> Any:
    return next(listener for listener in listeners if isinstance(listener, PoolEvents))


def address() -> Any:
    """A new object: another client's."""
    return ("".join(["db.", "example"]), 27000 + 17)


def make(pools: Any, connection_id: int, at: Any) -> None:
    pools.connection_created(connection_created(connection_id, at))
    pools.connection_ready(connection_ready(connection_id, at))


def test_a_pool_counts_from_what_is_known(pools: Any, metrics: Metrics) -> None:
    # As of a client whose pool was there before its listener.
    pools.connection_checked_in(checked_in(1))
    pools.connection_closed(connection_closed(1))
    pools.pool_closed(pool_closed())
    assert metrics.points("db.client.connection.count") == []

    pools.connection_check_out_started(check_out_started())
    pools.connection_checked_out(checked_out(2))
    assert metrics.connections() == (0, 1)
    assert metrics.points("db.client.connection.limit") == []

    pools.connection_checked_in(checked_in(2))
    pools.connection_checked_in(checked_in(2))
    assert metrics.connections() == (1, 0)


def test_a_connection_that_is_closed_while_it_is_out_is_neither_idle_nor_used(pools: Any, metrics: Metrics) -> None:
    pools.pool_created(pool_created())
    make(pools, 1, ADDRESS)
    pools.connection_checked_out(checked_out(1))
    pools.connection_closed(connection_closed(1))

    assert metrics.connections() == (0, 0)


def test_a_connection_may_be_out_again_before_it_is_told_that_it_was_given_back(pools: Any, metrics: Metrics) -> None:
    # PyMongo 4.19 tells it only when the next thread may have it already.
    pools.pool_created(pool_created())
    make(pools, 1, ADDRESS)
    with ThreadPoolExecutor(1) as thread:
        pools.connection_checked_out(checked_out(1))
        thread.submit(pools.connection_checked_out, checked_out(1)).result()
        assert metrics.connections() == (0, 1)
        pools.connection_checked_in(checked_in(1))
        assert metrics.connections() == (0, 1)
        thread.submit(pools.connection_checked_in, checked_in(1)).result()

    assert metrics.connections() == (1, 0)
    assert metrics.one("db.client.connection.use_time").count == 2


def test_a_connection_may_be_given_back_by_another_thread(pools: Any, metrics: Metrics) -> None:
    # As that of a cursor which the garbage collector closes.
    pools.pool_created(pool_created())
    for connection_id in (1, 2):
        make(pools, connection_id, ADDRESS)
        pools.connection_checked_out(checked_out(connection_id))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(pools.connection_checked_in, checked_in(2)).result()
        assert metrics.connections() == (1, 1)
        thread.submit(pools.connection_closed, connection_closed(1)).result()

    assert metrics.connections() == (1, 0)
    assert metrics.one("db.client.connection.use_time").count == 2  # one ended as its connection was closed


def test_a_connection_that_is_closed_while_telemetry_is_off_is_not_measured(pools: Any, metrics: Metrics) -> None:
    make(pools, 1, ADDRESS)
    pools.connection_check_out_started(check_out_started())
    pools.connection_checked_out(checked_out(1))
    assert metrics.connections() == (0, 1)
    pools._pools.switch.telemetry = None
    pools.connection_closed(connection_closed(1))

    assert (pools.guard.failures, pools._pools.known(ADDRESS).connections()) == ({}, (0, 0))


def test_a_connection_that_couldnt_be_made_is_closed_too(pools: Any, metrics: Metrics) -> None:
    pools.pool_created(pool_created())
    pools.connection_created(connection_created(1))
    assert metrics.connections() == (0, 0)
    pools.connection_closed(connection_closed(1))

    assert metrics.connections() == (0, 0)
    assert metrics.values(CLOSED, POOL) == {NAME: 1}


def test_events_after_the_close_are_no_trouble(pools: Any, metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    pools.pool_created(pool_created())
    make(pools, 1, ADDRESS)
    pools.connection_checked_out(checked_out(1))
    pools.pool_closed(pool_closed())
    assert metrics.connections() == (0, 1)

    pools.connection_checked_in(checked_in(1))
    pools.connection_closed(connection_closed(1, reason="poolClosed"))
    pools.connection_closed(connection_closed(1, reason="poolClosed"))
    pools.pool_closed(pool_closed())
    pools.pool_cleared(pool_cleared())

    assert metrics.values(CLOSED, "mongodb.client.connection.close_reason") == {"poolClosed": 1}
    pools.connection_check_out_started(check_out_started())
    pools.connection_check_out_failed(check_out_failed("poolClosed"))
    assert metrics.values(FAILURES, "error.type") == {"poolClosed": 1}
    assert (metrics.connections(), caplog.messages) == ((0, 0), [])


def test_what_comes_after_the_close_leaves_no_pool_behind(pools: Any, metrics: Metrics) -> None:
    pools.pool_created(pool_created())
    pools.pool_closed(pool_closed())
    assert metrics.points(PENDING) == []

    # Who had chosen the server by then is turned away.
    pools.connection_check_out_started(check_out_started())
    pools.connection_check_out_failed(check_out_failed("poolClosed"))
    # The driver's thread was about to fill the pool.
    make(pools, 1, ADDRESS)
    assert metrics.connections() == (1, 0)
    pools.connection_closed(connection_closed(1, reason="stale"))

    for name in ("count", "max", "idle.min", "pending_requests"):
        assert metrics.points(f"db.client.connection.{name}") == []


def test_a_server_that_comes_back_has_a_new_pool_of_the_same_address(pools: Any, metrics: Metrics) -> None:
    pools.pool_created(pool_created(maxPoolSize=5))
    make(pools, 1, ADDRESS)
    pools.connection_checked_out(checked_out(1))
    pools.pool_created(pool_created(maxPoolSize=5))  # before 4.9 without a close of the one before
    make(pools, 1, ADDRESS)

    assert metrics.values("db.client.connection.limit", POOL) == {NAME: 5}
    assert metrics.connections() == (1, 1)


def test_pools_of_two_clients_are_told_apart_by_their_addresses(pools: Any, metrics: Metrics) -> None:
    first, second = address(), address()
    for at, size in ((first, 1), (second, 2)):
        pools.pool_created(pool_created(at, maxPoolSize=size))
        make(pools, 1, at)
        pools.connection_checked_out(checked_out(1, at))
    assert metrics.values("db.client.connection.limit", POOL) == {NAME: 3}
    assert metrics.connections() == (0, 2)

    pools.connection_checked_in(checked_in(1, first))
    pools.connection_closed(connection_closed(1, first))
    pools.pool_closed(pool_closed(first))

    assert metrics.values("db.client.connection.limit", POOL) == {NAME: 2}
    assert metrics.connections() == (0, 1)


def test_an_event_of_a_pool_that_is_gone_is_no_other_pools(pools: Any, metrics: Metrics) -> None:
    living, gone = address(), address()
    pools.pool_created(pool_created(living))
    make(pools, 1, living)
    pools.connection_closed(connection_closed(1, gone))
    pools.connection_checked_in(checked_in(1, gone))

    assert metrics.connections() == (1, 0)


def test_what_was_idle_is_gone_when_the_pool_is_cleared(pools: Any, metrics: Metrics) -> None:
    pools.pool_created(pool_created())
    for connection_id in (1, 2):
        make(pools, connection_id, ADDRESS)
    pools.connection_checked_out(checked_out(1))
    pools.pool_cleared(pool_cleared())
    assert metrics.connections() == (0, 1)

    # Behind a load balancer it may be those of one server only.
    make(pools, 3, ADDRESS)
    pools.pool_cleared(PoolClearedEvent(ADDRESS, ObjectId()))
    assert metrics.connections() == (1, 1)

    for connection_id in (2, 2):
        pools.connection_closed(connection_closed(connection_id, reason="stale"))
    assert metrics.values(CLOSED, POOL) == {NAME: 1}


def test_what_was_idle_is_gone_when_the_pool_is_closed(pools: Any, metrics: Metrics) -> None:
    # As where a cancelled task left no word of what it closed.
    pools.pool_created(pool_created())
    make(pools, 1, ADDRESS)
    pools.pool_closed(pool_closed())

    assert metrics.points("db.client.connection.count") == []


def test_what_was_idle_for_too_long_is_gone(pools: Any, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_GRACE", 0.0)
    pools.pool_created(pool_created(maxIdleTimeMS=300))
    for connection_id in (1, 2):
        make(pools, connection_id, ADDRESS)
    pools.connection_checked_out(checked_out(1))
    assert metrics.connections() == (1, 1)
    until(lambda: metrics.connections() == (0, 1))

    # Whatever became of it, who gives it back had it.
    pools.connection_checked_in(checked_in(1))
    assert metrics.connections() == (1, 0)


@pytest.mark.skipif(not POOL_EVENTS_HAVE_DURATIONS, reason="what has no duration is always tracked")
def test_before_anything_receives_metrics_only_the_connections_are_known(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_GRACE", 0.0)
    made = event_listeners(meter_provider=NoOpMeterProvider())
    pools: Any = next(each for each in made if isinstance(each, PoolEvents))
    pools.pool_created(pool_created(maxIdleTimeMS=1))
    for connection_id in (1, 2):
        make(pools, connection_id, ADDRESS)
        pools.connection_check_out_started(check_out_started())
        pools.connection_checked_out(checked_out(connection_id))
    pools.connection_checked_in(checked_in(2))
    time.sleep(0.01)  # nobody knows how long the connections are idle
    assert pools._pools.pools()[0].connections() == (2, 0)

    pools._pools.switch.telemetry = telemetry_from({"meter_provider": metrics.provider}, other_tracers=None)
    pools.connection_check_out_started(check_out_started())
    monkeypatch.setattr(state, "_GRACE", 60.0)
    pools.connection_checked_out(checked_out(2))
    assert metrics.connections() == (1, 1)
    pools.connection_checked_in(checked_in(2))
    pools.connection_checked_in(checked_in(1))  # it was checked out before

    assert metrics.connections() == (2, 0)
    assert metrics.one("db.client.connection.use_time").count == 1


def test_what_has_no_duration_is_always_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to PyMongo 4.6. The span of a failed checkout says when it started, without a meter provider, too.
    monkeypatch.setattr(listener_module, "POOL_EVENTS_HAVE_DURATIONS", False)
    made = event_listeners(meter_provider=NoOpMeterProvider())
    pools: Any = next(each for each in made if isinstance(each, PoolEvents))
    pools.pool_created(pool_created())
    pools.connection_check_out_started(check_out_started())

    assert pools._pools.known(ADDRESS).waiters.end() is not None


@pytest.mark.skipif(not identity.COUNTS_REFERENCES, reason="PyPy has no reference counts")
def test_a_pool_whose_address_nobody_has_is_gone(pools: Any, metrics: Metrics) -> None:
    at = address()
    pools.pool_created(pool_created(at))
    make(pools, 1, at)
    assert metrics.connections() == (1, 0)

    del at
    assert metrics.points("db.client.connection.count") == []


@pytest.mark.parametrize(
    ("at", "name", "checkout"),
    [
        (("/run/db.sock", None), "/run/db.sock", "checkout /run/db.sock"),
        (("::1", 27017), "[::1]:27017", "checkout [::1]:27017"),
    ],
)
def test_a_pool_has_the_name_of_its_address(
    at: Any, name: str, checkout: str, pools: Any, metrics: Metrics, spans: Spans
) -> None:
    pools.pool_created(pool_created(at))
    pools.connection_check_out_started(check_out_started(at))
    assert metrics.values(PENDING, POOL) == {name: 0}  # this test isn't the driver's checkout

    pools.connection_check_out_failed(check_out_failed("connectionError", at))
    assert spans.names == [checkout]
    assert attributes(spans.one()).get("server.port") == at[1]


def test_a_failed_checkout_lasts_as_long_as_the_driver_says(pools: Any, spans: Spans) -> None:
    pools.connection_check_out_started(check_out_started())
    time.sleep(0.02)
    pools.connection_check_out_failed(check_out_failed("timeout", duration=13.5))

    span = spans.one(f"checkout {NAME}")
    assert span.status.status_code is StatusCode.ERROR
    assert span.start_time is not None
    assert span.end_time is not None
    lasted = (span.end_time - span.start_time) / 1e9
    if hasattr(ConnectionCheckOutFailedEvent, "duration"):
        assert lasted == pytest.approx(13.5)
    else:
        assert 0.02 <= lasted < 5


def test_what_the_driver_doesnt_time_is_measured(
    listeners: Any, pools: Any, metrics: Metrics, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As before PyMongo 4.7, whose events have no duration.
    monkeypatch.setattr(connections, "POOL_EVENTS_HAVE_DURATIONS", False)
    commands: Any = commands_of(listeners)
    for each in (pools, connections_of(listeners)):
        each.connection_check_out_started(check_out_started())
        each.connection_created(connection_created(1))
    time.sleep(0.02)
    for each in (connections_of(listeners), pools):
        each.connection_ready(connection_ready(1, duration=None))
        each.connection_checked_out(checked_out(1, duration=None))
    commands.started(started({"ping": 1}))
    commands.succeeded(succeeded("ping"))

    assert 0.02 <= metrics.one("db.client.connection.create_time").sum < 5
    assert 0.02 <= metrics.one("db.client.connection.wait_time").sum < 5
    assert 0.02 <= attributes(spans.one("ping shop"))["mongodb.client.connection.wait_time"] < 5


def test_what_nobody_timed_is_not_measured(pools: Any, metrics: Metrics) -> None:
    pools.connection_ready(connection_ready(1, duration=None))
    pools.connection_checked_out(checked_out(1, duration=None))

    assert "db.client.connection.create_time" not in metrics.collected()
    assert "db.client.connection.wait_time" not in metrics.collected()
    assert metrics.connections() == (0, 1)


def test_a_time_is_never_negative(pools: Any, metrics: Metrics) -> None:
    pools.connection_check_out_started(check_out_started())
    pools.connection_checked_out(checked_out(1, duration=-3.0))

    assert metrics.one("db.client.connection.wait_time").sum >= 0


def test_a_command_tells_of_the_wait_for_its_connection_once(listeners: Any, spans: Spans) -> None:
    commands: Any = commands_of(listeners)
    connections: Any = connections_of(listeners)
    connections.connection_checked_out(checked_out(4, duration=0.5))
    for _ in range(2):
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find"))
    connections.connection_checked_in(checked_in(4))

    first, second = spans.named("find orders")
    assert "mongodb.client.connection.wait_time" in attributes(first)
    assert "mongodb.client.connection.wait_time" not in attributes(second)


def test_what_the_driver_does_in_the_background_is_nobodys(pools: Any, spans: Spans, metrics: Metrics) -> None:
    def close_cursors() -> None:
        for number in (1, 2):
            pools.connection_check_out_started(check_out_started())
            pools.connection_checked_out(checked_out(number))
        pools.connection_check_out_started(check_out_started())
        pools.connection_check_out_failed(check_out_failed("timeout"))

    with spans.tracer.start_as_current_span("request"):
        context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(close_cursors,), name="pymongo_kill_cursors_thread")
    thread.start()
    thread.join()

    assert spans.one(f"checkout {NAME}").parent is None
    assert list(metrics.one("db.client.connection.wait_time").exemplars) == []


def test_a_child_forgets_the_pools(pools: Any, metrics: Metrics) -> None:
    pools.pool_created(pool_created())
    make(pools, 1, ADDRESS)
    assert metrics.connections() == (1, 0)

    process._forget_all()
    assert metrics.points("db.client.connection.count") == []

    # What it inherited may still be given back, or closed.
    pools.connection_checked_in(checked_in(1))
    pools.connection_closed(connection_closed(1))
    assert metrics.points("db.client.connection.count") == []


def test_a_checkout_that_failed_is_told_by_a_listener_without_a_span_where_that_is_off(metrics: Metrics) -> None:
    made = event_listeners(meter_provider=metrics.provider)
    pools: Any = next(listener for listener in made if isinstance(listener, PoolEvents))
    pools._pools.switch.telemetry = None
    pools.connection_check_out_started(check_out_started())
    pools.connection_check_out_failed(check_out_failed("timeout"))
    pools.pool_cleared(pool_cleared())

    assert metrics.collected() == {}


def test_before_4_2_a_failed_checkout_is_published_as_a_started_one(pools: Any, spans: Spans, metrics: Metrics) -> None:
    pools.pool_created(pool_created())
    pools.connection_check_out_started(check_out_started())
    pools.connection_check_out_started(check_out_failed("timeout"))

    assert spans.names == [f"checkout {NAME}"]
    assert metrics.values(FAILURES, "error.type") == {"timeout": 1}
    assert metrics.values(PENDING, POOL) == {NAME: 0}


def test_where_references_are_not_counted_a_bounded_number_of_pools_is_kept(
    pools: Any, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on PyPy, of clients that were never closed."""
    monkeypatch.setattr(identity, "_reference_count", None)
    monkeypatch.setattr(state, "COUNTS_REFERENCES", False)
    monkeypatch.setattr(state, "_MAX_POOLS", 3)
    for number in range(10):
        at = (f"db{number}.example", 27017)
        pools.pool_created(pool_created(at))
        make(pools, 1, at)
        del at
        assert metrics.connections() == (min(number + 1, 3), 0)

    assert len(pools._pools._current) == 3


def test_of_two_threads_that_see_a_pool_first_one_makes_it(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states, at = pools._pools, address()
    new = states._new
    made: list[Any] = []

    def new_as_another_does(of: Any) -> Any:
        if not made:
            made.append(None)
            made.append(states.of(of))
        return new(of)

    monkeypatch.setattr(states, "_new", new_as_another_does)
    assert states.of(at) is made[1]
    assert list(states._pools) == [made[1]]
