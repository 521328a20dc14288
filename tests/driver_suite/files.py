"""Which of the driver's tests are run."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# Those that talk to a server, or to themselves as to one, and make commands, pools or topologies; each for asyncio too
# where there is one. The rest knows of none of these, or is skipped on FerretDB, or takes minutes.
_USUAL: Final = (
    "async_cancellation",
    "async_loop_safety",
    "bulk",
    "client",
    "collection",
    "command_monitoring",
    "comment",
    "common",
    "concurrency",
    "connection_logging",
    "connection_monitoring",
    "cursor",
    "custom_types",
    "database",
    "discovery_and_monitoring",
    "examples",
    "fork",
    "gridfs",
    "gridfs_bucket",
    "handshake_unified",
    "heartbeat_monitoring",
    "logger",
    "mongos_load_balancing",
    "monitor",
    "monitoring",
    "pooling",
    "raw_bson",
    "read_concern",
    "read_preferences",
    "read_write_concern_spec",
    "retryable_reads",
    "retryable_writes",
    "run_command",
    "sdam_monitoring_spec",
    "session",
    "threads",
    "topology",
)

SLOW: Final = (
    "bulk_max_message_size",
    "insert_many_large_batch",
    "monitor_recovers_after_self_removal",
    "numerous_inserts",
    "rtt_connection_is_enabled_stream",
)
"""Parts of the names of tests that the usual run leaves out: they take much data, or time, and go no other way."""

# Tests that come out differently by themselves, or with any listener, and why; the runs that show it are made where
# they are not named here.
_NOT_COMPARED: Final = {
    "*test_client.py::*ClientUnitTest::test_event_listeners": "it counts its client's listeners",
    "*test_session.py::*TestSession::test_*": "it takes the first of its client's listeners for its own",
}


def is_not_compared(test: str) -> bool:
    """Whether it is known that a test comes out differently."""
    return any(fnmatch.fnmatchcase(test, pattern) for pattern in _NOT_COMPARED)


def usual_files(suite: Path) -> list[str]:
    """The files of the usual run that this version of the suite has."""
    names = [f"test/{kind}test_{name}.py" for name in _USUAL for kind in ("", "asynchronous/")]
    return [name for name in names if (suite / name).exists()]


def every_file(suite: Path) -> list[str]:
    """All files of the suite."""
    folders = (suite / "test", suite / "test" / "asynchronous")
    return [str(path.relative_to(suite)) for folder in folders for path in sorted(folder.glob("test_*.py"))]
