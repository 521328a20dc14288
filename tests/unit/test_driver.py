"""Where one version of PyMongo differs from another."""

from __future__ import annotations

import pymongo

from opentelemetry_mongo_events._driver import _command_id_without_connection, command_id
from tests.events import ADDRESS, SERVER_CONNECTION_ID, started


def test_a_command_is_known_by_its_request_its_server_and_its_connection() -> None:
    event = started({"find": "orders"}, request_id=5)

    assert command_id(event) == (5, ADDRESS, SERVER_CONNECTION_ID if pymongo.version_tuple >= (4, 7) else None)
    assert _command_id_without_connection(event) == (5, ADDRESS, None)
