"""What stays of a command whose values are masked: which keys, and which literals in which place of which command."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from opentelemetry_mongo_events._driver.command_names import COLLECTION_COMMANDS
from opentelemetry_mongo_events._query_text.extended_json import as_json

MASK: Final = '"?"'
HIDDEN: Final = '"?":'
"""A masked key."""

# What is longer is no field's name, and isn't kept in a cache either.
_KEY_LENGTH: Final = 255
_SEGMENT_LENGTH: Final = 40
# Longer than 8 characters and with 4 digits it is rather an id than a name that a programmer gave.
_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w{0,7}|[A-Za-z_]+(?:\d[A-Za-z_]*){0,3}", re.ASCII)
# A field or an operator, an index of an array, or an update's `$`, `$[]` and `$[element]`.
_SEGMENT: Final = re.compile(
    rf"\$?(?:{_IDENTIFIER.pattern})|0|[1-9]\d{{0,2}}|\$(?:\[(?:{_IDENTIFIER.pattern})?\])?", re.ASCII
)
# An address, a date or a telephone number rather than indices: no path begins with one, nor are arrays nested so deep.
_NUMBERS: Final = re.compile(r"\d+\.|.*\.\d+\.\d+\.\d", re.ASCII)
_FLAGS: Final = frozenset({"text", "2d", "2dsphere", "hashed"})


def masked_key(key: str) -> str:
    """A key and its colon as JSON, masked where it looks like data."""
    return _masked_key(key) if len(key) <= _KEY_LENGTH else HIDDEN


@functools.lru_cache(2_048)
def _masked_key(key: str) -> str:
    return f'"{key}":' if _are_all(_SEGMENT, key) and not _NUMBERS.match(key) else HIDDEN


@functools.lru_cache(2_048)
def _masked_path(text: str) -> str:
    return f'"{text}"' if _are_all(_IDENTIFIER, text[2 if text[1:2] == "$" else 1 :]) else MASK


def _are_all(pattern: re.Pattern[str], dotted: str) -> bool:
    return all(len(segment) <= _SEGMENT_LENGTH and pattern.fullmatch(segment) for segment in dotted.split("."))


# What a place leaves of a literal: JSON.
Leaf: TypeAlias = Callable[[Any], str]


def _field(value: object) -> str:
    """Names a field, as a key does."""
    return masked_key(value)[:-1] if type(value) is str else MASK


def _name(value: object) -> str:
    """Names a collection, a database or both."""
    return as_json(value[:_KEY_LENGTH]) if type(value) is str else MASK


def _path(value: object) -> str:
    """A string of an aggregation expression: the path of a field, or a variable, or else data."""
    # Looked at first, as what is cached stays in memory.
    return _masked_path(value) if type(value) is str and value[:1] == "$" and len(value) <= _KEY_LENGTH else MASK


def _flag(value: object) -> str:
    """How to sort or index by a field, or whether to show it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and value in (1, -1, 0):
        return str(int(value))
    return as_json(value) if type(value) is str and value in _FLAGS else MASK


def _flag_or_path(value: object) -> str:
    flag = _flag(value)
    return flag if flag != MASK else _path(value)


class Place:
    """A place of a command, by what stands in it.

    Attributes:
        leaf: What stays of a literal; None where nothing does.
        fields: The places under certain keys of a document.
        operators: The place under any other key that begins with `$`.
        others: The place under the rest.
        elements: That of an array's elements.
        is_blank: Whether no literal stays under a key that isn't in `fields`.
        is_ordered: Whether the order of an array's elements has a meaning, so that only neighbours that are equal
            become one.
    """

    __slots__ = ("elements", "fields", "is_blank", "is_ordered", "leaf", "operators", "others")

    def __init__(
        self,
        leaf: Leaf | None = None,
        fields: Mapping[str, Place] | None = None,
        *,
        operators: Place | None = None,
        others: Place | None = None,
        elements: Place | None = None,
        is_ordered: bool = False,
    ) -> None:
        self.leaf = leaf
        self.fields = dict(fields or {})
        self.others = others or self
        self.operators = operators or self.others
        self.elements = elements or self
        self.is_blank = self.others.leaf is None and self.operators.leaf is None
        self.is_ordered = is_ordered


LEFT_OUT: Final = Place()
"""What is never shown: of the session and of the protocol."""

