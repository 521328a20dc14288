"""Which of several listeners takes a command."""

from __future__ import annotations

import contextvars
import gc

import pytest

from opentelemetry_mongo_events._commands.claims import Claim


class Owner:
    """A table of commands."""


@pytest.fixture
def claim() -> Claim:
    return Claim("tests_claim")


def test_the_first_takes_it_and_the_second_keeps_quiet(claim: Claim) -> None:
    first, second = Owner(), Owner()

    assert claim.take("a command", first)
    assert claim.take("a command", first)
    assert not claim.take("a command", second)
    assert claim.take("another command", second)
    claim.give_up(second)


def test_only_the_owner_gives_a_claim_up(claim: Claim) -> None:
    first, second = Owner(), Owner()
    assert claim.take("a command", first)

    claim.give_up(second)
    assert not claim.take("a command", second)

    claim.give_up(first)
    assert claim.take("a command", second)
    claim.give_up(second)


def test_a_claim_keeps_no_owner_alive(claim: Claim) -> None:
    first, second = Owner(), Owner()
    assert claim.take("a command", first)

    del first
    gc.collect()
    assert claim.take("a command", second)


def test_what_another_task_claims_changes_nothing_here(claim: Claim) -> None:
    """As greenlets do, which share a thread and have a context each."""
    first, second = Owner(), Owner()
    assert claim.take("a command", first)

    assert contextvars.copy_context().run(claim.take, "another command", second)
    assert not claim.take("a command", second)
