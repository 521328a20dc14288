"""Finds the client's pool or server that an event comes from, and whether the driver still uses it.

Events don't refer to their client. But all events of a pool, or of a client's server, share one tuple object as the
address, and each client has its own tuples. The driver refers to the tuple as long as the pool or the server's monitor
exists.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, Final

_reference_count: Final = getattr(sys, "getrefcount", None)

COUNTS_REFERENCES: Final = _reference_count is not None
"""Whether the interpreter counts references. PyPy doesn't. There, the pools and servers of a client that is never
closed are known to be gone only after its settings, to which its topology descriptions refer, have been collected."""

_identities: Final[dict[int, weakref.ref[Identity]]] = {}


class Identity:
    """The address object of a pool or a server.

    This package refers to the address object only here, so its reference count shows whether the driver still uses it.

    Attributes:
        address: The driver's tuple.
        owner: A weak reference to something that exists as long as the client does; None if that isn't known.
    """

    __slots__ = ("__weakref__", "address", "owner")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.owner: weakref.ref[Any] | None = None

    @property
    def is_unreferenced(self) -> bool:
        """Whether nothing else refers to the address: its pool or server is gone."""
        if self.owner is not None and self.owner() is None:
            return True
        return _reference_count is not None and self._count_references() <= _COUNT_IF_UNREFERENCED

    def _count_references(self) -> int:
        return 0 if _reference_count is None else int(_reference_count(self.address))


def _count_if_unreferenced(host: str) -> int:
    address = (host, None)  # not a literal: the code object would also refer to it
    identity = Identity(address)
    del address
    return identity._count_references()


_COUNT_IF_UNREFERENCED: Final = _count_if_unreferenced("")


def identity(address: Address) -> Identity:
    """Return the single identity of an address object. Runs on any thread."""
    key = id(address)
    reference = _identities.get(key)
    existing = None if reference is None else reference()
    if existing is not None:  # the usual case
        return existing

    def forget(reference: weakref.ref[Identity]) -> None:
        if _identities.get(key) is reference:
            _identities.pop(key, None)

    new = Identity(address)
    while True:
        # `setdefault` is atomic: if several threads create an identity, all of them get the same one.
        reference = _identities.setdefault(key, weakref.ref(new, forget))
        existing = reference()
        if existing is not None:
            return existing
        forget(reference)


Address = tuple[str, "int | None"]
