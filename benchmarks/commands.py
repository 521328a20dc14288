"""The cost of a command with no listener, `opentelemetry-instrumentation-pymongo`, this package and an SDK baseline.

The SDK baseline makes the same SDK calls with the same attributes, all prepared in advance, and does nothing else: any
cost above it is this package's own. All figures are CPU time for the events of one command, as the driver publishes
them: it checks out a connection, sends the command, receives the reply, and checks the connection in. That is five
events. `opentelemetry-instrumentation-pymongo` listens to two of them.

Run with `--help`. `--quick` only checks that it runs; its figures mean nothing.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyperf
from bson import Binary, Timestamp
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.pymongo import CommandTracer
from opentelemetry.metrics import Meter, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind, set_span_in_context
from pymongo.monitoring import CommandListener, ConnectionPoolListener

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare import Goal, Work, compare, parser
from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._query_text.text import query_text
from tests import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EVENTS: Final = 50
WAIT: Final = 0.000_02
"""How many seconds it takes to check out a connection that is idle."""
SESSION: Final[dict[str, Any]] = {
    "lsid": {"id": Binary(uuid.UUID(int=7).bytes, 4)},
    "$clusterTime": {"clusterTime": Timestamp(1, 1), "signature": {"hash": b"0" * 20, "keyId": 1}},
    "$db": "shop",
}
FIND: Final[dict[str, Any]] = {
    "find": "orders",
    "filter": {"email": "alice@example.org"},
    "limit": 1,
    "singleBatch": True,
    **SESSION,
}
IN: Final[dict[str, Any]] = {"find": "orders", "filter": {"_id": {"$in": list(range(10_000))}}, **SESSION}
INSERT: Final[dict[str, Any]] = {
    "insert": "orders",
    "documents": [{"_id": n, "text": "x" * 1_000} for n in range(1_000)],
    **SESSION,
}
REPLY: Final[dict[str, Any]] = {"cursor": {"id": 0, "ns": "shop.orders", "firstBatch": [{"_id": 1}]}, "ok": 1.0}
WRITTEN: Final[dict[str, Any]] = {"n": 1_000, "ok": 1.0}

ON: Final = TracerProvider(shutdown_on_exit=False)
OFF: Final = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
SPANS_ONLY: Final[dict[str, Any]] = {"pools": False, "heartbeats": False, "topology": False, "query_text": "off"}
NO_METRICS: Final[dict[str, Any]] = {"meter_provider": NoOpMeterProvider()}
"""Makes the metrics of commands cost nothing. They can't be switched off separately from the spans."""

_addresses = iter(("127.0.0.1", port) for port in range(20_000, 60_000))


def measuring() -> MeterProvider:
    """Return a meter provider that isn't collected during the measurement."""
    return MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)


