"""From the clock that the driver stamps its descriptions with to the one that telemetry has."""

from __future__ import annotations

import time


def nanoseconds(at: float) -> int:
    """Nanoseconds since the epoch of a moment by `time.monotonic()`."""
    return time.time_ns() - int((time.monotonic() - at) * 1e9)
