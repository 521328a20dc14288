"""The faulty proxy injects what it says, as a real driver and a bare socket see it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import bson
import pytest
from pymongo.errors import AutoReconnect

from tests.clients import connect
from tests.servers import proxy
from tests.servers.proxy import FaultyProxy
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.scripted import ScriptedServer

_HEADER = struct.Struct("<iiii")
_PING = bson.encode({"ping": 1, "$db": "admin"})
REQUEST = _HEADER.pack(16 + 5 + len(_PING), 7, 0, 2013) + struct.pack("<IB", 0, 0) + _PING


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [each.name for each in threading.enumerate() if each.name == "faulty-proxy"]


def network(server: ScriptedServer, *faults: str, seed: int = 1) -> FaultyProxy:
    """A proxy that injects those faults, one after another, as often as it can."""
    assert server.port is not None
    return FaultyProxy(server.port, seed, 1 if faults else 0, faults or proxy.FAULTS)


def ask(network: FaultyProxy, seconds: float = 5) -> bytes:
    """The bytes that a ping is answered with, until the reply is whole or the connection ends."""
    with socket.create_connection(("127.0.0.1", network.port), seconds) as sock:
        sock.sendall(REQUEST)
        received = b""
        while len(received) < 16 or len(received) < _HEADER.unpack(received[:16])[0]:
            chunk = sock.recv(4096)
            if not chunk:
                return received
            received += chunk
        return received


def whole(server: ScriptedServer) -> bytes:
    """The reply to a ping without its id, which is another one each time."""
    with network(server) as still:
        return ask(still)[8:]


def test_without_faults_it_forwards_all(server: ScriptedServer) -> None:
    with network(server) as still, connect(still.uri) as client:
        client.shop.orders.insert_many([{"_id": number, "text": "x" * 1000} for number in range(300)])
        assert len(list(client.shop.orders.find(batch_size=50))) == 300
        assert sum(still.injected.values()) == 0


@pytest.mark.parametrize("fault", [proxy.RESET, proxy.RESET_REQUEST, proxy.REFUSAL])
def test_a_reset(server: ScriptedServer, fault: str) -> None:
    with network(server, fault) as broken:
        with pytest.raises(ConnectionError):
            ask(broken)
        assert broken.injected[fault]
        assert set(broken.injected) == {fault}


def test_nobody_listens_for_a_moment_only(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_REFUSING_SECONDS", 0.5)
    with network(server, proxy.REFUSAL) as broken:
        with pytest.raises(ConnectionError):
            ask(broken)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", broken.port), 5)
        broken.every = 0
        with connect(broken.uri) as client:
            client.admin.command("ping")


def test_half_open(server: ScriptedServer) -> None:
    with network(server, proxy.HALF_OPEN) as broken, pytest.raises(TimeoutError):
        ask(broken, 0.1)


def test_a_truncated_reply(server: ScriptedServer) -> None:
    expected = whole(server)
    with network(server, proxy.TRUNCATED) as broken:
        received = ask(broken)
    assert 0 < len(received) < len(expected) + 8
    assert expected.startswith(received[8:])


@pytest.mark.parametrize(
    ("fault", "altered"),
    [
        (proxy.GARBLED_LENGTH, slice(0, 4)),
        (proxy.GARBLED_OP_CODE, slice(12, 16)),
        (proxy.GARBLED_BODY, slice(16, None)),
    ],
)
def test_a_garbled_reply(server: ScriptedServer, fault: str, altered: slice) -> None:
    with network(server) as still:
        expected = ask(still)
    with (
        network(server, fault) as broken,
        socket.create_connection(("127.0.0.1", broken.port), 5) as sock,
    ):
        sock.sendall(REQUEST)
        received = bytearray()
        while len(received) < len(expected):
            received += sock.recv(4096)
    assert received[altered] != expected[altered]
    received[altered] = expected[altered]
    received[4:8] = expected[4:8]  # the reply's id
    assert received == expected


def test_slow_bytes_and_delays_change_nothing(server: ScriptedServer) -> None:
    expected = whole(server)
    with network(server, proxy.SLOW, proxy.DELAY) as slow:
        assert [ask(slow)[8:] for _ in range(6)] == [expected] * 6
        assert min(slow.injected.values()) >= 2


def test_a_delay_takes_its_time(server: ScriptedServer) -> None:
    with network(server, proxy.DELAY) as slow:
        began = time.monotonic()
        for _ in range(10):
            ask(slow)
    assert time.monotonic() - began > 0.01


def test_a_driver_sees_network_errors(server: ScriptedServer) -> None:
    with network(server, *proxy.FAULTS) as broken:
        broken.every = 0
        with connect(broken.uri, retryReads=False, socketTimeoutMS=200, heartbeatFrequencyMS=500) as client:
            client.admin.command("ping")
            broken.every = 1
            with pytest.raises(AutoReconnect):  # NetworkTimeout is one
                until(lambda: not client.admin.command("ping")["ok"])


def test_the_plan_is_that_of_the_seed(server: ScriptedServer) -> None:
    def faults(seed: int) -> list[str]:
        with network(server, *proxy.FAULTS, seed=seed) as broken:
            return [broken._next, *(next(broken._plan) for _ in range(30))]

    assert faults(1) == faults(1) != faults(2)
    assert set(faults(1)[:10]) == set(proxy.FAULTS)
