"""Writes a command as masked or raw JSON, with limits on the length of the text and on the work to write it."""

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
    KEY_LENGTH,
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

# How many elements of each array, and how many values of a command, are read at most.
_ELEMENTS: Final = 16
_VALUES: Final = 1_000
# A document with more keys is most likely a map whose keys are data.
_KEYS: Final = 100

_NO_ROOM: Final = -1

# The types of most values. One look-up of the type tells them apart from documents and arrays.
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

_MAX_CACHED_LENGTH: Final = 1_000
# Caches of texts. Of a command they hold its keys, if none is masked, and the value in place of a collection name, but
# no other values.
_texts_of_keys: Final[BoundedDict[tuple[str, ...], str]] = BoundedDict(1_000)
_texts_of_shapes: Final[BoundedDict[tuple[Any, ...], str]] = BoundedDict(1_000)


def query_text(command_name: str, command: Mapping[str, Any], is_raw: bool, limit: int) -> str | None:
    """Return the text of a command as valid JSON.

    Never raises. At most 16 elements of each array, 1,000 values in all, and `limit` bytes of raw documents are read.
    The rest is left out.

    Args:
        command_name: The name of the command, as in the driver's event.
        command: The command. It is not changed.
        is_raw: Whether values are shown instead of masked.
        limit: Maximum length of the text in characters.

    Returns:
        The text, or None if there is nothing to show, as for a command that holds credentials.
    """
    place = RAW_COMMAND if is_raw else command_place(command_name)
    shape = cached = None
    # A class of the application may raise anything, and reading a dictionary that another thread changes may raise too.
    try:
        if not is_raw:
            shape = _shape(command_name, command, place)
            cached = None if shape is None else _texts_of_shapes.get(shape)
    except Exception:
        shape = None
    if cached is not None and len(cached) <= limit:
        return cached
    if is_sensitive(command_name):
        return None
    writer = _TextWriter(is_raw, limit)
    with contextlib.suppress(Exception):
        writer.write(command, place)
    written = writer.closed()
    if shape is not None and written is not None and writer.is_complete and _is_cacheable(written):
        _texts_of_shapes.put(shape, written)
    return written


