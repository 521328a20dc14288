"""The clients of automatic encryption, made by a stand-in for the driver's module, which needs pymongocrypt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from pymongo import MongoClient, monitoring
from pymongo.monitoring import ServerHeartbeatListener

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._driver import encryption
from opentelemetry_mongo_events._driver.encryption import ClientListeners, RegisteredListeners
from opentelemetry_mongo_events._runtime.guard import Guard
from tests.clients import aconnect, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry_mongo_events import MongoEventsInstrumentor

pytestmark = pytest.mark.usefixtures("quick_driver")

URI = "mongodb://127.0.0.1:1/?connect=false"
MODULES = ("pymongo.encryption", "pymongo.synchronous.encryption", "pymongo.asynchronous.encryption")
COMMANDS_AND_POOLS = {"CommandEvents", "ConnectionEvents", "PoolEvents", "SelectionEvents"}
ALL = COMMANDS_AND_POOLS | {"HeartbeatEvents", "TopologyEvents"}

# What the driver's class does, in all versions.
ENCRYPTER = """
class Encrypter:
    def __init__(self, client, uri):
        def _get_internal_client():
            return client._duplicate(minPoolSize=0, auto_encryption_opts=None)

        self.internal_client = _get_internal_client()
        self.mongocryptd_client = type(client)(uri, connect=False)

def call(function):
    return function()
"""

# The driver does so since 4.13.
RESOLVER = """
def _resolve_srv(self, make_options):
    self._event_listeners = make_options()
"""


def driver_module(name: str, source: str) -> dict[str, Any]:
    """The names of a module that the driver seems to have."""
    names: dict[str, Any] = {"__name__": name}
    exec(source, names)
    return names


def ours(client: Any) -> list[str]:
    """The classes of this package's listeners that a client has."""
    return sorted({type(each).__name__ for each in listeners_of(client) if type(each).__name__ in ALL})


def listeners_of(client: Any) -> list[Any]:
    return list(client._event_listeners.event_listeners())


class Foreign(ServerHeartbeatListener):
    """A listener of the application's."""

    def started(self, event: object) -> None: ...
    def succeeded(self, event: object) -> None: ...
    def failed(self, event: object) -> None: ...


@pytest.fixture(params=["registered", "by hand"])
def arguments(request: pytest.FixtureRequest, instrumentor: MongoEventsInstrumentor) -> dict[str, Any]:
    """What a client is made with, to have all listeners."""
    if request.param == "registered":
        instrumentor.instrument(topology=True, selections=True)
        return {}
    return {"event_listeners": event_listeners(topology=True, selections=True)}


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    """One that is registered."""
    listener = Foreign()
    monitoring.register(listener)
    yield listener
    monitoring._LISTENERS.server_heartbeat_listeners.remove(listener)


@pytest.mark.parametrize("module", MODULES)
def test_mongocryptds_client_gets_no_listener_and_the_internal_one_none_for_servers(
    arguments: dict[str, Any], foreign: Foreign, module: str
) -> None:
    with connect(URI, **arguments) as client:
        encrypter = driver_module(module, ENCRYPTER)["Encrypter"](client, URI)
        with encrypter.internal_client as internal_client, encrypter.mongocryptd_client as mongocryptd_client:
            assert ours(client) == sorted(ALL)
            assert ours(internal_client) == sorted(COMMANDS_AND_POOLS)
            assert ours(mongocryptd_client) == []
            assert not internal_client._event_listeners.enabled_for_topology
            assert all(foreign in listeners_of(each) for each in (client, internal_client, mongocryptd_client))


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
async def test_the_same_holds_for_asyncio(arguments: dict[str, Any]) -> None:
    async with aconnect(URI, **arguments) as client:
        encrypter = driver_module(MODULES[2], ENCRYPTER)["Encrypter"](client, URI)
        async with encrypter.internal_client as internal_client, encrypter.mongocryptd_client as mongocryptd_client:
            assert ours(client) == sorted(ALL)
            assert ours(internal_client) == sorted(COMMANDS_AND_POOLS)
            assert ours(mongocryptd_client) == []


@pytest.mark.skipif(pymongo.version_tuple < (4, 9), reason="AsyncMongoClient came with PyMongo 4.9")
def test_an_asyncio_client_may_be_made_where_no_event_loop_runs(instrumentor: MongoEventsInstrumentor) -> None:
    instrumentor.instrument(topology=True, selections=True)
    client = aconnect(URI)
    encrypter = driver_module(MODULES[2], ENCRYPTER)["Encrypter"](client, URI)

    assert ours(encrypter.internal_client) == sorted(COMMANDS_AND_POOLS)
    assert ours(encrypter.mongocryptd_client) == []

    async def close() -> None:
        for each in (client, encrypter.internal_client, encrypter.mongocryptd_client):
            await each.close()

    asyncio.run(close())


