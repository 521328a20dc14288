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
    FLAG,
    KEY_LENGTH,
    MASK,
    MASKED_KEY,
    NAME,
    OMITTED,
    OMITTED_IF_MASKED,
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

# What the end of a document or an array that was cut looks like.
_CUT_DOCUMENT: Final = f"{extended_json.CUT}:{extended_json.CUT}"
_CUT_ARRAY: Final = extended_json.CUT
# How much room is kept for each of the command's own fields, if a long field comes before it, and for a pipeline's last
# stage: enough to show most of them whole, and at least `{"...":"..."}`.
_LEAST_ROOM: Final = 14
_FIELD_ROOM: Final = 100
_STAGE_ROOM: Final = 200
# How many values of a pipeline's last stage are read after the limit of values, and of all last stages.
_STAGE_VALUES: Final = 20
_MORE_VALUES: Final = 100
_NO_FIELDS: Final[Iterator[int]] = iter(())
# Texts that show nothing.
_EMPTY: Final = frozenset({"", "{}", f"{{{_CUT_DOCUMENT}}}"})

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

    Never raises. At most 16 elements of each array, 1,000 values in all, and `limit` bytes of raw documents are read;
    twice if the text would be longer than `limit`. A document of which something was left out ends with `"...":"..."`,
    an array with `"..."`, and a string with `...`.

    Args:
        command_name: The name of the command, as in the driver's event.
        command: The command. It is not changed.
        is_raw: Whether values are shown instead of masked.
        limit: Maximum length of the text in characters.

    Returns:
        The text, or None if there is nothing to show, as for a command that holds credentials.
    """
    place = command_place(command_name)
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
    written = None
    with contextlib.suppress(Exception):
        written = _TextWriter(is_raw, limit).written(command, place)
    if written is None:  # too long, or unreadable
        written = _cut_text(command, place, is_raw, limit)
    elif shape is not None and _is_cacheable(written):
        _texts_of_shapes.put(shape, written)
    return None if written in _EMPTY else written


def _cut_text(command: Mapping[str, Any], place: Place, is_raw: bool, limit: int) -> str:
    writer = _TextWriter(is_raw, limit, cuts=True)
    try:
        return writer.written(command, place) or ""
    except Exception:
        return writer.closed()


def _shape(command_name: str, command: Mapping[str, Any], place: Place) -> tuple[Any, ...] | None:
    """Return everything that the masked text of a command depends on, as a cache key.

    Returns:
        The key, or None for a command that holds anything except literals and flat documents (see `_is_flat`), or
        that shows a literal other than a flag and the name of a collection.
    """
    if type(command) is not dict:
        return None
    parts: list[Any] = [command_name, tuple(command)]
    for key, value in command.items():
        kind = type(value)
        child = place.fields.get(key)
        if child is OMITTED or child is OMITTED_IF_MASKED:
            continue
        if kind in _LITERALS:
            if child is None or child.leaf is None:
                parts.append(None)  # one part per key, so that different commands never have the same shape
            elif child is FLAG:
                parts.append(value if kind is bool else None)
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

    Args:
        value: The document or array.
        place: Its place in the command.
        item: Its key and value, as in its parent's `items`.
        start: Index of the piece that opens it, which includes its key.
        deduplicate: Whether it is removed again if its parent already contains an equal item.
        room_before: How many characters were left before it.
        room_inside: How many characters are left for its items.

    Attributes:
        items: The keys and values that are still to be written. The key of an array's element is None.
        last: The last stage of a pipeline, in a list, while it is still to be written.
        is_array: Whether it is an array.
        is_command: Whether it is a command. Its own fields are shown even if no more values are to be read.
        masks_keys: Whether all its keys except operators are masked.
        comma: The separator before the next item: empty before the first.
        seen: The written items, as text, that are not written again. None if there are none yet.
        has_merged: Whether items were merged: any or, if the order matters, the one before.
        is_cut: Whether items were left out, for which there is a mark in any case.
        is_short: Whether items were not read, for which there is no mark if those that were read have been merged.
        mark: What its end looks like if it was cut. Empty once it is written.
        field_room: How many characters are kept for each of the following fields of a command.
        stage_room: How many characters are kept for the last stage.
        is_second_try: Whether the next item is written again because it didn't fit.
    """

    __slots__ = (
        "comma",
        "deduplicate",
        "field_room",
        "has_merged",
        "is_array",
        "is_command",
        "is_cut",
        "is_second_try",
        "is_short",
        "item",
        "items",
        "last",
        "mark",
        "masks_keys",
        "place",
        "room_before",
        "room_inside",
        "seen",
        "stage_room",
        "start",
    )

    def __init__(
        self,
        value: Any,
        place: Place,
        item: tuple[Any, Any],
        start: int,
        deduplicate: bool,
        room_before: int,
        room_inside: int,
    ) -> None:
        self.place = place
        self.item = item
        self.start = start
        self.deduplicate = deduplicate
        self.room_before = room_before
        self.room_inside = room_inside
        self.comma = ""
        self.seen: set[str] | None = None
        self.last: Sequence[Any] = ()
        self.field_room: Iterator[int] = _NO_FIELDS
        self.stage_room = 0
        self.is_command = self.has_merged = self.is_cut = self.is_short = self.is_second_try = False
        self.is_array = type(value) is list or isinstance(value, (list, tuple))
        if self.is_array:
            self.mark = _CUT_ARRAY
            self.masks_keys = False
            elements = _ELEMENTS
            if len(value) > _ELEMENTS:
                self.is_short = True
            if place.is_pipeline and value:
                self.last = value[-1:]
                self.is_cut = self.is_short
                elements = min(len(value), _ELEMENTS) - 1
            self.items: Iterator[tuple[Any, Any]] = zip(itertools.repeat(None), itertools.islice(value, elements))
        else:
            self.mark = _CUT_DOCUMENT
            self.masks_keys = len(value) > _KEYS
            self.items = iter(value.items())

    def is_new(self, item: str) -> bool:
        """Whether to write an item: no equal item was written before or, if the order matters, directly before it."""
        if self.seen is None:
            self.seen = {item}
        elif item in self.seen:
            self.has_merged = True
            return False
        elif self.is_array and self.place.is_ordered:
            self.seen = {item}
            self.has_merged = False
        else:
            self.seen.add(item)
        return True


