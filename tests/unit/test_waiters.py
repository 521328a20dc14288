"""Who waits for a connection, by their stacks: a frame of this test's own plays the driver's checkout."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import pytest

from opentelemetry_mongo_events._driver.identity import identity
from opentelemetry_mongo_events._pools import waiters as waiters_module
from opentelemetry_mongo_events._pools.waiters import Waiters
from opentelemetry_mongo_events._runtime import stacks
from tests.programs import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

# What the driver has: functions of these names, in a module of its package.
_driver: dict[str, Any] = {"__name__": "pymongo.pool"}
exec(
    """
def _get_conn(self, wait):
    return wait()

async def _aget_conn(self, event):
    await event.wait()

_aget_conn.__code__ = _aget_conn.__code__.replace(co_name="_get_conn")
""",
    _driver,
)


class Pool:
    """The driver's, as far as it is looked at."""

    def __init__(self) -> None:
        self.address: Any = ("".join(["db.", "example"]), 27017)

    def get_conn(self, wait: Callable[[], object]) -> object:
        return _driver["_get_conn"](self, wait)

    async def aget_conn(self, event: asyncio.Event) -> None:
        await _driver["_aget_conn"](self, event)


POOL = Pool()
get_conn = POOL.get_conn
aget_conn = POOL.aget_conn


