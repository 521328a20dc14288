"""Masking rules: which keys are shown, and which values of each command are shown instead of masked."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from opentelemetry_mongo_events._driver.command_names import COLLECTION_COMMANDS
from opentelemetry_mongo_events._query_text.extended_json import as_json, quoted

MASK: Final = '"?"'
MASKED_KEY: Final = '"?":'
"""A masked key and its colon."""

# A longer key or path is masked, and isn't kept in a cache. A longer name of a collection is cut.
KEY_LENGTH: Final = 255
_SEGMENT_LENGTH: Final = 40
# A name of more than 8 characters with at least 4 digits is more likely an id than a name that a programmer chose.
_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w{0,7}|[A-Za-z_]+(?:\d[A-Za-z_]*){0,3}", re.ASCII)
# A field or an operator, an array index, or one of an update's `$`, `$[]` and `$[element]`.
_SEGMENT: Final = re.compile(
    rf"\$?(?:{_IDENTIFIER.pattern})|0|[1-9]\d{{0,2}}|\$(?:\[(?:{_IDENTIFIER.pattern})?\])?", re.ASCII
)
# An address, a date or a telephone number, not array indices: no path begins with an index, and hardly any has three
# of them in a row.
_NUMBERS: Final = re.compile(r"\d+\.|.*\.\d+\.\d+\.\d", re.ASCII)
_INDEX_TYPES: Final = frozenset({"text", "2d", "2dsphere", "hashed"})


def masked_key(key: str) -> str:
    """Return a key and its colon as JSON, masked if the key looks like data."""
    return _masked_key(key) if len(key) <= KEY_LENGTH else MASKED_KEY


@functools.lru_cache(2_048)
def _masked_key(key: str) -> str:
    return f'"{key}":' if _segments_match(_SEGMENT, key) and not _NUMBERS.match(key) else MASKED_KEY


@functools.lru_cache(2_048)
def _masked_path(text: str) -> str:
    return f'"{text}"' if _segments_match(_IDENTIFIER, text[2 if text[1:2] == "$" else 1 :]) else MASK


def _segments_match(pattern: re.Pattern[str], dotted: str) -> bool:
    return all(len(segment) <= _SEGMENT_LENGTH and pattern.fullmatch(segment) for segment in dotted.split("."))


# Renders a literal (a value that is neither a document nor an array) as JSON, masked or not.
Leaf: TypeAlias = Callable[[Any], str]


def _field(value: object) -> str:
    """Render the name of a field, by the same rules as a key."""
    return masked_key(value)[:-1] if type(value) is str else MASK


def _name(value: object) -> str:
    """Render the name of a collection, of a database, or of both."""
    return quoted(value, KEY_LENGTH) if type(value) is str else MASK


def _path(value: object) -> str:
    """Render a string of an aggregation expression: a field path or a variable is shown, all else is masked."""
    # Checked before the cached function is called, because the cache keeps its arguments in memory.
    return _masked_path(value) if type(value) is str and value[:1] == "$" and len(value) <= KEY_LENGTH else MASK


def _flag(value: object) -> str:
    """Render an option that is on or off. Anything but a boolean is masked."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return MASK


def _limit_of_delete(value: object) -> str:
    """Render how many documents a delete may delete: 0 for all, or 1."""
    return str(value) if type(value) is int and value in (0, 1) else MASK


def _direction(value: object) -> str:
    """Render a sort direction, the type of an index, or whether a projection includes a field."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in (1, -1, 0):
        return str(int(value))
    return as_json(value) if type(value) is str and value in _INDEX_TYPES else _flag(value)


def _direction_or_path(value: object) -> str:
    """Render a value of a projection: whether it includes a field, or a field path."""
    direction = _direction(value)
    return direction if direction != MASK else _path(value)


class Place:
    """A position in a command, with the rules for the value at this position.

    A place without a rule of its own for operators, other keys or elements applies its own rules to them.

    Attributes:
        leaf: Renders a literal at this place. None if all literals are masked.
        fields: The places of specific keys of a document.
        operators: The place of any other key that begins with `$`. The same as `others` unless given.
        others: The place of all remaining keys. This place itself unless given.
        elements: The place of the elements of an array. This place itself unless given.
        masks_literals: Whether all literals under keys that aren't in `fields` are masked.
        is_ordered: Whether the order of an array's elements has a meaning. If so, only equal neighbours are merged
            into one; otherwise all equal elements are.
        is_pipeline: Whether an array at this place is a pipeline. Its last stage is always shown, since that decides
            whether the pipeline writes.
    """

    __slots__ = ("elements", "fields", "is_ordered", "is_pipeline", "leaf", "masks_literals", "operators", "others")

    def __init__(
        self,
        leaf: Leaf | None = None,
        fields: Mapping[str, Place] | None = None,
        *,
        operators: Place | None = None,
        others: Place | None = None,
        elements: Place | None = None,
        is_ordered: bool = False,
        is_pipeline: bool = False,
    ) -> None:
        self.leaf = leaf
        self.fields = dict(fields or {})
        self.others = others or self
        self.operators = operators or self.others
        self.elements = elements or self
        self.masks_literals = self.others.leaf is None and self.operators.leaf is None
        self.is_ordered = is_ordered
        self.is_pipeline = is_pipeline


OMITTED: Final = Place()
"""A field that is never shown: the session, protocol fields, comments, the start of an authentication."""

OMITTED_IF_MASKED: Final = Place()
"""A field that only raw text shows: ids of cursors. Masked they say nothing, and the id is an attribute of the span."""

COMMAND: Final = Place()
"""A command nested in another one. The name of the nested command, its first key, decides which place applies."""
COMMAND.masks_literals = False  # or the nested command would be written without a check of its name

_DATA: Final = Place()
NAME: Final = Place(_name, others=_DATA, elements=_DATA)
"""The name of a collection, or of a database and a collection (`shop.orders`)."""
FLAG: Final = Place(_flag, others=_DATA, elements=_DATA)
"""An option that is on or off."""
_FIELD: Final = Place(_field, others=_DATA)
# Atlas Search: `{value: "title", multi: "english"}`.
_FIELD.fields["value"] = _FIELD


def _collection(**fields: Place) -> Place:
    """Create the place of a collection's name, or of a document such as `{db: "shop", coll: "orders"}`."""
    return Place(_name, {"db": NAME, "coll": NAME, **fields}, others=_DATA, elements=_DATA)


