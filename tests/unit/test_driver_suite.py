"""Whether the runs of the driver's own tests would find what is wrong."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from pymongo.errors import OperationFailure

from opentelemetry_mongo_events import event_listeners
from tests.clients import connect
from tests.driver_suite.comparison import again, differences
from tests.driver_suite.files import is_not_compared
from tests.driver_suite.quiet import failures, left_open, wrong_counts
from tests.driver_suite.truth import After, Before, Truth
from tests.spans import commands_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from pymongo import monitoring

    from tests.metrics import Metrics
    from tests.servers.scripted import ScriptedServer

PASSED, FAILED, OTHER = "passed", "call failed: AssertionError", "call failed: KeyError"


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture
def observed(truth: Truth, metrics: Metrics) -> list[Any]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(truth)
    listeners = event_listeners(tracer_provider=provider, meter_provider=metrics.provider)
    return [Before(truth), *listeners, After(truth)]


def test_the_same_outcomes_are_no_difference() -> None:
    assert differences({"a": PASSED, "b": FAILED}, {"b": FAILED, "a": PASSED}) == []


def test_another_failure_is_a_difference_and_so_is_a_test_that_was_not_run() -> None:
    found = differences({"a": FAILED, "b": PASSED}, {"a": OTHER})

    assert [(each.test, each.without, each.observed) for each in found] == [
        ("a", [FAILED], [OTHER]),
        ("b", [PASSED], ["not run"]),
    ]


@pytest.mark.parametrize(
    ("without", "observed", "listened", "explanation"),
    [
        (PASSED, FAILED, PASSED, None),
        (FAILED, FAILED, PASSED, "not steady, and so without the instrumentation"),
        (PASSED, FAILED, FAILED, "the same with any listener"),
        (PASSED, PASSED, PASSED, "once, and not again"),
    ],
)
def test_what_comes_again_with_the_instrumentation_only_is_its_doing(
    without: str, observed: str, listened: str, explanation: str | None
) -> None:
    first = differences({"a": PASSED}, {"a": FAILED})

    (each,) = again(first, {"a": without}, {"a": observed}, {"a": listened})

    assert each.explanation == explanation


def test_tests_that_are_not_compared_are_named() -> None:
    assert is_not_compared("test/asynchronous/test_session.py::AsyncTestSession::test_client")
    assert not is_not_compared("test/test_session.py::TestCausalConsistency::test_core")


def test_spans_that_are_right_are_no_fault(server: ScriptedServer, truth: Truth, observed: list[Any]) -> None:
    server.fail("insert", write_errors=[{"code": 11000}])
    server.fail("noSuchCommand", code=59)
    with connect(server.uri, event_listeners=observed) as client:
        list(client.shop.orders.find())
        client.shop.command("insert", "orders", documents=[{}])
        with pytest.raises(OperationFailure):
            client.shop.command("noSuchCommand")

    assert truth.counts["commands started"] == truth.counts["commands ended"] == truth.counts["spans ended"] >= 3
    assert list(truth.faults) == []
    assert truth.open_spans == []


def test_a_command_without_a_span_is_a_fault(server: ScriptedServer, truth: Truth, observed: list[Any]) -> None:
    without_spans = [each for each in observed if each is not commands_of(observed)]
    with connect(server.uri, event_listeners=without_spans) as client:
        client.admin.command("ping")

    assert dict(truth.faults)["0 spans started with ping in no test"] == 1


def test_a_span_that_ends_otherwise_than_its_command_is_a_fault(
    server: ScriptedServer, truth: Truth, observed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = commands_of(observed)
    with connect(server.uri, event_listeners=observed) as client:
        client.admin.command("ping")
        monkeypatch.setattr(commands, "succeeded", lambda event: None)
        client.admin.command("ping")
        monkeypatch.undo()

    assert dict(truth.faults) == {"0 spans ended with ping in no test, and 1 had started": 1}
    assert truth.counts["interrupted spans"] == 1


def test_what_is_open_is_a_fault(server: ScriptedServer, truth: Truth, observed: list[Any]) -> None:
    with connect(server.uri, event_listeners=observed) as client:
        frozen = server.freeze("find")
        thread = threading.Thread(target=client.shop.command, args=("find", "orders"))
        thread.start()
        assert frozen.reached.wait(5)

        assert [each for each in left_open() if each.startswith("a command is open")] != []
        assert truth.open_spans == ["find orders in no test"]
        assert [str(command) for command in truth.without_end()] == ["find in no test"]

        frozen.release()
        thread.join(5)

    assert (truth.open_spans, list(truth.without_end())) == ([], [])


def test_a_span_that_tells_something_else_than_the_driver_is_a_fault(
    server: ScriptedServer, truth: Truth, metrics: Metrics
) -> None:
    def hook(span: Span, event: monitoring.CommandSucceededEvent) -> None:
        span.set_attribute("db.namespace", "elsewhere")
        span.set_attribute("db.mongodb.driver_connection_id", 77)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(truth)
    listeners = event_listeners(tracer_provider=provider, meter_provider=metrics.provider, response_hook=hook)
    with connect(server.uri, event_listeners=[Before(truth), *listeners, After(truth)]) as client:
        client.shop.command("ping")
        faults = dict(truth.faults)

    assert faults == {
        "db.namespace is 'elsewhere' and not 'shop': ping in no test": 1,
        "db.mongodb.driver_connection_id is 77 and not 1: ping in no test": 1,
    }


def test_a_failure_that_was_kept_from_the_driver_is_a_fault(server: ScriptedServer, metrics: Metrics) -> None:
    def hook(span: object, event: monitoring.CommandStartedEvent) -> None:
        raise ValueError

    listeners = event_listeners(
        tracer_provider=TracerProvider(shutdown_on_exit=False), meter_provider=metrics.provider, request_hook=hook
    )
    with connect(server.uri, event_listeners=listeners) as client:
        client.admin.command("ping")

    assert "('request_hook', 'ValueError') failed 2 times" in failures()


def test_a_pool_that_is_counted_wrongly_is_a_fault(
    server: ScriptedServer, truth: Truth, observed: list[Any], metrics: Metrics
) -> None:
    pools = next(each for each in observed if hasattr(each, "_pools"))
    with connect(server.uri, event_listeners=observed) as client:
        client.admin.command("ping")
        assert wrong_counts(metrics) == []

        (pool,) = pools._pools.pools()
        pool.made.clear()

        assert len(wrong_counts(metrics)) == 2
