"""One identity for each address object, for as long as anybody has it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from opentelemetry_mongo_events._driver import identity as identity_module
from opentelemetry_mongo_events._driver.identity import Identity, identity


def address() -> Any:
    return ("".join(["db.", "example"]), 27017)


def test_an_address_has_one_identity_and_an_equal_one_another() -> None:
    first, second = address(), address()

    assert identity(first) is identity(first)
    assert first == second
    assert identity(first) is not identity(second)


@pytest.mark.skipif(not identity_module.COUNTS_REFERENCES, reason="PyPy has no reference counts")
def test_it_is_alone_when_nobody_else_has_the_address() -> None:
    the_drivers = address()
    ours = identity(the_drivers)
    also_ours = identity(the_drivers)
    assert not ours.is_unreferenced

    del the_drivers
    assert ours.is_unreferenced
    assert also_ours.is_unreferenced


def test_what_is_gone_is_forgotten() -> None:
    gc.collect()
    before = len(identity_module._identities)
    for _ in range(100):
        the_drivers = address()
        ours = identity(the_drivers)
        assert ours.address is the_drivers
    gc.collect()
    assert len(identity_module._identities) <= before + 1

    del ours, the_drivers
    gc.collect()
    assert len(identity_module._identities) <= before


def test_one_that_is_gone_but_not_yet_forgotten_is_replaced() -> None:
    # As where the garbage collector has cleared it, and the callback has still to run.
    the_drivers = address()
    gone = Identity(the_drivers)
    dead = weakref.ref(gone)
    del gone
    identity_module._identities[id(the_drivers)] = dead

    ours = identity(the_drivers)

    assert ours.address is the_drivers
    assert identity(the_drivers) is ours


def test_a_callback_that_comes_late_leaves_its_successor_alone() -> None:
    the_drivers = address()
    first = identity(the_drivers)
    reference = identity_module._identities.pop(id(the_drivers))
    second = identity(the_drivers)
    assert second is not first

    del first
    gc.collect()  # PyPy has forgotten nothing before
    assert reference() is None
    assert identity(the_drivers) is second


def test_it_is_alone_when_what_lives_as_long_as_its_client_is_gone() -> None:
    class Settings:
        """The driver's, of a client."""

    the_drivers, settings = address(), Settings()
    ours = identity(the_drivers)
    ours.owner = weakref.ref(settings)
    assert not ours.is_unreferenced

    del settings
    gc.collect()
    assert ours.is_unreferenced


def test_without_reference_counts_nobody_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on PyPy: better a pool too many than none."""
    monkeypatch.setattr(identity_module, "_reference_count", None)
    assert not identity(address()).is_unreferenced
    assert identity_module._count_if_unreferenced("db.example") == 0