def test_a_listener_of_the_applications_that_is_passed_on_stays(foreign: Foreign) -> None:
    passed = Foreign()
    with connect(URI, event_listeners=[*event_listeners(), passed]) as client:
        encrypter = driver_module(MODULES[1], ENCRYPTER)["Encrypter"](client, URI)
        with encrypter.internal_client as internal_client, encrypter.mongocryptd_client as mongocryptd_client:
            assert passed in listeners_of(internal_client)
            assert passed not in listeners_of(mongocryptd_client)


def test_constructors_that_another_package_has_wrapped_are_recognized(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., None] = MongoClient.__init__

    def wrapper(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)

    monkeypatch.setattr(MongoClient, "__init__", wrapper)
    with connect(URI, **arguments) as client:
        encrypter = driver_module(MODULES[1], ENCRYPTER)["Encrypter"](client, URI)
        with encrypter.internal_client as internal_client, encrypter.mongocryptd_client as mongocryptd_client:
            assert ours(client) == sorted(ALL)
            assert ours(internal_client) == sorted(COMMANDS_AND_POOLS)
            assert ours(mongocryptd_client) == []


def test_a_client_that_the_application_makes_within_encryption_gets_all_listeners(arguments: dict[str, Any]) -> None:
    call = driver_module(MODULES[1], ENCRYPTER)["call"]

    with call(lambda: connect(URI, **arguments)) as client, client._duplicate() as copy:
        assert ours(client) == ours(copy) == sorted(ALL)


@pytest.mark.parametrize("kind", ["internal_client", "mongocryptd_client"])
def test_a_client_that_resolves_its_address_later_stays_what_it_is(arguments: dict[str, Any], kind: str) -> None:
    resolve = driver_module("pymongo.synchronous.mongo_client", RESOLVER)["_resolve_srv"]

    def make_options() -> Any:
        return monitoring._EventListeners(arguments.get("event_listeners"))

    with connect(URI, **arguments) as client:
        encrypter = driver_module(MODULES[1], ENCRYPTER)["Encrypter"](client, URI)
        with encrypter.internal_client, encrypter.mongocryptd_client:
            resolve(client, make_options)
            assert ours(client) == sorted(ALL)
            if kind == "internal_client" or not arguments:  # mongocryptd's client has no argument `event_listeners`
                before = ours(getattr(encrypter, kind))
                resolve(getattr(encrypter, kind), make_options)
                assert ours(getattr(encrypter, kind)) == before


def test_what_the_driver_has_not_copied_for_a_client_is_whole(arguments: dict[str, Any]) -> None:
    registered = monitoring._LISTENERS.command_listeners

    assert registered[:] == list(registered)
    assert type(registered[:]) is list
    assert type(monitoring._EventListeners(None).event_listeners()) is list


def test_a_registered_listener_can_be_looked_up_by_its_position(foreign: Foreign) -> None:
    event_listeners()
    assert monitoring._LISTENERS.server_heartbeat_listeners[-1] is foreign


def test_a_failure_leaves_the_client_with_all_listeners(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError

    monkeypatch.setattr(encryption, "_guard", Guard())
    monkeypatch.setattr(encryption, "_rule_for_new_client", fail)
    with connect(URI, **arguments) as client:
        assert ours(client) == sorted(ALL)
    assert "the listeners of a new client raised LookupError" in caplog.text


@pytest.mark.parametrize("registered", [None, (), tuple(monitoring._LISTENERS)])
def test_a_driver_that_keeps_its_listeners_otherwise_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, registered: object
) -> None:
    monkeypatch.setattr(monitoring, "_LISTENERS", registered)

    assert {type(each).__name__ for each in event_listeners(topology=True, selections=True)} == ALL
    assert monitoring._LISTENERS is registered


def test_lists_are_replaced_once_and_keep_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = monitoring._LISTENERS._replace(
        **{name: list(each) for name, each in monitoring._LISTENERS._asdict().items()}
    )
    monkeypatch.setattr(monitoring, "_LISTENERS", plain)
    before = Foreign()
    monitoring.register(before)

    event_listeners()
    replaced = monitoring._LISTENERS
    event_listeners()

    assert monitoring._LISTENERS is replaced
    assert all(isinstance(each, RegisteredListeners) for each in replaced)
    assert replaced.server_heartbeat_listeners[-1] is before
    assert not isinstance(replaced.server_heartbeat_listeners[:], ClientListeners)
