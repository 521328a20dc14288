"""Commands as spans, event by event."""

from __future__ import annotations

import contextlib
import contextvars
import gc
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._commands import listener, open_commands
from opentelemetry_mongo_events._driver.versions import ATTEMPTS_SHARE_OPERATION_ID
from tests.events import ADDRESS, checked_in, checked_out, failed, started, succeeded
from tests.spans import Spans, attributes, commands_of, connections_of, table_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

attempts = pytest.mark.skipif(not ATTEMPTS_SHARE_OPERATION_ID, reason="before PyMongo 4.18 attempts share no id")


@pytest.fixture
def commands(listeners: Any) -> Any:
    return commands_of(listeners)


def links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    identifier: int = span.context.span_id
    return identifier


def test_a_command_is_a_client_span_under_the_callers(commands: Any, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("request") as request:
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find"))

    span = spans.one("find orders")
    assert (span.kind, span.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    assert span.parent == request.get_span_context()
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.schema_url) == (
        "opentelemetry_mongo_events",
        "https://opentelemetry.io/schemas/1.45.0",
    )


def test_samplers_see_what_is_known_at_the_start() -> None:
    seen: dict[str, Any] = {}

    class Recording(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            seen.update(zip(("name", "kind", "attributes", "links"), args[2:], strict=False))
            return SamplingResult(Decision.RECORD_AND_SAMPLE)

        def get_description(self) -> str:
            return "recording"

    commands = commands_of(event_listeners(tracer_provider=Spans(Recording()).provider))
    commands.started(started({"insert": "orders", "documents": [{}, {}]}))
    commands.succeeded(succeeded("insert"))

    server_connection = {
        name: value for name, value in seen["attributes"].items() if name == "db.mongodb.server_connection_id"
    }
    assert seen["name"] == "insert orders"
    assert seen["attributes"] == server_connection | {
        "db.system.name": "mongodb",
        "db.namespace": "shop",
        "db.collection.name": "orders",
        "db.operation.name": "insert",
        "db.operation.batch.size": 2,
        "db.query.summary": "insert orders",
        "server.address": "db.example",
        "server.port": 27017,
        "network.transport": "tcp",
    }


def test_what_the_reply_tells_is_added_at_the_end(commands: Any, spans: Spans) -> None:
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", {"cursor": {"id": 12, "firstBatch": [{}]}}))

    told = attributes(spans.one())
    assert (told["db.response.returned_rows"], told["db.mongodb.cursor_id"]) == (1, 12)


def test_a_write_error_in_a_succeeded_reply_is_an_error(commands: Any, spans: Spans) -> None:
    commands.started(started({"insert": "users", "documents": [{}]}))
    commands.succeeded(succeeded("insert", {"ok": 1, "writeErrors": [{"code": 11000, "errmsg": "alice"}]}))

    span = spans.one("insert users")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "DuplicateKey")
    assert "alice" not in span.to_json()


def test_a_failure_is_an_error(commands: Any, spans: Spans) -> None:
    commands.started(started({"find": "orders"}))
    commands.failed(failed("find", {"errmsg": "alice:27017: closed", "errtype": "AutoReconnect"}))

    span = spans.one("find orders")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert attributes(span)["error.type"] == "AutoReconnect"
    assert "alice" not in span.to_json()


def test_a_getmore_links_to_the_span_that_opened_its_cursor(commands: Any, spans: Spans) -> None:
    for identifier in (12, 13):
        commands.started(started({"find": f"c{identifier}"}))
        commands.succeeded(succeeded("find", {"cursor": {"id": identifier, "firstBatch": []}}))
    for going_on in (12, 12, 0):
        commands.started(started({"getMore": 12, "collection": "c12"}))
        commands.succeeded(succeeded("getMore", {"cursor": {"id": going_on, "nextBatch": []}}))
    commands.started(started({"getMore": 12, "collection": "c12"}))
    commands.failed(failed("getMore", {"code": 43, "codeName": "CursorNotFound"}))

    opener = span_id(spans.one("find c12"))
    assert [links(span) for span in spans.named("getMore c12")] == [[opener], [opener], [opener], []]
    assert [attributes(span)["db.mongodb.cursor_id"] for span in spans.named("getMore c12")] == [12] * 4
    assert len(commands._cursors) == 1


def test_a_cursor_is_forgotten_when_its_getmore_fails(commands: Any) -> None:
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", {"cursor": {"id": 12, "firstBatch": []}}))
    commands.started(started({"getMore": 12, "collection": "orders"}))
    commands.failed(failed("getMore", {"errtype": "NetworkTimeout"}))

    assert len(commands._cursors) == 0


def test_a_cursor_is_forgotten_when_it_is_killed(commands: Any, spans: Spans) -> None:
    for identifier in (12, 13):
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find", {"cursor": {"id": identifier, "firstBatch": []}}))
    commands.started(started({"killCursors": "orders", "cursors": [12, 99]}))
    commands.succeeded(succeeded("killCursors"))
    assert len(commands._cursors) == 1

    for odd in (3, [[12], None]):
        commands.started(started({"killCursors": "orders", "cursors": odd}))
        commands.succeeded(succeeded("killCursors"))
    assert len(commands._cursors) == 1
    assert len(spans.named("killCursors orders")) == 3


@pytest.mark.parametrize("options", [{"exclude_commands": "killCursors"}, {"require_parent_span": True}])
def test_a_cursor_is_forgotten_when_it_is_killed_by_a_command_without_a_span(
    spans: Spans, options: dict[str, Any]
) -> None:
    commands: Any = commands_of(event_listeners(tracer_provider=spans.provider, **options))
    with spans.tracer.start_as_current_span("request"):
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find", {"cursor": {"id": 12, "firstBatch": []}}))
    assert len(commands._cursors) == 1

    with suppress_instrumentation():
        commands.started(started({"killCursors": "orders", "cursors": [12]}))
    assert len(commands._cursors) == 0


def test_cursors_of_two_servers_are_two(commands: Any, spans: Spans) -> None:
    commands.started(started({"find": "orders"}))
    commands.succeeded(succeeded("find", {"cursor": {"id": 12, "firstBatch": []}}))
    commands.started(started({"getMore": 12, "collection": "orders"}, address=("other.example", 27017)))
    commands.succeeded(succeeded("getMore", address=("other.example", 27017)))

    assert links(spans.one("getMore orders")) == []


def test_the_memory_of_cursors_and_attempts_is_bounded(commands: Any) -> None:
    for number in range(1100):
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find", {"cursor": {"id": number + 1, "firstBatch": []}}))
        commands.started(started({"find": "orders"}, operation_id=-number - 1))
        commands.failed(failed("find", {"code": 1}, operation_id=-number - 1))

    assert len(commands._cursors) == 1000
    assert len(commands._failed_attempts) == (1000 if ATTEMPTS_SHARE_OPERATION_ID else 0)


@attempts
def test_an_attempt_links_to_the_one_that_failed_before_it(commands: Any, spans: Spans) -> None:
    for number in (1, 2, 3):
        commands.started(started({"find": "orders"}, request_id=number, operation_id=-50))
        if number < 3:
            commands.failed(failed("find", {"errtype": "AutoReconnect"}, request_id=number, operation_id=-50))
        else:
            commands.succeeded(succeeded("find", request_id=number, operation_id=-50))

    first, second, third = spans.named("find orders")
    assert [attributes(span).get("mongodb.client.operation.attempt") for span in (first, second, third)] == [None, 2, 3]
    assert [links(span) for span in (first, second, third)] == [[], [span_id(first)], [span_id(second)]]
    assert len(commands._failed_attempts) == 0


@attempts
def test_a_reply_with_a_retryable_label_is_an_attempt_too(commands: Any, spans: Spans) -> None:
    reply = {"ok": 1, "writeConcernError": {"code": 91}, "errorLabels": ["RetryableWriteError"]}
    commands.started(started({"insert": "orders", "txnNumber": 7}, operation_id=50))
    commands.succeeded(succeeded("insert", reply, operation_id=50))
    commands.started(started({"insert": "orders", "txnNumber": 7}, request_id=2, operation_id=50))
    commands.succeeded(succeeded("insert", request_id=2, operation_id=50))

    first, second = spans.named("insert orders")
    assert (links(second), attributes(second)["mongodb.client.operation.attempt"]) == ([span_id(first)], 2)


@attempts
def test_the_batches_of_one_bulk_write_are_no_attempts(commands: Any, spans: Spans) -> None:
    errors = {"ok": 1, "writeErrors": [{"code": 11000}]}
    for number in (1, 2, 3):
        commands.started(started({"insert": "orders"}, request_id=number, operation_id=50))
        commands.succeeded(succeeded("insert", errors, request_id=number, operation_id=50))

    assert [links(span) for span in spans.finished] == [[], [], []]
    assert not any("mongodb.client.operation.attempt" in attributes(span) for span in spans.finished)


@attempts
def test_batches_that_the_driver_does_not_repeat_are_no_attempts_whatever_their_label(
    commands: Any, spans: Spans
) -> None:
    # Without a transaction number the driver never writes again; with one, the next batch has the next.
    reply = {"ok": 1, "writeConcernError": {"code": 64}, "errorLabels": ["RetryableWriteError"]}
    for number, transaction in ((1, {}), (2, {}), (3, {"txnNumber": 7}), (4, {"txnNumber": 8})):
        commands.started(started({"insert": "orders"} | transaction, request_id=number, operation_id=50))
        commands.succeeded(succeeded("insert", reply, request_id=number, operation_id=50))

    assert [links(span) for span in spans.finished] == [[], [], [], []]


@attempts
def test_another_command_of_the_same_operation_is_no_attempt(commands: Any, spans: Spans) -> None:
    commands.started(started({"insert": "orders"}, operation_id=50))
    commands.failed(failed("insert", {"code": 1}, operation_id=50))
    commands.started(started({"update": "orders"}, request_id=2, operation_id=50))
    commands.succeeded(succeeded("update", request_id=2, operation_id=50))

    assert links(spans.one("update orders")) == []


def test_what_the_driver_never_repeats_is_not_remembered(commands: Any) -> None:
    commands.started(started({"killCursors": "orders"}, request_id=5, operation_id=5))
    commands.failed(failed("killCursors", {"errtype": "AutoReconnect"}, request_id=5, operation_id=5))

    assert len(commands._failed_attempts) == 0


@pytest.mark.skipif(pymongo.version_tuple < (4, 7), reason="PyMongo 4.7")
def test_two_replies_with_the_request_id_0_are_told_apart_by_their_connections(listeners: Any, spans: Spans) -> None:
    commands = commands_of(listeners)
    for connection in (1, 2):
        commands.started(
            started(
                {"getMore": connection, "collection": f"c{connection}"}, request_id=0, server_connection_id=connection
            )
        )
    for connection in (2, 1):
        commands.succeeded(succeeded("getMore", request_id=0, server_connection_id=connection))

    assert spans.names == ["getMore c2", "getMore c1"]
    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}


