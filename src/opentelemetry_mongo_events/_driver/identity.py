"""Which client an event comes from, and whether that client still lives.

No event carries its client. But the address in all events of one pool, or of one server of a client, is the same tuple,
and another tuple in each client. And the driver holds it for as long as the pool, or the server's monitor, lives.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, Final

_reference_count: Final = getattr(sys, "getrefcount", None)

COUNTS_REFERENCES: Final = _reference_count is not None
"""PyPy doesn't. What a client had that was never closed is known to be gone there by the client's settings only, which
its topology's descriptions refer to."""

_known: Final[dict[int, weakref.ref[Identity]]] = {}


class Identity:
    """The driver's own address of a pool or a server, to which this package refers once, whatever it notes of it.

    Attributes:
        address: The address.
        owner: What lives as long as its client does; None where that isn't known.
    """

    __slots__ = ("__weakref__", "address", "owner")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.owner: weakref.ref[Any] | None = None

    @property
    def is_unreferenced(self) -> bool:
        """Whether nobody else has it: what it is the address of is gone."""
        if self.owner is not None and self.owner() is None:
            return True
        return _reference_count is not None and self._references() <= _ALONE

    def _references(self) -> int:
        return 0 if _reference_count is None else int(_reference_count(self.address))


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


Address = tuple[str, "int | None"]
