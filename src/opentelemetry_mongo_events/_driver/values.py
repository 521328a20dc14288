"""Converts BSON numbers and strings to plain Python types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard


def whole_number(value: object) -> int | None:
    """Convert a whole BSON number (an int32, an int64 or a double) to a plain `int`; None for other values."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # the driver has its own class for an int64
    return int(value) if isinstance(value, float) and value.is_integer() else None


def plain_text(value: object) -> str | None:
    """Convert a string to a plain `str`; None for other values. A subclass such as `bson.Code` may be unhashable."""
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else None


def is_document(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a document. Most documents are dicts, for which the check is faster."""
    return type(value) is dict or isinstance(value, Mapping)
