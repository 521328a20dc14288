"""How long chaos lasts, and from which seed on."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from tests.chaos.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Iterator

# `make chaos` sets both; without it the rounds are short ones, and always the same.
SEED = int(os.environ.get("CHAOS_SEED", "1"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))


@pytest.fixture
def rounds() -> Rounds:
    """The seeds of rounds of load."""
    return Rounds(SEED, SECONDS, 5.0 if SECONDS else 0.5)


@pytest.fixture(autouse=True)
def nothing_is_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The package logs nothing, and nothing goes wrong in it."""
    # A record of the driver's keeps an exception, with all that is in its frames.
    caplog.set_level(logging.CRITICAL + 1, "pymongo")
    yield
    messages = [record.getMessage() for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]
    assert messages == []
