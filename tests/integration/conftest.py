"""The real servers of the integration tests: one process of each for the whole run."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.servers.processes import FerretDB, Jaeger, Missing, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def ferretdb() -> Iterator[FerretDB]:
    """FerretDB as a standalone server."""
    server = FerretDB()
    with _running(server):
        yield server


@pytest.fixture(scope="session")
def jaeger() -> Iterator[Jaeger]:
    """Jaeger, with whatever other tests have sent it: use a service name of your own."""
    server = Jaeger()
    with _running(server):
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
    with ExitStack() as running:

        def run(server: Process) -> None:
            running.enter_context(_running(server))

        yield run


@contextmanager
def _running(server: Process) -> Iterator[None]:
    missing = None
    with ExitStack() as running:
        try:
            running.enter_context(server)
        except Missing as error:
            missing = str(error)
        if missing is None:
            yield
        elif os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(missing, pytrace=False)
        else:
            pytest.skip(missing)