def test_one_id_in_two_clients_one_after_the_other_is_two_commands(listeners: Any, spans: Spans) -> None:
    other = Spans()
    for made in (listeners, event_listeners(tracer_provider=other.provider)):
        commands_of(made).started(started({"getMore": 12, "collection": "orders"}, request_id=0))
        commands_of(made).succeeded(succeeded("getMore", request_id=0))

    assert (spans.names, other.names) == (["getMore orders"], ["getMore orders"])


# Drivers before 4.7 tell no server connection id, and some servers give all connections the same.
@pytest.mark.parametrize("server_connection_id", [None, 42])
def test_without_a_server_connection_id_of_its_own_the_connection_held_tells_them_apart(
    listeners: Any, spans: Spans, server_connection_id: int | None
) -> None:
    commands, pools = commands_of(listeners), connections_of(listeners)

    def send(collection: str, connection: int) -> None:
        command = {"getMore": 12, "collection": collection}
        pools.connection_checked_out(checked_out(connection))
        commands.started(started(command, request_id=0, server_connection_id=server_connection_id))

    def receive(connection: int) -> None:
        commands.succeeded(succeeded("getMore", request_id=0, server_connection_id=server_connection_id))
        pools.connection_checked_in(checked_in(connection))

    # Two tasks, and in a third one another client, whose pool numbers its connections from 1 as well.
    tasks = [contextvars.copy_context() for _ in range(3)]
    tasks[0].run(send, "orders", 1)
    tasks[1].run(send, "bills", 2)
    tasks[2].run(send, "users", 1)
    assert len(table_of(listeners)) == 3
    tasks[0].run(receive, 1)
    tasks[2].run(receive, 1)
    tasks[1].run(receive, 2)

    assert spans.names == ["getMore orders", "getMore users", "getMore bills"]
    assert [attributes(span)["db.mongodb.driver_connection_id"] for span in spans.finished] == [1, 1, 2]
    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}


