"""Commands of every kind with secrets planted wherever the application's data stands, for Hypothesis to choose from.

A template is a command with holes. Filled twice it makes two commands of one shape that differ in every value.
"""

from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING, Any

from bson import Binary, Code, Decimal128, Int64, ObjectId, Regex, Timestamp
from hypothesis import strategies as st

if TYPE_CHECKING:
    from random import Random

SECRETS = ("zecret", "ZECRET", b"zecret".hex(), "emVjcmV0", "7355608", "2573-05-08")

_DAY = datetime.datetime(2573, 5, 8)
_TEXTS = ("zecret", 'zecret"}],', "ZECRET" * 1_000, "zecret@example.org", "größe zecret\n")
_PATHS = ("$zecret", "$$zecret", "$zecret.zecret", "$ZECRET")
_OTHERS = (
    7355608,
    Int64(-7355608),
    7355608.5,
    None,
    True,
    False,
    float("nan"),
    _DAY,
    b"zecret",
    Binary(b"zecret", 5),
    Binary(b"zecretzecretzecr", 4),
    uuid.UUID(bytes=b"zecretzecretzecr"),
    ObjectId(b"zecretzecret"),
    Decimal128("7355608.7355608"),
    Timestamp(7355608, 1),
    Regex("zecret"),
    Code("zecret", {"zecret": 1}),
    1,
    -1,
    "text",
    "hashed",
)


class Hole:
    """Where a value goes. In an expression a text that begins with `$` is none, but names a field.

    In place of a flag a boolean is none, and neither is a number that a flag can be.
    """

    def __init__(self, *, in_expression: bool = False, in_flag: bool = False, many: bool = False) -> None:
        self.in_expression = in_expression
        self.in_flag = in_flag
        self.many = many

    def __repr__(self) -> str:
        return f"Hole(in_expression={self.in_expression}, many={self.many})"

    def fill(self, chance: Random) -> Any:
        """A value, or an array of some."""
        values = [*_OTHERS, *_TEXTS] if self.in_expression else [*_OTHERS, *_TEXTS, *_PATHS]
        if self.in_flag:
            values = [value for value in values if not isinstance(value, bool) and value != 1]
        return chance.choices(values, k=chance.choice((1, 2, 3, 40))) if self.many else chance.choice(values)


class Batch:
    """Where any number of documents goes, or a few times as many, that have the same shapes."""

    def __init__(self, templates: list[Any]) -> None:
        self.templates = templates

    def __repr__(self) -> str:
        return f"Batch({self.templates})"

    def fill(self, chance: Random) -> list[Any]:
        """As many as there are templates, or more."""
        return [filled(template, chance) for template in self.templates * chance.choice((1, 2, 3, 40))]


class Key(str):
    """A key that is data."""

    __slots__ = ()


def filled(part: Any, chance: Random) -> Any:
    """The template with values in its holes."""
    if isinstance(part, (Hole, Batch)):
        return part.fill(chance)
    if isinstance(part, dict):
        return {
            (f"zecret-{chance.random()}@example.org" if isinstance(key, Key) else key): filled(value, chance)
            for key, value in part.items()
        }
    if isinstance(part, list):
        return [filled(value, chance) for value in part]
    return part


def _documents(
    fields: st.SearchStrategy[str], literals: st.SearchStrategy[Any], *, max_leaves: int = 8
) -> st.SearchStrategy[Any]:
    keys = fields | st.integers(0, 3).map(lambda number: Key(f"zecret-{number}"))
    values = st.recursive(
        literals,
        lambda inner: st.dictionaries(keys, inner, max_size=4) | st.lists(inner, min_size=1, max_size=3),
        max_leaves=max_leaves,
    )
    return st.dictionaries(keys, values, max_size=4)


_fields = st.sampled_from(
    [
        "_id",
        "a",
        "name",
        "items.$[].sku",
        "a.0.b",
        "sort",
        "pipeline",
        "path",
        "key",
        "comment",
        "lsid",
        "from",
        "query",
        "ordered",
        "multi",
        "upsert",
        "unique",
        "limit",
        "exists",
    ]
)
_operators = st.sampled_from(["$eq", "$in", "$and", "$elemMatch", "$not", "$regex", "$literal", "$set", "$where"])
_holes = st.sampled_from([Hole(), Hole(), Hole(many=True)])
_expression_holes = st.sampled_from([Hole(in_expression=True), Hole(in_expression=True, many=True), "$a", "$$b.c"])

flags = st.booleans() | st.just(Hole(in_flag=True))
data = _documents(_fields | _operators | st.sampled_from(["$exists", "$caseSensitive"]), _holes)
_conditions = _documents(_fields | _operators, _holes)
expressions = _documents(
    st.sampled_from(["$add", "$cond", "$let", "in", "a", "$function", "sortBy"]), _expression_holes
)
_filters = st.builds(
    lambda conditions, others: {**conditions, **others},
    _conditions,
    st.fixed_dictionaries(
        {},
        optional={
            "$expr": expressions,
            "b": flags.map(lambda flag: {"$not": {"$exists": flag}}),
            "c": flags.map(lambda flag: {"$elemMatch": {"$or": [{"d": {"$exists": flag}}]}}),
            "d": data.map(lambda each: {"$eq": {"multi": {"$exists": Hole()}, "e": each}}),
            "e": data.map(lambda each: [{"$exists": Hole()}, [each]]),
            "$text": flags.map(lambda flag: {"$search": Hole(), "$caseSensitive": flag}),
        },
    ),
)
_directions = st.dictionaries(st.sampled_from(["a", "b.c"]), st.sampled_from([1, -1]), max_size=2)
_projections = st.dictionaries(
    st.sampled_from(["a", "b"]), st.sampled_from([0, 1, True, "$c"]) | expressions.map(lambda each: {"$add": each})
)


