"""Listeners that do nothing: what a test makes of them, it makes of any listener."""

from __future__ import annotations

from pymongo import monitoring


def register_silent_listeners() -> None:
    """Register one of each kind that the package has."""
    for kind in (
        monitoring.CommandListener,
        monitoring.ConnectionPoolListener,
        monitoring.ServerHeartbeatListener,
        monitoring.TopologyListener,
    ):
        told = [name for name in vars(kind) if not name.startswith("_")]
        silent = type(f"Silent{kind.__name__}", (kind,), {name: lambda self, event: None for name in told})
        monitoring.register(silent())