def test_a_suppressed_command_has_no_span(commands: Any, spans: Spans) -> None:
    with suppress_instrumentation():
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find"))

    assert spans.names == []


def test_an_end_is_never_suppressed(commands: Any, spans: Spans) -> None:
    commands.started(started({"find": "orders"}))
    with suppress_instrumentation():
        commands.succeeded(succeeded("find"))

    assert spans.names == ["find orders"]


@pytest.mark.parametrize("server_connection_id", [None, 42])
def test_a_command_that_was_not_observed_doesnt_end_one_with_the_same_id(
    listeners: Any, spans: Spans, server_connection_id: int | None
) -> None:
    # Two exhaust cursors at once, whose replies all have the request id 0; one of them is suppressed.
    commands: Any = commands_of(listeners)
    pools: Any = connections_of(listeners)

    def run(connection: int, *, suppressed: bool, between: Any = lambda: None) -> None:
        pools.connection_checked_out(checked_out(connection))
        identity: dict[str, Any] = {"request_id": 0, "server_connection_id": server_connection_id}
        with suppress_instrumentation() if suppressed else contextlib.nullcontext():
            commands.started(started({"getMore": connection, "collection": "orders"}, **identity))
        between()
        if suppressed:
            commands.failed(failed("getMore", {"errtype": "AutoReconnect"}, **identity))
        else:
            commands.succeeded(succeeded("getMore", **identity))
        pools.connection_checked_in(checked_in(connection))

    other_task = contextvars.copy_context()
    run(1, suppressed=False, between=lambda: other_task.run(run, 2, suppressed=True))

    span = spans.one("getMore orders")
    assert (span.status.status_code, attributes(span)["db.mongodb.cursor_id"]) == (StatusCode.UNSET, 1)