def _stage(name: str, argument: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return argument.map(lambda each: {name: each})


def _fixed(**fields: Any) -> st.SearchStrategy[Any]:
    """A document with those fields in that order, as a command needs it; Hypothesis' own have any order."""
    chosen = (each if isinstance(each, st.SearchStrategy) else st.just(each) for each in fields.values())
    return st.tuples(*chosen).map(lambda values: dict(zip(fields, values, strict=True)))


_stages: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(
        _stage("$match", _filters),
        _stage("$project", _projections),
        _stage("$group", _fixed(_id=expressions, total=expressions.map(lambda each: {"$sum": each}))),
        _stage("$sort", _directions),
        _stage("$set", expressions),
        _stage("$limit", st.just(Hole())),
        _stage("$documents", st.lists(data, max_size=2)),
        _stage("$changeStream", data),
        _stage("$facet", _fixed(one=_pipelines, two=_pipelines)),
        _stage("$unionWith", _fixed(coll="b", pipeline=_pipelines)),
        _stage("$lookup", _lookups),
        _stage("$graphLookup", _fixed(startWith=expressions, restrictSearchWithMatch=_filters, maxDepth=Hole())),
        _stage("$geoNear", _fixed(near=data, query=_filters, maxDistance=Hole())),
        _stage("$search", _fixed(index=Hole(), text=_fixed(query=Hole(), path="a"), moreLikeThis=_fixed(like=data))),
        _stage(
            "$vectorSearch", _fixed(index=Hole(), path="a", queryVector=Hole(many=True), filter=_filters, exact=flags)
        ),
        _stage("$unwind", _fixed(path="$a", preserveNullAndEmptyArrays=flags)),
        _stage("$merge", _fixed(into="b", let=expressions, whenMatched=_pipelines)),
        _stage("$rankFusion", _fixed(input=_fixed(pipelines=_fixed(a=_pipelines)))),
        _stage(
            "$setWindowFields", _fixed(sortBy=_directions | data.map(lambda each: {"$add": each}), output=expressions)
        ),
        _stage("$novel", expressions),
    )
)
_pipelines: st.SearchStrategy[Any] = st.lists(_stages, max_size=3)
_lookups: st.SearchStrategy[Any] = _fixed(let=expressions, pipeline=_pipelines, a=Hole()).map(
    lambda each: {"from": "b", "as": "c", **each}
)
_updates = data | _pipelines

_limits = st.sampled_from([0, 1, Hole(in_flag=True)])
_index = _fixed(key=_directions, name=Hole(), unique=flags, partialFilterExpression=_filters)

_driver_fields = {
    "lsid": {"id": Hole()},
    "$clusterTime": {"signature": {"hash": Hole()}},
    "txnNumber": Hole(),
    "comment": Hole(),
    "$db": "shop",
}

commands: st.SearchStrategy[dict[str, Any]] = st.one_of(
    _fixed(
        find="a",
        filter=_filters,
        sort=_directions,
        projection=_projections,
        hint=_directions,
        limit=Hole(),
        singleBatch=flags,
        let=data,
        max=data,
    ),
    _fixed(aggregate="a", pipeline=_pipelines, cursor=data, let=data),
    _fixed(insert="a", documents=st.lists(data, max_size=3), ordered=flags),
    _fixed(insert="a", ordered=flags, documents=st.lists(data, min_size=1, max_size=3).map(Batch), let=data),
    _fixed(
        update="a",
        ordered=flags,
        updates=st.lists(
            _fixed(
                q=_filters,
                u=_updates,
                c=data,
                multi=flags,
                upsert=flags,
                arrayFilters=st.lists(_filters),
                hint=_directions,
            ),
            max_size=2,
        )
        | st.lists(_fixed(q=_filters, u=data, multi=flags), min_size=1, max_size=2).map(Batch),
    ),
    _fixed(delete="a", deletes=st.lists(_fixed(q=_filters, limit=_limits, collation=data), max_size=2)),
    _fixed(findAndModify="a", query=_filters, update=_updates, fields=_projections, sort=_directions, new=flags),
    _fixed(count="a", query=_filters, hint=_directions),
    _fixed(distinct="a", key="b.c", query=_filters),
    _fixed(getMore=Int64(5), collection="a", batchSize=Hole()),
    _fixed(
        bulkWrite=Hole(),
        ops=st.lists(
            _fixed(insert=Hole(), document=data)
            | _fixed(update=Hole(), filter=_filters, updateMods=_updates, multi=flags),
            max_size=3,
        ),
        nsInfo=st.just([{"ns": "shop.a"}]),
    ),
    _fixed(createIndexes="a", indexes=st.lists(_index)),
    _fixed(mapReduce="a", map=Hole(), reduce=Hole(), query=_filters, scope=data, out="b"),
    _fixed(update="a", updates=_fixed(q=Hole(), u=Hole(), sort=Hole(), hint=Hole(many=True))),
    _fixed(find="a", sort=Hole(), hint=Hole(), projection=Hole(), filter=Hole(many=True)),
    _fixed(explain=_fixed(find="a", filter=_filters, comment=Hole()), verbosity=Hole()),
    _fixed(dropUser=Hole()),
    _fixed(frobnicate=Hole(), sort=data, pipeline=st.lists(data), filter=data),
).map(lambda command: {**command, **_driver_fields})
