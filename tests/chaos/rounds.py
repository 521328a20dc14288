"""Rounds of load: what each is observed with, what must be true at its end, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanKind

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._runtime.bounded_dict import BoundedDict
from opentelemetry_mongo_events._runtime.guard import Guard
from opentelemetry_mongo_events._servers import outages
from opentelemetry_mongo_events._telemetry.semconv import SCOPE
from tests.chaos.witness import Witness
from tests.metrics import POOL, Metrics
from tests.spans import Spans, table_of
from tests.waiting import collected, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

_PACKAGE: Final = "opentelemetry_mongo_events"
_POOLS: Final = {
    sys.modules[name].__dict__.get("Pool")
    for name in ("pymongo.pool", "pymongo.synchronous.pool", "pymongo.asynchronous.pool")
    if name in sys.modules
}
_NEW_KINDS: Final = 50
"""Some commands are sent after a failure only. The shape of a command is remembered when it comes first."""
_SECONDS: Final = 15
"""The driver may need some for what it does in the background."""


class Round:
    """What the clients of one round are observed with."""

    def __init__(self, **options: Any) -> None:
        self.spans = Spans()
        self.metrics = Metrics()
        self.witness = Witness()
        self.observing = event_listeners(
            tracer_provider=self.spans.provider,
            meter_provider=self.metrics.provider,
            topology=True,
            **self.witness.hooks,
            **options,
        )

    @property
    def listeners(self) -> list[Any]:
        """What a client of this round is to be made with."""
        return [*self.witness.listeners, *self.observing]

    @property
    def ours(self) -> list[ReadableSpan]:
        """The spans of the package."""
        return [span for span in self.spans.finished if scope_name(span) == SCOPE]

    @property
    def commands(self) -> list[ReadableSpan]:
        """The spans of commands."""
        return [span for span in self.ours if span.kind is SpanKind.CLIENT]

    @property
    def outages(self) -> list[ReadableSpan]:
        """The spans of outages."""
        return [span for span in self.ours if span.name == "mongodb.client.outage"]

    def held(self) -> tuple[int, int]:
        """How many connections the driver's own pools have, idle and in use."""
        return held(self.witness.pools)

    def collect_for(self, seconds: float) -> None:
        """Collect metrics again and again, for so long, while the pools change."""
        over = time.monotonic() + seconds
        while (left := over - time.monotonic()) > 0:
            self.metrics.collected()
            time.sleep(min(left, 0.05))

    def check_open_pools(self) -> None:
        """While clients are open and nothing runs: what the metrics tell is what the driver's pools hold."""
        # The driver fills its pools in the background. And a task that is cancelled just as it gets a connection may
        # leave that to the garbage collector, in the driver's own pool too.
        until(lambda: collected() and self.metrics.connections() == self.held(), _SECONDS)
        until(lambda: collected() and self.metrics.connections()[1] == self.held()[1] == 0, _SECONDS)
        # The driver's own thread or task may ask for a connection just now, to kill cursors.
        until(lambda: not any(self.metrics.values("db.client.connection.pending_requests", POOL).values()), _SECONDS)

    def check(self) -> int:
        """When no client is left: all that was started has ended, and was told once; how many were interrupted."""
        until(lambda: collected() and not outages._periods.open, _SECONDS)
        until(lambda: collected() and self.metrics.points("db.client.connection.count") == [], _SECONDS)
        assert len(table_of(self.observing)) == 0
        interrupted = self.witness.compare(self.commands)
        self._check_metrics()
        assert failures() == {}
        return interrupted

    def _check_metrics(self) -> None:
        seen = self.witness.pools.counts
        assert len([span for span in self.ours if span.name.startswith("checkout ")]) == seen["failed"]
        for name, expected in (
            ("db.client.operation.duration", len(self.witness.commands.starts)),
            ("db.client.connection.wait_time", seen["checked out"]),
            ("db.client.connection.use_time", seen["checked in"] + seen["closed in use"]),
            ("db.client.connection.create_time", seen["ready"]),
            ("mongodb.client.connection.closed", seen["closed"]),
            ("mongodb.client.connection.checkout_failures", seen["failed"]),
            ("mongodb.client.pool.cleared", seen["pool cleared"]),
            ("mongodb.client.outage.duration", len(self.outages)),
        ):
            told = sum(self.metrics.values(name, POOL).values())
            assert told == expected, f"{name} tells {told} in place of {expected}; {seen}"


