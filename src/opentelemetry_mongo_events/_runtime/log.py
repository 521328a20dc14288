"""The warnings of this package: each told once, by whoever calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging

_logger = logging.getLogger("opentelemetry_mongo_events")


def warn(message: str, *args: object) -> None:
    """Log a warning. A log filter or handler of the application's that raises goes no further than here."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        _logger.warning(message, *args)
