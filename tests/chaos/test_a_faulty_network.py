"""Threads and tasks under load through a proxy that delays, resets, truncates and garbles."""

from __future__ import annotations

import pytest

from tests.chaos.load import Load, prepare, run_through
from tests.chaos.rounds import Round, Rounds
from tests.chaos.witness import check_connections
from tests.clients import connect
from tests.servers import proxy
from tests.servers.proxy import FaultyProxy
from tests.servers.scripted import ScriptedServer
from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("quick_driver"),
]


def play(seed: int, seconds: float) -> None:
    """One round, which lasts until each fault was injected."""
    observed = Round()
    with ScriptedServer() as server, FaultyProxy(server.port or 0, seed, 0) as network:
        with connect(network.uri, event_listeners=observed.listeners) as client:
            run_through(prepare(client))
        load = Load(network.uri, observed.listeners, observed.spans.tracer, seed)
        network.every = 15
        load.start()
        observed.collect_for(seconds)
        until(lambda: all(network.injected[fault] for fault in proxy.FAULTS), 30)
        network.every = 0
        load.stop()
        observed.check_open_pools()
        for client in load.clients:
            client.close()
        ours = load.ours
        del load, client
        observed.check()
        check_connections(observed.commands)
        assert ours == []


def test_a_faulty_network(rounds: Rounds) -> None:
    for seed in rounds:
        play(seed, rounds.each)
