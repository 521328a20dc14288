"""The one thread of this package's own."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from opentelemetry_mongo_events._runtime import background
from opentelemetry_mongo_events._runtime.background import BackgroundWorker
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Kept:
    """What a worker has done."""

    def __init__(self) -> None:
        self.is_open = False
        self.looks: list[float] = []
        self.done: list[str] = []
        self.worker = BackgroundWorker()
        self.worker.register(self._look, lambda: self.done.append("end"))

    def _look(self) -> float | None:
        self.looks.append(time.monotonic())
        return 0.1 if self.is_open else None

    def submit(self, name: str) -> None:
        self.worker.submit(name, lambda: self.done.append(name))


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.is_open = False
    until(lambda: kept.worker.thread is None)


@pytest.fixture
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)


def test_it_is_there_while_something_is_open(kept: Kept) -> None:
    assert kept.worker.thread is None
    kept.is_open = True
    kept.worker.wake()
    thread = kept.worker.thread
    until(lambda: len(kept.looks) == 3)
    assert kept.looks[2] - kept.looks[1] >= 0.09
    kept.worker.wake()
    kept.worker._start()  # as another thread that has seen none
    assert kept.worker.thread is thread is not None
    kept.is_open = False
    kept.worker.wake()
    thread.join(5)

    assert (kept.worker.thread, kept.done) == (None, [])


def test_records_are_emitted_in_their_order(kept: Kept) -> None:
    for number in range(100):
        kept.submit(str(number))
    kept.worker.flush()

    assert kept.done == [str(number) for number in range(100)]


def test_there_is_nothing_to_wait_for_where_none_was_made(kept: Kept, no_more_threads: None) -> None:
    kept.worker.flush()
    assert kept.looks == []


def test_at_exit_what_is_open_ends_first(kept: Kept, no_more_threads: None) -> None:
    kept.submit("record")
    kept.worker.at_exit()

    assert kept.done == ["end", "record"]


def test_without_a_thread_they_are_emitted_where_it_is_waited_for_them(kept: Kept, no_more_threads: None) -> None:
    kept.submit("one")
    kept.submit("another")
    assert kept.done == []
    kept.worker.flush()

    assert kept.done == ["one", "another"]
    assert kept.worker.thread is None


def test_as_the_interpreter_is_torn_down_no_thread_begins(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    kept.submit("record")
    assert (kept.worker.thread, kept.done) == (None, [])

    kept.worker.flush()
    assert (kept.worker.thread, kept.done) == (None, ["record"])


def test_where_no_daemon_may_be_records_are_emitted_at_the_exit(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, daemon: bool, **__: object) -> None:
        raise RuntimeError("daemon threads are disabled in this (sub)interpreter")

    monkeypatch.setattr(threading, "Thread", refused)
    kept.submit("record")
    kept.worker.at_exit()

    assert kept.done == ["end", "record"]


def test_a_record_that_is_never_emitted_is_not_waited_for(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_FLUSH_TIMEOUT", 0.05)
    goes_on = threading.Event()
    kept.worker.submit("a task", goes_on.wait)
    kept.submit("next")
    kept.worker.flush()
    assert kept.done == []
    goes_on.set()
    kept.worker.flush()

    assert kept.done == ["next"]


def test_without_a_thread_records_that_take_long_are_not_waited_for(
    kept: Kept, no_more_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_FLUSH_TIMEOUT", 0.01)
    kept.worker.submit("a task", lambda: time.sleep(0.02))
    kept.submit("next")
    kept.worker.flush()
    assert kept.done == []
    kept.worker.flush()

    assert kept.done == ["next"]


def test_what_it_looks_after_may_wait_for_records(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def look() -> None:
        worker.submit("a task", lambda: done.append("record"))
        worker.flush()
        done.append("looked")
        monkeypatch.setattr(worker, "_checks", [])

    worker = BackgroundWorker()
    worker.register(look, lambda: None)
    worker.wake()
    until(lambda: worker.thread is None)

    assert done == ["record", "looked"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_was_ended_is_replaced(kept: Kept) -> None:
    goes_on = threading.Event()
    kept.worker.submit("a task", goes_on.wait)
    thread = kept.worker.thread
    assert thread is not None
    kept.worker.submit("a task", sys.exit)
    goes_on.set()
    thread.join(5)
    assert kept.worker.thread is None
    kept.submit("next")
    kept.worker.flush()

    assert kept.done == ["next"]


def test_a_thread_from_before_a_monkey_patch_is_replaced(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where gevent or eventlet patches `threading` while something is open."""
    made: list[threading.Lock] = []
    original = threading.Lock

    def green_lock() -> threading.Lock:
        made.append(original())
        return made[-1]

    kept.is_open = True
    kept.worker.wake()
    before = kept.worker.thread
    assert before is not None
    kept.submit("before")
    monkeypatch.setattr(threading, "Lock", green_lock)
    kept.submit("after")
    kept.worker.flush()
    after = kept.worker.thread
    before.join(5)

    assert kept.done == ["before", "after"]
    assert made
    assert not before.is_alive()
    assert after not in (None, before)
    assert kept.worker.thread is after


def test_what_emits_a_record_emits_no_other(kept: Kept) -> None:
    def record() -> None:
        kept.submit("because of it")
        kept.done.append("record")

    kept.worker.submit("a task", record)
    kept.worker.flush()
    kept.submit("later")
    kept.worker.flush()

    assert kept.done == ["record", "later"]


def test_a_record_that_comes_as_the_thread_is_about_to_end_is_emitted(kept: Kept) -> None:
    class Workers(dict[str, Any]):
        def pop(self, *args: Any) -> Any:
            if not kept.done:
                kept.submit("just in time")
            return super().pop(*args)

    kept.worker._threads = Workers()
    kept.worker.wake()
    until(lambda: kept.done)


def test_a_record_that_comes_as_the_thread_has_just_ended_is_emitted(kept: Kept) -> None:
    ends, found_it = threading.Event(), threading.Event()

    class Workers(dict[str, Any]):
        def pop(self, *args: Any) -> Any:
            ends.set()
            found_it.wait(5)
            return super().pop(*args)

        def get(self, *args: Any) -> Any:
            found = super().get(*args)
            if found is not None and threading.current_thread() is threading.main_thread() and not found_it.is_set():
                found_it.set()
                found.thread.join(5)
            return found

    kept.worker._threads = Workers()
    kept.worker.wake()
    assert ends.wait(5)
    kept.submit("just too late")
    until(lambda: kept.done)


def test_in_another_process_what_waited_is_the_parents(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        goes_on.wait(10)

    kept.worker.submit("a task", hold)
    assert reached.wait(5)
    kept.submit("of the parent")
    # As a thread of the driver's in a child, before anybody told this one of the fork.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    kept.submit("of the child")
    kept.worker.forget()  # now it is told
    goes_on.set()
    until(lambda: kept.done)
    kept.worker.flush()

    assert kept.done == ["of the child"]
