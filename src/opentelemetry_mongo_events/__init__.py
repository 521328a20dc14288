"""OpenTelemetry instrumentation for PyMongo, built on the driver's monitoring events.

`MongoEventsInstrumentor` instruments all clients. `event_listeners()` instruments one client. Both accept the options
of `Config`.
"""

from opentelemetry_mongo_events._config import Config
from opentelemetry_mongo_events._instrumentor import MongoEventsInstrumentor
from opentelemetry_mongo_events._listeners import event_listeners
from opentelemetry_mongo_events._version import __version__

__all__ = ["Config", "MongoEventsInstrumentor", "__version__", "event_listeners"]
