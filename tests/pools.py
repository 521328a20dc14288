"""What the driver's own pools hold: the truth that counts are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def pools(client: Any) -> Iterable[Any]:
    """The pools of a client, sync or asyncio."""
    return [server.pool for server in client._topology._servers.values()]


def held(*clients: Any) -> tuple[int, int]:
    """How many connections the clients' pools have, idle and in use."""
    idle = used = 0
    for client in clients:
        for pool in pools(client):
            idle += len(pool.conns if hasattr(pool, "conns") else pool.sockets)  # by its name before 4.2
            used += pool.active_sockets
    return idle, used
