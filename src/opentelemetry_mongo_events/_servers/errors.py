"""Errors of servers: what an event tells of one, and which of them are the loss of a server."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import ConnectionFailure, NotPrimaryError

from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from opentelemetry_mongo_events._telemetry.attributes import Attributes


def error_attributes(error: Any) -> Attributes:
    """What is told of an error that the driver found in the background: its class, and a network error's text.

    An error that quotes a server's reply has no text: the reply to a command may hold what the application stores.
    """
    attributes: Attributes = {names.ERROR_TYPE: type(error).__name__}
    if isinstance(error, (ConnectionFailure, OSError)) and not isinstance(error, NotPrimaryError):
        attributes[names.ERROR_MESSAGE] = str(error)[:256]
    return attributes


def is_loss_of_server(failure: Attributes) -> bool:
    """Whether a command failed as one does on a server that is not reached, or can't be written to any more.

    Args:
        failure: The attributes of its outcome.
    """
    code = failure.get(names.DB_RESPONSE_STATUS_CODE)
    return code in _NOT_PRIMARY if code is not None else failure.get(names.ERROR_TYPE) in _network_errors()


# "Not writable primary" and "node is recovering".
# Source: the drivers' specification of server discovery and monitoring.
_NOT_PRIMARY: Final = frozenset({"91", "189", "10058", "10107", "11600", "11602", "13435", "13436"})


@functools.cache
def _network_errors() -> frozenset[str]:
    """The names of the exceptions: the driver's, and, as before 4.18, the operating system's own."""
    found: set[type[BaseException]] = set()
    more: list[type[BaseException]] = [ConnectionFailure, OSError]
    while more:
        kind = more.pop()
        found.add(kind)
        more += [each for each in kind.__subclasses__() if each not in found]
    return frozenset(kind.__name__ for kind in found)
