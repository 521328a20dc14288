"""Numbers and texts as BSON has them, in plain types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard


def whole_number(value: object) -> int | None:
    """A number that a server or the driver gives: what is an int32, an int64 or a double in BSON; None for others."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # the driver has a class of its own for an int64
    return int(value) if isinstance(value, float) and value.is_integer() else None


def plain_text(value: object) -> str | None:
    """A text without the class of its own that it may have, as `bson.Code`, which can be no key; None for others."""
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else None


def is_document(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a document: mostly a dict, which is quicker to tell than any other mapping."""
    return type(value) is dict or isinstance(value, Mapping)
