"""What goes wrong in telemetry stays there."""

from __future__ import annotations

import asyncio
import logging

import pytest

from opentelemetry_mongo_events._runtime.guard import Guard, guarded


class Listener:
    def __init__(self) -> None:
        self.guard = Guard()

    @guarded
    def started(self, error: BaseException | None) -> None:
        """Open a span."""
        if error is not None:
            raise error


def test_the_first_failure_of_a_kind_is_logged_and_the_rest_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()

    for error in (ValueError("alice"), ValueError("bob"), TypeError("alice")):
        listener.started(error)

    assert listener.guard.failures == {("Listener.started", "ValueError"): 2, ("Listener.started", "TypeError"): 1}
    assert [message.partition("\n")[0] for message in caplog.messages] == [
        "Listener.started raised ValueError; the error is suppressed, and this kind of error is not logged again",
        "Listener.started raised TypeError; the error is suppressed, and this kind of error is not logged again",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_log_tells_where_and_not_what_was_in_it(caplog: pytest.LogCaptureFixture) -> None:
    message = "alice@example.org"

    Listener().started(ValueError(message))

    assert "in started" in caplog.text
    assert message not in caplog.text


def test_an_interruption_is_not_held_up() -> None:
    with pytest.raises(KeyboardInterrupt):
        Listener().started(KeyboardInterrupt())


def test_a_guarded_method_keeps_its_name_and_its_words() -> None:
    assert (Listener.started.__name__, Listener.started.__doc__) == ("started", "Open a span.")


def test_a_log_handler_that_fails_the_same_way_is_not_called_again() -> None:
    listener = Listener()
    logged = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record)
            listener.started(ValueError())

    logger = logging.getLogger("opentelemetry_mongo_events")
    handler = Handler()
    logger.addHandler(handler)
    try:
        listener.started(ValueError())
    finally:
        logger.removeHandler(handler)

    assert len(logged) == 1
    assert listener.guard.failures == {("Listener.started", "ValueError"): 2}


def test_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    for number in range(1000):
        listener.started(type(f"Error{number}", (Exception,), {})())

    assert len(listener.guard.failures) == 101
    assert [message for message in caplog.messages if "raised" not in message] == []
    assert len([message for message in caplog.messages if message.startswith(("Listener", "any other"))]) == 101
    assert listener.guard.failures["any other place", "an exception of any other class"] == 900


def test_a_class_that_is_made_anew_each_time_is_one_kind(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    for _ in range(10):
        listener.started(type("Error", (Exception,), {})())

    assert (listener.guard.failures, len(caplog.messages)) == ({("Listener.started", "Error"): 10}, 1)


def test_a_hook_that_raises_what_cancels_a_task_cancels_nothing() -> None:
    guard = Guard()

    def hook() -> None:
        raise asyncio.CancelledError

    guard.run("request_hook", hook)

    assert guard.failures == {("request_hook", "CancelledError"): 1}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_hook_that_is_interrupted_is_not_held_up(interruption: type[BaseException]) -> None:
    def hook() -> None:
        raise interruption

    with pytest.raises(interruption):
        Guard().run("request_hook", hook)


def test_a_log_filter_that_raises_goes_no_further() -> None:
    def raising(record: logging.LogRecord) -> bool:
        raise AttributeError

    logger = logging.getLogger("opentelemetry_mongo_events")
    logger.addFilter(raising)
    listener = Listener()
    try:
        listener.started(ValueError())
    finally:
        logger.removeFilter(raising)

    assert listener.guard.failures == {("Listener.started", "ValueError"): 1}