_COLLECTION: Final = _collection()

# A sort, a hint or the key of an index, as a document of fields. Anything else, such as the name of an index, is data.
_ORDER: Final = Place(others=Place(_direction, operators=_DATA), operators=_DATA)
_SORTS: Final = Place(_path, {"sortBy": _ORDER}, is_ordered=True)
_EXPRESSION: Final = Place(
    _path,
    {"$literal": _DATA, "$const": _DATA}
    | dict.fromkeys(("$top", "$topN", "$bottom", "$bottomN", "$sortArray"), _SORTS),
    is_ordered=True,
)
_SORTS.others = _SORTS.operators = _SORTS.elements = _EXPRESSION
CONDITION: Final = Place(fields={"$exists": FLAG}, others=_DATA, elements=_DATA)
"""What a filter asks of a field. A document whose first key is no operator, or one under any other operator, is a value
to compare with, and all in it is data."""

_ELEMENT: Final = Place(fields={"$exists": FLAG, "$not": CONDITION}, others=CONDITION, operators=_DATA)
_ELEMENT.fields.update(dict.fromkeys(("$and", "$or", "$nor", "$elemMatch"), _ELEMENT))
CONDITION.fields.update({"$not": CONDITION, "$elemMatch": _ELEMENT})
_FILTER: Final = Place(
    fields={
        "$expr": _EXPRESSION,
        "$text": Place(fields={"$caseSensitive": FLAG, "$diacriticSensitive": FLAG}, others=_DATA),
    },
    others=CONDITION,
    operators=_DATA,
)
_FILTER.fields.update(dict.fromkeys(("$and", "$or", "$nor"), _FILTER))
_PROJECTION: Final = Place(
    others=Place(
        _direction_or_path,
        {"$elemMatch": _FILTER, "$literal": _DATA, "$const": _DATA},
        operators=_EXPRESSION,
        elements=_EXPRESSION,
    ),
    operators=_EXPRESSION,
)

# Atlas Search names fields under keys of its own, such as `path`.
_SEARCH: Final = Place(
    fields={"path": _FIELD, "defaultPath": _FIELD, "like": _DATA, "query": _DATA, "value": _DATA, "sort": _ORDER},
)

_PIPELINE: Final = Place(others=_EXPRESSION, is_ordered=True, is_pipeline=True)
_PIPELINES: Final = Place(others=_PIPELINE)
_RANKED: Final = Place(fields={"input": Place(fields={"pipelines": _PIPELINES}, others=_DATA)}, others=_DATA)
# The stages whose arguments aren't only expressions.
_PIPELINE.fields.update(
    {
        "$changeStream": Place(
            fields=dict.fromkeys(("allChangesForCluster", "showExpandedEvents"), FLAG),
            others=_DATA,
        ),
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
            fields={
                "query": _FILTER,
                "key": _FIELD,
                "distanceField": _FIELD,
                "includeLocs": _FIELD,
                "spherical": FLAG,
            },
            others=_DATA,
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
        "$unwind": Place(
            _path,
            {"path": _EXPRESSION, "includeArrayIndex": _FIELD, "preserveNullAndEmptyArrays": FLAG},
            others=_DATA,
        ),
        "$vectorSearch": Place(fields={"path": _FIELD, "filter": _FILTER, "exact": FLAG}, others=_DATA),
    }
)

_UPDATE_OPERATORS: Final = Place(fields={"$sort": _ORDER})
# A document of update operators, a replacement document, or a pipeline.
_UPDATE: Final = Place(others=_UPDATE_OPERATORS, elements=_PIPELINE, is_ordered=True, is_pipeline=True)

