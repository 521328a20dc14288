"""From the clock that the driver stamps its descriptions with to the one that telemetry has."""

from __future__ import annotations

import time
from typing import NamedTuple


class Moment(NamedTuple):
    """A moment by both clocks.

    Attributes:
        at: By `time.monotonic()`.
        nanoseconds: Since the epoch.
    """

    at: float
    nanoseconds: int


def moment(at: float | None = None) -> Moment:
    """That moment by `time.monotonic()`, or now."""
    now, nanoseconds = time.monotonic(), time.time_ns()
    return Moment(now, nanoseconds) if at is None else Moment(at, nanoseconds - int((now - at) * 1e9))
