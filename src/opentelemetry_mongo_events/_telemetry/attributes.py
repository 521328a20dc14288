"""Attributes that several signals have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.util.types import AttributeValue

from opentelemetry_mongo_events._telemetry import semconv as names

if TYPE_CHECKING:
    from opentelemetry_mongo_events._driver.identity import Address

Attributes = dict[str, AttributeValue]


def target(address: Address) -> str:
    """An address as text: `host:port`, with brackets around an IPv6 address; the path of a Unix socket."""
    host, port = address
    return host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_attributes(address: Address | None) -> Attributes:
    """The host and the port; the path of a Unix socket."""
    if address is None:
        return {}
    host, port = address
    return {names.SERVER_ADDRESS: host} if port is None else {names.SERVER_ADDRESS: host, names.SERVER_PORT: port}
