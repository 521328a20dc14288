"""Values as they are: MongoDB's relaxed Extended JSON, no longer than there is room for."""

from __future__ import annotations

import json
import math
import re
import uuid
from typing import Any, Final

from bson.code import Code
from bson.json_util import RELAXED_JSON_OPTIONS, default
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex

BINARY: Final = '{"$binary":"?"}'
_UNKNOWN: Final = '"?"'

as_json: Final = json.JSONEncoder(ensure_ascii=False).encode
"""A text as JSON."""
_encoded: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def quoted(text: str, room: int) -> str:
    """As much of a text as fits, as JSON. It is longer than `room` only where nothing fits."""
    text = str.__str__(text[: max(0, room)])
    if not text.isascii():
        # A lone surrogate would make exporters fail, and is nothing that a server ever got.
        text = text.encode(errors="replace").decode()
    while len(json_text := as_json(text)) > room and text:
        text = text[: len(text) * max(0, room - 2) // (len(json_text) - 2)]
    return json_text


def literal(value: Any, room: int) -> str:
    """A value that is neither a document nor an array, as JSON.

    Args:
        value: Any that the driver can send. A class that it knows only by a codec of the application's is `"?"`.
        room: How many characters a text may have. What else there is has a fixed length.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Code):  # a text too
        return f'{{"$code":{quoted(value, room - 10)}}}'
    if isinstance(value, str):
        return quoted(value, room)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    if isinstance(value, (bytes, RawBSONDocument)):
        return BINARY
    if isinstance(value, uuid.UUID):
        return f'{{"$uuid":"{value}"}}'
    if isinstance(value, (re.Pattern, Regex)) and len(value.pattern) > room:
        return _UNKNOWN
    try:
        return _encoded(default(value, RELAXED_JSON_OPTIONS))
    except (TypeError, ValueError, OverflowError):
        return _UNKNOWN
