"""MongoDB's commands: which of them name a collection, carry a batch or hold credentials."""

from __future__ import annotations

from typing import Final

# The commands whose own value is a collection's name. A list, since the value under a command's name is often something
# else: a user (`dropUser`), a namespace (`renameCollection`), a number (`getMore`).
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


BATCHES: Final = {"insert": "documents", "update": "updates", "delete": "deletes", "bulkWrite": "ops"}


# The driver redacts them and their replies, but not what says why one failed.
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
    """Whether a command holds credentials: then nothing is ever shown of it, nor of what the server says to it."""
    return command_name.lower() in _SENSITIVE