def test_a_command_that_is_not_sampled_is_not_kept() -> None:
    spans = Spans(ALWAYS_OFF)
    called: list[Any] = []
    listeners = event_listeners(tracer_provider=spans.provider, request_hook=lambda *args: called.append(args))

    commands_of(listeners).started(started({"find": "orders"}))
    assert len(table_of(listeners)) == 0

    commands_of(listeners).succeeded(succeeded("find"))
    assert (spans.names, called) == ([], [])


def test_excluded_commands_have_no_span(spans: Spans) -> None:
    commands = commands_of(event_listeners(tracer_provider=spans.provider, exclude_commands=["ping", "endSessions"]))
    for name in ("ping", "find", "endSessions"):
        commands.started(started({name: "orders"}))
        commands.succeeded(succeeded(name))

    assert spans.names == ["find orders"]


def test_a_parent_can_be_required(spans: Spans) -> None:
    commands = commands_of(event_listeners(tracer_provider=spans.provider, require_parent_span=True))
    commands.started(started({"find": "alone"}))
    commands.succeeded(succeeded("find"))
    with spans.tracer.start_as_current_span("request"):
        commands.started(started({"find": "orders"}))
        commands.succeeded(succeeded("find"))

    assert spans.names == ["find orders", "request"]


def test_a_full_table_leaves_commands_unobserved(
    listeners: Any, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(open_commands, "LIMIT", 2)
    monkeypatch.setattr(listener, "LIMIT", 2)
    commands = commands_of(listeners)
    for number in range(5):
        commands.started(started({"find": "orders"}, request_id=number))
    for number in range(5):
        commands.succeeded(succeeded("find", request_id=number))

    assert (spans.names, table_of(listeners).rejected, len(caplog.messages)) == (["find orders"] * 2, 3, 1)


def test_hooks_get_the_span_and_the_event(spans: Spans) -> None:
    called: list[Any] = []
    commands = commands_of(
        event_listeners(
            tracer_provider=spans.provider,
            request_hook=lambda span, event: called.append(("request", span.is_recording(), event)),
            response_hook=lambda span, event: called.append(("response", span.is_recording(), event)),
            failed_hook=lambda span, event: span.set_attribute("app.failure", event.failure["errtype"]),
        )
    )
    first, second = started({"find": "orders"}), succeeded("find")
    commands.started(first)
    commands.succeeded(second)
    assert called == [("request", True, first), ("response", True, second)]

    commands.started(started({"find": "bills"}))
    commands.failed(failed("find", {"errtype": "AutoReconnect"}))
    assert attributes(spans.one("find bills"))["app.failure"] == "AutoReconnect"


@pytest.mark.parametrize(
    "name", ["authenticate", "saslStart", "saslContinue", "getnonce", "createUser", "updateUser", "copydb"]
)
def test_a_sensitive_command_is_told_by_name_server_and_outcome(commands: Any, spans: Spans, name: str) -> None:
    secret = "correct horse"
    commands.started(started({name: secret, "pwd": secret, "payload": secret}, database="admin"))
    commands.failed(failed(name, {"ok": 0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": secret}))

    span = spans.one(f"{name} admin")
    told = attributes(span)
    told.pop("db.mongodb.server_connection_id", None)
    assert told == {
        "db.system.name": "mongodb",
        "db.namespace": "admin",
        "db.operation.name": name,
        "db.query.summary": f"{name} admin",
        "server.address": ADDRESS[0],
        "server.port": ADDRESS[1],
        "network.transport": "tcp",
        "error.type": "18",
        "db.response.status_code": "18",
        "mongodb.client.error.code_name": "AuthenticationFailed",
    }
    assert secret not in span.to_json()


def test_no_provider_at_all_is_no_span_and_no_trouble() -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    listeners = event_listeners()

    commands_of(listeners).started(started({"find": "orders"}))

    assert len(table_of(listeners)) == 0


def exhausted(*listeners: Any) -> None:
    """One more reply of an exhaust cursor: all of them have the request id 0."""
    for each in listeners:
        each.started(started({"getMore": 5, "collection": "orders"}, request_id=0))
    for each in listeners:
        each.succeeded(succeeded("getMore", request_id=0))


def test_what_a_listener_claimed_and_did_not_open_is_given_up_all_the_same() -> None:
    spans = Spans()
    first = commands_of(event_listeners(tracer_provider=Spans(ALWAYS_OFF).provider))
    second = commands_of(event_listeners(tracer_provider=spans.provider))
    exhausted(first, second)
    assert spans.names == []

    first._switch.telemetry = None
    exhausted(first, second)
    assert spans.names == ["getMore orders"]


def test_a_claim_is_given_up_though_there_is_no_rival_any_more() -> None:
    spans = Spans()
    first = commands_of(event_listeners(tracer_provider=Spans().provider))
    rivals = [event_listeners(tracer_provider=Spans().provider)]
    first.started(started({"getMore": 5, "collection": "orders"}, request_id=0))
    rivals.clear()
    gc.collect()
    first.succeeded(succeeded("getMore", request_id=0))

    exhausted(commands_of(event_listeners(tracer_provider=spans.provider)))
    assert spans.names == ["getMore orders"]
