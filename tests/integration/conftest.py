"""The real servers of the integration tests: one process of each for the whole run."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.servers.processes import FerretDB, Jaeger, Missing, Process, Prometheus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def ferretdb() -> Iterator[FerretDB]:
    """FerretDB as a standalone server."""
    server = FerretDB()
    with running(server):
        yield server


@pytest.fixture(scope="session")
def jaeger() -> Iterator[Jaeger]:
    """Jaeger, with whatever other tests have sent it: use a service name of your own."""
    server = Jaeger()
    with running(server):
        yield server


@pytest.fixture(scope="session")
def prometheus() -> Iterator[Prometheus]:
    """Prometheus with nothing to scrape, to ask it what it makes of an expression; promtool is there too then."""
    server = Prometheus()
    with running(server):
        yield server


@pytest.fixture(scope="session")
def mongodb_uri(request: pytest.FixtureRequest) -> str:
    """The connection string of the server that tests run against: ``MONGODB_URI`` where it is set, else FerretDB."""
    given = os.environ.get("MONGODB_URI")
    if given:
        return given
    server: FerretDB = request.getfixturevalue("ferretdb")
    return server.uri


@pytest.fixture
def run_server() -> Iterator[Callable[[Process], None]]:
    """Start a server of one test's own, which ends with the test."""
    with ExitStack() as stack:

        def run(server: Process) -> None:
            stack.enter_context(running(server))

        yield run


@contextmanager
def running(server: Process) -> Iterator[None]:
    """Run a server; without its program the test is left out, or fails where ``REQUIRE_SERVERS=1`` says so."""
    missing = None
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except Missing as error:
            missing = str(error)
        if missing is None:
            yield
        elif os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(missing, pytrace=False)
        else:
            pytest.skip(missing)
