"""The texts of commands as people write them, and what bounds them."""

from __future__ import annotations

import datetime
import inspect
import json
import re
import sys
import uuid
from collections import UserDict
from typing import TYPE_CHECKING, Any

import pytest
from bson import (
    Binary,
    Code,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    encode,
)
from bson.raw_bson import RawBSONDocument
from bson.son import SON

from opentelemetry_mongo_events._query_text import masking
from opentelemetry_mongo_events._query_text import text as text_module
from opentelemetry_mongo_events._query_text.text import query_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DAY = datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.timezone.utc)
ID = ObjectId("65f0c0ffee65f0c0ffee65f0")


def masked(command: Mapping[str, Any], limit: int = 4096) -> str | None:
    return _text(command, is_raw=False, limit=limit)


def raw(command: Mapping[str, Any], limit: int = 4096) -> str | None:
    return _text(command, is_raw=True, limit=limit)


def _text(command: Mapping[str, Any], *, is_raw: bool, limit: int) -> str | None:
    text = query_text(next(iter(command)), command, is_raw, limit)
    if text is not None:
        assert len(text) <= limit
        assert isinstance(json.loads(text), dict)
    return text


# What the driver adds to each command.
SESSION = {
    "lsid": {"id": Binary(b"0123456789abcdef", 4)},
    "txnNumber": Int64(7),
    "$clusterTime": {"clusterTime": Timestamp(1, 1), "signature": {"hash": b"hash", "keyId": Int64(1)}},
    "$db": "shop",
    "$readPreference": {"mode": "secondary", "tags": [{"dc": "east"}]},
}

