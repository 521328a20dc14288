"""Threads and tasks under load while the servers of a replica set are killed, frozen and stepped down."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from tests.chaos.load import ON_REPLICA_SETS, Load, prepare, run_through
from tests.chaos.rounds import Round
from tests.chaos.witness import check_connections
from tests.clients import connect
from tests.servers.scripted import ScriptedReplicaSet

if TYPE_CHECKING:
    from tests.chaos.rounds import Rounds

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("quick_driver"),
]

FAULTS = ("drop", "freeze", "step down", "kill the primary", "kill a secondary", "kill all")


def inject(fault: str, servers: ScriptedReplicaSet, chance: random.Random, seconds: float) -> None:
    """One fault, which is over after so many seconds."""
    pause = threading.Event()
    primary, *secondaries = sorted(servers, key=lambda server: server is not servers.primary)
    if fault == "drop":
        for server in servers:
            server.drop_connections()
    elif fault == "freeze":
        frozen = [server.freeze("find", "insert", "ping", "hello", times=chance.randint(1, 5)) for server in servers]
        pause.wait(seconds)
        for each in frozen:
            each.release()
    elif fault == "step down":
        servers.step_down()
        pause.wait(seconds)
        servers.elect(chance.choice(secondaries))
    else:
        killed = {"kill the primary": [primary], "kill a secondary": secondaries[:1], "kill all": list(servers)}[fault]
        for server in killed:
            server.stop()
        if fault == "kill the primary":
            servers.elect(chance.choice(secondaries))
        pause.wait(seconds)
        for server in killed:
            server.start()


def play(seed: int, seconds: float) -> None:
    """One round, with each fault once."""
    observed = Round()
    chance = random.Random(seed)
    with ScriptedReplicaSet(3) as servers:
        with connect(servers.uri, event_listeners=observed.listeners) as client:
            run_through(prepare(client, ON_REPLICA_SETS))
        load = Load(servers.uri, observed.listeners, observed.spans.tracer, seed, ON_REPLICA_SETS, threads=6)
        load.start()
        for fault in chance.sample(FAULTS, len(FAULTS)):
            inject(fault, servers, chance, seconds / len(FAULTS) / 2)
            observed.collect_for(seconds / len(FAULTS) / 2)
        load.stop()
        observed.check_open_pools()
        for client in load.clients:
            client.close()
        ours, failures = load.ours, load.failures
        del load, client
        observed.check()
        check_connections(observed.commands)
        assert ours == []
        assert failures
        assert observed.outages


def test_servers_that_die(rounds: Rounds) -> None:
    for seed in rounds:
        play(seed, rounds.each)
