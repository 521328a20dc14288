"""Lists of MongoDB commands: those that name a collection, carry a batch or hold credentials."""

from __future__ import annotations

from typing import Final

# The commands whose own value is the name of a collection. They are listed because the value of other commands is often
# something else: a user (`dropUser`), a namespace (`renameCollection`), a number (`getMore`).
COLLECTION_COMMANDS: Final = frozenset(
    {
        "aggregate",
        "analyze",
        "checkMetadataConsistency",
        "cleanupStructuredEncryptionData",
        "cloneCollectionAsCapped",
        "collMod",
        "collStats",
        "compact",
        "compactStructuredEncryptionData",
        "convertToCapped",
        "count",
        "create",
        "createIndexes",
        "createSearchIndexes",
        "delete",
        "deleteIndexes",
        "distinct",
        "drop",
        "dropIndexes",
        "dropSearchIndex",
        "find",
        "findAndModify",
        "findandmodify",
        "geoNear",
        "geoSearch",
        "insert",
        "killCursors",
        "listIndexes",
        "listSearchIndexes",
        "mapReduce",
        "mapreduce",
        "parallelCollectionScan",
        "planCacheClear",
        "planCacheClearFilters",
        "planCacheListFilters",
        "planCacheListPlans",
        "planCacheListQueryShapes",
        "planCacheSetFilter",
        "reIndex",
        "setIndexCommitQuorum",
        "update",
        "updateSearchIndex",
        "validate",
    }
)


# The commands that carry a batch, with the key of the batch.
BATCHES: Final = {"insert": "documents", "update": "updates", "delete": "deletes", "bulkWrite": "ops"}


# The driver redacts these commands and their replies, but not the errors of those that fail.
_SENSITIVE: Final = frozenset(
    {
        "authenticate",
        "copydb",
        "copydbgetnonce",
        "copydbsaslstart",
        "createuser",
        "getnonce",
        "saslcontinue",
        "saslstart",
        "updateuser",
    }
)


def is_sensitive(command_name: str) -> bool:
    """Whether a command contains credentials. Its content and the server's reply are then never recorded."""
    return command_name.lower() in _SENSITIVE
