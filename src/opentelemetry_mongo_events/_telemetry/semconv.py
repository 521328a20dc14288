"""All emitted names: from the semantic conventions, the MongoDB drivers' specification, and this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.semconv.attributes.db_attributes import (
    DB_COLLECTION_NAME,
    DB_NAMESPACE,
    DB_OPERATION_BATCH_SIZE,
    DB_OPERATION_NAME,
    DB_QUERY_SUMMARY,
    DB_QUERY_TEXT,
    DB_RESPONSE_STATUS_CODE,
    DB_SYSTEM_NAME,
)
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.network_attributes import NETWORK_TRANSPORT
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.metrics.db_metrics import DB_CLIENT_OPERATION_DURATION

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTEMPT",
    "CLOSE_REASON",
    "CONNECTION_STATE",
    "CURSOR_ID",
    "DB_CLIENT_CONNECTION_COUNT",
    "DB_CLIENT_CONNECTION_CREATE_TIME",
    "DB_CLIENT_CONNECTION_IDLE_MIN",
    "DB_CLIENT_CONNECTION_LIMIT",
    "DB_CLIENT_CONNECTION_PENDING_REQUESTS",
    "DB_CLIENT_CONNECTION_TIMEOUTS",
    "DB_CLIENT_CONNECTION_USE_TIME",
    "DB_CLIENT_CONNECTION_WAIT_TIME",
    "DB_CLIENT_OPERATION_DURATION",
    "DB_CLIENT_RESPONSE_RETURNED_ROWS",
    "DB_COLLECTION_NAME",
    "DB_NAMESPACE",
    "DB_OPERATION_BATCH_SIZE",
    "DB_OPERATION_NAME",
    "DB_QUERY_SUMMARY",
    "DB_QUERY_TEXT",
    "DB_RESPONSE_STATUS_CODE",
    "DB_SYSTEM_NAME",
    "DISCOVERY",
    "DISCOVERY_OUTCOME",
    "DRIVER_CONNECTION_ID",
    "ERROR_CODE_NAME",
    "ERROR_MESSAGE",
    "ERROR_TYPE",
    "HEARTBEAT_AWAITED",
    "HEARTBEAT_DURATION",
    "HEARTBEAT_FAILED",
    "HEARTBEAT_SUCCEEDED",
    "IDLE",
    "INTERRUPTED",
    "LSID",
    "MONGODB",
    "MONGODB_CLIENT_CONNECTION_CHECKOUT_FAILURES",
    "MONGODB_CLIENT_CONNECTION_CLOSED",
    "MONGODB_CLIENT_HEARTBEAT_DURATION",
    "MONGODB_CLIENT_OUTAGE_DURATION",
    "MONGODB_CLIENT_POOL_CLEARED",
    "MONGODB_CLIENT_SERVER_CHANGES",
    "MONGODB_CLIENT_SERVER_COUNT",
    "MONGODB_CLIENT_SERVER_ROUND_TRIP_TIME",
    "MONGODB_CLIENT_SERVER_SELECTION_WAIT_TIME",
    "MONGODB_CLIENT_TOPOLOGY_CHANGES",
    "NETWORK_TRANSPORT",
    "OLD_COLLECTION",
    "OLD_NAME",
    "OLD_OPERATION",
    "OLD_PEER_NAME",
    "OLD_PEER_PORT",
    "OLD_STATEMENT",
    "OLD_SYSTEM",
    "OTHER",
    "OUTAGE",
    "OUTAGE_FAILED_HEARTBEAT_COUNT",
    "OUTAGE_OUTCOME",
    "OUTAGE_PREVIOUS_PRIMARY",
    "OUTAGE_PRIMARY",
    "POOL_ATTRIBUTES",
    "POOL_CLEARED",
    "POOL_NAME",
    "REPLICA_SET",
    "RETURNED_ROWS",
    "SCHEMA_URL",
    "SCOPE",
    "SELECTION_WAIT_TIME",
    "SELECT_SERVER",
    "SERVER_ADDRESS",
    "SERVER_CHANGED",
    "SERVER_CLOSED",
    "SERVER_CONNECTION_ID",
    "SERVER_OPENED",
    "SERVER_PORT",
    "SERVER_PREVIOUS_TYPE",
    "SERVER_SELECTOR",
    "SERVER_TYPE",
    "TOPOLOGY_CHANGED",
    "TOPOLOGY_CLOSED",
    "TOPOLOGY_ID",
    "TOPOLOGY_OPENED",
    "TOPOLOGY_PREVIOUS_TYPE",
    "TOPOLOGY_TYPE",
    "TXN_NUMBER",
    "USED",
    "WAIT_TIME",
    "WRITE_ERROR_COUNT",
    "old_names_wanted",
]

SCOPE: Final = "opentelemetry_mongo_events"
"""The name of the instrumentation scope."""
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.45.0"

MONGODB: Final = "mongodb"
OTHER: Final = "_OTHER"
"""The value of `error.type` that the semantic conventions define for errors without a better one."""
INTERRUPTED: Final = "interrupted"

# Still in development in the conventions. It is not imported, since their module for such names is not stable.
RETURNED_ROWS: Final = "db.response.returned_rows"

POOL_NAME: Final = "db.client.connection.pool.name"
POOL_ATTRIBUTES: Final = (DB_SYSTEM_NAME, POOL_NAME, SERVER_ADDRESS, SERVER_PORT)
"""The attributes of each metric of a pool; a Unix socket has no port."""
CONNECTION_STATE: Final = "db.client.connection.state"
IDLE: Final = "idle"
USED: Final = "used"

# From the MongoDB drivers' OpenTelemetry specification.
CURSOR_ID: Final = "db.mongodb.cursor_id"
DRIVER_CONNECTION_ID: Final = "db.mongodb.driver_connection_id"
LSID: Final = "db.mongodb.lsid"
SERVER_CONNECTION_ID: Final = "db.mongodb.server_connection_id"
TXN_NUMBER: Final = "db.mongodb.txn_number"

# Our own names, where neither source defines one.
ATTEMPT: Final = "mongodb.client.operation.attempt"
CLOSE_REASON: Final = "mongodb.client.connection.close_reason"
ERROR_MESSAGE: Final = "mongodb.client.error.message"
HEARTBEAT_AWAITED: Final = "mongodb.client.heartbeat.awaited"
HEARTBEAT_DURATION: Final = "mongodb.client.heartbeat.duration"
DISCOVERY_OUTCOME: Final = "mongodb.client.discovery.outcome"
OUTAGE_FAILED_HEARTBEAT_COUNT: Final = "mongodb.client.outage.failed_heartbeat_count"
OUTAGE_OUTCOME: Final = "mongodb.client.outage.outcome"
OUTAGE_PREVIOUS_PRIMARY: Final = "mongodb.client.outage.previous_primary.address"
OUTAGE_PRIMARY: Final = "mongodb.client.outage.primary.address"
REPLICA_SET: Final = "mongodb.client.replica_set.name"
SELECTION_WAIT_TIME: Final = "mongodb.client.server_selection.wait_time"
SERVER_PREVIOUS_TYPE: Final = "mongodb.client.server.previous_type"
SERVER_SELECTOR: Final = "mongodb.client.server_selection.selector"
SERVER_TYPE: Final = "mongodb.client.server.type"
TOPOLOGY_ID: Final = "mongodb.client.topology.id"
TOPOLOGY_PREVIOUS_TYPE: Final = "mongodb.client.topology.previous_type"
TOPOLOGY_TYPE: Final = "mongodb.client.topology.type"
ERROR_CODE_NAME: Final = "mongodb.client.error.code_name"
WAIT_TIME: Final = "mongodb.client.connection.wait_time"
WRITE_ERROR_COUNT: Final = "mongodb.client.operation.write_error_count"

# Metrics. In the conventions only the duration of operations is stable; the others are still in development.
DB_CLIENT_CONNECTION_COUNT: Final = "db.client.connection.count"
DB_CLIENT_CONNECTION_CREATE_TIME: Final = "db.client.connection.create_time"
DB_CLIENT_CONNECTION_IDLE_MIN: Final = "db.client.connection.idle.min"
DB_CLIENT_CONNECTION_LIMIT: Final = "db.client.connection.limit"
DB_CLIENT_CONNECTION_PENDING_REQUESTS: Final = "db.client.connection.pending_requests"
DB_CLIENT_CONNECTION_TIMEOUTS: Final = "db.client.connection.timeouts"
DB_CLIENT_CONNECTION_USE_TIME: Final = "db.client.connection.use_time"
DB_CLIENT_CONNECTION_WAIT_TIME: Final = "db.client.connection.wait_time"
DB_CLIENT_RESPONSE_RETURNED_ROWS: Final = "db.client.response.returned_rows"
MONGODB_CLIENT_CONNECTION_CHECKOUT_FAILURES: Final = "mongodb.client.connection.checkout_failures"
MONGODB_CLIENT_CONNECTION_CLOSED: Final = "mongodb.client.connection.closed"
MONGODB_CLIENT_HEARTBEAT_DURATION: Final = "mongodb.client.heartbeat.duration"
MONGODB_CLIENT_OUTAGE_DURATION: Final = "mongodb.client.outage.duration"
MONGODB_CLIENT_POOL_CLEARED: Final = "mongodb.client.pool.cleared"
MONGODB_CLIENT_SERVER_CHANGES: Final = "mongodb.client.server.changes"
MONGODB_CLIENT_SERVER_COUNT: Final = "mongodb.client.server.count"
MONGODB_CLIENT_SERVER_ROUND_TRIP_TIME: Final = "mongodb.client.server.round_trip_time"
MONGODB_CLIENT_SERVER_SELECTION_WAIT_TIME: Final = "mongodb.client.server_selection.wait_time"
MONGODB_CLIENT_TOPOLOGY_CHANGES: Final = "mongodb.client.topology.changes"

# Span of a server selection.
SELECT_SERVER: Final = "select server"

# Spans of a client as a whole.
DISCOVERY: Final = "mongodb.client.discovery"
OUTAGE: Final = "mongodb.client.outage"

# Events.
HEARTBEAT_FAILED: Final = "mongodb.client.heartbeat.failed"
HEARTBEAT_SUCCEEDED: Final = "mongodb.client.heartbeat.succeeded"
POOL_CLEARED: Final = "mongodb.client.pool.cleared"
SERVER_CHANGED: Final = "mongodb.client.server.changed"
SERVER_CLOSED: Final = "mongodb.client.server.closed"
SERVER_OPENED: Final = "mongodb.client.server.opened"
TOPOLOGY_CHANGED: Final = "mongodb.client.topology.changed"
TOPOLOGY_CLOSED: Final = "mongodb.client.topology.closed"
TOPOLOGY_OPENED: Final = "mongodb.client.topology.opened"

# The names that opentelemetry-instrumentation-pymongo emits by default, and `db.operation` of the same conventions.
OLD_COLLECTION: Final = "db.mongodb.collection"
OLD_NAME: Final = "db.name"
OLD_OPERATION: Final = "db.operation"
OLD_PEER_NAME: Final = "net.peer.name"
OLD_PEER_PORT: Final = "net.peer.port"
OLD_STATEMENT: Final = "db.statement"
OLD_SYSTEM: Final = "db.system"


def old_names_wanted(environ: Mapping[str, str]) -> bool:
    """Whether `OTEL_SEMCONV_STABILITY_OPT_IN` contains `database/dup`, which adds the old names to the stable ones.

    Source: the migration plan of the OpenTelemetry database conventions.
    """
    return "database/dup" in [item.strip() for item in environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")]