def scope_name(span: ReadableSpan) -> str | None:
    """The name of the instrumentation that made a span."""
    return None if span.instrumentation_scope is None else span.instrumentation_scope.name


def held(listener: Any) -> tuple[int, int]:
    """How many connections the driver's pools have, idle and in use: all that are alive and tell that listener."""
    idle = used = 0
    for pool in gc.get_objects():
        if type(pool) in _POOLS and not _is_monitors(pool) and _tells(pool, listener):
            idle += len(pool.conns if hasattr(pool, "conns") else pool.sockets)  # by its name before 4.2
            used += pool.active_sockets
    return idle, used


def _is_monitors(pool: Any) -> bool:
    return bool(pool.is_sdam if hasattr(pool, "is_sdam") else not pool.handshake)  # PyMongo 4.8


def _tells(pool: Any, listener: Any) -> bool:
    listeners = pool.opts._event_listeners
    return listeners is not None and any(each is listener for each in listeners.event_listeners())


def failures() -> dict[Any, int]:
    """What went wrong in the package: the failures of all of its guards."""
    return {kind: n for guard in gc.get_objects() if type(guard) is Guard for kind, n in guard.failures.items()}


def what_lives() -> Counter[str]:
    """How many objects of the package's classes there are, except those in bounded caches.

    Memos are emptied. `remembered()` counts what is in the other caches.
    """
    for memo in _memos():
        memo.cache_clear()
    gc.collect()
    caches = [value for value in _variables() if isinstance(value, BoundedDict)]
    cached = {id(each) for cache in caches for key, value in list(cache.items()) for each in (value, *key)}
    kinds = Counter(type(each) for each in gc.get_objects() if id(each) not in cached)
    return Counter({str(kind): n for kind, n in kinds.items() if str(kind.__module__).startswith(f"{_PACKAGE}.")})


def remembered() -> int:
    """How much the modules of the package remember in all, but for memos that know their own bounds."""
    return sum(len(value) for value in _variables() if isinstance(value, Sized) and not isinstance(value, (str, type)))


def _memos() -> list[Any]:
    memos = [value for value in _variables() if hasattr(value, "cache_clear")]
    assert all(memo.cache_parameters()["maxsize"] or memo.cache_info().currsize <= 1 for memo in memos)
    return memos


def _variables() -> list[Any]:
    """The values of all variables of the package's modules."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(f"{_PACKAGE}.")]
    return [value for module in modules for name, value in vars(module).items() if not name.startswith("__")]


class Rounds:
    """The seeds of rounds, until the time is over.

    As an iterable they are two at least, and after each nothing may be left of it.

    Args:
        seed: That of the first round; each round's is the next number.
        seconds: How long, in all; 0 for as few short rounds as there may be.
        each: How many seconds of load a round has.

    Attributes:
        is_long: Whether the rounds are long ones.
    """

    def __init__(self, seed: int, seconds: float, each: float) -> None:
        self.is_long = seconds > 0
        self.each = each
        self._seed = seed
        self._until = time.monotonic() + seconds

    def times(self, count: int) -> int:
        """So many in a short round, and twenty times as many in a long one."""
        return count * 20 if self.is_long else count

    def seeds(self, at_least: int = 1) -> Iterator[int]:
        """Those of rounds of which each has a process of its own."""
        for number in itertools.count():
            if number >= at_least and time.monotonic() >= self._until:
                return
            yield self._seed + number

    def __iter__(self) -> Iterator[int]:
        before: tuple[Counter[str], int] | None = None
        for seed in self.seeds(2):
            yield seed
            until(lambda: not any(thread.name == _PACKAGE for thread in threading.enumerate()), _SECONDS)
            if before is None:
                before = what_lives(), remembered()
            else:
                _check_for_growth(*before)
                # What was about to be let go of when the first round was over.
                before = before[0] & what_lives(), before[1]


def _check_for_growth(lived: Counter[str], was_remembered: int) -> None:
    # A thread or a finalizer of the driver's may be just about to let go of something.
    with contextlib.suppress(AssertionError):
        until(lambda: not what_lives() - lived, _SECONDS)
    more = what_lives() - lived
    assert not more
    assert remembered() <= was_remembered + _NEW_KINDS