COMMAND: Final = Place()
"""A command within another: its own place is that of its first key."""
COMMAND.is_blank = False

_DATA: Final = Place()
NAME: Final = Place(_name, others=_DATA, elements=_DATA)
"""The name of a collection, or of a database and a collection."""
_FIELD: Final = Place(_field, others=_DATA)
# Atlas Search: `{value: "title", multi: "english"}`.
_FIELD.fields["value"] = _FIELD


def _collection(**fields: Place) -> Place:
    """A collection's name, or `{db: "shop", coll: "orders"}` and the like."""
    return Place(_name, {"db": NAME, "coll": NAME, **fields}, others=_DATA, elements=_DATA)


_COLLECTION: Final = _collection()

# A sort, a hint or the key of an index: by its fields. What isn't one, as the name of an index, is data.
_ORDER: Final = Place(others=Place(_flag, operators=_DATA), operators=_DATA)
_SORTS: Final = Place(_path, {"sortBy": _ORDER}, is_ordered=True)
_EXPRESSION: Final = Place(
    _path,
    {"$literal": _DATA, "$const": _DATA}
    | dict.fromkeys(("$top", "$topN", "$bottom", "$bottomN", "$sortArray"), _SORTS),
    is_ordered=True,
)
_SORTS.others = _SORTS.operators = _SORTS.elements = _EXPRESSION
_FILTER: Final = Place(fields={"$expr": _EXPRESSION}, others=_DATA)
_FILTER.operators = _FILTER
_PROJECTION: Final = Place(
    others=Place(
        _flag_or_path,
        {"$elemMatch": _FILTER, "$literal": _DATA, "$const": _DATA},
        operators=_EXPRESSION,
        elements=_EXPRESSION,
    ),
    operators=_EXPRESSION,
)

# Atlas Search has paths of its own, under this key.
_SEARCH: Final = Place(
    fields={"path": _FIELD, "defaultPath": _FIELD, "like": _DATA, "query": _DATA, "value": _DATA, "sort": _ORDER},
)

_PIPELINE: Final = Place(others=_EXPRESSION, is_ordered=True)
_PIPELINES: Final = Place(others=_PIPELINE)
_RANKED: Final = Place(fields={"input": Place(fields={"pipelines": _PIPELINES}, others=_DATA)}, others=_DATA)
# The stages whose arguments aren't just expressions.
_PIPELINE.fields.update(
    {
        "$changeStream": _DATA,
        "$collStats": _DATA,
        "$count": _FIELD,
        "$currentOp": _DATA,
        "$densify": Place(fields={"field": _FIELD, "partitionByFields": _FIELD}, others=_DATA),
        "$documents": _DATA,
        "$facet": _PIPELINES,
        "$fill": Place(
            fields={"sortBy": _ORDER, "partitionByFields": _FIELD, "partitionBy": _EXPRESSION, "output": _EXPRESSION},
            others=_DATA,
        ),
        "$geoNear": Place(
            fields={"query": _FILTER, "key": _FIELD, "distanceField": _FIELD, "includeLocs": _FIELD}, others=_DATA
        ),
        "$graphLookup": Place(
            fields={
                "from": _COLLECTION,
                "startWith": _EXPRESSION,
                "connectFromField": _FIELD,
                "connectToField": _FIELD,
                "as": _FIELD,
                "depthField": _FIELD,
                "restrictSearchWithMatch": _FILTER,
            },
            others=_DATA,
        ),
        "$indexStats": _DATA,
        "$limit": _DATA,
        "$listLocalSessions": _DATA,
        "$listSampledQueries": _DATA,
        "$listSessions": _DATA,
        "$lookup": Place(
            fields={
                "from": _COLLECTION,
                "localField": _FIELD,
                "foreignField": _FIELD,
                "let": _EXPRESSION,
                "pipeline": _PIPELINE,
                "as": _FIELD,
            },
            others=_DATA,
        ),
        "$match": _FILTER,
        "$merge": _collection(into=_COLLECTION, on=_FIELD, let=_EXPRESSION, whenMatched=_PIPELINE),
        "$out": _COLLECTION,
        "$project": _PROJECTION,
        "$rankFusion": _RANKED,
        "$sample": _DATA,
        "$scoreFusion": _RANKED,
        "$search": _SEARCH,
        "$searchMeta": _SEARCH,
        "$setWindowFields": _SORTS,
        "$skip": _DATA,
        "$sort": _ORDER,
        "$unionWith": _collection(pipeline=_PIPELINE),
        "$unset": _FIELD,
        "$unwind": Place(_path, {"path": _EXPRESSION, "includeArrayIndex": _FIELD}, others=_DATA),
        "$vectorSearch": Place(fields={"path": _FIELD, "filter": _FILTER}, others=_DATA),
    }
)

