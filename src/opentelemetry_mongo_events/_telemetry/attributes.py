"""Attributes that several signals share: the address and port of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.util.types import AttributeValue

from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.identity import Address

Attributes = dict[str, AttributeValue]


def target(address: Address) -> str:
    """Format an address as `host:port`, `[host]:port` for IPv6, or the path of a Unix socket."""
    host, port = address
    return host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_attributes(address: Address | None) -> Attributes:
    """The host and port of a server, or the path of its Unix socket; empty for None."""
    if address is None:
        return {}
    host, port = address
    return {names.SERVER_ADDRESS: host} if port is None else {names.SERVER_ADDRESS: host, names.SERVER_PORT: port}
