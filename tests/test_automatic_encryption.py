"""Automatic encryption: the driver makes clients of its own, for mongocryptd and for the key vault."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from bson import STANDARD, CodecOptions
from opentelemetry.trace import StatusCode
from pymongo.encryption import ClientEncryption
from pymongo.encryption_options import AutoEncryptionOpts
from pymongo.errors import PyMongoError

from opentelemetry_mongo_events import event_listeners
from tests.clients import aconnect, connect
from tests.metrics import POOL
from tests.servers.scripted import ScriptedServer
from tests.spans import attributes
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pymongo import MongoClient

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.metrics import Metrics
    from tests.spans import Spans

pytest.importorskip("pymongocrypt")
pytestmark = pytest.mark.usefixtures("quick_driver")

KEYS = {"local": {"key": bytes(96)}}
VAULT = "vault.keys"
ALGORITHM = "AEAD_AES_256_CBC_HMAC_SHA_512-Random"
SIGNALS: dict[str, Any] = {"topology": True, "selections": True}

needs_asyncio = pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")


def nothing_to_encrypt(command: Mapping[str, Any]) -> dict[str, Any]:
    """What mongocryptd answers."""
    added = ("$db", "lsid", "$readPreference", "jsonSchema", "isRemoteSchema")
    result = {key: value for key, value in command.items() if key not in added}
    return {"hasEncryptionPlaceholders": False, "schemaRequiresEncryption": False, "result": result}


@pytest.fixture
def mongocryptd() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        for name in ("insert", "find"):
            server.reply(name, nothing_to_encrypt)
        yield server


@pytest.fixture(params=["registered", "by hand"])
def arguments(
    request: pytest.FixtureRequest,
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    mongocryptd: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
) -> dict[str, Any]:
    """What a client with automatic encryption is made with, to be observed; its server has something encrypted."""
    with connect(server.uri) as client:
        store_encrypted(client)
    name_no_collections(server)
    encryption = {"auto_encryption_opts": options(mongocryptd)}
    providers: dict[str, Any] = {"tracer_provider": spans.provider, "meter_provider": metrics.provider}
    if request.param == "registered":
        instrumentor.instrument(**providers, **SIGNALS)
        return encryption
    return encryption | {"event_listeners": event_listeners(**providers, **SIGNALS)}


def options(mongocryptd: ScriptedServer, **more: Any) -> AutoEncryptionOpts:
    return AutoEncryptionOpts(KEYS, VAULT, mongocryptd_uri=mongocryptd.uri, mongocryptd_bypass_spawn=True, **more)


def name_no_collections(server: ScriptedServer) -> None:
    """The driver asks with a filter, which the scripted server doesn't know."""
    server.reply("listCollections", {"cursor": {"id": 0, "ns": "shop.$cmd.listCollections", "firstBatch": []}})


def store_encrypted(client: MongoClient[Any]) -> None:
    """Make a key, and store a document in which a value is encrypted with it."""
    codec_options: CodecOptions[Any] = CodecOptions(uuid_representation=STANDARD)
    encryption: ClientEncryption[Any]
    with ClientEncryption(KEYS, VAULT, client, codec_options) as encryption:
        key = encryption.create_data_key("local")
        value = encryption.encrypt("123-45", ALGORITHM, key_id=key)
    client.shop.people.insert_one({"_id": 1, "ssn": value})


def commands(spans: Spans) -> list[str]:
    """The names of the commands' spans."""
    return [span.name for span in spans.finished if "db.query.text" in attributes(span)]


def servers(spans: Spans, metrics: Metrics) -> set[Any]:
    """The ports of all servers of which anything was told."""
    told = {attributes(span).get("server.port") for span in spans.finished}
    for name in metrics.collected():
        told.update(metrics.values(name, "server.port"))
    return told - {None}