def driven(
    listeners: Any,
    command: Mapping[str, Any] = FIND,
    reply: Mapping[str, Any] = REPLY,
    *,
    first_request: int = 0,
) -> Work:
    """Play the driver's part: send a client's listeners the events of commands on a connection of its pool."""
    address = next(_addresses)
    name = next(iter(command))
    commands = [each for each in listeners if isinstance(each, CommandListener)]
    pools = [each for each in listeners if isinstance(each, ConnectionPoolListener)]
    for pool in pools:
        pool.pool_created(events.pool_created(address))
        pool.pool_ready(events.pool_ready(address))
        pool.connection_created(events.connection_created(1, address))
        pool.connection_ready(events.connection_ready(1, address))
    check_out_started = events.check_out_started(address)
    checked_out = events.checked_out(1, address, duration=WAIT)
    checked_in = events.checked_in(1, address)
    pairs = [
        (
            events.started(command, request_id=number, address=address),
            events.succeeded(name, reply, request_id=number, address=address),
        )
        for number in range(first_request, first_request + EVENTS)
    ]

    def work(loops: int) -> None:
        for _ in range(loops // EVENTS):
            for started, succeeded in pairs:
                for pool in pools:
                    pool.connection_check_out_started(check_out_started)
                for pool in pools:
                    pool.connection_checked_out(checked_out)
                for each in commands:
                    each.started(started)
                for each in commands:
                    each.succeeded(succeeded)
                for pool in pools:
                    pool.connection_checked_in(checked_in)

    return work


class Nothing(CommandListener):
    """A listener that does nothing."""

    def started(self, event: Any) -> None: ...

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


# ---------------------------------------------------------------------------------------------------------------------
# The SDK baseline.

MEASURED: Final[dict[str, Any]] = {
    "db.system.name": "mongodb",
    "db.namespace": "shop",
    "db.operation.name": "find",
    "db.collection.name": "orders",
    "server.address": "127.0.0.1",
    "server.port": 27017,
}
AT_START: Final[dict[str, Any]] = {
    **MEASURED,
    "db.query.summary": "find orders",
    "network.transport": "tcp",
    "db.mongodb.server_connection_id": 7,
    "db.mongodb.driver_connection_id": 1,
}
POOL: Final[dict[str, Any]] = {
    "db.system.name": "mongodb",
    "db.client.connection.pool.name": "127.0.0.1:27017",
    "server.address": "127.0.0.1",
    "server.port": 27017,
}
TEXT: Final = query_text("find", FIND, is_raw=False, limit=4096)


class SdkBaseline:
    """The SDK calls that this package makes for a find, and nothing else."""

    def __init__(self, provider: trace.TracerProvider, meter: Meter | None = None, *, text: str | None = TEXT) -> None:
        self._tracer = provider.get_tracer("sdk-baseline")
        self._text = text
        self._duration, self._rows, self._wait, self._use = (
            None if meter is None else meter.create_histogram(name) for name in ("duration", "rows", "wait", "use")
        )
        self._empty = Context()

    def start(self) -> trace.Span:
        """Make the calls for the start of a command."""
        span = self._tracer.start_span("find orders", None, SpanKind.CLIENT, AT_START)
        if self._text is not None and span.is_recording():
            span.set_attribute("db.query.text", self._text)
        return span

    def end(self, span: trace.Span) -> None:
        """Make the calls for the end of a command."""
        if span.is_recording():
            span.set_attribute("db.response.returned_rows", 1)
            span.end()
        if self._duration is not None and self._rows is not None:
            context = set_span_in_context(span, self._empty)
            self._rows.record(1, MEASURED, context)
            self._duration.record(0.001, MEASURED, context)

    def checked_out(self) -> None:
        """Make the calls for the checkout of its connection."""
        if self._wait is not None:
            self._wait.record(0.001, POOL)

    def checked_in(self) -> None:
        """Make the calls for the return of its connection."""
        if self._use is not None:
            self._use.record(0.001, POOL)


def sdk_baseline(
    provider: trace.TracerProvider, meter: Meter | None = None, *, text: str | None = None, pools: bool = False
) -> Work:
    """Return work that makes the calls of the SDK baseline."""
    calls = SdkBaseline(provider, meter, text=text)

    def work(loops: int) -> None:
        for _ in range(loops):
            if pools:
                calls.checked_out()
            calls.end(calls.start())
            if pools:
                calls.checked_in()

    return work


# ---------------------------------------------------------------------------------------------------------------------


def contrib(provider: Any, command: Mapping[str, Any] = FIND, reply: Any = REPLY, *, text: bool = False) -> Work:
    """Return work that sends the commands to `opentelemetry-instrumentation-pymongo`."""
    return driven([CommandTracer(provider.get_tracer("contrib"), capture_statement=text)], command, reply)


def ours(provider: Any, command: Mapping[str, Any] = FIND, reply: Any = REPLY, **options: Any) -> Work:
    """Return work that sends the commands to this package."""
    return driven(event_listeners(tracer_provider=provider, **options), command, reply)


def cases() -> dict[str, Callable[[], tuple[dict[str, Work], tuple[Goal, ...]]]]:
    """Return the cases by name: for each, the work to compare and the goals."""
    spans = {**SPANS_ONLY, **NO_METRICS}
    text = {**spans, "query_text": "masked"}

    return {
        "no SDK is set (a proxy provider)": lambda: (
            {
                "contrib": contrib(trace.ProxyTracerProvider()),
                "SDK baseline": sdk_baseline(trace.ProxyTracerProvider()),
                "ours": ours(None),
            },
            (Goal("contrib", 0.6),),
        ),
        "a provider that does nothing": lambda: (
            {
                "contrib": contrib(NoOpTracerProvider()),
                "SDK baseline": sdk_baseline(NoOpTracerProvider()),
                "ours": ours(NoOpTracerProvider(), **spans),
            },
            (Goal("contrib", 0.6),),
        ),
        "sampled out, spans only": lambda: (
            {"contrib": contrib(OFF), "SDK baseline": sdk_baseline(OFF), "ours": ours(OFF, **spans)},
            (Goal("contrib", 1.1),),
        ),
        "recorded, spans only, no text": lambda: (
            {"contrib": contrib(ON), "SDK baseline": sdk_baseline(ON), "ours": ours(ON, **spans)},
            (Goal("contrib", 1.2), Goal("SDK baseline", 1.4)),
        ),
        "recorded, span, duration and rows": lambda: (
            {
                "SDK baseline": sdk_baseline(ON, measuring().get_meter("sdk-baseline")),
                "ours": ours(ON, meter_provider=measuring(), **SPANS_ONLY),
            },
            (Goal("SDK baseline", 1.3),),
        ),
        "everything on": lambda: (
            {
                "SDK baseline": sdk_baseline(ON, measuring().get_meter("sdk-baseline"), text=TEXT, pools=True),
                "ours": ours(ON, meter_provider=measuring()),
            },
            (Goal("SDK baseline", 1.3),),
        ),
        "what a switch saves": lambda: (
            {
                "everything on": ours(ON, meter_provider=measuring()),
                'query_text="off"': ours(ON, meter_provider=measuring(), query_text="off"),
                "pools=False": ours(ON, meter_provider=measuring(), pools=False),
                "commands=False": ours(ON, meter_provider=measuring(), commands=False),
                "no MeterProvider": ours(ON, **NO_METRICS),
                "sampled out": ours(OFF, meter_provider=measuring()),
                "sampled out, no MeterProvider": ours(OFF, **NO_METRICS),
            },
            (),
        ),
        "masked text, small find": lambda: (
            {
                "contrib (raw)": contrib(ON, text=True),
                "SDK baseline": sdk_baseline(ON, text=TEXT),
                "ours": ours(ON, **text),
            },
            (Goal("contrib (raw)", 1.2),),
        ),
        "text, $in of 10,000": lambda: (
            {"contrib (raw)": contrib(ON, IN, text=True), "ours": ours(ON, IN, **text)},
            (Goal("contrib (raw)", 1 / 12),),
        ),
        "text, insert of 1,000 x 1 KB": lambda: (
            {"contrib (raw)": contrib(ON, INSERT, WRITTEN, text=True), "ours": ours(ON, INSERT, WRITTEN, **text)},
            (Goal("contrib (raw)", 1 / 40),),
        ),
    }


LARGE: Final = ("text, $in of 10,000", "text, insert of 1,000 x 1 KB")


def main() -> None:
    """Run the selected cases."""
    options = parser(__doc__)
    options.add_argument("--only", default="", help="run only the cases whose name contains this")
    options.add_argument("--output", help="write the results to this file, for pyperf's own tools")
    arguments = options.parse_args()
    measured = []
    for title, case in cases().items():
        if arguments.only in title:
            large = title in LARGE
            loops, rounds = (EVENTS, 3) if arguments.quick else (EVENTS if large else 20 * EVENTS, 9 if large else 41)
            ways, goals = case()
            ways = {"no listener": driven([]), "a listener that does nothing": driven([Nothing()]), **ways}
            measured += compare(title, ways, goals, loops=loops, rounds=rounds)
    if arguments.output and measured:
        pyperf.BenchmarkSuite(measured).dump(arguments.output, replace=True)


if __name__ == "__main__":
    main()
