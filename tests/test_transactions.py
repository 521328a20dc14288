"""Transactions: their spans, how they end, what is measured, and which one repeats another."""

from __future__ import annotations

import asyncio
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from pymongo import InsertOne, WriteConcern
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._commands import transactions as module
from opentelemetry_mongo_events._driver import frames, sessions
from opentelemetry_mongo_events._runtime.background import background_worker
from tests.broken import BrokenTracerProvider
from tests.clients import aconnect, connect
from tests.events import started, succeeded
from tests.forks import in_child
from tests.programs import PREAMBLE, run
from tests.servers.scripted import ScriptedServer
from tests.spans import Spans, attributes, commands_of, end, linked, span_id, start, transactions_of
from tests.waiting import collected, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from pymongo import MongoClient
    from pymongo.client_session import ClientSession

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.metrics import Metrics

TRANSACTION = "transaction"
PREFIX = "mongodb.client.transaction."
TRANSIENT = ["TransientTransactionError"]
DURATION = f"{PREFIX}duration"
RETRIES = f"{PREFIX}retries"

pytestmark = pytest.mark.usefixtures("quick_driver")

asynchronous = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")


@pytest.fixture
def client(primary: ScriptedServer, listeners: Any) -> Iterator[MongoClient[Any]]:
    with connect(primary.uri, event_listeners=listeners) as client:
        yield client


def about(span: ReadableSpan) -> dict[str, Any]:
    """The attributes that only transactions have, and the error's."""
    names = {name: value for name, value in attributes(span).items() if name.startswith(PREFIX)}
    told = {name.removeprefix(PREFIX): value for name, value in names.items()}
    return told | {name: value for name, value in attributes(span).items() if name == "error.type"}


def insert(client: MongoClient[Any], session: ClientSession) -> None:
    client.shop.orders.insert_one({}, session=session)


def commit(client: MongoClient[Any], session: ClientSession, **options: Any) -> None:
    with session.start_transaction(**options):
        insert(client, session)


