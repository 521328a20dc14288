"""Clients, with a type that a test can do something with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient


def connect(uri: str, **options: Any) -> MongoClient[Any]:
    """A client that gives up after a while, where its server isn't there."""
    return MongoClient(uri, **({"serverSelectionTimeoutMS": 20_000} | options))


def answers(client: MongoClient[Any]) -> bool:
    """Whether the server can be reached."""
    try:
        client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def aconnect(uri: str, **options: Any) -> AsyncMongoClient[Any]:
    """The same for asyncio; for use where the driver has such a client."""
    from pymongo import AsyncMongoClient

    return AsyncMongoClient(uri, **({"serverSelectionTimeoutMS": 20_000} | options))
