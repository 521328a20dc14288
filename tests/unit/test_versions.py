"""Where one version of PyMongo differs from another."""

from __future__ import annotations

from typing import Any

import pymongo
import pytest
from bson import Int64
from pymongo.errors import AutoReconnect, OperationFailure

from opentelemetry_mongo_events._driver import versions
from opentelemetry_mongo_events._driver.versions import command_id, raised_for
from tests.events import ADDRESS, SERVER_CONNECTION_ID, started

HAS_NUMBER = pymongo.version_tuple >= (4, 7)


def test_a_command_is_known_by_its_request_its_server_and_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    event = started({"find": "orders"}, request_id=5)

    assert command_id(event) == (5, ADDRESS, SERVER_CONNECTION_ID if HAS_NUMBER else None)
    monkeypatch.setattr(versions, "_HAS_SERVER_CONNECTION_ID", False)
    assert command_id(event) == (5, ADDRESS, None)


@pytest.mark.skipif(not HAS_NUMBER, reason="PyMongo gives it since 4.7")
@pytest.mark.parametrize(
    ("given", "known"),
    [(7, 7), (Int64(7), 7), (7.0, 7), (7.5, None), (float("nan"), None), ("7", None), (True, None), ([7], None)],
)
def test_a_servers_number_of_a_connection_is_an_int(given: Any, known: int | None) -> None:
    *_, number = command_id(started({"find": "orders"}, server_connection_id=given))

    assert (number, type(number)) == (known, type(known))


def test_what_the_driver_raises_is_known_by_the_document_that_it_holds() -> None:
    failure = {"ok": 0, "errmsg": "no"}
    assert raised_for(failure) is None
    try:
        raise OperationFailure("no", None, failure)
    except OperationFailure:
        assert raised_for(failure) == "OperationFailure"
        assert raised_for(dict(failure)) is None  # the application handles another one
        assert raised_for(None) is None
    try:
        raise AutoReconnect
    except AutoReconnect:
        assert raised_for(None) is None
