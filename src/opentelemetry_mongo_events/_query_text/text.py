"""The text of a command: masked or raw JSON, bounded in its length and in the work to write it."""

from __future__ import annotations

import contextlib
import itertools
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import bson
from bson.binary import Binary
from bson.code import Code
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp

from opentelemetry_mongo_events._driver.command_names import is_sensitive
from opentelemetry_mongo_events._driver.versions import CODEC_OPTIONS
from opentelemetry_mongo_events._query_text import extended_json as extended_json
from opentelemetry_mongo_events._query_text.masking import (
    COMMAND,
    MASK,
    MASKED_KEY,
    NAME,
    OMITTED,
    RAW_COMMAND,
    Place,
    command_place,
    masked_key,
)
from opentelemetry_mongo_events._runtime.bounded_dict import BoundedDict

# How much of a command is read.
_ELEMENTS: Final = 16
_VALUES: Final = 1_000
# A document with more keys is rather a map, whose keys are data.
_KEYS: Final = 100

_NONE: Final = -1

# Most values, told from documents and arrays by one look.
_LITERALS: Final = frozenset(
    {
        type(None),
        bool,
        bytes,
        datetime,
        float,
        int,
        re.Pattern,
        str,
        uuid.UUID,
        Binary,
        Code,
        Decimal128,
        Int64,
        MaxKey,
        MinKey,
        ObjectId,
        Regex,
        Timestamp,
    }
)

_REMEMBERED_LENGTH: Final = 1_000
# What is remembered: no data, since all that these are made of is shown.
_texts_of_keys: Final[BoundedDict[tuple[str, ...], str]] = BoundedDict(1_000)
_texts_of_shapes: Final[BoundedDict[tuple[Any, ...], str]] = BoundedDict(1_000)


def query_text(command_name: str, command: Mapping[str, Any], is_raw: bool, limit: int) -> str | None:
    """The text of a command as valid JSON, or None where there is nothing to show.

    Never raises. It reads at most 16 elements of an array, 1,000 values, and as many bytes of raw documents as the text
    may have characters; what comes after is left out.

    Args:
        command_name: As the driver's event has it.
        command: The command; it is not changed.
        is_raw: Whether values are shown; else they are masked.
        limit: How many characters the text may have.
    """
    place = RAW_COMMAND if is_raw else command_place(command_name)
    shape = known = None
    # A class of the application's own may raise anything, and so does a dictionary that another thread changes.
    try:
        if not is_raw:
            shape = _shape(command_name, command, place)
            known = None if shape is None else _texts_of_shapes.get(shape)
    except Exception:
        shape = None
    if known is not None and len(known) <= limit:
        return known
    if is_sensitive(command_name):
        return None
    text = _Text(is_raw, limit)
    with contextlib.suppress(Exception):
        text.write(command, place)
    written = text.closed()
    if shape is not None and written is not None and text.is_whole and _may_be_remembered(written):
        _texts_of_shapes.put(shape, written)
    return written


def _shape(command_name: str, command: Mapping[str, Any], place: Place) -> tuple[Any, ...] | None:
    """All that makes the masked text of a command which holds literals and documents of literals only; else None."""
    if type(command) is not dict:
        return None
    parts: list[Any] = [command_name, tuple(command)]
    for key, value in command.items():
        kind = type(value)
        child = place.fields.get(key)
        if child is OMITTED:
            continue
        if kind in _LITERALS:
            if child is None or child.leaf is None:
                parts.append(None)  # a part for each key, so that no two commands have the same
            elif child is NAME:
                parts.append(value)
            else:
                return None
        elif kind is dict and _is_flat(value, child or place.others):
            parts.append(tuple(value))
        else:
            return None
    return tuple(parts)


class _Level:
    """A document or an array that is being written.

    Attributes:
        place: Where it stands in the command.
        items: What is still to be written, with its keys; an array's elements have none.
        is_array: Whether it is an array.
        hides_keys: Whether all its keys are masked, but for operators.
        comma: What separates the next item from the one before.
        seen: The items that may not come again.
        start: At which piece of the text it begins, or its key.
        once: Whether it may itself not come again in what it stands in.
        room: How much room there was before it.
    """

    __slots__ = ("comma", "hides_keys", "is_array", "items", "once", "place", "room", "seen", "start")

    def __init__(self, value: Any, place: Place, start: int = 0, once: bool = False, room: int = 0) -> None:
        self.place = place
        self.comma = ""
        self.seen: set[str] | None = None
        self.start = start
        self.once = once
        self.room = room
        self.is_array = type(value) is list or isinstance(value, (list, tuple))
        if self.is_array:
            self.items: Iterator[tuple[Any, Any]] = zip(itertools.repeat(None), itertools.islice(value, _ELEMENTS))
            self.hides_keys = False
        else:
            self.items = iter(value.items())
            self.hides_keys = len(value) > _KEYS

    def is_new(self, item: str) -> bool:
        """Whether an item may come: it isn't there yet or, where the order has a meaning, not just before."""
        if self.seen is None or (self.is_array and self.place.is_ordered and item not in self.seen):
            self.seen = {item}
        elif item in self.seen:
            return False
        else:
            self.seen.add(item)
        return True


