"""Cuts a text that is too long, so that it is still valid JSON and shows where something was left out."""

from __future__ import annotations

import re
from typing import Final

from opentelemetry_mongo_events._query_text.extended_json import CUT

_CUT_FIELD: Final = f"{CUT}:{CUT}"

# What a command shows in any case: each of its own fields and the last stage of each pipeline, whole or with at least
# so many characters of it. The least is enough for `{"...":"..."}`.
_LEAST_ROOM: Final = 14
_FIELD_ROOM: Final = 100
_STAGE_ROOM: Final = 200
# As many levels as MongoDB allows. They bound the recursion.
_LEVELS: Final = 100

# The beginning of a JSON string, of which the last character may be incomplete.
_STRING: Final = re.compile(r'"(?:[^"\\]+|\\u[0-9a-f]{4}|\\[^u])*', re.DOTALL)


class Part:
    """A document or an array, as the texts of its items.

    Attributes:
        texts: The items as JSON, with their keys. The last one may be `mark`.
        nested: The items that are documents or arrays themselves, by their index in `texts`.
        mark: What its end looks like if something was left out.
        is_array: Whether it is an array.
        is_command: Whether it is a command, each field of which is shown.
        is_pipeline: Whether it is a pipeline, the last stage of which is shown.
    """

    __slots__ = ("is_array", "is_command", "is_pipeline", "mark", "nested", "texts")

    def __init__(self, is_array: bool, is_pipeline: bool = False) -> None:
        self.texts: list[str] = []
        self.nested: dict[int, Part] = {}
        self.is_array = is_array
        self.is_command = False
        self.is_pipeline = is_pipeline
        self.mark = CUT if is_array else _CUT_FIELD

    def text(self) -> str:
        """Return the whole as JSON."""
        return f"[{','.join(self.texts)}]" if self.is_array else f"{{{','.join(self.texts)}}}"


def cut(part: Part, room: int, is_raw: bool) -> str:
    """Return the text of a document or an array that is longer than there is room, as much of it as fits.

    Args:
        part: The document or array.
        room: Maximum length of the text in characters.
        is_raw: Whether the text shows values. If not, it holds only keys, names and masks.

    Returns:
        The text, or an empty string if there is no room for `{"...":"..."}` or `["..."]`.
    """
    return _Cutter(is_raw).cut(part, room, 0)


class _Cutter:
    __slots__ = ("_is_raw",)

    def __init__(self, is_raw: bool) -> None:
        self._is_raw = is_raw

    def cut(self, part: Part, room: int, depth: int) -> str:
        room -= len("[]")
        if room < len(part.mark) or depth == _LEVELS:
            return ""
        if part.is_command:
            shown = self._fields(part, room, depth)
        elif part.is_pipeline and part.texts[-1] != part.mark:
            shown = self._stages(part, room, depth)
        else:
            shown = self._beginning(part, len(part.texts), room, depth)
        joined = ",".join(shown)
        return f"[{joined}]" if part.is_array else f"{{{joined}}}"

    def _beginning(self, part: Part, count: int, room: int, depth: int) -> list[str]:
        """Return as many of the first items as fit, and a mark unless all of them do."""
        shown = []
        for index in range(count):
            is_last = index == len(part.texts) - 1
            text = self._item(part, index, room if is_last else room - len(part.mark) - 1, depth)
            if text:
                shown.append(text)
                room -= len(text) + 1
            # In an array a mark stands for all that follows, also within the last element that is shown.
            if not text or (part.is_array and not is_last and text != part.texts[index]):
                shown.append(part.mark)
                break
        return shown

    def _stages(self, part: Part, room: int, depth: int) -> list[str]:
        """Return the first stages and the last one of a pipeline."""
        last = len(part.texts) - 1
        room_of_last = min(
            len(part.texts[last]),
            _STAGE_ROOM,
            max(room // 4, 4 * _LEAST_ROOM),
            room - len(part.mark) - 1,
        )
        shown = self._beginning(part, last, room - room_of_last - 1, depth)
        stage = self._item(part, last, room - sum(len(text) + 1 for text in shown), depth)
        if stage:
            shown.append(stage)
        elif part.mark not in shown:
            shown.append(part.mark)
        return shown

    def _fields(self, part: Part, room: int, depth: int) -> list[str]:
        """Return all the fields of a command, as far as there is room for their names."""
        room_of_value = max(_LEAST_ROOM, min(_FIELD_ROOM, room // 40))
        rooms = []
        kept = 0
        for index, text in enumerate(part.texts):
            least = min(len(text), _length_of_key(text) + room_of_value)
            room_of_mark = 0 if index == len(part.texts) - 1 else len(part.mark) + 1
            if kept + least + room_of_mark > room:
                break
            rooms.append(least)
            kept += least + 1
        if not rooms:
            return self._beginning(part, len(part.texts), room, depth)
        if len(rooms) < len(part.texts):
            room -= len(part.mark) + 1
        shown = []
        for index, least in enumerate(rooms):
            kept -= least + 1
            text = self._item(part, index, room - kept, depth)
            shown.append(text)
            room -= len(text) + 1
        if len(rooms) < len(part.texts):
            shown.append(part.mark)
        return shown

    def _item(self, part: Part, index: int, room: int, depth: int) -> str:
        """Return an item if it fits, else as much of it as fits. Empty if nothing does."""
        text = part.texts[index]
        if len(text) <= room:
            return text
        key = "" if part.is_array else text[: _length_of_key(text)]
        value = text[len(key) :]
        room -= len(key)
        if room < len(CUT):
            return ""
        shown = ""
        inner = part.nested.get(index) or self._document(value)
        if inner is not None:
            shown = self.cut(inner, room, depth + 1)
        elif value[0] == '"' and (match := _STRING.match(value[: room - len('..."')])):
            shown = f'{match[0]}..."'
        if part.is_array:
            return "" if shown == CUT else shown
        return key + (shown or CUT)

    def _document(self, value: str) -> Part | None:
        """Return a document that was written at once: a masked one of literals, or raw code."""
        if value[0] != "{" or (self._is_raw and not value.startswith('{"$code":')):
            return None
        part = Part(is_array=False)
        part.texts = [value[1:-1]] if self._is_raw else value[1:-1].split(",")  # no masked key contains a comma
        return part


def _length_of_key(text: str) -> int:
    """Return the length of an item's key, with its quotes and colon."""
    match = _STRING.match(text)
    return len(match[0]) + len('":') if match else 0