def check(spans: Spans, metrics: Metrics, server: ScriptedServer) -> None:
    """Each command is there once; both clients' connections; and one client's view of the server."""
    told = sorted(["listCollections shop", "insert orders", "listCollections shop", "find people", "find keys"])
    assert sorted(commands(spans)) == told
    request = spans.one("request").context
    assert all(span.parent == request for span in spans.finished if "db.query.text" in attributes(span))
    assert servers(spans, metrics) == {server.port}
    assert metrics.values("db.client.operation.duration", "db.operation.name") == {
        "listCollections": 2,
        "insert": 1,
        "find": 2,
    }
    assert metrics.values("db.client.connection.create_time", POOL) == {f"{server.host}:{server.port}": 2}
    assert metrics.values("mongodb.client.topology.changes") == {(): 1}
    assert metrics.servers("mongodb.client.server.type") == {"Standalone": 1}
    assert len(spans.named("mongodb.client.discovery")) == 1


def test_the_drivers_own_clients_add_only_what_a_request_waits_for(
    arguments: dict[str, Any], server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    with connect(server.uri, **arguments) as client:
        with spans.tracer.start_as_current_span("request"):
            client.shop.orders.insert_one({})
            assert client.shop.people.find_one({"_id": 1}) == {"_id": 1, "ssn": "123-45"}
        until(lambda: spans.named("mongodb.client.discovery"))
        check(spans, metrics, server)


@needs_asyncio
async def test_the_same_holds_for_asyncio(
    arguments: dict[str, Any], server: ScriptedServer, spans: Spans, metrics: Metrics
) -> None:
    async with aconnect(server.uri, **arguments) as client:
        with spans.tracer.start_as_current_span("request"):
            await client.shop.orders.insert_one({})
            assert await client.shop.people.find_one({"_id": 1}) == {"_id": 1, "ssn": "123-45"}
        await eventually(lambda: spans.named("mongodb.client.discovery"))
        check(spans, metrics, server)


def test_a_mongocryptd_that_is_gone_is_no_outage(
    arguments: dict[str, Any],
    server: ScriptedServer,
    mongocryptd: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules[ClientEncryption.__module__]
    monkeypatch.setattr(module, "_MONGOCRYPTD_TIMEOUT_MS", 2000)  # the driver looks for it that long
    with connect(server.uri, **arguments) as client:
        client.shop.orders.insert_one({})
        mongocryptd.stop()
        with pytest.raises(PyMongoError):
            client.shop.orders.insert_one({})
        until(lambda: spans.named("mongodb.client.discovery"))

    assert servers(spans, metrics) == {server.port}
    assert spans.named("mongodb.client.outage") == []
    assert len(spans.named("mongodb.client.discovery")) == 1
    assert [span.name for span in spans.finished if span.status.status_code is StatusCode.ERROR] == []


def test_a_key_vault_client_of_the_applications_is_a_client_like_any_other(
    instrumentor: MongoEventsInstrumentor,
    server: ScriptedServer,
    mongocryptd: ScriptedServer,
    spans: Spans,
    metrics: Metrics,
) -> None:
    with ScriptedServer() as vault:
        with connect(vault.uri) as plain:
            store_encrypted(plain)
            encrypted = plain.shop.people.find_one({})
        with connect(server.uri) as plain:
            plain.shop.people.insert_one(encrypted)
        name_no_collections(server)
        instrumentor.instrument(tracer_provider=spans.provider, meter_provider=metrics.provider, **SIGNALS)
        with connect(vault.uri) as key_vault_client:
            encryption = options(mongocryptd, key_vault_client=key_vault_client)
            with connect(server.uri, auto_encryption_opts=encryption) as client:
                assert client.shop.people.find_one({"_id": 1}) == {"_id": 1, "ssn": "123-45"}
                until(lambda: len(spans.named("mongodb.client.discovery")) == 2)
                assert metrics.servers("mongodb.client.server.type") == {"Standalone": 2}

        assert attributes(spans.one("find keys"))["server.port"] == vault.port
        assert servers(spans, metrics) == {server.port, vault.port}


def test_instrument_client_does_not_observe_the_clients_of_the_drivers(
    instrumentor: MongoEventsInstrumentor, server: ScriptedServer, mongocryptd: ScriptedServer, spans: Spans
) -> None:
    with connect(server.uri, auto_encryption_opts=options(mongocryptd)) as client:
        instrumentor.instrument_client(client, tracer_provider=spans.provider)
        client.shop.orders.insert_one({})

        assert commands(spans) == ["insert orders"]
