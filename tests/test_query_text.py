"""The text of commands on their spans, with a real driver over a socket."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from bson import encode
from bson.raw_bson import RawBSONDocument
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from pymongo import DeleteMany, InsertOne, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from opentelemetry_mongo_events import event_listeners
from tests import events
from tests.clients import aconnect, connect
from tests.servers.scripted import ScriptedReplicaSet
from tests.spans import Spans, attributes, commands_of, table_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.servers.scripted import ScriptedServer

DUPLICATE = 'E11000 duplicate key error collection: shop.users index: email_1 dup key: { email: "alice@example.org" }'


def texts(spans: Spans) -> dict[str, Any]:
    """The texts of the spans that have one, by name."""
    return {span.name: text for span in spans.finished if (text := attributes(span).get("db.query.text"))}


def observed(spans: Spans, **options: Any) -> Any:
    return event_listeners(tracer_provider=spans.provider, **options)


def test_what_a_driver_sends_is_shown_without_its_values(server: ScriptedServer, spans: Spans) -> None:
    with connect(server.uri, event_listeners=observed(spans)) as client:
        users = client.shop.users
        users.insert_many([{"_id": number, "email": f"{number}@example.org"} for number in range(50)])
        users.find_one({"email": "alice@example.org"}, comment="alice", sort=[("email", -1)])
        users.update_one({"_id": 1}, {"$set": {"email": "bob@example.org"}})
        list(users.aggregate([{"$match": {"email": "alice@example.org"}}, {"$count": "n"}]))
        users.delete_many({"email": {"$in": ["alice@example.org", "bob@example.org"]}})

    told = texts(spans)
    # Since 4.9 the driver leaves out what is the default.
    assert told.pop("update users").replace(',"multi":false,"upsert":false', "") == (
        '{"update":"users","ordered":true,"updates":[{"q":{"_id":"?"},"u":{"$set":{"email":"?"}}}]}'
    )
    assert told == {
        "insert users": '{"insert":"users","ordered":true,"documents":[{"_id":"?","email":"?"}]}',
        "find users": '{"find":"users","filter":{"email":"?"},"sort":{"email":-1},"limit":"?","singleBatch":true}',
        "aggregate users": '{"aggregate":"users","pipeline":[{"$match":{"email":"?"}},{"$count":"n"}],"cursor":{}}',
        "delete users": '{"delete":"users","ordered":true,"deletes":[{"q":{"email":{"$in":["?"]}},"limit":0}]}',
        "endSessions admin": '{"endSessions":[{"id":"?"}]}',
    }
    assert not [span for span in spans.finished if "example.org" in span.to_json()]


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
async def test_what_an_asyncio_client_sends_is_shown_the_same(server: ScriptedServer, spans: Spans) -> None:
    async with aconnect(server.uri, event_listeners=observed(spans)) as client:
        await client.shop.users.find_one({"email": "alice@example.org"})

    assert texts(spans)["find users"] == '{"find":"users","filter":{"email":"?"},"limit":"?","singleBatch":true}'


def test_bulk_writes_of_a_collection_and_of_a_client(spans: Spans) -> None:
    with (
        ScriptedReplicaSet(members=1, max_wire_version=25) as replica_set,
        connect(replica_set.uri, event_listeners=observed(spans)) as client,
    ):
        client.shop.users.bulk_write(
            [InsertOne({"a": 1}), UpdateOne({"a": 1}, [{"$set": {"b": "$a"}}]), DeleteMany({"a": {"$gt": 5}})]
        )
        told = texts(spans)
        assert told["insert users"].endswith('"documents":[{"a":"?","_id":"?"}]}')
        assert '"q":{"a":"?"},"u":[{"$set":{"b":"$a"}}]' in told["update users"]
        assert '"q":{"a":{"$gt":"?"}}' in told["delete users"]

        if pymongo.version_tuple >= (4, 9):
            client.bulk_write([InsertOne({"a": 1}, namespace="shop.users"), InsertOne({"b": 1}, namespace="shop.jobs")])
            assert '"document":{"a":"?","_id":"?"}' in texts(spans)["bulkWrite admin"]
            assert texts(spans)["bulkWrite admin"].endswith('"nsInfo":[{"ns":"shop.users"},{"ns":"shop.jobs"}]}')


def test_raw_documents_are_shown_like_others(server: ScriptedServer, spans: Spans) -> None:
    with connect(server.uri, event_listeners=observed(spans), document_class=RawBSONDocument) as client:
        client.shop.users.insert_one(RawBSONDocument(encode({"_id": 1, "email": "alice"})))

    assert texts(spans)["insert users"] == '{"insert":"users","ordered":true,"documents":[{"_id":"?","email":"?"}]}'


def test_raw_text_shows_what_is_sent(server: ScriptedServer, spans: Spans) -> None:
    with connect(server.uri, event_listeners=observed(spans, query_text="raw")) as client:
        client.shop.users.find_one({"email": "alice@example.org"}, comment="of a request")

    assert texts(spans)["find users"] == (
        '{"find":"users","filter":{"email":"alice@example.org"},"limit":1,"singleBatch":true}'
    )


@pytest.mark.parametrize("options", [{"query_text": "off"}, {"query_text_max_length": 0}])
def test_text_can_be_switched_off(server: ScriptedServer, spans: Spans, options: dict[str, Any]) -> None:
    with connect(server.uri, event_listeners=observed(spans, **options)) as client:
        client.shop.users.find_one()

    assert "find users" in spans.names
    assert texts(spans) == {}


def test_text_is_as_long_as_it_may_be(server: ScriptedServer, spans: Spans) -> None:
    with connect(server.uri, event_listeners=observed(spans, query_text="raw", query_text_max_length=120)) as client:
        client.shop.users.find_one({"email": "x" * 100})

    assert texts(spans)["find users"] == (
        '{"find":"users","filter":{"email":"' + "x" * 50 + '..."},"limit":1,"singleBatch":true}'
    )


def test_the_variable_of_the_mongodb_drivers_counts(
    server: ScriptedServer, spans: Spans, instrumentor: MongoEventsInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_INSTRUMENTATION_MONGODB_QUERY_TEXT_MAX_LENGTH", "30")
    monkeypatch.setenv("OTEL_PYTHON_MONGO_EVENTS_QUERY_TEXT", "raw")
    instrumentor.instrument(tracer_provider=spans.provider)
    with connect(server.uri) as client:
        client.shop.users.find_one()

    assert texts(spans)["find users"] == '{"find":"users","...":"..."}'


@pytest.mark.parametrize(
    ("query_text", "statement"), [("masked", "find"), ("off", "find"), ("raw", '{"find":"users"}')]
)
def test_the_old_name_of_the_text_is_the_command_s_name_unless_it_is_raw(
    spans: Spans, query_text: str, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "database/dup")
    commands = commands_of(observed(spans, query_text=query_text))
    commands.started(events.started({"find": "users"}))
    commands.succeeded(events.succeeded("find"))

    assert attributes(spans.one())["db.statement"] == statement


# ---------------------------------------------------------------------------------------------------------------------
# When it is made.


class Untouched(dict[str, Any]):
    """A document that nobody may look into."""

    def items(self) -> Any:
        raise AssertionError

    values = __iter__ = __len__ = items


def test_there_is_none_for_a_span_that_is_not_recorded() -> None:
    spans = Spans(ALWAYS_OFF)
    commands = commands_of(observed(spans))
    commands.started(events.started({"find": "users", "filter": Untouched(a=1)}))
    commands.succeeded(events.succeeded("find"))

    assert (spans.finished, commands.guard.failures) == ([], {})


def test_the_request_hook_sees_it() -> None:
    spans = Spans()
    seen: list[Any] = []
    commands = commands_of(observed(spans, request_hook=lambda span, _: seen.append(attributes(span)["db.query.text"])))
    commands.started(events.started({"find": "users"}))
    commands.succeeded(events.succeeded("find"))

    assert seen == ['{"find":"users"}']


class Stubborn(SpanProcessor):
    """Makes spans whose attributes can't be set."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        def set_attribute(*_: object) -> None:
            raise RuntimeError

        span.set_attribute = set_attribute

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