def measured(metrics: Metrics) -> dict[tuple[str, str | None], int]:
    """How many transactions were measured, by outcome and error."""
    return {
        (point.attributes[f"{PREFIX}outcome"], point.attributes.get("error.type")): point.count
        for point in metrics.points(DURATION)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Spans.


def test_a_transaction_is_a_span_to_which_its_commands_link(
    client: MongoClient[Any], spans: Spans, metrics: Metrics
) -> None:
    with spans.tracer.start_as_current_span("request"), client.start_session() as session:
        session_id = str(session.session_id["id"].as_uuid())
        with session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority")):
            insert(client, session)
            client.shop.orders.find_one({}, session=session)

    transaction, request = spans.one(TRANSACTION), spans.one("request")
    assert spans.names == ["insert orders", "find orders", "commitTransaction admin", TRANSACTION, "request"]
    assert (transaction.kind, transaction.parent) == (SpanKind.INTERNAL, request.context)
    assert transaction.status.status_code is StatusCode.UNSET
    assert attributes(transaction) == {
        "db.system.name": "mongodb",
        "db.mongodb.lsid": session_id,
        "db.mongodb.txn_number": 1,
        "mongodb.client.transaction.outcome": "committed",
        "mongodb.client.transaction.command_count": 3,
        "mongodb.client.transaction.commit_attempt_count": 1,
        "mongodb.client.transaction.read_concern": "snapshot",
        "mongodb.client.transaction.write_concern": "majority",
    }
    commands = spans.finished[:3]
    for command in commands:
        assert (command.parent, linked(command)) == (request.context, [span_id(transaction)])
    assert start(transaction) <= start(commands[0])
    assert end(commands[-1]) <= end(transaction)
    (point,) = metrics.points(DURATION)
    assert point.attributes == {"mongodb.client.transaction.outcome": "committed"}
    assert point.sum == pytest.approx((end(transaction) - start(transaction)) / 1e9, abs=0.005)
    assert [each.span_id for each in point.exemplars] == [span_id(transaction)]


def test_a_retryable_write_is_no_transaction(client: MongoClient[Any], spans: Spans) -> None:
    client.shop.orders.insert_one({})
    with client.start_session() as session:
        insert(client, session)

    assert spans.names == ["insert orders"] * 2
    assert [linked(span) for span in spans.finished] == [[], []]


def test_without_commands_there_is_no_transaction(client: MongoClient[Any], spans: Spans, metrics: Metrics) -> None:
    with client.start_session() as session:
        with session.start_transaction():
            pass
        session.start_transaction()
        session.abort_transaction()

    assert spans.named(TRANSACTION) == []
    assert metrics.points(DURATION) == []


@pytest.mark.parametrize(
    ("write_concern", "shown"),
    [(WriteConcern(2), "2"), (WriteConcern("nearby"), "nearby"), (WriteConcern(j=True), None)],
)
def test_the_write_concern_is_the_requested_one(
    write_concern: WriteConcern, shown: str | None, client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("commitTransaction", close_connection=True)  # the driver repeats it with `majority`
    with client.start_session() as session:
        commit(client, session, write_concern=write_concern)

    assert about(spans.one(TRANSACTION)).get("write_concern") == shown


def test_a_bulk_write_and_a_client_session_of_another_thread(client: MongoClient[Any], spans: Spans) -> None:
    with client.start_session() as session, session.start_transaction():
        client.shop.orders.bulk_write([InsertOne({}), InsertOne({})], session=session)
        other = threading.Thread(target=insert, args=(client, session))
        other.start()
        other.join()

    assert about(spans.one(TRANSACTION)) == {"outcome": "committed", "command_count": 3, "commit_attempt_count": 1}
    assert all(linked(span) == [span_id(spans.one(TRANSACTION))] for span in spans.named("insert orders"))


def test_two_transactions_at_once(client: MongoClient[Any], spans: Spans) -> None:
    with client.start_session() as first, client.start_session() as second:
        for session in (first, second):
            session.start_transaction()
            insert(client, session)
        first.commit_transaction()
        second.commit_transaction()

    one, other = spans.named(TRANSACTION)
    assert attributes(one)["db.mongodb.lsid"] != attributes(other)["db.mongodb.lsid"]
    links = [linked(span) for span in spans.named("insert orders")]
    assert sorted(links) == sorted([[span_id(one)], [span_id(other)]])


@pytest.mark.parametrize("role", ["mongos", "load_balanced"])
def test_a_transaction_that_is_pinned_to_a_router(role: Any, listeners: Any, spans: Spans) -> None:
    with (
        ScriptedServer(role=role) as router,
        connect(router.uri, event_listeners=listeners) as client,
        client.start_session() as session,
    ):
        commit(client, session)

    assert about(spans.one(TRANSACTION)) == {"outcome": "committed", "command_count": 2, "commit_attempt_count": 1}


@asynchronous
async def test_a_transaction_of_tasks(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    async with aconnect(primary.uri, event_listeners=listeners) as client:
        primary.fail("insert", code=112, labels=TRANSIENT)

        async def transaction() -> None:
            async with client.start_session() as session:
                await session.with_transaction(lambda each: client.shop.orders.insert_one({}, session=each))

        await asyncio.gather(*(transaction() for _ in range(10)))

    outcomes = [about(span)["outcome"] for span in spans.named(TRANSACTION)]
    assert (outcomes.count("committed"), outcomes.count("aborted")) == (10, 1)
    failed = next(span for span in spans.named(TRANSACTION) if about(span)["outcome"] == "aborted")
    (repeated,) = [span for span in spans.named(TRANSACTION) if about(span).get("attempt") == 2]
    assert linked(repeated) == [span_id(failed)]


@asynchronous
async def test_a_task_that_is_cancelled(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    async with aconnect(primary.uri, event_listeners=listeners) as client, client.start_session() as session:
        await client.admin.command("ping")
        frozen = primary.freeze("find")

        async def transaction() -> None:
            async with await session.start_transaction():
                await client.shop.orders.insert_one({}, session=session)
                await client.shop.orders.find_one({}, session=session)

        task = asyncio.ensure_future(transaction())
        await asyncio.to_thread(frozen.reached.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        frozen.release()

    assert about(spans.one(TRANSACTION)) == {
        "outcome": "aborted",
        "command_count": 3,
        "error.type": attributes(spans.one("find orders"))["error.type"],
    }


async def test_a_transaction_of_motor(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    motor_asyncio = pytest.importorskip("motor.motor_asyncio", exc_type=ImportError)
    client = motor_asyncio.AsyncIOMotorClient(primary.uri, event_listeners=listeners)
    try:
        with spans.tracer.start_as_current_span("request"):
            async with await client.start_session() as session, session.start_transaction():
                await client.shop.orders.insert_one({}, session=session)
    finally:
        client.close()

    assert spans.one(TRANSACTION).parent == spans.one("request").context
    assert about(spans.one(TRANSACTION))["outcome"] == "committed"


# ---------------------------------------------------------------------------------------------------------------------
# Outcomes.


def test_one_that_the_application_aborts_is_no_error(client: MongoClient[Any], spans: Spans, metrics: Metrics) -> None:
    with client.start_session() as session:
        session.start_transaction()
        insert(client, session)
        session.abort_transaction()

    assert about(spans.one(TRANSACTION)) == {"outcome": "aborted", "command_count": 2}
    assert spans.one(TRANSACTION).status.status_code is StatusCode.UNSET
    assert measured(metrics) == {("aborted", None): 1}


def test_one_that_fails_has_the_first_error(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    primary.fail("insert", code=112)
    primary.fail("abortTransaction", code=251)
    with client.start_session() as session, pytest.raises(OperationFailure):
        commit(client, session)
    spans.wait_for(TRANSACTION)

    assert about(spans.one(TRANSACTION)) == {"outcome": "aborted", "command_count": 2, "error.type": "112"}
    assert spans.one(TRANSACTION).status.status_code is StatusCode.ERROR
    assert measured(metrics) == {("aborted", "112"): 1}


def test_an_error_does_not_matter_if_it_is_committed(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("find", code=2)
    with client.start_session() as session, session.start_transaction():
        insert(client, session)
        with pytest.raises(OperationFailure):
            client.shop.orders.find_one({}, session=session)

    assert about(spans.one(TRANSACTION)) == {"outcome": "committed", "command_count": 3, "commit_attempt_count": 1}


def test_a_write_error_is_the_error_of_its_transaction(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("insert", write_errors=[{"code": 11000, "errmsg": "E11000"}])
    with client.start_session() as session, pytest.raises(PyMongoError):
        commit(client, session)

    assert about(spans.one(TRANSACTION)) == {"outcome": "aborted", "command_count": 2, "error.type": "11000"}


@pytest.mark.parametrize("name", ["commitTransaction", "abortTransaction"])
@pytest.mark.parametrize(
    "failure",
    [
        {"close_connection": True},
        pytest.param(
            {"code": 462, "labels": ["SystemOverloadedError", "RetryableError"]},
            marks=pytest.mark.skipif(pymongo.version_tuple < (4, 17), reason="PyMongo 4.17 repeats them"),
        ),
    ],
)
def test_a_commit_or_an_abort_that_the_driver_repeats(
    failure: dict[str, Any],
    name: str,
    client: MongoClient[Any],
    primary: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
) -> None:
    primary.fail(name, **failure)
    with client.start_session() as session:
        session.start_transaction()
        insert(client, session)
        session.commit_transaction() if name == "commitTransaction" else session.abort_transaction()

    transaction = spans.one(TRANSACTION)
    if name == "commitTransaction":
        assert about(transaction) == {"outcome": "committed", "command_count": 3, "commit_attempt_count": 2}
        assert measured(metrics) == {("committed", None): 1}
    else:
        error = about(transaction)["error.type"]
        assert about(transaction) == {"outcome": "aborted", "command_count": 3, "error.type": error}
    first, second = spans.named(f"{name} admin")
    assert linked(second)[-1] == linked(first)[-1] == span_id(transaction)
    assert end(second) <= end(transaction)


@pytest.mark.parametrize(
    "failure",
    [
        {"code": 50},
        {"code": 64},
        {"code": 79},
        {"code": 1, "labels": ["UnknownTransactionCommitResult"]},
        {"code": 91},
        {"close_connection": True},
        {"write_concern_error": {"code": 64, "errmsg": "waiting for replication timed out"}},
        {"write_concern_error": {"code": 11601, "errmsg": "operation was interrupted"}},
    ],
)
def test_a_commit_whose_result_is_unknown(
    failure: dict[str, Any], client: MongoClient[Any], primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    primary.fail("commitTransaction", times=2, **failure)
    with client.start_session() as session:
        session.start_transaction()
        insert(client, session)
        with pytest.raises(PyMongoError):
            session.commit_transaction()
    commands = spans.named("commitTransaction admin")
    transaction = spans.wait_for(TRANSACTION)

    error = attributes(commands[0])["error.type"]
    assert about(transaction) == {
        "outcome": "unknown",
        "command_count": 1 + len(commands),
        "commit_attempt_count": len(commands),
        "error.type": error,
    }
    assert transaction.status.status_code is StatusCode.ERROR
    assert end(transaction) - end(commands[-1]) < 0.5e9  # and not when it was found that no further one comes
    assert measured(metrics) == {("unknown", error): 1}


def test_a_commit_that_the_application_repeats(
    client: MongoClient[Any],
    primary: ScriptedServer,
    listeners: Any,
    spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.0)
    primary.fail("commitTransaction", code=50)
    with client.start_session() as session:
        session.start_transaction()
        insert(client, session)
        with pytest.raises(OperationFailure):
            session.commit_transaction()
        assert transactions_of(listeners).check()  # it waits, however late the next commit comes
        assert spans.named(TRANSACTION) == []
        session.commit_transaction()
        session.commit_transaction()  # committed already: it belongs to nothing that is open

    transaction = spans.one(TRANSACTION)
    assert about(transaction) == {"outcome": "committed", "command_count": 3, "commit_attempt_count": 2}
    assert [linked(span)[-1:] for span in spans.named("commitTransaction admin")] == [[span_id(transaction)]] * 2 + [[]]


def test_the_next_transaction_ends_one_whose_result_is_unknown(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("commitTransaction", code=50)
    with client.start_session() as session:
        with pytest.raises(OperationFailure):
            commit(client, session)
        commit(client, session)

    assert [about(span)["outcome"] for span in spans.named(TRANSACTION)] == ["unknown", "committed"]
    assert linked(spans.named(TRANSACTION)[1]) == []


def test_one_whose_commit_may_still_be_repeated_stays_open(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.05)
    primary.fail("commitTransaction", code=91, labels=["RetryableWriteError"])  # the driver repeats it
    primary.fail("commitTransaction", code=251, delay=0.5)
    with client.start_session() as session, pytest.raises(PyMongoError):
        commit(client, session)

    assert about(spans.one(TRANSACTION)) == {
        "outcome": "aborted",
        "command_count": 3,
        "commit_attempt_count": 2,
        "error.type": "91",
    }


@pytest.mark.skipif(not hasattr(pymongo, "timeout"), reason="PyMongo 4.2 has timeouts")
def test_a_commit_that_cannot_be_sent_at_first(
    client: MongoClient[Any], primary: ScriptedServer, listeners: Any, spans: Spans
) -> None:
    with begin(client) as session:
        primary.stop()
        until(lambda: not client.topology_description.has_writable_server())  # otherwise it is sent
        with pymongo.timeout(0.1), pytest.raises(PyMongoError):
            session.commit_transaction()
        assert not transactions_of(listeners).check()
        primary.start()
        session.commit_transaction()

    assert about(spans.one(TRANSACTION)) == {"outcome": "committed", "command_count": 2, "commit_attempt_count": 1}


def test_an_abort_that_fails_is_not_repeated_by_the_application(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("abortTransaction", times=2, close_connection=True)
    with begin(client) as session:
        session.abort_transaction()
        transaction = spans.wait_for(TRANSACTION)

    assert about(transaction)["outcome"] == "aborted"


def test_it_does_not_stay_open_forever(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(module, "_MAX_REPEAT_WAIT", 0.05)
    monkeypatch.setattr(frames, "_MAX_FRAMES", 0)  # the session isn't found
    primary.fail("commitTransaction", code=50)
    with client.start_session() as session:
        with pytest.raises(OperationFailure):
            commit(client, session)
        assert about(spans.wait_for(TRANSACTION))["outcome"] == "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# Repeated transactions.


def test_a_callback_that_runs_again_is_another_transaction(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    primary.fail("insert", times=2, code=112, labels=TRANSIENT)
    with client.start_session() as session:
        session.with_transaction(lambda each: insert(client, each))

    first, second, third = spans.named(TRANSACTION)
    assert [about(each)["outcome"] for each in (first, second, third)] == ["aborted", "aborted", "committed"]
    assert [about(each).get("attempt") for each in (first, second, third)] == [None, 2, 3]
    assert [linked(each) for each in (first, second, third)] == [[], [span_id(first)], [span_id(second)]]
    assert metrics.values(RETRIES, "error.type") == {"112": 2}


@pytest.mark.parametrize("has_session", [True, False])
def test_after_a_commit_that_failed_the_callback_runs_again(
    has_session: bool,
    client: MongoClient[Any],
    primary: ScriptedServer,
    spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_session:
        monkeypatch.setattr(frames, "_MAX_FRAMES", 0)
    primary.fail("commitTransaction", code=251, labels=TRANSIENT)
    with client.start_session() as session:
        session.with_transaction(lambda each: insert(client, each))

    first, second = spans.named(TRANSACTION)
    assert about(first) == {
        "outcome": "aborted",
        "command_count": 2,
        "commit_attempt_count": 1,
        "error.type": "251",
    }
    assert (about(second)["attempt"], linked(second)) == (2, [span_id(first)])


def test_after_a_network_error_the_driver_adds_the_label_itself(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("insert", close_connection=True)
    with client.start_session() as session:
        session.with_transaction(lambda each: insert(client, each))

    first, second = spans.named(TRANSACTION)
    assert (about(first)["outcome"], about(second)["attempt"]) == ("aborted", 2)
    assert linked(second) == [span_id(first)]


def test_an_error_without_the_label_is_not_followed_by_another_attempt(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    primary.fail("insert", code=2)
    with client.start_session() as session:
        with pytest.raises(OperationFailure):
            commit(client, session)
        commit(client, session)

    second = spans.named(TRANSACTION)[1]
    assert (linked(second), "attempt" in about(second)) == ([], False)
    assert metrics.points(RETRIES) == []


def test_another_session_with_the_same_id_repeats_nothing(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans
) -> None:
    primary.fail("insert", code=112, labels=TRANSIENT)
    with client.start_session() as session, pytest.raises(OperationFailure):
        commit(client, session)
    with client.start_session() as session:
        commit(client, session)

    first, second = spans.named(TRANSACTION)
    assert attributes(first)["db.mongodb.lsid"] == attributes(second)["db.mongodb.lsid"]
    assert (linked(second), "attempt" in about(second)) == ([], False)


# ---------------------------------------------------------------------------------------------------------------------
# Ends without a command.


def begin(client: MongoClient[Any]) -> ClientSession:
    session = client.start_session()
    session.start_transaction()
    insert(client, session)
    return session


def test_a_session_that_is_collected(client: MongoClient[Any], spans: Spans, metrics: Metrics) -> None:
    begin(client)

    until(lambda: collected() and spans.named(TRANSACTION))
    assert end(spans.one(TRANSACTION)) - end(spans.one("insert orders")) < 0.1e9  # and not when that was noticed
    assert about(spans.one(TRANSACTION)) == {"outcome": "abandoned", "command_count": 1}
    assert spans.one(TRANSACTION).status.status_code is StatusCode.UNSET
    assert measured(metrics) == {("abandoned", None): 1}


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="before 4.9 a client that is closed doesn't say so")
def test_a_client_that_is_closed(primary: ScriptedServer, listeners: Any, spans: Spans) -> None:
    with connect(primary.uri, event_listeners=listeners) as client:
        session = begin(client)
        with connect(primary.uri, event_listeners=listeners) as other:
            other.admin.command("ping")
        assert spans.named(TRANSACTION) == []  # it was another client
    assert about(spans.one(TRANSACTION))["outcome"] == "abandoned"
    del session


@pytest.mark.skipif(not hasattr(pymongo, "timeout"), reason="PyMongo 4.2 has timeouts")
def test_an_abort_that_cannot_be_sent(client: MongoClient[Any], primary: ScriptedServer, spans: Spans) -> None:
    with client.start_session() as session:
        session.start_transaction()
        insert(client, session)
        primary.fail("insert", close_connection=True)
        with pytest.raises(AutoReconnect):
            insert(client, session)
        primary.stop()
        until(lambda: not client.topology_description.has_writable_server())
        with pymongo.timeout(0.1):
            session.abort_transaction()
        primary.start()
        commit(client, session)

    first, second = spans.named(TRANSACTION)
    assert (about(first)["outcome"], first.status.status_code) == ("abandoned", StatusCode.ERROR)
    assert (about(second)["outcome"], about(second)["attempt"]) == ("committed", 2)


def test_at_most_a_thousand_are_open(
    client: MongoClient[Any], listeners: Any, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMIT", 2)
    sessions = [begin(client) for _ in range(3)]

    assert len(transactions_of(listeners).open) == 2
    assert about(spans.one(TRANSACTION)) == {"outcome": "abandoned", "command_count": 1}
    for session in sessions:
        session.commit_transaction()
    assert [about(span)["outcome"] for span in spans.named(TRANSACTION)] == ["abandoned", "committed", "committed"]
    assert linked(spans.named("commitTransaction admin")[0]) == []


def test_the_oldest_of_too_many_keeps_the_outcome_of_its_commit(
    client: MongoClient[Any], primary: ScriptedServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMIT", 1)
    first = begin(client)
    primary.fail("commitTransaction", code=50)
    with pytest.raises(OperationFailure):
        first.commit_transaction()
    assert spans.named(TRANSACTION) == []  # the application may commit it again
    second = begin(client)

    assert about(spans.one(TRANSACTION))["outcome"] == "unknown"
    second.abort_transaction()


@pytest.mark.parametrize("is_existing", [True, False])
def test_it_ends_when_the_client_is_uninstrumented(
    is_existing: bool,
    instrumentor: MongoEventsInstrumentor,
    primary: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
) -> None:
    providers: Any = {"tracer_provider": spans.provider, "meter_provider": metrics.provider}
    if not is_existing:
        instrumentor.instrument(**providers)
    with connect(primary.uri) as client:
        if is_existing:
            instrumentor.instrument_client(client, **providers)
        with begin(client) as session:
            instrumentor.uninstrument()
            assert about(spans.one(TRANSACTION)) == {"outcome": "abandoned", "command_count": 1}
            session.commit_transaction()

    assert spans.names == ["insert orders", TRANSACTION]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_has_no_part_in_its_parents_transaction(client: MongoClient[Any], listeners: Any, spans: Spans) -> None:
    session = begin(client)
    open_ones = transactions_of(listeners)

    def child() -> bool:
        open_ones.end_all()
        return spans.named(TRANSACTION) == [] and open_ones.open == {}

    assert in_child(child)
    session.commit_transaction()
    assert about(spans.one(TRANSACTION))["outcome"] == "committed"


def test_it_ends_at_the_exit_of_the_interpreter(client: MongoClient[Any], listeners: Any, spans: Spans) -> None:
    open_ones = transactions_of(listeners)
    with begin(client) as session:
        (transaction,) = open_ones.open.values()
        background_worker.at_exit()
        open_ones.end(transaction, module._End("committed", 0.0))  # as another thread may do at the same time
        assert about(spans.one(TRANSACTION)) == {"outcome": "abandoned", "command_count": 1}
        session.commit_transaction()


@pytest.mark.parametrize("is_closed", [True, False])
def test_it_ends_when_the_program_ends(is_closed: bool, primary: ScriptedServer) -> None:
    program = """
client = MongoClient(URI)
session = client.start_session()
session.start_transaction()
client.shop.orders.insert_one({}, session=session)
"""
    done = run(PREAMBLE + program + "client.close()\n" * is_closed, primary.uri, "on")
    assert (done.code, "transaction: abandoned" in done.lines) == (0, True)


# ---------------------------------------------------------------------------------------------------------------------
# Options.


def listeners_with(spans: Spans, metrics: Metrics, **options: Any) -> list[Any]:
    return event_listeners(tracer_provider=spans.provider, meter_provider=metrics.provider, **options)


def commit_with(listeners: list[Any], server: ScriptedServer) -> None:
    with connect(server.uri, event_listeners=listeners) as client, client.start_session() as session:
        commit(client, session)
    assert transactions_of(listeners).open == {}


def test_excluded_commands_are_a_part_of_it(primary: ScriptedServer, spans: Spans, metrics: Metrics) -> None:
    commit_with(listeners_with(spans, metrics, exclude_commands="insert,commitTransaction,endSessions"), primary)

    assert spans.names == [TRANSACTION]
    assert about(spans.one(TRANSACTION)) == {"outcome": "committed", "command_count": 2, "commit_attempt_count": 1}


def test_excluded_commands_that_are_not_measured_are_a_part_of_it_too(primary: ScriptedServer, spans: Spans) -> None:
    commit_with(
        event_listeners(tracer_provider=spans.provider, exclude_commands="insert,commitTransaction,endSessions"),
        primary,
    )

    assert spans.names == [TRANSACTION]
    assert about(spans.one(TRANSACTION))["outcome"] == "committed"


@pytest.mark.parametrize("options", [{"command_spans": False}, {"require_parent_span": True}])
def test_without_spans_it_is_measured(
    options: dict[str, Any], primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    primary.fail("insert", code=112, labels=TRANSIENT)
    with (
        connect(primary.uri, event_listeners=listeners_with(spans, metrics, **options)) as client,
        client.start_session() as session,
    ):
        session.with_transaction(lambda each: insert(client, each))

    assert spans.names == []
    assert measured(metrics) == {("aborted", "112"): 1, ("committed", None): 1}
    assert metrics.values(RETRIES, "error.type") == {"112": 1}


def test_a_commit_outside_of_a_parent_span_is_a_part_of_it(primary: ScriptedServer, spans: Spans) -> None:
    listeners = event_listeners(tracer_provider=spans.provider, require_parent_span=True)
    with connect(primary.uri, event_listeners=listeners) as client, client.start_session() as session:
        with spans.tracer.start_as_current_span("request"):
            session.start_transaction()
            insert(client, session)
        client.admin.command("ping")
        session.commit_transaction()

    assert spans.names == ["insert orders", "request", TRANSACTION]
    assert about(spans.one(TRANSACTION)) == {"outcome": "committed", "command_count": 2, "commit_attempt_count": 1}


def test_one_that_is_not_sampled_is_measured(primary: ScriptedServer, metrics: Metrics) -> None:
    commit_with(listeners_with(Spans(ALWAYS_OFF), metrics), primary)

    assert measured(metrics) == {("committed", None): 1}
    assert metrics.points(DURATION)[0].exemplars == []


def test_without_an_sdk_there_is_nothing(primary: ScriptedServer) -> None:
    listeners = event_listeners()
    with connect(primary.uri, event_listeners=listeners) as client, client.start_session() as session:
        session.start_transaction()
        insert(client, session)
        assert transactions_of(listeners).open == {}
        session.commit_transaction()


def test_one_that_began_while_instrumentation_was_suppressed(client: MongoClient[Any], spans: Spans) -> None:
    with client.start_session() as session, session.start_transaction():
        with suppress_instrumentation():
            insert(client, session)
        insert(client, session)

    assert spans.names == ["insert orders", "commitTransaction admin"]


@pytest.mark.parametrize("lsid", [None, {}, {"id": b"short"}, {"id": "text"}, []])
def test_a_session_that_cannot_be_read(lsid: Any, listeners: Any, spans: Spans) -> None:
    commands = commands_of(listeners)
    commands.started(started({"ping": 1, "lsid": lsid, "txnNumber": 1, "startTransaction": True, "autocommit": False}))
    commands.succeeded(succeeded("ping", {"ok": 1}))

    assert spans.names == ["ping shop"]


def test_a_session_that_has_ended_is_not_the_current_one(
    client: MongoClient[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client.start_session() as ended:
        pass
    with client.start_session() as session:
        callers = [SimpleNamespace(f_locals={"a": 1, "ended": ended}), SimpleNamespace(f_locals={"session": session})]
        monkeypatch.setattr(sessions, "driver_frames", lambda: callers)
        assert sessions.current_session(session.session_id) is session
        assert sessions.current_session({"id": "another"}) is None


def test_a_proxy_of_a_session_is_not_the_session(client: MongoClient[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(proxy: Any) -> Any:
        raise RuntimeError

    proxy: Any = type("Proxy", (), {"__class__": property(broken)})()  # like those of werkzeug
    with client.start_session() as session:
        callers = [SimpleNamespace(f_locals={"proxy": proxy, "session": session})]
        monkeypatch.setattr(sessions, "driver_frames", lambda: callers)
        assert sessions.current_session(session.session_id) is session


def test_two_sets_of_listeners_record_it_once(primary: ScriptedServer, spans: Spans, metrics: Metrics) -> None:
    first, second = listeners_with(spans, metrics), listeners_with(spans, metrics)
    with connect(primary.uri, event_listeners=[*first, *second]) as client, client.start_session() as session:
        commit(client, session)

    assert about(spans.one(TRANSACTION))["command_count"] == 2
    assert measured(metrics) == {("committed", None): 1}


@pytest.mark.parametrize("broken", ["start_span", "set_attributes", "end", "set_status"])
def test_a_broken_tracer_costs_the_span_alone(
    broken: str, primary: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    provider = BrokenTracerProvider(spans.provider, broken)
    listeners = event_listeners(tracer_provider=provider, meter_provider=metrics.provider)
    primary.fail("insert", code=2)
    with connect(primary.uri, event_listeners=listeners) as client, client.start_session() as session:
        with pytest.raises(OperationFailure):
            commit(client, session)
        commit(client, session)

    assert measured(metrics) == {("aborted", "2"): 1, ("committed", None): 1}
    assert transactions_of(listeners).open == {}
