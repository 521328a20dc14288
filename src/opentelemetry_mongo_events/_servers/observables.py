"""Observable metrics of servers: how many there are of each type, and their round trip times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry_mongo_events._runtime.process import instances
from opentelemetry_mongo_events._servers.state import ServerStates
from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry_mongo_events._telemetry.attributes import Attributes
    from opentelemetry_mongo_events._telemetry.observables import IsReported, Reading


def _server_count(is_reported: IsReported) -> Iterator[Reading]:
    for states in instances(ServerStates):
        if not is_reported(states.switch, "topology"):
            continue
        for topology in states.topologies():
            if topology.is_reported_by_another:
                continue
            counts = {(topology.replica_set, server_type): count for server_type, count in topology.servers.items()}
            # Types that were reported before are reported as 0: a backend that receives pushed metrics would show the
            # last value for minutes.
            zeros = topology.reported.copy()
            topology.reported |= dict.fromkeys(counts, 0)
            for (replica_set, server_type), count in (zeros | counts).items():
                attributes: Attributes = {names.SERVER_TYPE: server_type}
                if replica_set is not None:
                    attributes[names.REPLICA_SET] = replica_set
                yield attributes, count


def _round_trip_times(is_reported: IsReported) -> Iterator[Reading]:
    """The last round trip time of each server. If several clients use the server, the newest client's is reported."""
    for states in instances(ServerStates):
        if is_reported(states.switch, "heartbeats"):
            for server in states.servers():
                if server.round_trip is not None and not server.is_reported_by_another:
                    yield server.attributes, server.round_trip


READERS: Final = {
    names.MONGODB_CLIENT_SERVER_COUNT: _server_count,
    names.MONGODB_CLIENT_SERVER_ROUND_TRIP_TIME: _round_trip_times,
}