class _TextWriter:
    """Writes the text of one command.

    Most texts fit. So there are two ways to write one: as it is, until it turns out to be too long, or with room kept
    for the marks of what is cut, for the command's own fields, and for the last stage of each pipeline.

    Args:
        is_raw: Whether values are shown instead of masked.
        limit: Maximum length of the text in characters.
        cuts: Whether what doesn't fit is cut. If not, there is no text of a command that doesn't fit.
    """

    __slots__ = ("_cuts", "_is_raw", "_levels", "_limit", "_pieces", "_raw_room")

    def __init__(self, is_raw: bool, limit: int, *, cuts: bool = False) -> None:
        self._is_raw = is_raw
        self._limit = limit
        self._cuts = cuts
        self._pieces: list[str] = []
        self._levels: list[_Level] = []
        self._raw_room = limit  # bytes of raw documents that may still be read

    def written(self, command: Mapping[str, Any], place: Place) -> str | None:
        """Return the text of a command, or None if it is too long.

        Empty if a command that is nested in it holds credentials.
        """
        # This is one long loop for speed: splitting it would add at least one call per value. It keeps its own stack,
        # because documents may be nested deeper than Python's calls.
        levels, pieces, is_raw, cuts, limit = self._levels, self._pieces, self._is_raw, self._cuts, self._limit
        level = _Level(command, place, (None, command), 0, False, limit, limit - 2)
        level.is_command = True
        level.masks_keys = False
        levels.append(level)
        pieces.append("{")
        room = self._with_room_kept(level, command) if cuts else limit - 2
        values = _VALUES
        is_exhausted = False
        more_values = _MORE_VALUES
        while True:
            opened = None
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
                    if child is OMITTED or (child is OMITTED_IF_MASKED and not is_raw):
                        continue
                    if is_raw:
                        head = extended_json.quoted(key, limit) + ":"
                    elif level.masks_keys and not is_operator:
                        head = MASKED_KEY
                    else:
                        head = masked_key(key)
                        deduplicate = head == MASKED_KEY
                    if cuts:
                        room += next(level.field_room, 0)
                values -= 1
                if values < 0 and (not level.is_command or values < -_KEYS):
                    if not is_exhausted:
                        is_exhausted = True
                        room = self._without_repetition(room)
                        level = levels[-1]
                    level.is_short = True
                    level.is_cut = level.is_cut or level.place.is_pipeline
                    break
                left = space = room - len(level.comma) - len(head)
                if deduplicate:
                    if level.is_second_try:
                        level.is_second_try = deduplicate = False
                    else:
                        # Written with the same room as the first item, or equal items would be cut differently.
                        first = level.room_inside - len(head)
                        if first > space:  # not so for the last stage of a pipeline
                            space = first

                kind = type(value)
                if is_raw or kind in _LITERALS or (cuts and (kind is not list or space < _LEAST_ROOM)):
                    body = None
                else:
                    body = _flat(value, kind, child)
                if body is not None and (kind is list or len(value) <= values):
                    values -= len(value) if kind is dict else 1
                elif kind in _LITERALS or (inner := self._inner(value, kind)) is None:
                    if is_raw:
                        body = extended_json.literal(value, left if cuts else limit)
                    else:
                        body = MASK if child.leaf is None else child.leaf(value)
                elif not cuts and space < 2:
                    return None
                elif cuts and space < _LEAST_ROOM:
                    level.is_cut = True
                    break
                else:
                    is_command = child is COMMAND and isinstance(inner, Mapping)
                    if is_command:
                        command_name = _key_text(next(iter(inner), ""))
                        if is_sensitive(command_name):  # the driver doesn't redact nested commands
                            return ""
                        child = command_place(command_name)
                    opened = _Level(inner, child, (key, value), len(pieces) + 1, deduplicate, room, space - 2)
                    pieces.append(level.comma)
                    pieces.append(head + ("[" if opened.is_array else "{"))
                    levels.append(opened)
                    room = space - 2
                    if is_command:
                        opened.is_command = True
                        opened.masks_keys = False
                    if cuts:
                        room = self._with_room_kept(opened, inner)
                    break
                if deduplicate and not level.is_new(head + body):
                    if level.is_array:  # counts as one value however many there are, as in a flat array
                        values += 1
                    continue
                if len(body) > left or (cuts and level.is_array and body == extended_json.CUT):
                    if not cuts:
                        return None
                    # In an array an ellipsis stands for all that follows.
                    if level.is_array or left < len(extended_json.CUT) or body == MASK:
                        level.is_cut = True
                        break
                    body = extended_json.CUT
                pieces.append(level.comma + head + body)
                level.comma = ","
                room = left - len(body)
            if opened is not None:
                level = opened
                continue

            # Nothing more is written of this document or array, except a mark and a pipeline's last stage.
            if level.mark and (level.is_cut or (level.is_short and not level.has_merged)):
                if not cuts:
                    room -= len(level.comma) + len(level.mark)
                    if room < 0:
                        return None
                pieces.append(level.comma + level.mark)
                level.comma = ","
                level.mark = ""
                level.seen = None
            if level.last:
                room += level.stage_room
                level.items = iter([(None, level.last[0])])
                level.last = ()
                if values < 0 and more_values:
                    values = _STAGE_VALUES
                    is_exhausted = False
                    more_values -= _STAGE_VALUES
                continue
            pieces.append("]" if level.is_array else "}")
            levels.pop()
            if not levels:
                return "".join(pieces)
            parent = levels[-1]
            if level.deduplicate:
                text = "".join(pieces[level.start :])
                room = level.room_before
                left = room - len(parent.comma)
                if not parent.is_new(text):
                    del pieces[level.start - 1 :]
                elif len(text) <= left:
                    room = left - len(text)
                    parent.comma = ","
                elif cuts:  # as much of it as fits
                    del pieces[level.start - 1 :]
                    parent.is_second_try = True
                    parent.items = itertools.chain((level.item,), parent.items)
                else:
                    return None
            else:
                if cuts and level.mark:  # the room for it isn't needed
                    room += 1 + len(level.mark)
                parent.comma = ","
            level = parent

    def closed(self) -> str:
        """Return the text up to a value that can't be read, with a mark in each document and array that is open."""
        levels, pieces = self._levels, self._pieces
        for number, (parent, level) in enumerate(itertools.pairwise(levels), 1):
            # If it isn't the first item, it is written with more room than there is.
            if level.deduplicate and parent.comma:
                del pieces[level.start - 1 :]
                del levels[number:]
                break
        comma = levels[-1].comma if levels else ""
        for level in reversed(levels):
            if level.mark:
                pieces.append(comma + level.mark)
            pieces.append("]" if level.is_array else "}")
            comma = ","
        return "".join(pieces)

    def _with_room_kept(self, level: _Level, value: Any) -> int:
        """Keep room in a document or array for what is shown in any case, and return how much is left."""
        room = level.room_inside - 1 - len(level.mark)
        if level.is_command:
            rooms = self._rooms_of_fields(value, level.place, room)
            level.field_room = iter(rooms)
            room -= sum(rooms)
        elif level.last:
            level.stage_room = min(room, _STAGE_ROOM, max(room // 4, 4 * _LEAST_ROOM))
            room -= level.stage_room
        level.room_inside = room
        return room

    def _rooms_of_fields(self, command: Mapping[str, Any], place: Place, room: int) -> list[int]:
        """Return how much room to keep for each of a command's own fields, as far as there is room for them."""
        of_value = max(_LEAST_ROOM, min(_FIELD_ROOM, room // 40))
        rooms = []
        for key in command:
            if place.fields.get(key) is not OMITTED:
                of_field = len(extended_json.quoted(_key_text(key), room)) + 2 + of_value
                if of_field > room:
                    break
                rooms.append(of_field)
                room -= of_field
        return rooms

    def _without_repetition(self, room: int) -> int:
        """Remove each unfinished item whose parent already contains an item that begins with the same text.

        So one document and many documents of the same shape give the same text, even if not all of them are read.

        Returns:
            How many characters are left after the removal, or `room` if nothing was removed.
        """
        levels, pieces = self._levels, self._pieces
        for number in range(len(levels) - 1, 0, -1):
            level, parent = levels[number], levels[number - 1]
            if level.deduplicate and parent.seen:
                beginning = "".join(pieces[level.start :])
                if any(item.startswith(beginning) for item in parent.seen):
                    del pieces[level.start - 1 :]
                    del levels[number:]
                    parent.has_merged = True
                    room = level.room_before
        return room

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
    return text not in _EMPTY and len(text) <= _MAX_CACHED_LENGTH and MASKED_KEY not in text


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
