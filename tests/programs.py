"""Programs that run in a process of their own, with this package on or without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.servers.processes import environment

if TYPE_CHECKING:
    from collections.abc import Iterable

_ROOT = Path(__file__).resolve().parents[1]

# The driver looks after its servers, and hands its events over, at most that often: it waits for both as it exits.
PREAMBLE = """
import asyncio, atexit, logging, os, signal, sys, threading, time

import pymongo
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from pymongo import MongoClient, common

common.EVENTS_QUEUE_FREQUENCY = 0.05
common.MIN_HEARTBEAT_INTERVAL = 0.05
logging.getLogger("opentelemetry.sdk").addHandler(logging.NullHandler())  # it says what it drops after its shutdown


class Told(SpanExporter):
    def export(self, spans):
        for span in spans:
            outcomes = [value for name, value in span.attributes.items() if name.endswith(".outcome")]
            outcome = outcomes[0] if outcomes else span.attributes.get("error.type")
            os.write(1, f"{span.name}: {outcome}\\n".encode())
        return SpanExportResult.SUCCESS


tracer_provider = TracerProvider()
tracer_provider.add_span_processor(BatchSpanProcessor(Told()))
trace.set_tracer_provider(tracer_provider)
metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
URI, IS_ON = sys.argv[1], sys.argv[2] == "on"
if IS_ON:
    from opentelemetry_mongo_events import MongoEventsInstrumentor

    MongoEventsInstrumentor().instrument()
"""


class Run(NamedTuple):
    """How a program ran: its exit code, the lines that it wrote, and what it wrote to stderr."""

    code: int
    lines: list[str]
    error: str


def run(program: str | Path, *arguments: object, options: Iterable[str] = (), seconds: float = 50) -> Run:
    """Run a program, a text or a file, which finds this package and the tests' own modules."""
    inherited = environment()
    python_path = os.pathsep.join(filter(None, [str(_ROOT / "src"), str(_ROOT), inherited.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable,
            *options,
            *([program] if isinstance(program, Path) else ["-c", program]),
            *map(str, arguments),
        ],
        env=inherited | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Run(done.returncode, done.stdout.split("\n")[:-1], done.stderr)