@pytest.fixture(autouse=True)
def no_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may have imported them, and each thread is one then."""
    monkeypatch.delitem(sys.modules, "greenlet", raising=False)


@pytest.fixture
def waiters() -> Waiters:
    return Waiters(identity(POOL.address))


def test_a_thread_waits_while_it_is_in_the_drivers_checkout(waiters: Waiters) -> None:
    reached, release, left = threading.Event(), threading.Event(), threading.Event()
    end = threading.Event()

    def wait() -> None:
        reached.set()
        release.wait(5)

    def run() -> None:
        waiters.begin()
        get_conn(wait)
        left.set()  # without a word, as one that was interrupted
        end.wait(5)

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(5)
    assert waiters.count() == 1

    release.set()
    assert left.wait(5)
    assert waiters.count() == 0
    end.set()
    thread.join()


def test_a_thread_that_is_gone_waits_no_more(waiters: Waiters) -> None:
    thread = threading.Thread(target=waiters.begin)
    thread.start()
    thread.join()

    assert waiters.count() == 0


def test_one_that_begins_again_meanwhile_is_kept(waiters: Waiters, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        waiters.begin()

    waiters.begin()
    monkeypatch.setattr(stacks.Runner, "frames", gone)

    assert waiters.count() == 0
    assert len(waiters._waiting) == 1


def test_one_that_is_about_to_enter_the_checkout_is_kept(waiters: Waiters) -> None:
    counts = []

    waiters.begin()
    assert waiters.count() == 0  # as where metrics are collected at this very moment
    get_conn(lambda: counts.append(waiters.count()))

    assert counts == [1]


async def test_all_of_many_are_counted(waiters: Waiters) -> None:
    event = asyncio.Event()

    async def run() -> None:
        waiters.begin()
        await aget_conn(event)

    tasks = [asyncio.create_task(run()) for _ in range(1000)]
    await asyncio.sleep(0)
    assert waiters.count() == 1000

    event.set()
    await asyncio.gather(*tasks)
    assert waiters.count() == 0
    assert len(waiters._waiting) == 0


def test_who_waits_no_more_tells_since_when_they_did(waiters: Waiters) -> None:
    assert waiters.end() is None

    waiters.begin()
    since = waiters.end()
    assert since is not None
    assert since > 0
    assert waiters.end() is None


def test_a_wait_may_be_inside_of_another(waiters: Waiters) -> None:
    counts = []

    def hook() -> None:
        # As one that runs a command while the driver authenticates on a new connection.
        waiters.begin()
        get_conn(lambda: counts.append(waiters.count()))
        assert waiters.end() is not None
        counts.append(waiters.count())

    waiters.begin()
    get_conn(hook)
    assert waiters.end() is not None
    assert waiters.end() is None

    assert counts == [2, 1]


def test_an_inner_wait_that_was_given_up_is_not_counted_again(waiters: Waiters) -> None:
    counts = []

    def hook() -> None:
        for _ in range(3):
            waiters.begin()
            with contextlib.suppress(KeyboardInterrupt):
                get_conn(interrupted)
        counts.append(waiters.count())

    def interrupted() -> None:
        raise KeyboardInterrupt

    waiters.begin()
    get_conn(hook)
    # The last one can't be told from the outer one any more than by the next checkout.
    assert counts == [2]
    waiters.begin()
    assert waiters.end() is not None
    assert waiters.end() is None


async def around(kind: str, event: asyncio.Event) -> None:
    """Wait for a connection as code of several kinds does."""
    if kind == "coroutine":
        await aget_conn(event)
    elif kind == "generator":
        await from_a_generator(event)
    elif kind == "asynchronous generator":
        async for _ in items(event):
            pass
    else:
        async with manager(event):
            pass


@types.coroutine
def from_a_generator(event: asyncio.Event) -> Any:
    return (yield from aget_conn(event).__await__())


async def items(event: asyncio.Event) -> AsyncIterator[None]:
    await aget_conn(event)
    yield


@contextlib.asynccontextmanager
async def manager(event: asyncio.Event) -> AsyncIterator[None]:
    await aget_conn(event)
    yield


@pytest.mark.parametrize("kind", ["coroutine", "generator", "asynchronous generator", "context manager"])
async def test_a_task_waits_while_it_awaits_the_drivers_checkout(kind: str, waiters: Waiters) -> None:
    event, end = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        waiters.begin()
        with contextlib.suppress(asyncio.CancelledError):
            await around(kind, event)
        await end.wait()

    tasks = [asyncio.create_task(run()) for _ in range(3)]
    await asyncio.sleep(0)
    assert waiters.count() == 3

    tasks[0].cancel()
    event.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    assert waiters.count() == 0
    end.set()
    await asyncio.gather(*tasks)


async def test_a_task_that_is_done_or_gone_waits_no_more(waiters: Waiters) -> None:
    async def run() -> None:
        waiters.begin()

    tasks = [asyncio.create_task(run()) for _ in range(2)]
    await asyncio.gather(*tasks)
    del tasks[0]

    assert waiters.count() == 0


async def test_a_task_that_runs_is_seen_by_its_thread(waiters: Waiters) -> None:
    # As one that uses a client which isn't asynchronous.
    counts = []
    waiters.begin()
    get_conn(lambda: counts.append(waiters.count()))
    counts.append(waiters.count())

    assert counts == [1, 0]


class Task(asyncio.Future[None]):
    """A task that isn't asyncio's own: it tells the loop that it runs, as those have to that extend asyncio."""

    def __init__(self, coroutine: Coroutine[asyncio.Future[Any], None, None]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self.get_loop().call_soon(self._step)

    def get_coro(self) -> Coroutine[asyncio.Future[Any], None, None]:
        return self._coroutine

    def _step(self, _: object = None) -> None:
        asyncio.tasks._enter_task(self.get_loop(), self)  # type: ignore[arg-type]
        try:
            self._coroutine.send(None).add_done_callback(self._step)
        except StopIteration:
            self.set_result(None)
        finally:
            asyncio.tasks._leave_task(self.get_loop(), self)  # type: ignore[arg-type]


async def test_a_task_may_be_of_another_make(waiters: Waiters) -> None:
    event, begun = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        waiters.begin()
        begun.set()
        await aget_conn(event)

    task = Task(run())
    await begun.wait()
    assert waiters.count() == 1

    event.set()
    await task
    assert waiters.count() == 0


def test_those_that_are_gone_are_looked_for_when_there_are_many(
    waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters_module, "_CLEANUP_THRESHOLD", 4)
    waiters = Waiters(identity(POOL.address))
    for _ in range(100):
        thread = threading.Thread(target=waiters.begin)
        thread.start()
        thread.join()

        assert len(waiters._waiting) <= 5


class Greenlet:
    """One of those that share a thread, as the module `greenlet` has them."""

    parent: object = "the main one"
    dead = False
    gr_frame: types.FrameType | None = None


def test_a_greenlet_waits_while_its_frames_are_in_the_drivers_checkout(
    waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = Greenlet()
    monkeypatch.setitem(sys.modules, "greenlet", types.SimpleNamespace(getcurrent=lambda: current))
    waiters.begin()

    def switch() -> None:
        current.gr_frame = sys._getframe()

    get_conn(switch)
    assert waiters.count() == 1
    current.dead = True
    assert waiters.count() == 0


def test_the_greenlet_that_runs_is_its_thread(waiters: Waiters, monkeypatch: pytest.MonkeyPatch) -> None:
    current = Greenlet()
    monkeypatch.setitem(sys.modules, "greenlet", types.SimpleNamespace(getcurrent=lambda: current))
    counts = []
    waiters.begin()
    get_conn(lambda: counts.append(waiters.count()))
    counts.append(waiters.count())

    assert counts == [1, 0]


def test_who_waits_in_another_pool_waits_there_only(waiters: Waiters) -> None:
    other = Pool()
    counts = []
    waiters.begin()  # and was given up
    others = Waiters(identity(other.address))
    others.begin()
    other.get_conn(lambda: counts.extend([waiters.count(), others.count()]))

    assert counts == [0, 1]


# Python 3.11 stood still here within a moment: another thread begins while this one collects garbage.
THREADS_THAT_COME_AND_GO = """
import gc, threading, time
from opentelemetry_mongo_events._driver.identity import identity
from opentelemetry_mongo_events._pools.waiters import Waiters