def _shape(command_name: str, command: Mapping[str, Any], place: Place) -> tuple[Any, ...] | None:
    """Return everything that the masked text of a command depends on, as a cache key.

    Returns:
        The key, or None for a command that holds anything except literals and flat documents (see `_is_flat`), or
        that shows a literal other than the name of a collection.
    """
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
                parts.append(None)  # one part per key, so that different commands never have the same shape
            elif child is NAME and kind is str and len(value) <= KEY_LENGTH:  # else it is masked or cut
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
        place: Its place in the command.
        items: The keys and values that are still to be written. The key of an array's element is None.
        is_array: Whether it is an array.
        masks_keys: Whether all its keys except operators are masked.
        comma: The separator before the next item: empty before the first.
        seen: The written items, as text, that are not written again. None if there are none yet.
        start: Index of the piece that opens it, which includes its key.
        deduplicate: Whether it is removed again if its parent already contains an equal item.
        room: How many characters were left before it.
    """

    __slots__ = ("comma", "deduplicate", "is_array", "items", "masks_keys", "place", "room", "seen", "start")

    def __init__(self, value: Any, place: Place, start: int = 0, deduplicate: bool = False, room: int = 0) -> None:
        self.place = place
        self.comma = ""
        self.seen: set[str] | None = None
        self.start = start
        self.deduplicate = deduplicate
        self.room = room
        self.is_array = type(value) is list or isinstance(value, (list, tuple))
        if self.is_array:
            self.items: Iterator[tuple[Any, Any]] = zip(itertools.repeat(None), itertools.islice(value, _ELEMENTS))
            self.masks_keys = False
        else:
            self.items = iter(value.items())
            self.masks_keys = len(value) > _KEYS

    def is_new(self, item: str) -> bool:
        """Whether to write an item: no equal item was written before or, if the order matters, directly before it."""
        if self.seen is None or (self.is_array and self.place.is_ordered and item not in self.seen):
            self.seen = {item}
        elif item in self.seen:
            return False
        else:
            self.seen.add(item)
        return True


class _TextWriter:
    """Writes the text of one command.

    Attributes:
        is_complete: Whether the whole command is written.
    """

    __slots__ = ("_is_raw", "_levels", "_limit", "_pieces", "_raw_room", "is_complete")

    def __init__(self, is_raw: bool, limit: int) -> None:
        self._is_raw = is_raw
        self._limit = limit
        self.is_complete = False
        self._pieces: list[str] = []
        self._levels: list[_Level] = []
        self._raw_room = limit  # bytes of raw documents that may still be read

    def write(self, command: Mapping[str, Any], place: Place) -> None:
        """Write the command, until the end or until a limit is reached."""
        # This is one long loop for speed: splitting it would add at least one call per value. It keeps its own stack,
        # because documents may be nested deeper than Python's calls.
        level = _Level(command, place)
        level.masks_keys = False
        levels, pieces, is_raw = self._levels, self._pieces, self._is_raw
        levels.append(level)
        pieces.append("{")
        room = self._limit - 2
        values = _VALUES
        while True:
            for key, value in level.items:
                place = level.place
                head = ""
                deduplicate = not is_raw
                if level.is_array:
                    child = place.elements
                else:
                    key = key if type(key) is str else _key_text(key)
                    is_operator = key[:1] == "$"
                    child = place.fields.get(key) or (place.operators if is_operator else place.others)
                    if child is OMITTED:
                        continue
                    if is_raw:
                        head = extended_json.quoted(key, room) + ":"
                    elif level.masks_keys and not is_operator:
                        head = MASKED_KEY
                    else:
                        head = masked_key(key)
                        deduplicate = head == MASKED_KEY
                left = room - len(level.comma) - len(head)
                values -= 1
                if values < 0:
                    return

                kind = type(value)
                body = None if is_raw or kind in _LITERALS else _flat(value, kind, child)
                # A flat value that doesn't fit is written value by value instead, as far as there is room.
                if body is not None and len(body) <= left and (kind is list or len(value) <= values):
                    values -= len(value) if kind is dict else 1
                elif kind in _LITERALS or (inner := self._inner(value, kind)) is None:
                    if is_raw:
                        body = extended_json.literal(value, left)
                    else:
                        body = MASK if child.leaf is None else child.leaf(value)
                elif left < 2:
                    room = _NO_ROOM
                    break
                else:
                    if child is COMMAND and isinstance(inner, Mapping):
                        command_name = _key_text(next(iter(inner), ""))
                        if is_sensitive(command_name):  # the driver doesn't redact nested commands
                            return
                        child = RAW_COMMAND if is_raw else command_place(command_name)
                    nested = _Level(inner, child, len(pieces) + 1, deduplicate, room)
                    pieces.append(level.comma)
                    pieces.append(head + ("[" if nested.is_array else "{"))
                    levels.append(nested)
                    room = left - 2
                    break
                if deduplicate and not level.is_new(head + body):
                    continue
                if len(body) > left:
                    room = _NO_ROOM
                    break
                pieces.append(level.comma + head + body)
                level.comma = ","
                room = left - len(body)
            else:
                pieces.append("]" if level.is_array else "}")
                levels.pop()
                if not levels:
                    self.is_complete = True
                    return
                if level.deduplicate and not levels[-1].is_new("".join(pieces[level.start :])):
                    room = level.room
                    del pieces[level.start - 1 :]
                else:
                    levels[-1].comma = ","
            if room == _NO_ROOM:
                room = self._drop_repetition()
                if room == _NO_ROOM:
                    return
            level = levels[-1]

    def closed(self) -> str | None:
        """Return the text with all open documents and arrays closed, or None if it is empty."""
        self._drop_repetition()
        text = "".join(self._pieces + ["]" if level.is_array else "}" for level in reversed(self._levels)])
        return text if len(text) > 2 else None

    def _drop_repetition(self) -> int:
        """Remove an unfinished item if its parent already contains an item that begins with the same text.

        So one document and many documents of the same shape give the same text, even if they barely fit.

        Returns:
            How many characters are left after the removal, or `_NO_ROOM` if nothing was removed.
        """
        levels = self._levels
        for number, (parent, level) in enumerate(itertools.pairwise(levels), 1):
            if not level.deduplicate or not parent.seen:
                continue
            beginning = "".join(self._pieces[level.start :])
            if any(item.startswith(beginning) for item in parent.seen):
                del self._pieces[level.start - 1 :]
                del levels[number:]
                return level.room
        return _NO_ROOM

    def _inner(self, value: Any, kind: type) -> Mapping[str, Any] | Sequence[Any] | None:
        """Return a value as the document or array that the driver sends, or None if it is neither.

        Also None for a raw document that is invalid or too large for the remaining limit.
        """
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
        """Decode a raw document without its own look-ups, which would keep the decoded content in memory."""
        if len(raw) > self._raw_room:
            return None
        self._raw_room -= len(raw)
        try:
            return bson.decode(bytes(raw), CODEC_OPTIONS)
        except bson.InvalidBSON:
            return None


def _is_cacheable(text: str) -> bool:
    # The caches' keys hold unmasked keys. A key that is masked in the text is data, and may have any length.
    return len(text) <= _MAX_CACHED_LENGTH and MASKED_KEY not in text


def _is_flat(value: dict[Any, Any], place: Place) -> bool:
    """Whether a document holds only literals that are all masked, so that its text depends only on its keys."""
    return (
        place.masks_literals
        and len(value) <= _KEYS
        and _LITERALS.issuperset(map(type, value.values()))
        and place.fields.keys().isdisjoint(value)
    )


def _flat(value: Any, kind: type, place: Place) -> str | None:
    """Return the masked text of a document or an array that holds only masked literals, or None for other values."""
    if kind is list:
        if place.elements.leaf is None and _LITERALS.issuperset(map(type, value[:_ELEMENTS])):
            return f"[{MASK}]" if value else "[]"
        return None
    if kind is not dict or not _is_flat(value, place):
        return None
    keys = tuple(value)
    text = _texts_of_keys.get(keys)
    if text is None:
        names = dict.fromkeys(masked_key(_key_text(key)) for key in keys)
        text = "{" + ",".join([name + MASK for name in names]) + "}"
        if _is_cacheable(text):
            _texts_of_keys.put(keys, text)
    return text


def _key_text(key: object) -> str:
    """Return a key as a plain `str`, or `?` if it isn't a string."""
    return str.__str__(key) if isinstance(key, str) else "?"