_OMITTED_FIELDS: Final = dict.fromkeys(
    (
        "lsid",
        "$db",
        "$clusterTime",
        "txnNumber",
        "recoveryToken",
        "signature",
        "$readPreference",
        "comment",
        "speculativeAuthenticate",
    ),
    OMITTED,
)

# The options of commands that are on or off. Each of them means the same in all commands that have it.
_COMMAND_FLAGS: Final = dict.fromkeys(
    (
        "allowDiskUse",
        "allowPartialResults",
        "authorizedCollections",
        "authorizedDatabases",
        "autocommit",
        "awaitData",
        "bypassDocumentValidation",
        "capped",
        "dropTarget",
        "errorsOnly",
        "exhaust",
        "explain",
        "force",
        "full",
        "jsMode",
        "nameOnly",
        "new",
        "noCursorTimeout",
        "oplogReplay",
        "ordered",
        "remove",
        "returnKey",
        "showRecordId",
        "singleBatch",
        "snapshot",
        "startTransaction",
        "tailable",
        "upsert",
        "verbose",
    ),
    FLAG,
)
_WRITE: Final = {"multi": FLAG, "upsert": FLAG, "arrayFilters": _FILTER, "sort": _ORDER, "hint": _ORDER}
_INDEX_FLAGS: Final = dict.fromkeys(("background", "dropDups", "hidden", "prepareUnique", "sparse", "unique"), FLAG)


def _command(**fields: Place) -> Place:
    return Place(fields={**_OMITTED_FIELDS, **_COMMAND_FLAGS, **fields}, others=_DATA)


_OTHER_COMMAND: Final = _command()
_INDEX: Final = Place(
    fields={**_INDEX_FLAGS, "key": _ORDER, "partialFilterExpression": _FILTER, "wildcardProjection": _PROJECTION},
    others=_DATA,
)
_FIND_AND_MODIFY: Final = _command(
    query=_FILTER, sort=_ORDER, hint=_ORDER, fields=_PROJECTION, update=_UPDATE, arrayFilters=_FILTER
)
_MAP_REDUCE: Final = _command(
    query=_FILTER,
    sort=_ORDER,
    out=_collection(replace=NAME, merge=NAME, reduce=NAME),
)
_PLAN: Final = {"query": _FILTER, "sort": _ORDER, "projection": _PROJECTION}

_COMMANDS: Final = dict.fromkeys(COLLECTION_COMMANDS, _OTHER_COMMAND) | {
    "aggregate": _command(pipeline=_PIPELINE, hint=_ORDER),
    "bulkWrite": _command(
        ops=Place(
            fields={**_WRITE, "filter": _FILTER, "updateMods": _UPDATE},
            others=_DATA,
        ),
        nsInfo=Place(fields={"ns": NAME}, others=_DATA),
    ),
    "collMod": _command(
        index=Place(fields={**_INDEX_FLAGS, "keyPattern": _ORDER}, others=_DATA),
        viewOn=NAME,
        pipeline=_PIPELINE,
        validator=_FILTER,
    ),
    "count": _command(query=_FILTER, hint=_ORDER, fields=_PROJECTION),
    "create": _command(viewOn=NAME, pipeline=_PIPELINE, validator=_FILTER),
    "createIndexes": _command(indexes=_INDEX),
    "delete": _command(
        deletes=Place(
            fields={"q": _FILTER, "hint": _ORDER, "limit": Place(_limit_of_delete, others=_DATA, elements=_DATA)},
            others=_DATA,
        ),
    ),
    "deleteIndexes": _command(index=_ORDER),
    "distinct": _command(key=_FIELD, query=_FILTER, hint=_ORDER),
    "dropIndexes": _command(index=_ORDER),
    "explain": _command(explain=COMMAND),
    "find": _command(filter=_FILTER, sort=_ORDER, hint=_ORDER, projection=_PROJECTION),
    "findAndModify": _FIND_AND_MODIFY,
    "findandmodify": _FIND_AND_MODIFY,
    "geoNear": _command(query=_FILTER),
    "getMore": _command(getMore=OMITTED_IF_MASKED, collection=NAME),
    "killCursors": _command(cursors=OMITTED_IF_MASKED),
    "mapReduce": _MAP_REDUCE,
    "mapreduce": _MAP_REDUCE,
    "planCacheClear": _command(**_PLAN),
    "planCacheClearFilters": _command(**_PLAN),
    "planCacheListPlans": _command(**_PLAN),
    "planCacheSetFilter": _command(**_PLAN, indexes=_ORDER),
    "renameCollection": _command(renameCollection=NAME, to=NAME),
    "update": _command(
        updates=Place(
            fields={**_WRITE, "q": _FILTER, "u": _UPDATE},
            others=_DATA,
        ),
    ),
}
for _command_name in COLLECTION_COMMANDS:
    _place = _COMMANDS[_command_name]
    _COMMANDS[_command_name] = Place(fields={**_place.fields, _command_name: NAME}, others=_DATA)


def command_place(command_name: str) -> Place:
    """Return the place of a whole command. Of an unknown command only the keys are shown."""
    return _COMMANDS.get(command_name, _OTHER_COMMAND)
