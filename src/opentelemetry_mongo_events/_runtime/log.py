"""Logs the warnings of this package; the callers make sure that each is logged once."""

from __future__ import annotations

import asyncio
import contextlib
import logging

_logger = logging.getLogger("opentelemetry_mongo_events")


def warn(message: str, *args: object) -> None:
    """Log a warning. Never raises: errors of the application's log filters and handlers are suppressed."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        _logger.warning(message, *args)
