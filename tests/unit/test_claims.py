"""Which of several listeners takes a command."""

from __future__ import annotations

from opentelemetry_mongo_events._claims import claim, unclaim


def test_the_first_takes_it_and_the_second_keeps_quiet() -> None:
    first, second = object(), object()

    assert claim("a command", first)
    assert claim("a command", first)
    assert not claim("a command", second)
    assert claim("another command", second)
    unclaim(second)


def test_only_the_owner_gives_a_claim_up() -> None:
    first, second = object(), object()
    assert claim("a command", first)

    unclaim(second)
    assert not claim("a command", second)

    unclaim(first)
    assert claim("a command", second)
    unclaim(second)
