"""Whether the instrumentation changed what comes of the tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ABSENT = "not run"


class Difference(NamedTuple):
    """A test that came out differently, with its outcomes in the order of its runs.

    Attributes:
        test: Its name.
        without: Those without the instrumentation.
        observed: Those with it.
        listened: Those with listeners that do nothing.
    """

    test: str
    without: list[str]
    observed: list[str]
    listened: list[str]

    @property
    def explanation(self) -> str | None:
        """Why it is not the instrumentation's doing, if it isn't.

        What it came to with the instrumentation once means nothing: each run has some tests that fail now and then.
        """
        if set(self.observed) <= set(self.without):
            return "not steady, and so without the instrumentation"
        if set(self.observed) <= {*self.without, *self.listened}:
            return "the same with any listener"
        new = {*self.observed} - {*self.without, *self.listened}
        return None if any(self.observed.count(outcome) > 1 for outcome in new) else "once, and not again"

    @property
    def is_clear(self) -> bool:
        """Whether no further run tells more."""
        return set(self.observed) <= {*self.without, *self.listened}

    def __str__(self) -> str:
        kinds = {"without": self.without, "observed": self.observed, "listened": self.listened}
        told = [f"    {kind}: {_told(outcomes)}" for kind, outcomes in kinds.items() if outcomes]
        return "\n".join([self.test, *told])


def _told(outcomes: Sequence[str]) -> str:
    return "; ".join(f"{count} x {outcome}" for outcome, count in Counter(outcomes).items())


def differences(without: Mapping[str, str], observed: Mapping[str, str]) -> list[Difference]:
    """The tests whose outcomes differ, one that was run in one of both only among them."""
    return [
        Difference(test, [before], [after], [])
        for test in sorted({*without, *observed})
        if (before := without.get(test, ABSENT)) != (after := observed.get(test, ABSENT))
    ]


def again(
    found: Sequence[Difference],
    without: Mapping[str, str],
    observed: Mapping[str, str],
    listened: Mapping[str, str],
) -> list[Difference]:
    """The same tests, with what came of them once more."""
    return [
        Difference(
            each.test,
            [*each.without, without.get(each.test, ABSENT)],
            [*each.observed, observed.get(each.test, ABSENT)],
            [*each.listened, listened.get(each.test, ABSENT)],
        )
        for each in found
    ]
