"""The frames of the driver on the current stack, which know what its events don't contain."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator

# The maximum number of callers to inspect. Without wrappers of other packages, the driver has about 20 frames at most.
_MAX_FRAMES: Final = 40


def driver_frames() -> Iterator[types.FrameType]:
    """Yield the driver's frames on the current stack, the innermost first."""
    frame: types.FrameType | None = sys._getframe()
    for _ in range(_MAX_FRAMES):
        if frame is None:
            return
        if module(frame).startswith("pymongo."):
            yield frame
        frame = frame.f_back


def module(frame: types.FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__"))