# Each as it is written, and as it is shown.
COMMANDS: dict[str, tuple[dict[str, Any], str]] = {
    "find one by a field": (
        {"find": "users", "filter": {"email": "alice@example.org"}, "limit": 1, "singleBatch": True},
        '{"find":"users","filter":{"email":"?"},"limit":"?","singleBatch":true}',
    ),
    "find with operators": (
        {
            "find": "orders",
            "filter": {
                "created": {"$gte": DAY, "$lt": DAY},
                "status": {"$in": ["open", "paid", "sent"]},
                "$or": [{"total": {"$gt": 100}}, {"total": {"$gt": 50}}, {"vip": True}],
                "items": {"$elemMatch": {"sku": "A-1", "count": {"$gte": 2}}},
                "name": {"$regex": "^Al", "$options": "i"},
            },
        },
        (
            '{"find":"orders","filter":{"created":{"$gte":"?","$lt":"?"},"status":{"$in":["?"]},'
            '"$or":[{"total":{"$gt":"?"}},{"vip":"?"}],"items":{"$elemMatch":{"sku":"?","count":{"$gte":"?"}}},'
            '"name":{"$regex":"?","$options":"?"}}}'
        ),
    ),
    "find with sort, hint and projection": (
        {
            "find": "orders",
            "filter": {},
            "sort": SON([("created", -1), ("_id", 1), ("score", {"$meta": "textScore"})]),
            "hint": SON([("created", -1)]),
            "projection": {
                "total": 1,
                "secret": False,
                "items": {"$slice": 5},
                "lines": {"$elemMatch": {"sku": "A-1"}},
                "gross": {"$multiply": ["$total", 1.19]},
                "name": "$customer.name",
            },
            "skip": 20,
            "batchSize": 100,
        },
        (
            '{"find":"orders","filter":{},"sort":{"created":-1,"_id":1,"score":{"$meta":"?"}},"hint":{"created":-1},'
            '"projection":{"total":1,"secret":false,"items":{"$slice":"?"},"lines":{"$elemMatch":{"sku":"?"}},'
            '"gross":{"$multiply":["$total","?"]},"name":"$customer.name"},"skip":"?","batchSize":"?"}'
        ),
    ),
    "find with the name of an index": (
        {"find": "orders", "filter": {"_id": ID}, "hint": "created_1", "max": {"_id": 5}},
        '{"find":"orders","filter":{"_id":"?"},"hint":"?","max":{"_id":"?"}}',
    ),
    "find with an expression": (
        {"find": "orders", "filter": {"$expr": {"$gt": ["$spent", {"$add": ["$budget", 10]}]}, "note": "$spent"}},
        '{"find":"orders","filter":{"$expr":{"$gt":["$spent",{"$add":["$budget","?"]}]},"note":"?"}}',
    ),
    "find with an expression among others, and with what only looks like one": (
        {
            "find": "orders",
            "filter": {
                "$and": [{"$or": [{"$expr": {"$gt": ["$spent", "$budget"]}}]}],
                "note": {"$expr": "$alice"},
                "saved": {"$eq": {"$expr": ["$alice"]}},
            },
        },
        (
            '{"find":"orders","filter":{"$and":[{"$or":[{"$expr":{"$gt":["$spent","$budget"]}}]}],"note":{"$expr":"?"},'
            '"saved":{"$eq":{"$expr":["?"]}}}}'
        ),
    ),
    "find near a place": (
        {
            "find": "shops",
            "filter": {
                "at": {"$near": {"$geometry": {"type": "Point", "coordinates": [13.4, 52.5]}, "$maxDistance": 9}}
            },
        },
        '{"find":"shops","filter":{"at":{"$near":{"$geometry":{"type":"?","coordinates":["?"]},"$maxDistance":"?"}}}}',
    ),
    "find with the driver's own fields and a comment": (
        {"find": "users", "filter": {"comment": "hello"}, "comment": "from the web shop", **SESSION},
        '{"find":"users","filter":{"comment":"?"}}',
    ),
    "find with a schema and code": (
        {"find": "users", "filter": {"$jsonSchema": {"required": ["name"]}, "$where": Code("this.a == 'alice'")}},
        '{"find":"users","filter":{"$jsonSchema":{"required":["?"]},"$where":"?"}}',
    ),
    "aggregate: match, group, sort": (
        {
            "aggregate": "orders",
            "pipeline": [
                {"$match": {"status": "$paid", "total": {"$gte": 10}}},
                {"$group": {"_id": "$customer", "total": {"$sum": "$total"}, "n": {"$sum": 1}}},
                {"$sort": SON([("total", -1)])},
                {"$limit": 10},
            ],
            "cursor": {"batchSize": 100},
        },
        (
            '{"aggregate":"orders","pipeline":[{"$match":{"status":"?","total":{"$gte":"?"}}},'
            '{"$group":{"_id":"$customer","total":{"$sum":"$total"},"n":{"$sum":"?"}}},{"$sort":{"total":-1}},'
            '{"$limit":"?"}],"cursor":{"batchSize":"?"}}'
        ),
    ),
    "aggregate: lookup with a pipeline": (
        {
            "aggregate": "orders",
            "pipeline": [
                {"$lookup": {"from": "users", "localField": "user.id", "foreignField": "_id", "as": "user"}},
                {
                    "$lookup": {
                        "from": "products",
                        "let": {"sku": "$items.sku", "least": 3},
                        "pipeline": [
                            {"$match": {"$expr": {"$eq": ["$sku", "$$sku"]}, "vendor": "$ACME"}},
                            {"$project": {"price": 1, "_id": 0}},
                        ],
                        "as": "products",
                    }
                },
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"orders","pipeline":[{"$lookup":{"from":"users","localField":"user.id","foreignField":"_id",'
            '"as":"user"}},{"$lookup":{"from":"products","let":{"sku":"$items.sku","least":"?"},"pipeline":[{"$match":'
            '{"$expr":{"$eq":["$sku","$$sku"]},"vendor":"?"}},{"$project":{"price":1,"_id":0}}],"as":"products"}}],'
            '"cursor":{}}'
        ),
    ),
    "aggregate: facets": (
        {
            "aggregate": "products",
            "pipeline": [
                {
                    "$facet": {
                        "by_price": [{"$bucket": {"groupBy": "$price", "boundaries": [0, 50, 100], "default": "more"}}],
                        "count": [{"$match": {"tag": "red"}}, {"$count": "n"}],
                    }
                }
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"products","pipeline":[{"$facet":{"by_price":[{"$bucket":{"groupBy":"$price","boundaries":["?"],'
            '"default":"?"}}],"count":[{"$match":{"tag":"?"}},{"$count":"n"}]}}],"cursor":{}}'
        ),
    ),
    "aggregate: expressions keep their order": (
        {
            "aggregate": "users",
            "pipeline": [
                {
                    "$set": {
                        "name": {"$concat": ["$first", " ", "$last", " ", "$first"]},
                        "kind": {"$literal": "$first"},
                    }
                },
                {"$set": {"level": {"$cond": [{"$gte": ["$points", 100]}, "$gold", "silver"]}}},
                {"$set": {"level": {"$cond": [{"$gte": ["$points", 200]}, "$gold", "bronze"]}}},
                {"$unset": ["first", "last"]},
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"users","pipeline":[{"$set":{"name":{"$concat":["$first","?","$last","?","$first"]},'
            '"kind":{"$literal":"?"}}},{"$set":{"level":{"$cond":[{"$gte":["$points","?"]},"$gold","?"]}}},'
            '{"$unset":["first","last"]}],"cursor":{}}'
        ),
    ),
    "aggregate: unwind, window, fill": (
        {
            "aggregate": "prices",
            "pipeline": [
                {"$unwind": "$items"},
                {"$unwind": {"path": "$items", "includeArrayIndex": "i", "preserveNullAndEmptyArrays": True}},
                {
                    "$setWindowFields": {
                        "partitionBy": "$state",
                        "sortBy": {"day": 1},
                        "output": {"sum": {"$sum": "$price", "window": {"documents": ["unbounded", "current"]}}},
                    }
                },
                {"$densify": {"field": "day", "range": {"step": 1, "unit": "day", "bounds": "full"}}},
                {"$fill": {"sortBy": {"day": 1}, "output": {"price": {"method": "linear"}}}},
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"prices","pipeline":[{"$unwind":"$items"},{"$unwind":{"path":"$items","includeArrayIndex":"i",'
            '"preserveNullAndEmptyArrays":true}},{"$setWindowFields":{"partitionBy":"$state","sortBy":{"day":1},'
            '"output":{"sum":{"$sum":"$price","window":{"documents":["?"]}}}}},{"$densify":{"field":"day","range":'
            '{"step":"?","unit":"?","bounds":"?"}}},{"$fill":{"sortBy":{"day":1},"output":{"price":{"method":"?"}}}}],'
            '"cursor":{}}'
        ),
    ),
    "aggregate: graph": (
        {
            "aggregate": "staff",
            "pipeline": [
                {
                    "$graphLookup": {
                        "from": "staff",
                        "startWith": "$boss",
                        "connectFromField": "boss",
                        "connectToField": "name",
                        "as": "bosses",
                        "depthField": "depth",
                        "restrictSearchWithMatch": {"office": "$Berlin"},
                    }
                }
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"staff","pipeline":[{"$graphLookup":{"from":"staff","startWith":"$boss",'
            '"connectFromField":"boss","connectToField":"name","as":"bosses","depthField":"depth",'
            '"restrictSearchWithMatch":{"office":"?"}}}],"cursor":{}}'
        ),
    ),
    "aggregate: near a place": (
        {
            "aggregate": "shops",
            "pipeline": [
                {
                    "$geoNear": {
                        "near": {"type": "Point", "coordinates": [1, 2]},
                        "distanceField": "far",
                        "query": {"a": 1},
                    }
                }
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"shops","pipeline":[{"$geoNear":{"near":{"type":"?","coordinates":["?"]},'
            '"distanceField":"far","query":{"a":"?"}}}],"cursor":{}}'
        ),
    ),
    "aggregate: search": (
        {
            "aggregate": "films",
            "pipeline": [
                {
                    "$search": {
                        "index": "default",
                        "compound": {
                            "must": [{"text": {"query": "$alice", "path": ["title", "plot"]}}],
                            "filter": [{"equals": {"path": "public", "value": True}}],
                        },
                        "sort": {"released": -1},
                    }
                },
                {"$limit": 5},
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"films","pipeline":[{"$search":{"index":"?","compound":{"must":[{"text":{"query":"?",'
            '"path":["title","plot"]}}],"filter":[{"equals":{"path":"public","value":"?"}}]},"sort":{"released":-1}}},'
            '{"$limit":"?"}],"cursor":{}}'
        ),
    ),
    "aggregate: search for a document": (
        {"aggregate": "films", "pipeline": [{"$search": {"equals": {"path": "a", "value": {"path": "alice"}}}}]},
        '{"aggregate":"films","pipeline":[{"$search":{"equals":{"path":"a","value":{"path":"?"}}}}]}',
    ),
    "aggregate: search by a vector": (
        {
            "aggregate": "films",
            "pipeline": [
                {
                    "$vectorSearch": {
                        "index": "plots",
                        "path": "plot_embedding",
                        "queryVector": [0.1234] * 1536,
                        "numCandidates": 150,
                        "limit": 10,
                        "filter": {"year": {"$gt": 1990}},
                    }
                },
                {"$project": {"title": 1, "score": {"$meta": "vectorSearchScore"}}},
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"films","pipeline":[{"$vectorSearch":{"index":"?","path":"plot_embedding","queryVector":["?"],'
            '"numCandidates":"?","limit":"?","filter":{"year":{"$gt":"?"}}}},{"$project":{"title":1,"score":'
            '{"$meta":"?"}}}],"cursor":{}}'
        ),
    ),
    "aggregate: ranked fusion": (
        {
            "aggregate": "films",
            "pipeline": [
                {"$rankFusion": {"input": {"pipelines": {"text": [{"$match": {"a": 1}}, {"$sort": {"a": -1}}]}}}}
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"films","pipeline":[{"$rankFusion":{"input":{"pipelines":{"text":[{"$match":{"a":"?"}},'
            '{"$sort":{"a":-1}}]}}}}],"cursor":{}}'
        ),
    ),
    "aggregate: write what comes of it": (
        {
            "aggregate": "orders",
            "pipeline": [
                {"$unionWith": {"coll": "old_orders", "pipeline": [{"$match": {"year": 2020}}]}},
                {"$unionWith": "older_orders"},
                {"$merge": {"into": {"db": "reports", "coll": "days"}, "on": "_id", "whenMatched": "replace"}},
                {"$out": {"db": "reports", "coll": "days"}},
                {"$out": "days"},
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"orders","pipeline":[{"$unionWith":{"coll":"old_orders","pipeline":[{"$match":{"year":"?"}}]}},'
            '{"$unionWith":"older_orders"},{"$merge":{"into":{"db":"reports","coll":"days"},"on":"_id",'
            '"whenMatched":"?"}},{"$out":{"db":"reports","coll":"days"}},{"$out":"days"}],"cursor":{}}'
        ),
    ),
    "aggregate: a change stream": (
        {
            "aggregate": 1,
            "pipeline": [
                {"$changeStream": {"fullDocument": "updateLookup", "resumeAfter": {"_data": "8263"}}},
                {"$match": {"operationType": "insert"}},
            ],
            "cursor": {},
        },
        (
            '{"aggregate":"?","pipeline":[{"$changeStream":{"fullDocument":"?","resumeAfter":{"_data":"?"}}},'
            '{"$match":{"operationType":"?"}}],"cursor":{}}'
        ),
    ),
    "aggregate: a stage that isn't known": (
        {"aggregate": "a", "pipeline": [{"$novel": {"of": "$author", "by": "Jane", "n": 1}}], "cursor": {}},
        '{"aggregate":"a","pipeline":[{"$novel":{"of":"$author","by":"?","n":"?"}}],"cursor":{}}',
    ),
    "insert one": (
        {
            "insert": "users",
            "ordered": True,
            "documents": [{"_id": ID, "name": "Alice", "tags": ["a", "b"], "at": None}],
        },
        '{"insert":"users","ordered":true,"documents":[{"_id":"?","name":"?","tags":["?"],"at":"?"}]}',
    ),
    "insert many": (
        {
            "insert": "users",
            "documents": [{"_id": number, "address": {"city": "Berlin"}} for number in range(1000)]
            + [{"_id": 1000, "anonymous": True}],
        },
        '{"insert":"users","documents":[{"_id":"?","address":{"city":"?"}}]}',
    ),
    "insert documents of two shapes": (
        {"insert": "users", "documents": [{"a": 1}, {"b": {"c": "$d"}}, {"a": 2}, {"b": {"c": 3}}]},
        '{"insert":"users","documents":[{"a":"?"},{"b":{"c":"?"}}]}',
    ),
    "insert a map with keys that are data": (
        {
            "insert": "votes",
            "documents": [
                {"_id": 1, "by": {"alice@example.org": 1, "bob@example.org": 2}, "65f0c0ffee65f0c0ffee65f0": {}}
            ],
        },
        '{"insert":"votes","documents":[{"_id":"?","by":{"?":"?"},"?":{}}]}',
    ),
    "update with operators": (
        {
            "update": "orders",
            "updates": [
                {
                    "q": {"_id": ID},
                    "u": {
                        "$set": {"items.$[item].count": 3, "items.0.sku": "A", "items.$.seen": True},
                        "$inc": {"version": 1},
                        "$push": {"log": {"$each": [{"at": DAY}], "$sort": {"at": -1}, "$slice": -10}},
                        "$unset": {"draft": ""},
                    },
                    "arrayFilters": [{"item.sku": "A-1"}],
                    "upsert": True,
                    "multi": False,
                    "hint": {"_id": 1},
                }
            ],
        },
        (
            '{"update":"orders","updates":[{"q":{"_id":"?"},"u":{"$set":{"items.$[item].count":"?","items.0.sku":"?",'
            '"items.$.seen":"?"},"$inc":{"version":"?"},"$push":{"log":{"$each":[{"at":"?"}],"$sort":{"at":-1},'
            '"$slice":"?"}},"$unset":{"draft":"?"}},"arrayFilters":[{"item.sku":"?"}],"upsert":true,"multi":false,'
            '"hint":{"_id":1}}]}'
        ),
    ),
    "update with a pipeline": (
        {
            "update": "orders",
            "updates": [{"q": {"a": "$b"}, "u": [{"$set": {"a": "$b", "c": "d"}}, {"$unset": "e"}], "c": {"x": "$y"}}],
        },
        '{"update":"orders","updates":[{"q":{"a":"?"},"u":[{"$set":{"a":"$b","c":"?"}},{"$unset":"e"}],"c":{"x":"?"}}]}',
    ),
    "replace": (
        {"update": "users", "updates": [{"q": {"_id": 1}, "u": {"name": "Alice", "tags": ["$a"], "at": {"x": "$b"}}}]},
        '{"update":"users","updates":[{"q":{"_id":"?"},"u":{"name":"?","tags":["?"],"at":{"x":"?"}}}]}',
    ),
    "delete": (
        {
            "delete": "users",
            "deletes": [{"q": {"last_seen": {"$lt": DAY}}, "limit": 0}],
            "writeConcern": {"w": "majority"},
        },
        '{"delete":"users","deletes":[{"q":{"last_seen":{"$lt":"?"}},"limit":0}],"writeConcern":{"w":"?"}}',
    ),
    "find and modify": (
        {
            "findAndModify": "jobs",
            "query": {"state": "new"},
            "sort": {"priority": -1},
            "update": {"$set": {"state": "taken", "by": "worker-1"}},
            "fields": {"payload": 1},
            "new": True,
        },
        (
            '{"findAndModify":"jobs","query":{"state":"?"},"sort":{"priority":-1},"update":{"$set":{"state":"?","by":"?"}},'
            '"fields":{"payload":1},"new":true}'
        ),
    ),
    "count": (
        {"count": "users", "query": {"active": True}, "hint": {"active": 1}},
        '{"count":"users","query":{"active":"?"},"hint":{"active":1}}',
    ),
    "distinct": (
        {"distinct": "users", "key": "address.city", "query": {"age": {"$gt": 18}}},
        '{"distinct":"users","key":"address.city","query":{"age":{"$gt":"?"}}}',
    ),
    "get more": (
        {"getMore": Int64(7243), "collection": "orders", "batchSize": 100},
        '{"collection":"orders","batchSize":"?"}',
    ),
    "kill cursors": (
        {"killCursors": "orders", "cursors": [Int64(1), Int64(2)]},
        '{"killCursors":"orders"}',
    ),
    "bulk write": (
        {
            "bulkWrite": 1,
            "ops": [
                {"insert": 0, "document": {"_id": 1, "name": "$alice"}},
                {"update": 1, "filter": {"_id": 1}, "updateMods": {"$set": {"name": "bob"}}, "multi": False},
                {"update": 0, "filter": {"_id": 2}, "updateMods": [{"$set": {"a": "$b"}}], "multi": False},
                {"delete": 1, "filter": {"_id": 3}, "multi": False},
                {"delete": 0, "filter": {"_id": 4}, "multi": True},
            ],
            "nsInfo": [{"ns": "shop.users"}, {"ns": "shop.orders"}],
        },
        (
            '{"bulkWrite":"?","ops":[{"insert":"?","document":{"_id":"?","name":"?"}},{"update":"?","filter":{"_id":"?"},'
            '"updateMods":{"$set":{"name":"?"}},"multi":false},{"update":"?","filter":{"_id":"?"},"updateMods":'
            '[{"$set":{"a":"$b"}}],"multi":false},{"delete":"?","filter":{"_id":"?"},"multi":false},'
            '{"delete":"?","filter":{"_id":"?"},"multi":true}],'
            '"nsInfo":[{"ns":"shop.users"},{"ns":"shop.orders"}]}'
        ),
    ),
    "create indexes": (
        {
            "createIndexes": "users",
            "indexes": [
                {"key": SON([("email", 1), ("at", "2dsphere")]), "name": "email_1_at", "unique": True},
                {"key": {"plot": "text"}, "name": "plot", "partialFilterExpression": {"age": {"$gt": 18}}},
                {"key": {"_id": "hashed"}, "name": "h", "expireAfterSeconds": 3600},
            ],
        },
        (
            '{"createIndexes":"users","indexes":[{"key":{"email":1,"at":"2dsphere"},"name":"?","unique":true},'
            '{"key":{"plot":"text"},"name":"?","partialFilterExpression":{"age":{"$gt":"?"}}},'
            '{"key":{"_id":"hashed"},"name":"?","expireAfterSeconds":"?"}]}'
        ),
    ),
    "map and reduce": (
        {
            "mapReduce": "orders",
            "map": Code("function() { emit(this.user, 1) }"),
            "reduce": "function(k, v) { return 'alice' }",
            "out": {"merge": "totals", "db": "reports"},
            "query": {"user": "alice"},
            "scope": {"x": 1},
        },
        (
            '{"mapReduce":"orders","map":"?","reduce":"?","out":{"merge":"totals","db":"reports"},"query":{"user":"?"},'
            '"scope":{"x":"?"}}'
        ),
    ),
    "explain": (
        {
            "explain": {"find": "users", "filter": {"name": "Alice"}, "sort": {"name": 1}, "comment": "c", "lsid": {}},
            "verbosity": "executionStats",
        },
        '{"explain":{"find":"users","filter":{"name":"?"},"sort":{"name":1}},"verbosity":"?"}',
    ),
    "explain what has no documents": (
        {"explain": {"distinct": "users", "key": "name", "comment": "c", "lsid": 1}},
        '{"explain":{"distinct":"users","key":"name"}}',
    ),
    "create a view": (
        {"create": "adults", "viewOn": "users", "pipeline": [{"$match": {"age": {"$gte": 18}}}]},
        '{"create":"adults","viewOn":"users","pipeline":[{"$match":{"age":{"$gte":"?"}}}]}',
    ),
    "rename": (
        {"renameCollection": "shop.orders", "to": "shop.old_orders", "dropTarget": True},
        '{"renameCollection":"shop.orders","to":"shop.old_orders","dropTarget":true}',
    ),
    "of a transaction": (
        {"commitTransaction": 1, "autocommit": False, "recoveryToken": {"id": 1}, **SESSION},
        '{"commitTransaction":"?","autocommit":false}',
    ),
    "a user's name": ({"dropUser": "alice"}, '{"dropUser":"?"}'),
    "a command that isn't known": (
        {"frobnicate": "alice", "sort": {"a": 1}, "pipeline": [{"$project": {"a": "$alice"}}], "comment": "hidden"},
        '{"frobnicate":"?","sort":{"a":"?"},"pipeline":[{"$project":{"a":"?"}}]}',
    ),
}


@pytest.mark.parametrize(("command", "text"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_shown_as_its_shape(command: dict[str, Any], text: str) -> None:
    assert masked(command) == text


@pytest.mark.parametrize(
    "key",
    [
        "_id",
        "customer_name",
        "v2",
        "a1234567",
        "created_202",
        "x" * 40,
        "a.b",
        "a.0.b",
        "a.10.0",
        "a.0.b.1.0.c",
        "999",
        "items.$.count",
        "items.$[].count",
        "items.$[item].count",
        "$set",
        "$log10",
        "$_internal",
    ],
)
def test_a_key_that_a_programmer_gave_stays(key: str) -> None:
    assert masked({"insert": "a", "documents": [{key: 1}]}) == f'{{"insert":"a","documents":[{{"{key}":"?"}}]}}'


@pytest.mark.parametrize(
    "key",
    [
        "",
        "?",
        "a.",
        "a..b",
        "alice@example.org",
        "first name",
        "user-id",
        "größe",
        "created_2025",
        "x" * 41,
        "1000",
        "192.168.0.1",
        "hits.192.168.0.1",
        "visits.24.12.99",
        "030.123.456",
        "0.a",
        "007",
        "65f0c0ffee65f0c0ffee65f0",
        "a5f0c0ffee65f0c0ffee65f0",
        "emails.alice@example.org",
        "$alice@example.org",
        "items.$[alice@example.org]",
        "items.$[item",
        '"',
        "a\n",
        "\x00",
        ".".join(["a"] * 200),
    ],
)
def test_a_key_that_is_rather_data_is_masked(key: str) -> None:
    assert masked({"insert": "a", "documents": [{"b": 1, key: 1}]}) == '{"insert":"a","documents":[{"b":"?","?":"?"}]}'


def test_all_the_keys_of_a_document_with_very_many_are_masked_but_operators() -> None:
    by_name = {"".join(("user", chr(97 + number // 26), chr(97 + number % 26))): number for number in range(101)}

    assert masked({"insert": "a", "documents": [by_name]}) == '{"insert":"a","documents":[{"?":"?"}]}'
    assert masked({"find": "a", "filter": {**by_name, "$expr": 1}}) == '{"find":"a","filter":{"?":"?","$expr":"?"}}'
    by_name.popitem()
    assert "userab" in (masked({"insert": "a", "documents": [by_name]}) or "")


def test_equal_documents_under_masked_keys_become_one() -> None:
    votes = {"a@x.org": {"n": 1}, "b@x.org": {"n": 2}, "c@x.org": {"m": 3}, "d@x.org": 4, "e@x.org": 5}

    assert masked({"insert": "v", "documents": [votes]}) == (
        '{"insert":"v","documents":[{"?":{"n":"?"},"?":{"m":"?"},"?":"?"}]}'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Expressions and flags.


@pytest.mark.parametrize("path", ["$a", "$a.b_c.d", "$$ROOT", "$$this.a", "$_id", "$created_202"])
def test_the_path_of_a_field_stays_in_an_expression(path: str) -> None:
    assert (
        masked(_project({"$not": path}))
        == f'{{"aggregate":"a","pipeline":[{{"$project":{{"b":{{"$not":"{path}"}}}}}}]}}'
    )


@pytest.mark.parametrize(
    "text",
    [
        "alice",
        "$",
        "$$",
        "$5.00",
        "$a b",
        "$a@b.org",
        "$a.",
        "$.a",
        "$$$a",
        "$a.$b",
        "$a1234567890",
        "$" + "a" * 41,
        "$a\n",
        "$" + ".".join(["a"] * 200),
    ],
)
def test_any_other_text_in_an_expression_is_masked(text: str) -> None:
    assert masked(_project({"$not": text})) == '{"aggregate":"a","pipeline":[{"$project":{"b":{"$not":"?"}}}]}'


def _project(expression: Any) -> dict[str, Any]:
    return {"aggregate": "a", "pipeline": [{"$project": {"b": expression}}]}


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        (1, "1"),
        (-1, "-1"),
        (0, "0"),
        (1.0, "1"),
        (Int64(-1), "-1"),
        (True, "true"),
        (False, "false"),
        ("text", '"text"'),
        ("2d", '"2d"'),
        ("2dsphere", '"2dsphere"'),
        ("hashed", '"hashed"'),
        (2, '"?"'),
        (float("nan"), '"?"'),
        (None, '"?"'),
        ("alice", '"?"'),
        ("$alice", '"?"'),
        (Decimal128("1"), '"?"'),
        (ID, '"?"'),
    ],
)
def test_of_an_index_only_what_an_index_can_be_is_shown(flag: Any, shown: str) -> None:
    assert masked({"createIndexes": "a", "indexes": [{"key": {"b": flag}}]}) == (
        f'{{"createIndexes":"a","indexes":[{{"key":{{"b":{shown}}}}}]}}'
    )


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_stays_where_an_option_is(flag: bool) -> None:
    commands: list[dict[str, Any]] = [
        {"insert": "a", "ordered": flag},
        {"find": "a", "singleBatch": flag},
        {"find": "a", "filter": {"b": {"$exists": flag}}},
        {"find": "a", "filter": {"$or": [{"b": {"$not": {"$exists": flag}}}]}},
        {"find": "a", "filter": {"b": {"$elemMatch": {"$and": [{"c": {"$exists": flag}}]}}}},
        {"update": "a", "updates": [{"q": {}, "multi": flag}]},
        {"update": "a", "updates": [{"q": {}, "upsert": flag}]},
        {"update": "a", "updates": [{"q": {}, "arrayFilters": [{"b.c": {"$exists": flag}}]}]},
        {"bulkWrite": "a", "ops": [{"filter": {}, "multi": flag}]},
        {"findAndModify": "a", "new": flag},
        {"findAndModify": "a", "remove": flag},
        {"createIndexes": "a", "indexes": [{"key": {}, "unique": flag}]},
        {"collMod": "a", "index": {"keyPattern": {}, "hidden": flag}},
        {"aggregate": "a", "explain": flag},
        {"aggregate": "a", "pipeline": [{"$unwind": {"path": "$b", "preserveNullAndEmptyArrays": flag}}]},
        {"explain": {"find": "a", "singleBatch": flag}},
    ]
    for command in commands:
        for _ in range(2):  # and so it does in a text that is remembered
            text = masked(command) or ""
            assert f":{json.dumps(flag)}" in text
            assert f":{json.dumps(not flag)}" not in text


@pytest.mark.parametrize("value", [True, False, 0, 1])
def test_a_field_of_the_application_that_is_called_like_an_option_is_masked(value: Any) -> None:
    names = ["ordered", "multi", "upsert", "unique", "new", "limit", "exists", "explain", "singleBatch"]
    fields = dict.fromkeys(names, value)
    commands: list[dict[str, Any]] = [
        {"insert": "a", "documents": [fields, {"b": {**fields, "$exists": value}}]},
        {"find": "a", "filter": {**fields, "b": {**fields, "$eq": {"$exists": value}, "$in": [{"$exists": value}]}}},
        {"find": "a", "filter": {"b": {"$elemMatch": {**fields, "$eq": {"c": {"$exists": value}}}}}},
        {"find": "a", "filter": {"b": [{"$exists": value}], "c": {"$not": [{"$exists": value}]}}},
        {"find": "a", "filter": {"b": [[{"$exists": value}]], "$or": [{"c": [{"$exists": value}]}]}},
        {"find": "a", "let": fields, "collation": fields, "min": fields},
        {"update": "a", "updates": [{"q": fields, "u": {"$set": fields, "$setOnInsert": {"$exists": value}}}]},
        {"update": "a", "updates": [{"q": {}, "u": fields, "c": fields, "arrayFilters": [fields]}]},
        {"delete": "a", "deletes": [{"q": fields, "collation": fields}]},
        {"bulkWrite": "a", "ops": [{"document": fields, "filter": fields, "updateMods": fields}]},
        {"findAndModify": "a", "query": fields, "update": fields},
        {"aggregate": "a", "pipeline": [{"$match": fields}, {"$set": fields}, {"$documents": [fields]}]},
        {"createIndexes": "a", "indexes": [{"partialFilterExpression": fields}]},
        {"insert": "a", "ordered": [fields, value], "documents": []},
    ]
    for command in commands:
        text = masked(command) or ""
        assert re.sub(r'"[^"]*"|[\[\]{}:,]', "", text) == ""  # neither a number nor a boolean is left


@pytest.mark.parametrize("value", [1, 0, "alice", None, 1.0, ID, [True], {"a": True}])
def test_in_place_of_a_flag_only_a_boolean_is_shown(value: Any) -> None:
    text = masked({"find": "a", "singleBatch": value, "filter": {"b": {"$exists": value}}}) or ""

    assert re.sub(r'"[^"]*"|[\[\]{}:,]', "", text) == ""


@pytest.mark.parametrize(
    ("limit", "shown"), [(0, "0"), (1, "1"), (2, '"?"'), (True, '"?"'), (1.0, '"?"'), ("1", '"?"'), (None, '"?"')]
)
def test_of_the_limit_of_a_delete_only_0_and_1_are_shown(limit: Any, shown: str) -> None:
    assert masked({"delete": "a", "deletes": [{"q": {}, "limit": limit}]}) == (
        f'{{"delete":"a","deletes":[{{"q":{{}},"limit":{shown}}}]}}'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Every type, and what no type is.

VALUES: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    (7, "7"),
    (Int64(2**60), "1152921504606846976"),
    (1.5, "1.5"),
    (float("nan"), '{"$numberDouble":"NaN"}'),
    (float("-inf"), '{"$numberDouble":"-Infinity"}'),
    ('al"ice\n', '"al\\"ice\\n"'),
    ("größe", '"größe"'),
    ("lone \ud800", '"lone ?"'),
    (b"alice", '{"$binary":"?"}'),
    (Binary(b"alice", 5), '{"$binary":"?"}'),
    (uuid.UUID(int=1), '{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
    (ID, '{"$oid":"65f0c0ffee65f0c0ffee65f0"}'),
    (DAY, '{"$date":"2026-03-01T12:30:00Z"}'),
    (datetime.datetime(1, 1, 1), '{"$date":{"$numberLong":"-62135596800000"}}'),
    (Timestamp(1, 2), '{"$timestamp":{"t":1,"i":2}}'),
    (Decimal128("1.50"), '{"$numberDecimal":"1.50"}'),
    (re.compile("^a", re.IGNORECASE), '{"$regularExpression":{"pattern":"^a","options":"iu"}}'),
    (Regex("^a", "i"), '{"$regularExpression":{"pattern":"^a","options":"i"}}'),
    (Code("this.a"), '{"$code":"this.a"}'),
    (Code("this.a", {"b": 1}), '{"$code":"this.a"}'),
    (MinKey(), '{"$minKey":1}'),
    (MaxKey(), '{"$maxKey":1}'),
    (object(), '"?"'),
    (type("Money", (), {})(), '"?"'),
    (3 + 4j, '"?"'),
]


@pytest.mark.parametrize(("value", "shown"), VALUES, ids=lambda value: type(value).__name__)
def test_any_value_is_masked_and_in_raw_text_extended_json(value: Any, shown: str) -> None:
    assert masked({"find": "a", "filter": {"b": value}}) == '{"find":"a","filter":{"b":"?"}}'
    assert masked({"find": "a", "filter": {"b": [value]}}) == '{"find":"a","filter":{"b":["?"]}}'
    assert masked(_project(value))
    assert raw({"find": "a", "filter": {"b": value}}) == f'{{"find":"a","filter":{{"b":{shown}}}}}'


def test_documents_and_arrays_of_any_class_are_what_they_are_sent_as() -> None:
    documents = [{"a": 1}, SON([("a", 1)]), UserDict({"a": 1}), RawBSONDocument(encode({"a": 1}))]
    for document in documents:
        assert masked({"find": "a", "filter": {"b": document}}) == '{"find":"a","filter":{"b":{"a":"?"}}}'
        assert raw({"find": "a", "filter": {"b": document}}) == '{"find":"a","filter":{"b":{"a":1}}}'
    assert masked({"find": "a", "filter": {"b": (1, 2)}}) == '{"find":"a","filter":{"b":["?"]}}'
    assert raw({"find": "a", "filter": {"b": (1, 2)}}) == '{"find":"a","filter":{"b":[1,2]}}'
    reference = {"find": "a", "filter": {"b": DBRef("users", 5)}}
    assert masked(reference) == '{"find":"a","filter":{"b":{"$ref":"?","$id":"?"}}}'
    assert raw(reference) == '{"find":"a","filter":{"b":{"$ref":"users","$id":5}}}'


def test_a_raw_document_keeps_nothing_of_the_look() -> None:
    document = RawBSONDocument(encode({"a": {"b": 1}}))

    assert masked({"insert": "a", "documents": [document]}) == '{"insert":"a","documents":[{"a":{"b":"?"}}]}'
    assert document._RawBSONDocument__inflated_doc is None  # type: ignore[attr-defined]


def test_a_raw_document_that_is_broken_is_a_literal() -> None:
    broken = encode({"a": "b"})
    broken = broken[:4] + b"\x7f" + broken[5:]

    assert masked({"insert": "a", "documents": [RawBSONDocument(broken)]}) == '{"insert":"a","documents":["?"]}'
    assert raw({"insert": "a", "documents": [RawBSONDocument(broken)]}) == (
        '{"insert":"a","documents":[{"$binary":"?"}]}'
    )


def test_a_date_that_python_has_not_is_no_hindrance() -> None:
    # As the server may send it: of the year 292278994.
    document = RawBSONDocument(b"\x10\x00\x00\x00\x09a\x00\xff\xff\xff\xff\xff\xff\xff\x7f\x00")

    assert masked({"insert": "a", "documents": [document]}) in {
        '{"insert":"a","documents":[{"a":"?"}]}',
        '{"insert":"a","documents":["?"]}',  # up to PyMongo 4.2
    }
    assert raw({"insert": "a", "documents": [document]})


CUT = {"...": "..."}


class Shy(UserDict[str, Any]):
    """A document that can't be read to its end."""

    def items(self) -> Any:
        def some() -> Iterator[tuple[str, Any]]:
            yield "a", 1
            raise LookupError("alice")

        return some()


class Closed(UserDict[str, Any]):
    def items(self) -> Any:
        raise LookupError("alice")


def test_the_text_ends_before_what_cannot_be_read() -> None:
    for text in (masked, raw):
        one = "?" if text is masked else 1
        assert json.loads(text({"find": "a", "filter": {"b": 1, "c": Closed(), "d": 1}}) or "") == {
            "find": "a",
            "filter": {"b": one, "...": "..."},
            "...": "...",
        }
        assert json.loads(text({"find": "a", "filter": {"b": {"c": Shy()}}, "limit": 1}) or "") == {
            "find": "a",
            "filter": {"b": {"c": {"a": one, "...": "..."}, "...": "..."}, "...": "..."},
            "...": "...",
        }
        pipeline = [*[{"$skip": 1}, {"$limit": 1}] * 10, {"$match": Shy()}]
        assert json.loads(text({"aggregate": "a", "pipeline": pipeline}) or "")["pipeline"][15:] == [
            "...",
            {"$match": {"a": one, **CUT}, **CUT},
        ]
        unreadable = [{"a": 1}, {"a": Shy()}, {"b": 1}]
        assert json.loads(text({"find": "a", "filter": {"$or": unreadable}}) or "")["filter"] == {
            "$or": [{"a": one}, {"a": {"a": one, **CUT}, **CUT}, "..."],
            "...": "...",
        }


@pytest.mark.parametrize("command", [{}, None, 7, Closed(), "find"])
def test_what_is_no_command_has_no_text(command: Any) -> None:
    assert query_text("find", command, False, 4096) is None
    assert query_text("find", command, True, 4096) is None


class Key(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "alice"


def test_odd_keys_are_keys_all_the_same() -> None:
    assert masked({"find": "a", "filter": {Key("b"): [1], 7: 2}}) == '{"find":"a","filter":{"b":["?"],"?":"?"}}'
    assert masked({"find": "a", "filter": {Key("b"): 1, 7: 2}}) == '{"find":"a","filter":{"b":"?","?":"?"}}'
    assert raw({"find": "a", "filter": {Key("b"): 1, 7: 2}}) == '{"find":"a","filter":{"b":1,"?":2}}'
    assert masked({"explain": [1]}) == '{"explain":["?"]}'
    assert masked({"explain": {7: 1}}) == '{"explain":{"?":"?"}}'
    assert masked({"find": 'sh"op'}) == '{"find":"sh\\"op"}'
    assert masked({"find": 7, "filter": []}) == '{"find":"?","filter":[]}'


@pytest.mark.parametrize(
    "name", ["saslStart", "saslContinue", "authenticate", "createUser", "updateUser", "CREATEUSER"]
)
def test_a_command_with_credentials_has_no_text(name: str) -> None:
    command = {name: "alice", "pwd": "secret", "payload": b"secret"}

    assert masked(command) is None
    assert raw(command) is None


@pytest.mark.parametrize("text_of", [masked, raw])
def test_nor_has_one_that_explains_such_a_command(text_of: Callable[[Mapping[str, Any]], str | None]) -> None:
    command = {"createUser": "alice", "pwd": "secret", "roles": []}

    assert text_of({"explain": command}) is None
    assert text_of({"explain": SON(command), "verbosity": "queryPlanner"}) is None
    assert text_of({"explain": RawBSONDocument(encode(command))}) is None
    assert text_of({"explain": {"explain": command}}) is None


def test_no_text_shows_how_a_client_authenticates() -> None:
    hello = {"hello": 1, "speculativeAuthenticate": {"saslStart": 1, "payload": b"secret", "user": "alice"}}

    assert raw(hello) == '{"hello":1}'
    assert masked(hello) == '{"hello":"?"}'


# ---------------------------------------------------------------------------------------------------------------------
# Bounds.


def test_raw_text_leaves_out_the_session_and_the_command_s_comment() -> None:
    command = {"find": "users", "filter": {"comment": "hello", "lsid": 1}, "comment": "from the web shop", **SESSION}

    assert raw(command) == '{"find":"users","filter":{"comment":"hello","lsid":1}}'
    assert raw({"explain": command}) == '{"explain":{"find":"users","filter":{"comment":"hello","lsid":1}}}'


def test_16_elements_of_an_array_are_read() -> None:
    many: dict[str, Any] = {"find": "a", "filter": {"b": {"$in": list(range(1_000_000))}}}

    assert masked(many) == '{"find":"a","filter":{"b":{"$in":["?"]}}}'
    assert json.loads(raw(many) or "")["filter"] == {"b": {"$in": [*range(16), "..."]}}
    whole = raw(many) or ""
    assert json.loads(raw(many, len(whole) - 1) or "")["filter"] == {"b": {"$in": [*range(15), "..."]}}
    assert json.loads(raw(many, len('{"find":"a","filter":{"b":{"$in":[]}}}')) or "")["filter"] == {"b": "..."}
    many["filter"]["b"]["$in"] = list(range(16))
    assert json.loads(raw(many) or "")["filter"] == {"b": {"$in": [*range(16)]}}


def test_a_batch_has_one_text_however_many_documents_it_has() -> None:
    texts = {masked({"insert": "a", "documents": [{"a": 1}, {"b": [1]}] * times}) for times in (1, 8, 9, 1_000)}
    assert texts == {'{"insert":"a","documents":[{"a":"?"},{"b":["?"]}]}'}
    # Those of another shape that aren't among the first 16 aren't shown.
    assert masked({"insert": "a", "documents": [{"a": 1}] * 16 + [{"b": 1}]}) == (
        '{"insert":"a","documents":[{"a":"?"}]}'
    )


def test_a_list_of_which_nothing_is_repeated_says_that_it_is_longer() -> None:
    def text(number: int) -> Any:
        conditions = [{f"a{each}": each} for each in range(number)]
        return json.loads(masked({"find": "a", "filter": {"$or": conditions}}) or "")["filter"]["$or"]

    assert text(16) == [{f"a{each}": "?"} for each in range(16)]
    assert text(17) == [*text(16), "..."]


def test_an_expression_says_that_it_is_longer_unless_it_ends_with_literals() -> None:
    def text(*operands: Any) -> Any:
        pipeline = json.loads(masked(_project({"$concat": list(operands)})) or "")["pipeline"]
        return pipeline[0]["$project"]["b"]["$concat"]

    assert text(*["$a", "b"] * 8) == ["$a", "?"] * 8
    assert text(*["$a", "b"] * 9) == [*["$a", "?"] * 8, "..."]
    assert text("b", "c", *["$a", "b"] * 8) == [*["?", "$a"] * 7, "?", "..."]
    assert text("$a", *["b"] * 1_000) == ["$a", "?"]


@pytest.mark.parametrize("last", ["$out", "$merge"])
@pytest.mark.parametrize("text_of", [masked, raw])
def test_the_last_stage_of_a_pipeline_is_always_shown(
    last: str, text_of: Callable[[Mapping[str, Any], int], str | None]
) -> None:
    def stages(pipeline: list[Any], limit: int) -> Any:
        return json.loads(text_of({"aggregate": "a", "pipeline": pipeline, "cursor": {}}, limit) or "")["pipeline"]

    write = {last: "b"} if last == "$out" else {last: {"into": "b"}}
    many = [{"$skip": 1}, {"$match": {"a": 1}}] * 10
    shown = stages([*many[:15], write], 10_000)
    assert len(shown) == 16
    assert stages([*many, write], 10_000) == [*shown[:-1], "...", write]
    assert stages([*many, many[-1]], 10_000) == [*shown[:-1], "...", shown[1]]
    assert stages([*many[:15], write], 180)[-2:] == ["...", write]
    long = [{"$match": {f"a{number}": "b" * 40 for number in range(80)}}, {"$match": {"x" * 40: 1}}]
    for limit in range(120, 2_000, 7):
        for pipeline in ([*long, write], [{"$facet": {"one": [*long, write]}}, write]):
            assert last in stages(pipeline, limit)[-1]
            assert limit < 180 or stages(pipeline, limit)[-1] == write
    # Of a command with more values than are read, too.
    deep: Any = 1
    for _ in range(1_000):
        deep = {"a": deep}
    text = query_text("aggregate", {"aggregate": "a", "pipeline": [{"$match": deep}, write]}, False, 100_000) or ""
    assert text.endswith(json.dumps(write, separators=(",", ":")) + "]}")


@pytest.mark.parametrize("text_of", [masked, raw])
def test_so_it_is_in_pipelines_within_pipelines(text_of: Callable[[Mapping[str, Any], int], str | None]) -> None:
    long = {"$match": {f"a{number}": "b" * 40 for number in range(100)}}
    pipeline: list[Any] = [*[long, {"$skip": 1}] * 10, {"$out": "b"}]
    for _ in range(20):
        pipeline = [
            long,
            {"$unionWith": {"coll": "a", "pipeline": pipeline}},
            *[long, {"$skip": 1}] * 10,
            {"$out": "b"},
        ]
    for limit in (300, 4_096, 100_000):
        shown = json.loads(text_of({"aggregate": "a", "pipeline": pipeline, "cursor": {}}, limit) or "")
        assert shown["pipeline"][-2:] == ["...", {"$out": "b"}]
        assert shown["cursor"] == {}


def test_a_pipeline_whose_last_stage_isn_t_read_has_one_mark() -> None:
    pipelines = {f"p{number}": [{"$skip": 1}, {"$limit": "x" * 30}] * 10 for number in range(99)}
    text = raw({"aggregate": "a", "pipeline": [{"$facet": pipelines}] * 9, "cursor": {}}) or ""
    assert '"...","..."]' not in text
    wide = {"a": "x" * 5_000}
    fields = {f"f{number}": [wide] for number in range(200)}
    assert (raw({"find": "a", "filter": wide, **fields}) or "").endswith(',"...":"..."}')
    for pipeline in ([{"$match": wide}], [{"$skip": 5}, {"$match": wide}]):
        for limit in range(40, 70):
            shown = json.loads(raw({"aggregate": "a", "pipeline": pipeline}, limit) or "").get("pipeline", "...")
            assert shown == "..." or shown.count("...") <= 1


def test_the_last_stage_is_read_after_a_stage_that_has_no_room() -> None:
    pipeline: list[Any] = [{"$skip": 1}, {"$match": {"a": "x" * 4_090, "b": 1}}, {"$out": "b"}]
    assert '"...",{"$out":"b"}]' in (raw({"aggregate": "a", "pipeline": pipeline}) or "")


def test_the_command_s_own_fields_are_shown_after_a_long_filter() -> None:
    command = {
        "find": "a",
        "filter": {"b": {"$in": ["x" * 1_000] * 16}},
        "projection": {f"b{number}": 1 for number in range(100)},
        "sort": {"created": -1},
        "limit": 5,
        **SESSION,
    }
    text = json.loads(raw(command) or "")
    assert [*text] == ["find", "filter", "projection", "sort", "limit"]
    assert text["filter"] == {"b": {"$in": ["x" * 1_000] * 3 + [text["filter"]["b"]["$in"][3], "..."]}}
    assert text["projection"]["..."] == "..."
    assert (text["sort"], text["limit"]) == ({"created": -1}, 5)
    text = json.loads(raw(command, 200) or "")
    assert [*text] == ["find", "filter", "projection", "sort", "limit"]
    text = json.loads(raw({"explain": command, "verbosity": "queryPlanner"}, 300) or "")
    assert [*text] == ["explain", "verbosity"]
    assert [*text["explain"]] == ["find", "filter", "projection", "sort", "limit"]


def test_the_command_s_own_fields_are_shown_after_a_filter_of_many_values() -> None:
    filters = {f"a{number}": number for number in range(2_000)}
    text = json.loads(raw({"find": "a", "filter": filters, "sort": {"b": 1}, "limit": 5}, 1_000_000) or "")
    assert [*text] == ["find", "filter", "sort", "limit"]
    assert [*text["filter"]][-1] == "..."
    assert (text["sort"], text["limit"]) == ({"b": 1}, 5)
    assert [*json.loads(raw({"find": "a", **filters}, 1_000_000) or "")][-1] == "..."


def test_1000_values_of_a_command_are_read() -> None:
    class Counted(UserDict[str, Any]):
        read = 0

        def items(self) -> Any:
            for name, value in super().items():
                Counted.read += 1
                yield name, value

    documents = [Counted({f"a{number}": number for number in range(90)}) for _ in range(16)]
    command = {"insert": "a", "documents": documents}

    assert masked(command, limit=1_000_000)
    # But for the command's own two, for the documents, and one more to see that there is one.
    assert Counted.read == 1_000 - 2 - 11 + 1
    documents = json.loads(raw(command, limit=1_000_000) or "")["documents"]
    assert [len(document) for document in documents if document != "..."] == [90] * 10 + [87 + 1]
    assert documents[10]["..."] == documents[11] == "..."
    wide = {"insert": "a", "documents": [{f"k{number}": number for number in range(100_000)}]}
    assert len(json.loads(raw(wide, limit=1_000_000) or "")["documents"][0]) == 997 + 1


def test_a_flat_document_counts_as_many_values_as_it_has() -> None:
    flat = [{f"a{column}_{row}": 1 for column in range(90)} for row in range(16)]

    documents = json.loads(masked({"insert": "a", "documents": flat}, limit=1_000_000) or "")["documents"]
    assert [len(document) for document in documents if document != "..."] == [90] * 10 + [87 + 1]
    assert documents[10]["..."] == documents[11] == "..."


def test_documents_may_be_nested_as_deep_as_can_be() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": deep}

    text = query_text("find", {"find": "b", "filter": deep}, False, 10_000) or ""
    assert text.count('"a":') == 998
    # Of a text that is cut, MongoDB's 100 levels.
    assert masked({"find": "b", "filter": deep}) == ('{"find":"b","filter":' + '{"a":' * 99 + '"..."' + "}" * 99 + "}")
    # Python's own parser can't read a text that is nested so deep.
    text = query_text("find", {"find": "b", "filter": deep}, True, 20_000) or ""
    assert text == '{"find":"b","filter":' + '{"a":' * 998 + '{"...":"..."}' + "}" * 999


def test_a_text_that_cant_be_cut_for_want_of_stack_is_left_out() -> None:
    deep: Any = 1
    for _ in range(90):
        deep = {"a" * 40: deep}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        assert query_text("find", {"find": "b", "filter": deep}, False, 4_000) is None
        assert query_text("find", {"find": "b", "filter": {"a": 1}}, False, 4_000) is not None
    finally:
        sys.setrecursionlimit(limit)


def test_a_document_that_begins_with_no_operator_is_a_value() -> None:
    for value in ({"x": 1, "$exists": True}, {"x": [1], "$exists": True}, {"x": {"y": 1}, "$exists": [True]}):
        assert "true" not in str(masked({"find": "c", "filter": {"a": value}}))
    assert masked({"find": "c", "filter": {"a": {"$exists": True, "x": [1]}}}) == (
        '{"find":"c","filter":{"a":{"$exists":true,"x":["?"]}}}'
    )


def test_a_command_without_content_has_no_text_however_often_it_is_sent() -> None:
    # The driver publishes a `hello` that authenticates as an empty document.
    assert [query_text("hello", {}, is_raw, 4096) for is_raw in (False, True) for _ in range(3)] == [None] * 6


def test_a_text_that_cant_be_cut_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> str:
        raise RecursionError

    monkeypatch.setattr(text_module, "cut", cut)

    assert query_text("find", {"find": "b", "filter": {"a": 1}}, False, 10) is None


def test_bytes_of_raw_documents_are_bounded_over_all() -> None:
    large = RawBSONDocument(encode({"a": b"x" * 5_000}))
    small = [RawBSONDocument(encode({name: b"x" * 1_000})) for name in "abcdefgh"]

    assert masked({"insert": "c", "documents": [large, small[0]]}) == '{"insert":"c","documents":["?",{"a":"?"}]}'
    assert raw({"insert": "c", "documents": [large]}) == '{"insert":"c","documents":[{"$binary":"?"}]}'
    assert masked({"insert": "c", "documents": small}) == (
        '{"insert":"c","documents":[{"a":"?"},{"b":"?"},{"c":"?"},{"d":"?"},"?"]}'
    )


COMMAND = {
    "find": "orders",
    "filter": {"name": "Alice", "größe": {"$gte": 5, "tags": ["a", {"b": "c" * 100}]}, "x@y.org": 1},
    "sort": {"a": -1},
}


@pytest.mark.parametrize("text_of", [masked, raw])
def test_a_text_is_valid_json_wherever_it_is_cut(text_of: Callable[[Mapping[str, Any], int], str | None]) -> None:
    texts = [text_of(COMMAND, limit) for limit in range(200)]

    assert all(text is None or text.startswith('{"find":"') for text in texts)
    assert None not in texts[len('{"find":"orders","...":"..."}') :]
    assert texts[0] is texts[8] is None


def test_a_cut_text_is_the_beginning_of_the_whole_and_an_ellipsis() -> None:
    whole = masked(COMMAND)

    assert whole == (
        '{"find":"orders","filter":{"name":"?","?":{"$gte":"?","tags":["?",{"b":"?"}]},"?":"?"},"sort":{"a":-1}}'
    )
    assert masked(COMMAND, len(whole) - 1) == (
        '{"find":"orders","filter":{"name":"?","?":{"$gte":"?","tags":["..."]},"?":"?"},"sort":{"a":-1}}'
    )
    assert masked(COMMAND, 60) == '{"find":"orders","filter":{"...":"..."},"sort":{"a":-1}}'
    assert masked(COMMAND, 30) == '{"find":"orders","...":"..."}'
    assert masked(COMMAND, len('{"find":"orders"}')) is None


def test_a_long_text_is_cut_and_what_comes_after_is_not_shown() -> None:
    command = {"find": "a", "filter": {"b": "x" * 1_000, "c": 1}}

    assert raw(command, 100) == '{"find":"a","filter":{"b":"' + "x" * 55 + '...","...":"..."}}'
    escaped = raw({"find": "a", "filter": {"b": "\n" * 1_000}}, 100)
    assert escaped is not None
    assert 70 <= len(escaped) <= 100
    assert escaped.endswith('\\n..."}}')
    assert raw({"find": "a", "filter": {"b": Code("x" * 1_000)}}, 100) == (
        '{"find":"a","filter":{"b":{"$code":"' + "x" * 57 + '..."}}}'
    )
    assert raw({"find": "a", "filter": {"b": "x" * 1_000, "c": ID, "d": 1}}, 100) == (
        '{"find":"a","filter":{"b":"' + "x" * 55 + '...","...":"..."}}'
    )
    assert raw({"find": "a", "filter": {"c": ID, "d": 1}}, 65) == '{"find":"a","filter":{"c":"...","d":1}}'
    assert raw({"find": "a", "filter": {"b": re.compile("x" * 1_000)}}, 100) == '{"find":"a","filter":{"b":"..."}}'


def test_the_first_field_is_shown_even_if_there_is_hardly_any_room() -> None:
    command = {"frobnicate": "x" * 100, "sort": {}}

    assert raw(command, 42) == '{"frobnicate":"xxxxxxxxxxxx...","sort":{}}'
    assert raw(command, 32) == '{"frobnicate":"...","sort":{}}'
    assert raw(command, 31) is None


def test_a_long_pattern_is_left_out() -> None:
    for pattern in (Regex("x" * 1_000, "i"), re.compile(b"x" * 1_000)):
        assert (
            raw({"find": "a", "filter": {"b": pattern}, "limit": 1}, 100)
            == '{"find":"a","filter":{"b":"..."},"limit":1}'
        )
        assert raw({"find": "a", "filter": {"b": [1, pattern, 2]}}, 100) == '{"find":"a","filter":{"b":[1,"..."]}}'


def test_a_long_name_is_cut() -> None:
    assert masked({"find": "x" * 256}) == '{"find":"' + "x" * 255 + '..."}'
    assert masked({"find": "x" * 255}) == '{"find":"' + "x" * 255 + '"}'
    assert masked({"find": "x" * 255}, 50) == '{"find":"' + "x" * 36 + '..."}'


@pytest.mark.parametrize("text", ['"' * 50, "\\" * 50, "\x01" * 50, "a\\" * 50, "größe" * 50])
def test_no_string_is_cut_within_a_character(text: str) -> None:
    for limit in range(36, 100):
        shown = json.loads(raw({"find": "a", "filter": {"b": text}}, limit) or "")["filter"]
        assert shown == CUT or shown == "..." or text.startswith(shown["b"].removesuffix("..."))


def test_a_document_that_is_written_at_once_is_cut_between_its_fields() -> None:
    command = {"find": "a", "filter": {"first": 1, "second": [2], "third": {"fourth": 4, "fifth": 5}}, "limit": 1}

    assert masked(command, 70) == '{"find":"a","filter":{"first":"?","...":"..."},"limit":"?"}'
    flat = {"find": "a", "filter": {"first": 1, "second": 2, "third": 3}}
    assert masked(flat, 55) == '{"find":"a","filter":{"first":"?","...":"..."}}'


def test_in_an_array_an_ellipsis_stands_for_all_that_follows() -> None:
    for limit in range(40, 200):
        values = [True, DAY, False, "x" * 30, "y", ID, 1]
        shown = json.loads(raw({"find": "a", "filter": {"b": values}}, limit) or "").get("filter", {}).get("b", [])
        assert "..." not in shown[:-1]


def test_a_text_is_cut_in_the_same_place_whatever_the_type_of_the_values() -> None:
    class Money(float):
        pass

    def command(value: Any) -> dict[str, Any]:
        return {"find": "a", "filter": {"b": value, "c": [value], "d": {"e": value}}}

    for limit in range(80):
        assert len({masked(command(value), limit) for value in (1, Decimal128("1"), b"1", Money(1))}) == 1
    wide = [{f"a{number}": [value] * 16 for number in range(90)} for value in (1, Decimal128("1"), Binary(b"1", 6))]
    assert len({masked({"insert": "a", "documents": [document]}) for document in wide}) == 1


def test_a_cut_repetition_is_not_shown() -> None:
    documents = [{"name": 1, "address": {"city": 1, "lines": [{"a": 1}, 2]}}] * 3
    whole = masked({"insert": "a", "documents": documents})

    assert whole is not None
    for limit in range(len(whole), len(whole) + 100):
        assert masked({"insert": "a", "documents": documents}, limit) == whole


# ---------------------------------------------------------------------------------------------------------------------
# What is remembered.


def remembered() -> int:
    return len(text_module._texts_of_keys) + len(text_module._texts_of_shapes)


def test_commands_of_one_shape_share_their_text_and_no_data_is_remembered() -> None:
    before = remembered()
    for number in range(10):
        assert masked({"find": "remembered", "filter": {"first": number}, "limit": number}) == (
            '{"find":"remembered","filter":{"first":"?"},"limit":"?"}'
        )
        assert masked({"find": "remembered", "filter": {f"{number}@example.org": 1}})
        assert masked({"distinct": "remembered", "key": f"{number}@example.org"})
        assert masked({"insert": "remembered", "documents": [{f"{number}@example.org": 1}]})
        assert masked({"insert": "remembered", "documents": [{"second": 1}]})
    assert remembered() == before + 3  # and the first one's filter


def test_a_document_and_a_literal_that_change_places_make_another_text() -> None:
    assert masked({"configureFailPoint": "a", "mode": {"times": 1}, "data": 5}) == (
        '{"configureFailPoint":"?","mode":{"times":"?"},"data":"?"}'
    )
    assert masked({"configureFailPoint": "a", "mode": 5, "data": {"times": 1}}) == (
        '{"configureFailPoint":"?","mode":"?","data":{"times":"?"}}'
    )


def test_a_text_that_is_remembered_is_not_longer_than_it_may_be() -> None:
    command = {"find": "a", "filter": {"limited": 1}}
    whole = masked(command)

    assert whole == '{"find":"a","filter":{"limited":"?"}}'
    assert masked(command, len(whole) - 1) == '{"find":"a","filter":{"...":"..."}}'
    assert masked(command) == whole


def test_a_cut_text_is_not_remembered() -> None:
    command = {"find": "a", "filter": {"not_whole": 1}}

    assert masked(command, 30) == '{"find":"a","...":"..."}'
    assert masked(command) == '{"find":"a","filter":{"not_whole":"?"}}'


def test_a_text_of_an_expression_is_not_remembered() -> None:
    before = masking._masked_path.cache_info()
    assert masked(_project({"$eq": ["alice@example.org", 1]}))
    assert masking._masked_path.cache_info() == before


class Unhashable(str):
    """A key that a dictionary got before it forgot its hash."""

    __slots__ = ()
    broken = False

    def __hash__(self) -> int:
        if Unhashable.broken:
            raise LookupError
        return hash(str(self))


def test_a_key_that_can_not_be_looked_up_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    command = {"find": "a", "filter": {Unhashable("odd"): 1}}
    monkeypatch.setattr(Unhashable, "broken", True)

    assert query_text("find", command, False, 4096) == '{"find":"a","...":"..."}'


@pytest.mark.parametrize("name", [1234567, "x" * 300])
def test_what_is_masked_or_cut_in_place_of_a_name_is_not_remembered(name: Any) -> None:
    masked({"find": "orders", "filter": {"email": "alice@example.org"}})  # the keys of the filter are remembered
    before = remembered()
    assert masked({"find": name, "filter": {"email": "alice@example.org"}}) is not None

    assert remembered() == before