class Garbage:
    def __init__(self):
        self.itself = self

    def __del__(self):
        time.sleep(0.0001)  # others run meanwhile

def come_and_go():
    while not over.is_set():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

over = threading.Event()
for target in [over.wait] * 10 + [come_and_go]:
    threading.Thread(target=target).start()
waiters = Waiters(identity(("db.example", 27017)))
waiters.begin()
gc.set_threshold(10)
for _ in range(200):
    Garbage()
    waiters.count()
over.set()
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's garbage collector")
def test_counting_never_stands_still_where_garbage_is_collected() -> None:
    assert run(THREADS_THAT_COME_AND_GO) == (0, [], "")


# A collection that begins as a thread's stack is looked at, and in which that thread ends.
A_THREAD_THAT_ENDS_AS_IT_IS_LOOKED_AT = """
import faulthandler, gc, sys, threading

from opentelemetry_mongo_events._runtime import stacks

faulthandler.enable()
over, is_deep = threading.Event(), threading.Event()

def go_down(steps):
    if steps:
        go_down(steps - 1)
    else:
        is_deep.set()
        over.wait()

class Garbage:
    def __init__(self):
        self.itself = self
    def __del__(self):
        over.set()
        thread.join()
        other = threading.Thread(target=lambda: None)  # which has the place that the other one gave back
        other.start()
        other.join()

gc.collect()
gc.disable()
thread = threading.Thread(target=go_down, args=(400,))
thread.start()
is_deep.wait()
stack = stacks.frames(stacks.thread_frames()[thread.ident])
for _ in range(20):
    frame = next(stack)
names = []
Garbage()
gc.set_threshold(1, 1, 1)
gc.enable()
if sys.argv[1] == "variables":
    stacks.attribute(frame, "f_locals")
for frame in stack:
    names.append(frame.f_code.co_name)
print(names.count("go_down") > 300, over.is_set())
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's garbage collector")
@pytest.mark.parametrize("what", ["frames", "variables"])
def test_a_thread_may_end_as_its_stack_is_looked_at(what: str) -> None:
    assert run(A_THREAD_THAT_ENDS_AS_IT_IS_LOOKED_AT, what) == (0, ["True True"], "")


# An audit hook can't be taken out again.
AN_AUDIT_HOOK_THAT_REFUSES = """
import gc, sys

