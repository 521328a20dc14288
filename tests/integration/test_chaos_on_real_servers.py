"""Threads and tasks under load while a real server is killed and frozen."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.load import Load, prepare, run_through
from tests.chaos.rounds import Round, Rounds
from tests.clients import connect
from tests.servers.processes import FerretDB, NxServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.processes import Process

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def kill(server: Process) -> None:
    """End it as a crash does, and start it again on its port."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    server.start()


def freeze(server: Process) -> None:
    """Stop it in the middle of whatever it does, and let it go on."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(server.pid, signal.SIGCONT)


def play(server: Process, uri: str, seed: int) -> None:
    """One round."""
    observed = Round()
    with connect(uri, event_listeners=observed.listeners) as client:
        client.drop_database("shop")
        run_through(prepare(client))
    load = Load(uri, observed.listeners, observed.spans.tracer, seed)
    load.start()
    for inject in (freeze, kill, freeze):
        observed.collect_for(0.3)
        inject(server)
    observed.collect_for(0.3)
    load.stop()
    observed.check_open_pools()
    for client in load.clients:
        client.close()
    ours, failures = load.ours, load.failures
    del load, client
    observed.check()
    assert ours == []
    assert failures
    assert observed.outages


@pytest.mark.parametrize("kind", [FerretDB, NxServer])
def test_a_server_that_is_killed_and_frozen(
    kind: type[Process], run_server: Callable[[Process], None], caplog: pytest.LogCaptureFixture
) -> None:
    # A record of the driver's keeps an exception, with all that is in its frames.
    caplog.set_level(logging.CRITICAL + 1, "pymongo")
    server = kind()
    run_server(server)
    for seed in Rounds(1, 0, 0):
        play(server, server.uri, seed)  # type: ignore[attr-defined]
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []
