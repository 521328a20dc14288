"""Unmasked values as MongoDB's relaxed Extended JSON, with long strings cut."""

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


def quoted(text: str, length: int) -> str:
    """Encode a string as a JSON string. Of a string of more than `length` characters the beginning and `...`."""
    is_long = len(text) > length
    text = str.__str__(text[:length])
    if not text.isascii():
        # A lone surrogate makes exporters fail. No server ever received one: BSON strings are UTF-8.
        text = text.encode(errors="replace").decode()
    json_text = as_json(text)
    return f'{json_text[:-1]}..."' if is_long else json_text


def literal(value: Any, length: int) -> str:
    """Encode a value that is neither a document nor an array as JSON.

    Args:
        value: Any value that the driver can send. A type that needs one of the application's codecs becomes `"?"`.
        length: How many characters of a string or a pattern are read. All other values are short.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Code):  # a subclass of `str`
        return f'{{"$code":{quoted(value, length)}}}'
    if isinstance(value, str):
        return quoted(value, length)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    if isinstance(value, (bytes, RawBSONDocument)):
        return BINARY
    if isinstance(value, uuid.UUID):
        return f'{{"$uuid":"{value}"}}'
    try:
        if isinstance(value, (re.Pattern, Regex)) and len(value.pattern) > length:
            value = Regex(value.pattern[:length], value.flags)
        return _encoded(default(value, RELAXED_JSON_OPTIONS))
    except (TypeError, ValueError, OverflowError):
        return _UNKNOWN