from opentelemetry_mongo_events._runtime import stacks

def refuse(event, arguments):
    if event == "sys._current_frames":
        raise RuntimeError

sys.addaudithook(refuse)
try:
    stacks.thread_frames()
except RuntimeError:
    print(gc.isenabled())
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's garbage collector")
def test_the_garbage_collector_stays_on_where_an_audit_hook_refuses() -> None:
    assert run(AN_AUDIT_HOOK_THAT_REFUSES) == (0, ["True"], "")


def test_the_garbage_collector_stays_on_where_nothing_can_be_seen() -> None:
    def look() -> None:
        raise LookupError

    assert gc.isenabled()
    with pytest.raises(LookupError):
        stacks._without_collection(look)
    assert gc.isenabled()


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_stays_as_it_is(waiters: Waiters, is_on: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if is_on else gc.disable)()
    try:
        get_conn(waiters.begin)
        assert waiters.count() == 0
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_the_greenlet_that_runs_is_found_by_its_frames(waiters: Waiters, monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent gives each greenlet an identifier in place of its thread's."""
    current = Greenlet()
    monkeypatch.setitem(sys.modules, "greenlet", types.SimpleNamespace(getcurrent=lambda: current))
    monkeypatch.setattr(threading, "get_ident", lambda: -1)
    counts = []
    waiters.begin()
    get_conn(lambda: counts.append(waiters.count()))
    counts.append(waiters.count())

    assert counts == [1, 0]


def test_a_greenlet_that_was_collected_waits_no_more(waiters: Waiters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", types.SimpleNamespace(getcurrent=Greenlet))
    waiters.begin()
    gc.collect()

    assert waiters.count() == 0
    assert len(waiters._waiting) == 0


@pytest.mark.parametrize("has_gil", [True, False])
def test_a_greenlet_whose_thread_is_gone_waits_no_more(
    has_gil: bool, waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main greenlet of a thread may outlive it, and is not dead."""
    current, mine = Greenlet(), Greenlet()
    monkeypatch.setattr(waiters_module, "HAS_GIL", has_gil)
    monkeypatch.setitem(sys.modules, "greenlet", types.SimpleNamespace(getcurrent=lambda: current))
    thread = threading.Thread(target=waiters.begin)
    thread.start()
    thread.join()
    monkeypatch.setitem(sys.modules, "greenlet", types.SimpleNamespace(getcurrent=lambda: mine))
    counts: list[int] = []
    get_conn(lambda: counts.append(waiters.count()))

    assert counts == [0]
    assert len(waiters._waiting) == 0


def test_without_the_gil_all_are_counted_that_still_run(waiters: Waiters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters_module, "HAS_GIL", False)
    monkeypatch.setattr(Waiters, "_is_checkout", None)  # no frame of a thread that runs is looked at
    thread = threading.Thread(target=waiters.begin)
    thread.start()
    thread.join()
    waiters.begin()
    assert waiters.count() == 1
    assert len(waiters._waiting) == 1

    waiters.end()
    assert waiters.count() == 0


def test_where_frames_are_made_when_asked_for_nothing_is_collected_meanwhile(
    waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Python 3.11."""
    monkeypatch.setattr(stacks, "_FRAMES_ARE_CREATED_ON_ACCESS", True)
    looked: list[bool] = []

    def refuse() -> None:
        looked.append(gc.isenabled())
        raise RuntimeError

    assert gc.isenabled()
    assert stacks._without_collection(gc.isenabled) is False
    with pytest.raises(RuntimeError):
        stacks._without_collection(refuse)
    assert looked == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        assert stacks._without_collection(gc.isenabled) is False
        assert not gc.isenabled()
    finally:
        gc.enable()
