"""Waiting for what comes a moment later."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until `condition` is true, without holding up the event loop; AssertionError if it isn't in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.01)


def collected() -> bool:
    """Collect the garbage, and be a condition that is true: PyPy's collector counts nothing."""
    gc.collect()
    return True


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """The same in a thread that may be held up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
