"""Errors of servers: the attributes of one, and which of them mean that a server became unavailable."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import ConnectionFailure, NotPrimaryError

from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from opentelemetry_mongo_events._telemetry.attributes import Attributes


def error_attributes(error: Any) -> Attributes:
    """Return the attributes of an error in the background: its class and, for a network error, its message.

    The messages of other errors may quote a server's reply, which may contain stored data.
    """
    attributes: Attributes = {names.ERROR_TYPE: type(error).__name__}
    if isinstance(error, (ConnectionFailure, OSError)) and not isinstance(error, NotPrimaryError):
        attributes[names.ERROR_MESSAGE] = str(error)[:256]
    return attributes


def is_loss_of_server(failure: Attributes) -> bool:
    """Whether a command failed because its server can't be reached or no longer accepts writes.

    Args:
        failure: The attributes of the command's outcome.
    """
    code = failure.get(names.DB_RESPONSE_STATUS_CODE)
    return code in _NOT_PRIMARY if code is not None else failure.get(names.ERROR_TYPE) in _network_errors()


# The codes of "not writable primary" and "node is recovering".
# Source: the drivers' specification of server discovery and monitoring.
_NOT_PRIMARY: Final = frozenset({"91", "189", "10058", "10107", "11600", "11602", "13435", "13436"})


@functools.cache
def _network_errors() -> frozenset[str]:
    """The class names of network errors: the driver's own and, as published before PyMongo 4.18, the system's."""
    classes: set[type[BaseException]] = set()
    pending: list[type[BaseException]] = [ConnectionFailure, OSError]
    while pending:
        error_class = pending.pop()
        classes.add(error_class)
        pending += [each for each in error_class.__subclasses__() if each not in classes]
    return frozenset(each.__name__ for each in classes)
