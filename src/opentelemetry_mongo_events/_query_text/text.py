"""Writes a command as masked or raw JSON, with limits on the length of the text and on the work to write it."""

from __future__ import annotations

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
from opentelemetry_mongo_events._query_text.cutting import Part, cut
from opentelemetry_mongo_events._query_text.masking import (
    COMMAND,
    CONDITION,
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

# How many more values are read of what a text always shows: the command's own fields and the last stages of its
# pipelines. Each of them gets a part of the values that are left, but at least 2: a stage and its argument.
_MORE_VALUES: Final = 500
_PARTS: Final = 25
# In raw text each of them has some room, too.
_MORE_ROOM: Final = 200

# Texts that show nothing.
_EMPTY: Final = frozenset({"", "{}", '{"...":"..."}'})

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
# Caches of texts, and the kinds of the commands among them. Of a command they hold its keys, if none is masked, and the
# value in place of a collection name, but no other values.
_texts_of_keys: Final[BoundedDict[tuple[str, ...], str]] = BoundedDict(1_000)
_texts_of_shapes: Final[BoundedDict[tuple[Any, ...], str]] = BoundedDict(1_000)
_kinds: Final[BoundedDict[tuple[Any, ...], _Kind]] = BoundedDict(1_000)


def query_text(command_name: str, command: Mapping[str, Any], is_raw: bool, limit: int) -> str | None:
    """Return the text of a command as valid JSON.

    Never raises. At most 16 elements of each array and `limit` bytes of raw documents are read, 1,000 values in all,
    and some more of the command's own fields and of the last stages of pipelines. A document of which something was
    left out ends with `"...":"..."`, an array with `"..."`, and a string with `...`.

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
    writer = _TextWriter(is_raw, limit)
    try:
        whole = writer.written(command, place)
    except Exception:
        whole = writer.closed()
        shape = None
    if whole is None:
        return None
    text = whole.text()
    if len(text) > limit:
        shape = None
        try:
            text = cut(whole, limit, is_raw)
        except RecursionError:  # it recurses, and the application's own calls may be nested deep
            return None
    if text in _EMPTY:
        return None
    if shape is not None and _is_cacheable(text):
        _texts_of_shapes.put(shape, text)
        _kinds.put(shape[0].key, shape[0])
    return text


class _Kind:
    """What all commands with the same name, the same keys and values of the same types have in common.

    Attributes:
        key: The name, the keys and the types.
        variable: The keys of the values that the masked text depends on, each with its place; None if it depends on
            more than a cache key can hold.
    """

    __slots__ = ("key", "variable")

    def __init__(self, key: tuple[Any, ...], command: dict[str, Any], place: Place) -> None:
        self.key = key
        self.variable = _variable_values(command, place)


def _variable_values(command: dict[str, Any], place: Place) -> tuple[tuple[str, Place], ...] | None:
    """Return `_Kind.variable`.

    It is None for a command that holds anything except literals and documents, or that shows a literal other than a
    flag and the name of a collection.
    """
    variable = []
    for key, value in command.items():
        child = place.fields.get(key)
        if child is OMITTED or child is OMITTED_IF_MASKED:
            continue
        kind = type(value)
        if kind is dict:
            variable.append((key, child or place.others))
        elif kind not in _LITERALS:
            return None
        elif child is None or child.leaf is None or (child is FLAG and kind is not bool):
            continue  # always masked
        elif child is FLAG or (child is NAME and kind is str):
            variable.append((key, child))
        else:
            return None
    return tuple(variable)


def _shape(command_name: str, command: Mapping[str, Any], place: Place) -> tuple[Any, ...] | None:
    """Return everything that the masked text of a command depends on, as a cache key that begins with its kind.

    Returns:
        The key; None if there is none for commands of this kind, if a document isn't flat (see `_is_flat`), or if the
        name of the collection is too long to be shown.
    """
    if type(command) is not dict:
        return None
    key = (command_name, *command, *map(type, command.values()))
    kind = _kinds.get(key) or _Kind(key, command, place)
    if kind.variable is None:
        return None
    shape: list[Any] = [kind]
    for name, child in kind.variable:
        value = command[name]
        if child is FLAG:
            shape.append(value)
        elif child is NAME:
            if len(value) > KEY_LENGTH:  # it is masked or cut
                return None
            shape.append(value)
        elif _is_flat(value, child):
            shape.append(tuple(value))
        else:
            return None
    return tuple(shape)


class _Level(Part):
    """A document or an array that is being written.

    Args:
        value: The document or array.
        place: Its place in the command.
        key: Its key as JSON, with the colon. Empty in an array.
        deduplicate: Whether it is left out if its parent already contains an equal item.

    Attributes:
        items: The keys and values that are still to be written. The key of an array's element is None.
        last: The last stage of a pipeline, in a list, while it is still to be written.
        masks_keys: Whether all its keys except operators are masked.
        seen: The written items, as text, that are not written again. None if there are none yet.
        has_merged: Whether items were merged: any or, if the order matters, the one before.
        is_short: Whether not all of its items were read.
        is_marked: Whether its text says so.
    """

    __slots__ = (
        "deduplicate",
        "has_merged",
        "is_marked",
        "is_short",
        "items",
        "key",
        "last",
        "masks_keys",
        "place",
        "seen",
    )

    def __init__(self, value: Any, place: Place, key: str, deduplicate: bool) -> None:
        is_array = type(value) is not dict and isinstance(value, (list, tuple))
        super().__init__(is_array, is_array and place.is_pipeline)
        self.place = place
        self.key = key
        self.deduplicate = deduplicate
        self.seen: set[str] | None = None
        self.last: Sequence[Any] = ()
        self.has_merged = self.is_marked = False
        if is_array:
            count = len(value)
            self.masks_keys = False
            self.is_short = count > _ELEMENTS
            read = value
            if self.is_pipeline and value:
                self.last = value[-1:]
                read = itertools.islice(value, min(count, _ELEMENTS) - 1)
            elif count > _ELEMENTS:
                read = itertools.islice(value, _ELEMENTS)
            self.items: Iterator[tuple[Any, Any]] = zip(itertools.repeat(None), read)
        else:
            self.masks_keys = len(value) > _KEYS
            self.is_short = False
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

    def add_mark(self) -> None:
        """Write that something is left out, once."""
        if not self.is_marked:
            self.is_marked = True
            self.texts.append(self.mark)

    def add(self, inner: _Level) -> None:
        """Write a document or an array that is complete."""
        text = inner.key + inner.text()
        if not inner.deduplicate or self.is_new(text):
            self.nested[len(self.texts)] = inner
            self.texts.append(text)


class _TextWriter:
    """Writes the whole text of one command, as far as it is read.

    Args:
        is_raw: Whether values are shown instead of masked.
        limit: How many bytes of raw documents are read, and after how many characters of raw text the rest isn't read.
    """

    __slots__ = ("_is_raw", "_levels", "_limit", "_raw_room")

    def __init__(self, is_raw: bool, limit: int) -> None:
        self._is_raw = is_raw
        self._levels: list[_Level] = []
        self._limit = limit
        self._raw_room = limit  # bytes of raw documents that may still be read

    def written(self, command: Mapping[str, Any], place: Place) -> Part | None:
        """Return a command as text, or None if a command that is nested in it holds credentials."""
        # This is one long loop for speed: splitting it would add at least one call per value. It keeps its own stack,
        # because documents may be nested deeper than Python's calls.
        levels, is_raw, limit = self._levels, self._is_raw, self._limit
        level = _Level(command, place, "", False)
        level.is_command = True
        level.masks_keys = False
        levels.append(level)
        values = _VALUES
        more_values = _MORE_VALUES
        room = limit  # in raw text
        is_exhausted = False
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
                values -= 1
                if values < 0:
                    if level.is_command and more_values > 0:
                        values = max(2, more_values // _PARTS)
                        more_values -= values
                        room = max(room, _MORE_ROOM)
                        is_exhausted = False
                    elif not level.is_command or values < -_KEYS:
                        if not is_exhausted:
                            is_exhausted = True
                            self._leave_out_repetition()
                            level = levels[-1]
                        level.is_short = True
                        break

                kind = type(value)
                body = None if is_raw or kind in _LITERALS else _flat(value, kind, child)
                if body is not None and (kind is list or len(value) <= values):
                    values -= len(value) if kind is dict else 1
                elif kind in _LITERALS or (inner := self._inner(value, kind)) is None:
                    if is_raw:
                        body = extended_json.literal(value, limit)
                        room -= len(head) + len(body)
                        if room < 0:
                            values = min(values, 0)
                    else:
                        body = MASK if child.leaf is None else child.leaf(value)
                else:
                    is_command = child is COMMAND and isinstance(inner, Mapping)
                    if is_command:
                        command_name = _key_text(next(iter(inner), ""))
                        if is_sensitive(command_name):  # the driver doesn't redact nested commands
                            return None
                        child = command_place(command_name)
                    if child is CONDITION and _is_value(inner):
                        child = child.others
                    opened = _Level(inner, child, head, deduplicate)
                    levels.append(opened)
                    if is_command:
                        opened.is_command = True
                        opened.masks_keys = False
                    break
                text = head + body
                if not deduplicate or level.is_new(text):
                    level.texts.append(text)
                elif level.is_array:  # counts as one value however many there are, as in a flat array
                    values += 1
            if opened is not None:
                level = opened
                continue

            # Nothing more is written of this document or array, except a mark and a pipeline's last stage.
            if level.is_short and (level.is_pipeline or not level.has_merged):
                level.add_mark()
                level.seen = None
            if level.last:
                level.items = iter([(None, level.last[0])])
                level.last = ()
                level.is_short = False
                if values <= 0 < more_values:
                    values = max(2, more_values // _PARTS)
                    more_values -= values
                    room = max(room, _MORE_ROOM)
                    is_exhausted = False
                continue
            levels.pop()
            if not levels:
                return level
            levels[-1].add(level)
            level = levels[-1]

    def closed(self) -> Part | None:
        """Return the text up to a value that can't be read, with a mark in each document and array that is open."""
        self._leave_out_repetition()
        level = None
        for parent in reversed(self._levels):
            if level is not None:
                parent.add(level)
            level = parent
            level.add_mark()
        return level

    def _leave_out_repetition(self) -> None:
        """Leave out each unfinished item whose parent already contains an item that begins with the same text.

        So one document and many documents of the same shape give the same text, even if not all of them are read.
        """
        levels = self._levels
        beginning = ""
        for number in range(len(levels) - 1, 0, -1):
            level, parent = levels[number], levels[number - 1]
            texts = [*level.texts, beginning] if beginning else level.texts
            beginning = level.key + ("[" if level.is_array else "{") + ",".join(texts)
            if level.deduplicate and parent.seen and any(item.startswith(beginning) for item in parent.seen):
                del levels[number:]
                parent.has_merged = True
                beginning = ""

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


def _is_value(inner: Mapping[str, Any] | Sequence[Any]) -> bool:
    """Whether a document in a filter is a value to compare with, and no operators: its first key decides."""
    return isinstance(inner, Mapping) and not _key_text(next(iter(inner), "")).startswith("$")


def _key_text(key: object) -> str:
    """Return a key as a plain `str`, or `?` if it isn't a string."""
    return str.__str__(key) if isinstance(key, str) else "?"
