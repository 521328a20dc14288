"""The difference between two descriptions of a topology, with the time of the change."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from opentelemetry_mongo_events._runtime.clock import moment

if TYPE_CHECKING:
    from pymongo.server_description import ServerDescription
    from pymongo.topology_description import TopologyDescription

    from opentelemetry_mongo_events._runtime.clock import Moment


class Difference(NamedTuple):
    """The difference between two descriptions of a topology.

    Attributes:
        when: When the topology changed: the time of the server description that caused the change.
        opened: The servers that were added.
        changed: The servers whose type changed: their descriptions before and after.
        closed: The servers that were removed.
    """

    when: Moment
    opened: list[ServerDescription]
    changed: list[tuple[ServerDescription, ServerDescription]]
    closed: list[ServerDescription]


def difference_between(before: TopologyDescription, after: TopologyDescription) -> Difference:
    """Compare two descriptions.

    The time is taken from the descriptions, because the driver delivers its event later. One change may create several
    server descriptions: of the server that caused it, and of servers that it adds or of a replaced primary. The driver
    creates the others right after the one that caused the change, so the oldest time is the time of the change.
    """
    old, new = before.server_descriptions(), after.server_descriptions()
    times = [server.last_update_time for address, server in new.items() if server is not old.get(address)]
    return Difference(
        moment(min(times, default=None)),
        [server for address, server in new.items() if address not in old],
        [
            (old[address], server)
            for address, server in new.items()
            if address in old and old[address].server_type_name != server.server_type_name
        ],
        [server for address, server in old.items() if address not in new],
    )