def test_a_span_that_takes_no_text_ends_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    processor = Stubborn()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    listeners = event_listeners(tracer_provider=provider)
    for number in range(3):
        commands_of(listeners).started(events.started({"find": "users"}, request_id=number))
        commands_of(listeners).succeeded(events.succeeded("find", request_id=number))

    assert [span.name for span in processor.ended] == ["find users"] * 3
    assert len(table_of(listeners)) == 0
    assert len(caplog.messages) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Messages.


@pytest.mark.parametrize(
    ("query_text", "description"),
    [
        ("masked", "DuplicateKey index email_1"),
        ("off", "DuplicateKey index email_1"),
        ("raw", f"DuplicateKey index email_1: {DUPLICATE}"),
    ],
)
def test_the_message_of_a_write_error_is_shown_with_raw_text_only(
    server: ScriptedServer, spans: Spans, query_text: str, description: str
) -> None:
    server.fail("insert", write_errors=[{"code": 11000, "errmsg": DUPLICATE}])
    with (
        connect(server.uri, event_listeners=observed(spans, query_text=query_text)) as client,
        contextlib.suppress(BulkWriteError),
    ):
        client.shop.users.insert_many([{"email": "alice@example.org"}])

    assert spans.one("insert users").status.description == description


def test_the_message_of_a_failure_is_as_long_as_the_text_may_be(server: ScriptedServer, spans: Spans) -> None:
    listeners = observed(spans, query_text="raw", query_text_max_length=20)
    server.fail("find", code=2, errmsg="alice " * 100)
    with connect(server.uri, event_listeners=listeners) as client, pytest.raises(OperationFailure):
        client.shop.users.find_one()

    assert spans.one("find users").status.description == "BadValue: alice alice alice al"


def test_the_driver_s_own_message_is_shown_with_raw_text(spans: Spans) -> None:
    commands = commands_of(observed(spans, query_text="raw"))
    commands.started(events.started({"find": "users"}))
    commands.failed(events.failed("find", {"errmsg": "connection closed", "errtype": "AutoReconnect"}))

    assert spans.one().status.description == "AutoReconnect: connection closed"


@pytest.mark.parametrize("name", ["saslStart", "saslContinue", "createUser", "authenticate"])
def test_nothing_is_said_of_what_holds_credentials(spans: Spans, name: str) -> None:
    commands = commands_of(observed(spans, query_text="raw"))
    commands.started(events.started({name: 1, "payload": b"secret", "user": "alice"}))
    commands.failed(events.failed(name, {"code": 18, "codeName": "AuthenticationFailed", "errmsg": "alice: secret"}))

    span = spans.one()
    assert span.status.description == "AuthenticationFailed"
    assert "alice" not in span.to_json()
    assert "db.query.text" not in attributes(span)