class _Text:
    """A text that is being written."""

    __slots__ = ("_is_raw", "_levels", "_limit", "_pieces", "_raw_room", "is_whole")

    def __init__(self, is_raw: bool, limit: int) -> None:
        self._is_raw = is_raw
        self._limit = limit
        self.is_whole = False
        """Whether all of it is written."""
        self._pieces: list[str] = []
        self._levels: list[_Level] = []
        self._raw_room = limit  # how many bytes of raw documents may still be read

    def write(self, command: Mapping[str, Any], place: Place) -> None:
        """Write until all is written, or there is no more room."""
        # One loop, and a stack of its own: documents may be nested deeper than calls.
        level = _Level(command, place)
        level.hides_keys = False
        levels, pieces, is_raw = self._levels, self._pieces, self._is_raw
        levels.append(level)
        pieces.append("{")
        room = self._limit - 2
        values = _VALUES
        while True:
            for key, value in level.items:
                place = level.place
                head = ""
                once = not is_raw
                if level.is_array:
                    child = place.elements
                else:
                    key = key if type(key) is str else _text(key)
                    is_operator = key[:1] == "$"
                    child = place.fields.get(key) or (place.operators if is_operator else place.others)
                    if child is OMITTED:
                        continue
                    if is_raw:
                        head = extended_json.quoted(key, room) + ":"
                    elif level.hides_keys and not is_operator:
                        head = MASKED_KEY
                    else:
                        head = masked_key(key)
                        once = head == MASKED_KEY
                left = room - len(level.comma) - len(head)
                values -= 1
                if values < 0:
                    return

                kind = type(value)
                body = None if is_raw or kind in _LITERALS else _flat(value, kind, child)
                # Where it doesn't fit, as much of it is written as of one that isn't flat.
                if body is not None and len(body) <= left and (kind is list or len(value) <= values):
                    values -= len(value) if kind is dict else 1
                elif kind in _LITERALS or (inner := self._inner(value, kind)) is None:
                    if is_raw:
                        body = extended_json.literal(value, left)
                    else:
                        body = MASK if child.leaf is None else child.leaf(value)
                elif left < 2:
                    room = _NONE
                    break
                else:
                    if child is COMMAND and isinstance(inner, Mapping):
                        command_name = _text(next(iter(inner), ""))
                        if is_sensitive(command_name):  # the driver doesn't redact it in here
                            return
                        child = RAW_COMMAND if is_raw else command_place(command_name)
                    within = _Level(inner, child, len(pieces) + 1, once, room)
                    pieces.append(level.comma)
                    pieces.append(head + ("[" if within.is_array else "{"))
                    levels.append(within)
                    room = left - 2
                    break
                if once and not level.is_new(head + body):
                    continue
                if len(body) > left:
                    room = _NONE
                    break
                pieces.append(level.comma + head + body)
                level.comma = ","
                room = left - len(body)
            else:
                pieces.append("]" if level.is_array else "}")
                levels.pop()
                if not levels:
                    self.is_whole = True
                    return
                if level.once and not levels[-1].is_new("".join(pieces[level.start :])):
                    room = level.room
                    del pieces[level.start - 1 :]
                else:
                    levels[-1].comma = ","
            if room == _NONE:
                room = self._without_repetition()
                if room == _NONE:
                    return
            level = levels[-1]

    def closed(self) -> str | None:
        """What is written, with what is open closed; None where that is nothing."""
        self._without_repetition()
        text = "".join(self._pieces + ["]" if level.is_array else "}" for level in reversed(self._levels)])
        return text if len(text) > 2 else None

    def _without_repetition(self) -> int:
        """Take back what is as yet the same as what is there already; how much room there is then.

        Whether one or many documents of one shape are written makes no difference then, even if they hardly fit.
        """
        levels = self._levels
        for number, (around, level) in enumerate(itertools.pairwise(levels), 1):
            if not level.once or not around.seen:
                continue
            beginning = "".join(self._pieces[level.start :])
            if any(item.startswith(beginning) for item in around.seen):
                del self._pieces[level.start - 1 :]
                del levels[number:]
                return level.room
        return _NONE

    def _inner(self, value: Any, kind: type) -> Mapping[str, Any] | Sequence[Any] | None:
        """A value as the document or array that it is sent as; None for any other, and for too many raw bytes."""
        if kind is dict or kind is list:
            return value  # type: ignore[no-any-return]
        if isinstance(value, RawBSONDocument):
            return self._decoded(value.raw)
        if isinstance(value, (Mapping, list, tuple)):
            return value
        if isinstance(value, DBRef):
            return value.as_doc()
        return None

    def _decoded(self, raw: bytes | memoryview) -> Mapping[str, Any] | None:
        """A raw document, decoded for this text: by its own look-ups it would keep what they decode."""
        if len(raw) > self._raw_room:
            return None
        self._raw_room -= len(raw)
        try:
            return bson.decode(bytes(raw), CODEC_OPTIONS)
        except bson.InvalidBSON:
            return None


def _may_be_remembered(text: str) -> bool:
    # A masked key may be of any length, and is somebody's data.
    return len(text) <= _REMEMBERED_LENGTH and MASKED_KEY not in text


def _is_flat(value: dict[Any, Any], place: Place) -> bool:
    """Whether a document holds nothing but literals, none of which stays: then its keys are all that its text shows."""
    return (
        place.masks_literals
        and len(value) <= _KEYS
        and _LITERALS.issuperset(map(type, value.values()))
        and place.fields.keys().isdisjoint(value)
    )


def _flat(value: Any, kind: type, place: Place) -> str | None:
    """The masked text of a document or an array that holds nothing but literals, none of which stays; or None."""
    if kind is list:
        if place.elements.leaf is None and _LITERALS.issuperset(map(type, value[:_ELEMENTS])):
            return f"[{MASK}]" if value else "[]"
        return None
    if kind is not dict or not _is_flat(value, place):
        return None
    keys = tuple(value)
    text = _texts_of_keys.get(keys)
    if text is None:
        names = dict.fromkeys(masked_key(_text(key)) for key in keys)
        text = "{" + ",".join([name + MASK for name in names]) + "}"
        if _may_be_remembered(text):
            _texts_of_keys.put(keys, text)
    return text


def _text(key: object) -> str:
    return str.__str__(key) if isinstance(key, str) else "?"
