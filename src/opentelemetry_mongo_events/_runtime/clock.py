"""Converts times of the monotonic clock, which the driver uses, to the wall-clock times of telemetry."""

from __future__ import annotations

import time
from typing import NamedTuple


class Moment(NamedTuple):
    """A point in time on both clocks.

    Attributes:
        at: Seconds of `time.monotonic()`.
        nanoseconds: Nanoseconds since the epoch.
    """

    at: float
    nanoseconds: int


def moment(at: float | None = None) -> Moment:
    """Return the moment of a `time.monotonic()` value in seconds; by default, the current one."""
    now, nanoseconds = time.monotonic(), time.time_ns()
    return Moment(now, nanoseconds) if at is None else Moment(at, nanoseconds - int((now - at) * 1e9))
