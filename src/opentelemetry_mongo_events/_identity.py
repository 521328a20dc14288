"""Which client an event comes from, and whether that client still lives.

No event carries its client. But the address in all events of one pool, or of one server of a client, is the same tuple,
and another tuple in each client. And the driver holds it for as long as the pool, or the server's monitor, lives.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry_mongo_events._attributes import Address

# PyPy has none; there, what a client had that was never closed is kept for good.
_reference_count: Final = getattr(sys, "getrefcount", lambda _: sys.maxsize)


_known: Final[dict[int, weakref.ref[Identity]]] = {}


class Identity:
    """The driver's own address of a pool or a server, to which this package refers once, whatever it notes of it."""

    __slots__ = ("__weakref__", "address")

    def __init__(self, address: Address) -> None:
        self.address = address

    @property
    def is_alone(self) -> bool:
        """Whether nobody else has it: what it is the address of is gone."""
        return self._references() <= _ALONE

    def _references(self) -> int:
        count: int = _reference_count(self.address)
        return count


def _references_of_one_alone(host: str) -> int:
    address = (host, None)  # not a literal, which the code would hold as well
    identity = Identity(address)
    del address
    return identity._references()


_ALONE: Final = _references_of_one_alone("")


def identity(address: Address) -> Identity:
    """The one identity of an address. Runs on any thread."""
    key = id(address)
    reference = _known.get(key)
    found = None if reference is None else reference()
    if found is not None:  # as a rule
        return found

    def forget(reference: weakref.ref[Identity]) -> None:
        if _known.get(key) is reference:
            _known.pop(key, None)

    made = Identity(address)
    while True:
        # One operation of a dictionary: of several threads, one makes it.
        reference = _known.setdefault(key, weakref.ref(made, forget))
        found = reference()
        if found is not None:
            return found
        forget(reference)
