"""Unmasked values as MongoDB's relaxed Extended JSON, with long strings cut to the available room."""

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
CUT: Final = '"..."'
"""Stands for a value that was left out, and for elements of an array."""
_UNKNOWN: Final = '"?"'

as_json: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Encode a string as JSON."""
_encoded: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def quoted(text: str, room: int) -> str:
    """Encode a string as a JSON string. If it doesn't fit, its beginning and `...`.

    Args:
        text: The string, of any length.
        room: Maximum length of the result in characters. The result is `"..."` and longer than `room` only if not even
            that fits.
    """
    whole_length = len(text)
    text = str.__str__(text[: max(0, room)])
    if not text.isascii():
        # A lone surrogate makes exporters fail. No server ever received one: BSON strings are UTF-8.
        text = text.encode(errors="replace").decode()
    json_text = as_json(text)
    if len(json_text) <= room and len(text) == whole_length:
        return json_text
    room -= len("...")
    while len(json_text) > room and text:
        text = text[: len(text) * max(0, room - 2) // (len(json_text) - 2)]
        json_text = as_json(text)
    return f'{json_text[:-1]}..."'


def literal(value: Any, room: int) -> str:
    """Encode a value that is neither a document nor an array as JSON.

    Args:
        value: Any value that the driver can send. A type that needs one of the application's codecs becomes `"?"`.
        room: Maximum length of a string in characters, including its quotes. A longer string is cut, and a regular
            expression with a longer pattern becomes `"..."`. All other values are short, and are not cut.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Code):  # a subclass of `str`
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
        return CUT
    try:
        return _encoded(default(value, RELAXED_JSON_OPTIONS))
    except (TypeError, ValueError, OverflowError):
        return _UNKNOWN
