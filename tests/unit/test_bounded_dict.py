"""A bounded memory."""

from __future__ import annotations

from opentelemetry_mongo_events._runtime.bounded_dict import BoundedDict


def test_the_oldest_is_forgotten() -> None:
    recent: BoundedDict[int, str] = BoundedDict(2)

    for key in (1, 2, 3):
        recent.put(key, str(key))

    assert (len(recent), recent.get(1), recent.get(2), recent.get(3)) == (2, None, "2", "3")


def test_what_is_put_again_is_the_newest() -> None:
    recent: BoundedDict[int, str] = BoundedDict(2)

    for key in (1, 2, 1, 3):
        recent.put(key, str(key))

    assert (recent.get(1), recent.get(2), recent.get(3)) == ("1", None, "3")


def test_what_is_popped_is_forgotten() -> None:
    recent: BoundedDict[int, str] = BoundedDict(2)
    recent.put(1, "1")

    assert (recent.pop(1, None), recent.pop(1, None), len(recent)) == ("1", None, 0)
