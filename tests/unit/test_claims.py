"""Which of several listeners takes a command."""

from __future__ import annotations

from opentelemetry_mongo_events._claims import Claim


def test_the_first_takes_it_and_the_second_keeps_quiet() -> None:
    claim, first, second = Claim(), object(), object()

    assert claim.take("a command", first)
    assert claim.take("a command", first)
    assert not claim.take("a command", second)
    assert claim.take("another command", second)
    claim.give_up(second)


def test_only_the_owner_gives_a_claim_up() -> None:
    claim, first, second = Claim(), object(), object()
    assert claim.take("a command", first)

    claim.give_up(second)
    assert not claim.take("a command", second)

    claim.give_up(first)
    assert claim.take("a command", second)
    claim.give_up(second)


def test_an_owner_is_let_go_of_with_its_claim() -> None:
    claim, owner = Claim(), object()
    assert claim.take("a command", owner)

    claim.give_up(owner)
    assert claim.owner is None
