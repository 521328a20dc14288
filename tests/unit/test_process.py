"""What a forked child forgets."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry_mongo_events._runtime import process
from opentelemetry_mongo_events._runtime.process import SharedLock, instances, peers, track

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


class State:
    def __init__(self, kept: str) -> None:
        self.kept = kept

    def forget(self) -> None:
        self.kept = "nothing"


class OtherState(State):
    pass


def test_what_is_alive_is_known_by_its_kind_and_kept_alive_by_nobody() -> None:
    first, second, other = State("first"), State("second"), OtherState("other")
    for state in (first, second, other):
        track(state)
    assert instances(OtherState) == [other]
    assert instances(State) == [first, second]
    assert (len(peers(first)), len(peers(other))) == (2, 1)

    del second, state
    gc.collect()  # PyPy has forgotten nothing before
    assert [state.kept for state in instances(State)] == ["first"]
    assert len(peers(first)) == 1


def test_after_a_fork_the_child_forgets_all_of_it() -> None:
    states = [State("a"), State("b")]
    for state in states:
        track(state)

    process._forget_all()

    assert [state.kept for state in states] == ["nothing", "nothing"]


def test_a_child_forgets_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State("its parent's")
    track(state)
    process.take_over()
    assert state.kept == "its parent's"

    monkeypatch.setitem(process._owner, "process", -1)
    process.take_over()
    assert state.kept == "nothing"

    state.kept = "its own"
    process.take_over()
    assert state.kept == "its own"


def test_of_two_threads_that_are_told_of_a_fork_one_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State("its own")
    track(state)

    @contextlib.contextmanager
    def after_another() -> Iterator[None]:
        process._owner["process"] = os.getpid()
        yield

    monkeypatch.setitem(process._owner, "process", -1)
    monkeypatch.setitem(process._take_over_locks, os.getpid(), after_another())
    process.take_over()
    assert state.kept == "its own"


class Finalized:
    """Something that is used once more as it goes, as a client that is closed then."""

    def __del__(self) -> None:
        process.take_over()


def test_what_is_forgotten_may_have_a_finalizer_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holder:
        def __init__(self) -> None:
            self.held: Finalized | None = Finalized()

        def forget(self) -> None:
            self.held = None

    state = Holder()
    track(state)
    monkeypatch.setitem(process._owner, "process", -1)

    child = threading.Thread(target=process.take_over, daemon=True)
    child.start()
    child.join(10)

    assert not child.is_alive()
    assert state.held is None


def test_what_is_gone_by_then_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State("gone")
    known = {State: {weakref.ref(state): None}}
    del state
    gc.collect()
    monkeypatch.setattr(process, "_states", known)

    process._forget_all()
    assert instances(State) == []


def test_where_there_is_no_fork_none_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    monkeypatch.setattr(process, "_fork_handler", {})
    gc.collect()
    state = State("here")

    track(state)

    assert instances(State) == [state]


def test_forks_are_watched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[Any] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: watched.append(hooks), raising=False)
    monkeypatch.setattr(process, "_fork_handler", {})
    states = [State("a"), State("b")]
    for state in states:
        track(state)

    assert watched == [{"after_in_child": process.take_over}]


def test_a_shared_lock_is_another_one_in_another_process_and_after_a_monkey_patch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = SharedLock()
    mine = lock()
    assert lock() is mine
    with lock(), lock():
        pass

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: -1)
        assert lock() is not mine
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Lock", object())
        patched.setattr(threading, "RLock", lambda: "a green one")
        assert str(lock()) == "a green one"
    assert lock() is mine