_UPDATE_OPERATORS: Final = Place(fields={"$sort": _ORDER})
# A document of operators, a new document, or a pipeline.
_UPDATE: Final = Place(others=_UPDATE_OPERATORS, elements=_PIPELINE, is_ordered=True)

_NOT_SHOWN: Final = dict.fromkeys(
    ("lsid", "$db", "$clusterTime", "txnNumber", "signature", "$readPreference", "comment", "speculativeAuthenticate"),
    LEFT_OUT,
)

RAW_COMMAND: Final = Place(fields={**_NOT_SHOWN, "explain": COMMAND}, others=Place())


def _command(**fields: Place) -> Place:
    return Place(fields={**_NOT_SHOWN, **fields}, others=_DATA)


_OTHER: Final = _command()
_INDEX: Final = Place(
    fields={"key": _ORDER, "partialFilterExpression": _FILTER, "wildcardProjection": _PROJECTION}, others=_DATA
)
_FIND_AND_MODIFY: Final = _command(query=_FILTER, sort=_ORDER, hint=_ORDER, fields=_PROJECTION, update=_UPDATE)
_MAP_REDUCE: Final = _command(
    query=_FILTER,
    sort=_ORDER,
    out=_collection(replace=NAME, merge=NAME, reduce=NAME),
)
_PLAN: Final = {"query": _FILTER, "sort": _ORDER, "projection": _PROJECTION}

_COMMANDS: Final = dict.fromkeys(COLLECTION_COMMANDS, _OTHER) | {
    "aggregate": _command(pipeline=_PIPELINE, hint=_ORDER),
    "bulkWrite": _command(
        ops=Place(
            fields={"filter": _FILTER, "updateMods": _UPDATE, "sort": _ORDER, "hint": _ORDER},
            others=_DATA,
        ),
        nsInfo=Place(fields={"ns": NAME}, others=_DATA),
    ),
    "collMod": _command(
        index=Place(fields={"keyPattern": _ORDER}, others=_DATA), viewOn=NAME, pipeline=_PIPELINE, validator=_FILTER
    ),
    "count": _command(query=_FILTER, hint=_ORDER, fields=_PROJECTION),
    "create": _command(viewOn=NAME, pipeline=_PIPELINE, validator=_FILTER),
    "createIndexes": _command(indexes=_INDEX),
    "delete": _command(deletes=Place(fields={"q": _FILTER, "hint": _ORDER}, others=_DATA)),
    "deleteIndexes": _command(index=_ORDER),
    "distinct": _command(key=_FIELD, query=_FILTER, hint=_ORDER),
    "dropIndexes": _command(index=_ORDER),
    "explain": _command(explain=COMMAND),
    "find": _command(filter=_FILTER, sort=_ORDER, hint=_ORDER, projection=_PROJECTION),
    "findAndModify": _FIND_AND_MODIFY,
    "findandmodify": _FIND_AND_MODIFY,
    "geoNear": _command(query=_FILTER),
    "getMore": _command(collection=NAME),
    "mapReduce": _MAP_REDUCE,
    "mapreduce": _MAP_REDUCE,
    "planCacheClear": _command(**_PLAN),
    "planCacheClearFilters": _command(**_PLAN),
    "planCacheListPlans": _command(**_PLAN),
    "planCacheSetFilter": _command(**_PLAN, indexes=_ORDER),
    "renameCollection": _command(renameCollection=NAME, to=NAME),
    "update": _command(
        updates=Place(fields={"q": _FILTER, "u": _UPDATE, "sort": _ORDER, "hint": _ORDER}, others=_DATA),
    ),
}
for _command_name in COLLECTION_COMMANDS:
    _place = _COMMANDS[_command_name]
    _COMMANDS[_command_name] = Place(fields={**_place.fields, _command_name: NAME}, others=_DATA)


def command_place(command_name: str) -> Place:
    """The place that is a command as a whole. Of one that isn't known nothing but its keys is shown."""
    return _COMMANDS.get(command_name, _OTHER)
