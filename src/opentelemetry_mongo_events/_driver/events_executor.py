"""Makes the driver deliver the events of a topology promptly, and close a client without delay.

The driver queues these events. Once a second, a thread, or a task of an `AsyncMongoClient`, empties the queue. In
between, it sleeps for half a second at a time. `MongoClient.close()` waits for that thread, so it takes up to half a
second. The queue holds 100 events. While it is full, the driver blocks, and in an event loop it blocks forever.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import weakref
from typing import Any, Final

from opentelemetry_mongo_events._runtime.stacks import attribute, frames

# Seconds. `close()` waits for one interval at most, and each interval costs the process about 0.1 ms of CPU time.
_INTERVAL: Final = 0.05

# With more clients, the interval grows with their number, so that all together cost no more than this many clients.
_PROMPT_CLIENTS: Final = 20

# A limit, in case another listener blocks.
_MAX_EVENTS: Final = 10_000

_EXECUTORS: Final = ("PeriodicExecutor", "AsyncPeriodicExecutor")

# The maximum number of callers of a listener to inspect. The executor is five frames away.
_MAX_FRAMES: Final = 12


def deliver_promptly() -> None:
    """Make the driver deliver the current topology's events promptly. Called by a listener that receives one of them.

    Has no effect if the driver's private attributes are not as expected, or if the event is delivered by `close()`.
    """
    events: object = None
    for _, frame in zip(range(_MAX_FRAMES), frames(sys._getframe()), strict=False):
        # `process_events_queue()` takes the events from the queue. The driver's executor calls it.
        name, local = frame.f_code.co_name, attribute(frame, "f_locals")
        if name == "process_events_queue":
            events = local.get("q")
        elif name == "_run":
            speed_up(local.get("self"), events)
            return


def speed_up(executor: Any, events: object) -> None:
    """Shorten the intervals of an executor of the driver, and enlarge the queue that it empties. Called on any thread.

    Args:
        executor: The executor. It is not changed if it isn't as expected.
        events: The queue. It is not changed if it isn't as expected.
    """
    kind = type(executor)
    if kind.__name__ in _EXECUTORS and kind.__module__.startswith("pymongo."):
        intervals = tuple(getattr(executor, name, None) for name in ("_interval", "_min_interval"))
        if all(type(each) in (int, float) for each in intervals):
            _executors.setdefault(weakref.ref(executor, _forget), intervals)
            balance()
    size = getattr(events, "maxsize", None)
    # An unlimited queue has the size 0, and gevent's has None.
    if isinstance(events, queue.Queue) and type(size) is int and size > 0:
        with contextlib.suppress(AttributeError):
            events.maxsize = max(size, _MAX_EVENTS)


def balance() -> None:
    """Set the intervals of all executors according to their number. Called on any thread."""
    running = [
        (executor, intervals)
        for reference, intervals in _executors.copy().items()
        if (executor := reference()) is not None and not getattr(executor, "_stopped", False)
    ]
    seconds = _INTERVAL * max(1.0, len(running) / _PROMPT_CLIENTS)
    for executor, (interval, min_interval) in running:
        executor._interval, executor._min_interval = min(interval, seconds), min(min_interval, seconds)


# The executors, with the driver's own intervals. Each step is a single operation of the dictionary.
_executors: Final[dict[weakref.ref[Any], Any]] = {}


def _forget(reference: weakref.ref[Any]) -> None:
    _executors.pop(reference, None)
