"""Operations that the driver repeats because a connection could not be checked out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from pymongo import InsertOne, UpdateOne
from pymongo.errors import AutoReconnect

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._driver.listeners import QuietPoolListener
from opentelemetry_mongo_events._driver.versions import ATTEMPTS_SHARE_OPERATION_ID
from opentelemetry_mongo_events._servers import failed_checkouts
from tests.clients import aconnect, connect
from tests.programs import run
from tests.servers.scripted import ScriptedServer
from tests.spans import Spans, attributes, linked, span_id, start
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from pymongo import MongoClient
    from pymongo.monitoring import ConnectionCheckOutFailedEvent, ConnectionCheckOutStartedEvent

    from tests.metrics import Metrics

ATTEMPT = "mongodb.client.operation.attempt"
WAIT_TIME = "mongodb.client.connection.wait_time"

# Only the application's connections authenticate, and the monitors' don't.
CREDENTIALS = {"username": "alice", "password": "secret", "authMechanism": "PLAIN"}

pytestmark = pytest.mark.usefixtures("quick_driver")

recognizes_operations = pytest.mark.skipif(
    pymongo.version_tuple < (4, 6), reason="the loop that repeats an operation is a method since PyMongo 4.6"
)
asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")


@pytest.fixture
def client(primary: ScriptedServer, listeners: Any) -> Iterator[MongoClient[Any]]:
    with connect(primary.uri, event_listeners=listeners, **CREDENTIALS) as client:
        yield client


def fail_checkouts(server: ScriptedServer, times: int = 1, delay: float = 0.0) -> None:
    """Fail the next checkouts that need a new connection."""
    server.fail("saslStart", times=times, close_connection=True, delay=delay)


def checkouts(spans: Spans) -> list[ReadableSpan]:
    """The spans of the failed checkouts, in the order of their starts."""
    return sorted((span for span in spans.finished if span.name.startswith("checkout ")), key=start)


def expire() -> None:
    """Let the connections of a client with `maxIdleTimeMS=1` expire."""
    time.sleep(0.01)


def assert_unmarked(span: ReadableSpan) -> None:
    assert ATTEMPT not in attributes(span)
    assert linked(span) == []


@recognizes_operations
def test_a_read_after_a_failed_checkout_is_a_second_attempt(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    fail_checkouts(primary, delay=0.1)
    client.shop.orders.find_one()

    [checkout], command = checkouts(spans), spans.one("find orders")
    assert attributes(command)[ATTEMPT] == 2
    assert linked(command) == [span_id(checkout)]
    assert 0.1 <= attributes(command)[WAIT_TIME] < 5
    # The histogram has one value for each checkout that succeeded.
    [waits] = metrics.points("db.client.connection.wait_time")
    assert (waits.count, waits.sum < attributes(command)[WAIT_TIME] - 0.09) == (1, True)
    for authentication in spans.named("saslStart $external"):
        assert_unmarked(authentication)


@recognizes_operations
def test_only_the_first_command_after_it_is_one(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    with connect(primary.uri) as other:
        other.shop.orders.insert_many([{"_id": number} for number in range(3)])
    fail_checkouts(primary)
    assert len(list(client.shop.orders.find(batch_size=2))) == 3
    client.shop.orders.insert_one({})

    find = spans.one("find orders")
    assert attributes(find)[ATTEMPT] == 2
    assert ATTEMPT not in attributes(spans.one("getMore orders"))
    assert linked(spans.one("getMore orders")) == [span_id(find)]
    assert_unmarked(spans.one("insert orders"))


@recognizes_operations
def test_a_write_after_a_failed_checkout_is_a_second_attempt(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    fail_checkouts(primary, delay=0.1)
    client.shop.orders.insert_one({"_id": 1})

    [checkout], command = checkouts(spans), spans.one("insert orders")
    assert (attributes(command)[ATTEMPT], linked(command)) == (2, [span_id(checkout)])
    assert 0.1 <= attributes(command)[WAIT_TIME] < 5


@recognizes_operations
def test_a_read_that_waited_for_a_connection_in_vain_says_how_long_it_waited_in_all(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    frozen = primary.freeze("find")

    class Release(QuietPoolListener):
        def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
            frozen.release()

    options = {"maxPoolSize": 1, "waitQueueTimeoutMS": 1_000}
    with connect(primary.uri, event_listeners=[*listeners, Release()], **options) as client:
        running = threading.Thread(target=client.shop.command, args=("find", "orders"))
        running.start()
        assert frozen.reached.wait(5)
        client.shop.carts.find_one()
        running.join()

    [checkout], command = checkouts(spans), spans.one("find carts")
    assert attributes(checkout)["error.type"] == "timeout"
    assert (attributes(command)[ATTEMPT], linked(command)) == (2, [span_id(checkout)])
    assert 1 <= attributes(command)[WAIT_TIME] < 5


@recognizes_operations
def test_an_operation_may_get_no_connection_several_times(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    fail_checkouts(primary, times=2, delay=0.1)
    with pymongo.timeout(20):
        client.shop.orders.find_one()

    command = spans.one("find orders")
    assert attributes(command)[ATTEMPT] == 3
    assert linked(command) == [span_id(checkout) for checkout in checkouts(spans)]
    assert len(linked(command)) == 2
    assert 0.2 <= attributes(command)[WAIT_TIME] < 5


@recognizes_operations
def test_the_number_of_links_is_limited(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_checkouts, "_MAX_SPANS", 2)
    fail_checkouts(primary, times=3)
    with pymongo.timeout(20):
        client.shop.orders.find_one()

    command = spans.one("find orders")
    assert attributes(command)[ATTEMPT] == 4
    assert linked(command) == [span_id(checkout) for checkout in checkouts(spans)][1:]


@recognizes_operations
def test_a_failed_checkout_counts_after_a_command_that_failed(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    client.admin.command("ping")
    primary.fail("find", close_connection=True)
    fail_checkouts(primary)
    with pymongo.timeout(20):
        client.shop.orders.find_one()

    first, third = spans.named("find orders")
    [checkout] = checkouts(spans)
    if ATTEMPTS_SHARE_OPERATION_ID:
        assert (attributes(third)[ATTEMPT], linked(third)) == (3, [span_id(first), span_id(checkout)])
    else:  # how many commands were sent before isn't known
        assert ATTEMPT not in attributes(third)
        assert linked(third) == [span_id(checkout)]


@recognizes_operations
def test_a_command_that_is_not_recorded_makes_the_number_unknown(primary: ScriptedServer) -> None:
    class DropsTheFirst(Sampler):
        decisions = iter([Decision.DROP])

        def should_sample(self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any) -> SamplingResult:
            decisions = self.decisions if name == "find orders" else iter(())
            return SamplingResult(next(decisions, Decision.RECORD_AND_SAMPLE))

        def get_description(self) -> str:
            return "drops the first find"

    spans = Spans(sampler=DropsTheFirst())
    listeners = event_listeners(tracer_provider=spans.provider)
    with connect(primary.uri, event_listeners=listeners, **CREDENTIALS) as client, pymongo.timeout(20):
        client.admin.command("ping")
        primary.fail("find", close_connection=True)
        fail_checkouts(primary)
        client.shop.orders.find_one()

    [checkout], command = checkouts(spans), spans.one("find orders")
    assert ATTEMPT not in attributes(command)
    assert linked(command) == [span_id(checkout)]


@recognizes_operations
def test_a_command_that_fails_counts_after_a_failed_checkout(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    fail_checkouts(primary, delay=0.1)
    primary.fail("find", code=91, code_name="ShutdownInProgress")
    with pymongo.timeout(20):
        client.shop.orders.find_one()

    second, third = spans.named("find orders")
    [checkout] = checkouts(spans)
    assert (attributes(second)[ATTEMPT], linked(second)) == (2, [span_id(checkout)])
    assert attributes(second)[WAIT_TIME] >= 0.1
    if ATTEMPTS_SHARE_OPERATION_ID:
        assert (attributes(third)[ATTEMPT], linked(third)) == (3, [span_id(second)])
    else:
        assert_unmarked(third)


@recognizes_operations
def test_each_attempt_reports_the_failed_checkouts_right_before_it(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    accepted = {"conversationId": 1, "done": True, "payload": b""}

    def refused(_: Any) -> Any:
        raise ConnectionAbortedError

    primary.reply("saslStart", [refused, accepted, refused])
    primary.fail("find", close_connection=True)
    with connect(primary.uri, event_listeners=listeners, **CREDENTIALS) as client, pymongo.timeout(20):
        client.shop.orders.find_one()

    second, fourth = spans.named("find orders")
    first, third = checkouts(spans)
    assert (attributes(second)[ATTEMPT], linked(second)) == (2, [span_id(first)])
    if ATTEMPTS_SHARE_OPERATION_ID:
        assert (attributes(fourth)[ATTEMPT], linked(fourth)) == (4, [span_id(second), span_id(third)])
    else:
        assert ATTEMPT not in attributes(fourth)
        assert linked(fourth) == [span_id(third)]


def test_an_operation_of_its_own_is_no_second_attempt(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    options = {"retryReads": False, "retryWrites": False, "maxIdleTimeMS": 1}
    with connect(primary.uri, event_listeners=listeners, **options, **CREDENTIALS) as client:
        fail_checkouts(primary)
        with pytest.raises(AutoReconnect):
            client.shop.orders.find_one()
        client.shop.orders.find_one()
        expire()
        fail_checkouts(primary)
        with pytest.raises(AutoReconnect):
            client.shop.orders.insert_one({})
        client.shop.orders.insert_one({})

    assert len(checkouts(spans)) == 2
    assert_unmarked(spans.one("find orders"))
    assert_unmarked(spans.one("insert orders"))


def test_an_operation_that_failed_twice_leaves_nothing_to_the_next_one(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    fail_checkouts(primary, times=2)
    with pytest.raises(AutoReconnect):
        client.shop.orders.find_one()
    client.shop.orders.find_one()

    assert len(checkouts(spans)) == 2
    assert_unmarked(spans.one("find orders"))


def test_another_client_of_the_same_thread_is_no_second_attempt(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    with (
        connect(primary.uri, event_listeners=listeners, retryReads=False, **CREDENTIALS) as client,
        connect(primary.uri, event_listeners=listeners) as other,
    ):
        fail_checkouts(primary)
        with pytest.raises(AutoReconnect):
            client.shop.orders.find_one()
        other.shop.orders.find_one()

    assert_unmarked(spans.one("find orders"))


def test_a_cursor_that_is_closed_after_a_failed_checkout_is_no_second_attempt(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    with connect(primary.uri, event_listeners=listeners, maxIdleTimeMS=1, **CREDENTIALS) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(3)])
        with client.shop.orders.find(batch_size=2) as cursor:
            next(cursor)
            next(cursor)
            expire()
            fail_checkouts(primary)
            with pytest.raises(AutoReconnect):  # the driver doesn't repeat a getMore
                next(cursor)
        with client.shop.orders.find(batch_size=2) as cursor:
            next(cursor)
    spans.wait_for("killCursors orders")

    assert len(checkouts(spans)) == 1
    for span in spans.finished:
        assert_unmarked(span)


@recognizes_operations
def test_a_cursor_that_a_listener_closes_meanwhile_is_no_second_attempt(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    class Closing(QuietPoolListener):
        def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
            cursor.close()

    with connect(primary.uri, event_listeners=[*listeners, Closing()], maxIdleTimeMS=1, **CREDENTIALS) as client:
        client.shop.orders.insert_many([{"_id": number} for number in range(3)])
        cursor = client.shop.orders.find(batch_size=2)
        next(cursor)
        expire()
        fail_checkouts(primary)
        client.shop.carts.find_one()

    assert_unmarked(spans.one("killCursors orders"))
    assert_unmarked(spans.one("find carts"))  # the mark is lost, which is better than one that is wrong


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="PyMongo 4.9 has the bulk write of a client")
def test_a_checkout_inside_of_an_attempt_is_not_counted(listeners: Any, spans: Spans) -> None:
    from pymongo.errors import ClientBulkWriteException

    # A bulk write reads its results with a cursor. The driver closes it after an error, which needs a connection, too.
    reply = {
        **dict.fromkeys(("nErrors", "nMatched", "nModified", "nUpserted", "nDeleted"), 0),
        "nInserted": 1,
        "cursor": {"id": 5, "ns": "admin.$cmd.bulkWrite", "firstBatch": [{"ok": 1.0, "idx": 0, "n": 1}]},
    }

    kept = []

    class Expire(QuietPoolListener):
        def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
            expire()

        def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
            kept.append(failed_checkouts._failed.get())

    def fail_get_more(_: Any) -> Any:
        fail_checkouts(server)
        return {"ok": 0, "code": 8000, "errmsg": "no"}

    with (
        ScriptedServer(role="primary", max_wire_version=25) as server,
        connect(server.uri, event_listeners=[*listeners, Expire()], maxIdleTimeMS=1, **CREDENTIALS) as client,
    ):
        server.reply("bulkWrite", [reply])
        server.reply("getMore", fail_get_more)
        with contextlib.suppress(ClientBulkWriteException):
            client.bulk_write([InsertOne({"_id": 1}, namespace="shop.orders")], verbose_results=True)

    assert kept
    assert not any(kept)
    assert not any(ATTEMPT in attributes(span) for span in spans.finished)


@recognizes_operations
def test_only_the_first_batch_of_a_bulk_write_is_a_second_attempt(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.reply("hello", lambda command: primary.default_answer(command) | {"maxWriteBatchSize": 1})
    fail_checkouts(primary, delay=0.1)
    client.shop.orders.bulk_write([InsertOne({"_id": 1}), InsertOne({"_id": 2})])

    [checkout], (first, second) = checkouts(spans), spans.named("insert orders")
    assert (attributes(first)[ATTEMPT], linked(first)) == (2, [span_id(checkout)])
    assert attributes(first)[WAIT_TIME] >= 0.1
    assert attributes(second).get(WAIT_TIME, 0) < 0.1
    assert_unmarked(second)


@recognizes_operations
def test_a_later_batch_counts_its_own_attempts(client: MongoClient[Any], primary: ScriptedServer, spans: Spans) -> None:
    client.admin.command("ping")
    primary.fail("update", close_connection=True)
    fail_checkouts(primary)
    with pymongo.timeout(20):
        client.shop.orders.bulk_write([InsertOne({"_id": 1}), UpdateOne({"_id": 1}, {"$set": {"a": 1}})])

    [checkout] = checkouts(spans)
    assert_unmarked(spans.one("insert orders"))
    first, third = spans.named("update orders")
    assert_unmarked(first)
    assert linked(third)[-1] == span_id(checkout)
    assert attributes(third).get(ATTEMPT) == (3 if ATTEMPTS_SHARE_OPERATION_ID else None)


@recognizes_operations
def test_of_a_transaction_only_the_commit_is_repeated(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    with (
        connect(primary.uri, event_listeners=listeners, maxIdleTimeMS=1, **CREDENTIALS) as client,
        client.start_session() as session,
    ):
        session.start_transaction()
        fail_checkouts(primary)
        with pytest.raises(AutoReconnect):
            client.shop.orders.insert_one({}, session=session)
        session.abort_transaction()
        session.start_transaction()
        client.shop.orders.insert_one({}, session=session)
        expire()
        fail_checkouts(primary)
        session.commit_transaction()

    transaction = spans.one("transaction")
    first = spans.one("insert orders")
    assert (ATTEMPT in attributes(first), linked(first)) == (False, [span_id(transaction)])
    _, checkout = checkouts(spans)
    commit = spans.one("commitTransaction admin")
    assert (attributes(commit)[ATTEMPT], linked(commit)) == (2, [span_id(checkout), span_id(transaction)])


@recognizes_operations
def test_a_client_that_has_its_listeners_twice_counts_once(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    with connect(primary.uri, event_listeners=[*listeners, *listeners], **CREDENTIALS) as client:
        fail_checkouts(primary, times=2, delay=0.1)
        with pymongo.timeout(20):
            client.shop.orders.find_one()

    command = spans.one("find orders")
    assert attributes(command)[ATTEMPT] == 3
    assert 0.2 <= attributes(command)[WAIT_TIME] < 0.4 + 5


@recognizes_operations
def test_the_second_of_two_sets_of_listeners_knows_it_as_well(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    unused = event_listeners(tracer_provider=spans.provider, exclude_commands="find", pools=False)
    with connect(primary.uri, event_listeners=[*unused, *listeners], **CREDENTIALS) as client:
        fail_checkouts(primary, times=2)
        with pymongo.timeout(20):
            client.shop.orders.find_one()

    for command in spans.named("find orders"):
        assert attributes(command)[ATTEMPT] == 3
        assert linked(command) == [span_id(checkout) for checkout in checkouts(spans)]


@recognizes_operations
@pytest.mark.parametrize("reason", ["no pools", "not sampled"])
def test_without_a_span_of_the_checkout_there_is_no_link(reason: str, primary: ScriptedServer, spans: Spans) -> None:
    made = event_listeners(tracer_provider=spans.provider, pools=False)
    if reason == "not sampled":
        made += event_listeners(tracer_provider=Spans(ALWAYS_OFF).provider, commands=False)
    with connect(primary.uri, event_listeners=made, **CREDENTIALS) as client:
        fail_checkouts(primary, delay=0.1)
        client.shop.orders.find_one()

    command = spans.one("find orders")
    assert (attributes(command)[ATTEMPT], linked(command)) == (2, [])
    assert attributes(command)[WAIT_TIME] >= 0.1


@recognizes_operations
def test_nothing_of_an_operation_is_kept(client: MongoClient[Any], primary: ScriptedServer) -> None:
    fail_checkouts(primary, times=2)
    with pytest.raises(AutoReconnect):
        client.shop.orders.find_one()
    failed = failed_checkouts._failed.get()
    assert failed is not None
    # The driver keeps the exception, and so its traceback, as long as the server is unknown.
    until(lambda: client.topology_description.has_writable_server())
    gc.collect()
    assert failed.operation() is None


@recognizes_operations
def test_a_driver_that_repeats_in_an_unknown_way_changes_nothing_else(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry_mongo_events._driver import operations

    monkeypatch.setattr(operations, "_LOOP", "unknown")
    fail_checkouts(primary)
    client.shop.orders.find_one()

    assert len(checkouts(spans)) == 1
    assert_unmarked(spans.one("find orders"))


@asynchronous
async def test_a_task_repeats_its_own_operations(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    async with aconnect(primary.uri, event_listeners=listeners, maxIdleTimeMS=1, **CREDENTIALS) as client:
        fail_checkouts(primary, delay=0.1)
        await client.shop.orders.find_one()
        expire()
        fail_checkouts(primary, delay=0.1)
        await client.shop.orders.insert_one({})

    for command, checkout in zip((spans.one("find orders"), spans.one("insert orders")), checkouts(spans), strict=True):
        assert (attributes(command)[ATTEMPT], linked(command)) == (2, [span_id(checkout)])
        assert 0.1 <= attributes(command)[WAIT_TIME] < 5


@asynchronous
async def test_a_task_repeats_no_operation_of_another_task(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    async with aconnect(primary.uri, event_listeners=listeners, retryReads=False, **CREDENTIALS) as client:
        fail_checkouts(primary)
        with pytest.raises(AutoReconnect):
            await client.shop.orders.find_one()
        # These tasks have a copy of the context, and in it the failed checkout.
        await asyncio.gather(*(asyncio.create_task(client.shop.orders.find_one()) for _ in range(5)))
        await client.shop.orders.find_one()

    assert len(spans.named("find orders")) == 6
    for span in spans.named("find orders"):
        assert_unmarked(span)


@asynchronous
async def test_tasks_that_fail_at_the_same_time_link_each_to_its_own_checkout(
    primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    async with aconnect(primary.uri, event_listeners=listeners, **CREDENTIALS) as client:

        async def request(number: int) -> None:
            with spans.tracer.start_as_current_span(f"request {number}"), pymongo.timeout(20):
                await client.shop[f"c{number}"].find_one()

        fail_checkouts(primary, times=2)
        await asyncio.gather(*map(request, range(10)))

    parents = {span_id(span): span.parent for span in spans.finished}
    repeated = [span for span in spans.finished if ATTEMPT in attributes(span)]
    assert repeated
    for command in repeated:
        assert [parents[checkout] for checkout in linked(command)] == [command.parent] * (
            attributes(command)[ATTEMPT] - 1
        )


@recognizes_operations
async def test_motor_repeats_operations_in_its_threads(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    motor_asyncio = pytest.importorskip("motor.motor_asyncio", exc_type=ImportError)
    client = motor_asyncio.AsyncIOMotorClient(primary.uri, event_listeners=listeners, **CREDENTIALS)
    try:
        fail_checkouts(primary)
        await client.shop.orders.find_one({})
        await asyncio.gather(*(client.shop.carts.find_one({}) for _ in range(5)))
    finally:
        client.close()

    [checkout], command = checkouts(spans), spans.one("find orders")
    assert (attributes(command)[ATTEMPT], linked(command)) == (2, [span_id(checkout)])
    for span in spans.named("find carts"):
        assert_unmarked(span)


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys
import gevent
import pymongo
from pymongo import common
common.MIN_HEARTBEAT_INTERVAL = 0.05
from opentelemetry_mongo_events import event_listeners
from tests.spans import Spans, attributes, linked, span_id

spans = Spans()
client = pymongo.MongoClient(
    sys.argv[1], username="alice", password="secret", authMechanism="PLAIN",
    event_listeners=event_listeners(tracer_provider=spans.provider),
)
gevent.joinall([gevent.spawn(client.shop.orders.find_one)])
gevent.joinall([gevent.spawn(client.shop.carts.find_one) for _ in range(5)])
client.close()
[checkout] = [span for span in spans.finished if span.name.startswith("checkout ")]
command = spans.one("find orders")
print(attributes(command)["mongodb.client.operation.attempt"], linked(command) == [span_id(checkout)])
print(any("mongodb.client.operation.attempt" in attributes(span) for span in spans.named("find carts")))
"""


@recognizes_operations
def test_a_greenlet_repeats_its_own_operations(primary: ScriptedServer) -> None:
    pytest.importorskip("gevent")
    fail_checkouts(primary)
    done = run(GREENLETS, primary.uri)
    assert (done.code, done.lines) == (0, ["2 True", "False"]), done.error
