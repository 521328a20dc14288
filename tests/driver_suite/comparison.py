"""Whether the instrumentation changed what comes of the tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ABSENT = "not run"


class Difference(NamedTuple):
    """A test that came out differently.

    Attributes:
        test: Its name.
        without: Its outcomes without the instrumentation, the first one first.
        observed: Those with it.
    """

    test: str
    without: list[str]
    observed: list[str]

    @property
    def is_unsteady(self) -> bool:
        """Whether all that it came to with the instrumentation it came to without it as well."""
        return set(self.observed) <= set(self.without)

    @property
    def is_fault(self) -> bool:
        """Whether it is the instrumentation's doing: what it came to with it came again, and never without it.

        Once means nothing: there are tests that fail now and then, and each run has some of them.
        """
        return any(count > 1 and outcome not in self.without for outcome, count in Counter(self.observed).items())

    def __str__(self) -> str:
        return f"{self.test}\n    without: {_told(self.without)}\n    observed: {_told(self.observed)}"


def _told(outcomes: Sequence[str]) -> str:
    return "; ".join(f"{count} x {outcome}" for outcome, count in Counter(outcomes).items())


def differences(without: Mapping[str, str], observed: Mapping[str, str]) -> list[Difference]:
    """The tests whose outcomes differ, one that was run in one of both only among them."""
    return [
        Difference(test, [before], [after])
        for test in sorted({*without, *observed})
        if (before := without.get(test, ABSENT)) != (after := observed.get(test, ABSENT))
    ]


def again(found: Sequence[Difference], without: Mapping[str, str], observed: Mapping[str, str]) -> list[Difference]:
    """The same tests, with what came of them once more."""
    return [
        Difference(
            each.test,
            [*each.without, without.get(each.test, ABSENT)],
            [*each.observed, observed.get(each.test, ABSENT)],
        )
        for each in found
    ]
