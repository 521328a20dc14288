"""What is read when metrics are collected: the state of pools, servers and topologies, as it is then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry_mongo_events._pools.state import PoolStates
from opentelemetry_mongo_events._runtime.process import living
from opentelemetry_mongo_events._servers.state import ServerStates
from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import TypeAlias

    from opentelemetry_mongo_events._commands.description import Attributes
    from opentelemetry_mongo_events._pools.state import PoolState
    from opentelemetry_mongo_events._servers.state import ServerState, TopologyState
    from opentelemetry_mongo_events._telemetry.instruments import Instruments
    from opentelemetry_mongo_events._telemetry.telemetry import Switch

    Reading: TypeAlias = "tuple[Mapping[str, Any], float | None]"


def _reports(switch: Switch, signal: str, instruments: Instruments) -> bool:
    """Whether a signal that is seen there goes to the provider of those instruments now."""
    telemetry = switch.of(signal)
    return telemetry is not None and telemetry.instruments.are_those_of(instruments)


def _pools(instruments: Instruments) -> Iterator[PoolState]:
    for states in living(PoolStates):
        if _reports(states.switch, "pools", instruments):
            yield from (pool for pool in states.pools() if not pool.is_reported_by_another)


def _servers(instruments: Instruments) -> Iterator[ServerState]:
    for states in living(ServerStates):
        if _reports(states.switch, "heartbeats", instruments):
            yield from (server for server in states.servers() if not server.is_reported_by_another)


def _topologies(instruments: Instruments) -> Iterator[TopologyState]:
    for states in living(ServerStates):
        if _reports(states.switch, "topology", instruments):
            yield from (topology for topology in states.topologies() if not topology.is_reported_by_another)


def _connections(instruments: Instruments) -> Iterator[Reading]:
    for pool in _pools(instruments):
        idle, used = pool.connections()
        yield pool.attributes | {names.CONNECTION_STATE: names.IDLE}, idle
        yield pool.attributes | {names.CONNECTION_STATE: names.USED}, used


def _maximum(instruments: Instruments) -> Iterator[Reading]:
    return ((pool.attributes, pool.maximum) for pool in _pools(instruments) if pool.is_open)


def _minimum(instruments: Instruments) -> Iterator[Reading]:
    return ((pool.attributes, pool.minimum) for pool in _pools(instruments) if pool.is_open)


def _pending(instruments: Instruments) -> Iterator[Reading]:
    return ((pool.attributes, pool.waiters.count()) for pool in _pools(instruments))


def _server_count(instruments: Instruments) -> Iterator[Reading]:
    for topology in _topologies(instruments):
        known = {(topology.replica_set, server_type): count for server_type, count in topology.servers.items()}
        # What was told once is told until the end: where metrics are pushed, the last value stands for minutes.
        told = topology.told.copy()
        topology.told |= dict.fromkeys(known, 0)
        for (replica_set, server_type), count in (told | known).items():
            attributes: Attributes = {names.SERVER_TYPE: server_type}
            if replica_set is not None:
                attributes[names.REPLICA_SET] = replica_set
            yield attributes, count


def round_trip_times(instruments: Instruments) -> Iterator[Reading]:
    """The last round trip to each server; of several clients, that of the one which came last."""
    return ((server.attributes, server.round_trip) for server in _servers(instruments) if server.round_trip is not None)


class Sum(NamedTuple):
    """An observable up-down counter: readings with equal attributes are added together.

    One reading without a value, which stands for no limit, leaves all with its attributes out.
    """

    unit: str
    description: str
    read: Callable[[Instruments], Iterable[Reading]]


SUMS: Final = {
    names.DB_CLIENT_CONNECTION_COUNT: Sum("{connection}", "Connections that are idle or used", _connections),
    names.DB_CLIENT_CONNECTION_MAX: Sum("{connection}", "Connections that the pool may have", _maximum),
    names.DB_CLIENT_CONNECTION_IDLE_MIN: Sum("{connection}", "Connections that the pool keeps at least", _minimum),
    names.DB_CLIENT_CONNECTION_PENDING_REQUESTS: Sum("{request}", "Requests that wait for a connection", _pending),
    names.MONGODB_CLIENT_SERVER_COUNT: Sum("{server}", "Servers that are known, by type", _server_count),
}


def sums(read: Callable[[Instruments], Iterable[Reading]], instruments: Instruments) -> list[Reading]:
    """The readings, each set of attributes once."""
    added: dict[tuple[tuple[str, object], ...], Reading] = {}
    for attributes, value in read(instruments):
        key = tuple(attributes.items())
        so_far = added[key][1] if key in added else 0
        added[key] = (attributes, None if value is None or so_far is None else so_far + value)
    return list(added.values())
