"""Run a script as `opentelemetry-instrument` does, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.processes import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

# It knows nothing of this package: only PyMongo, and OpenTelemetry's API for a span of its own.
SCRIPT = """
import os

from opentelemetry import trace
from pymongo import MongoClient
from pymongo.errors import BulkWriteError, OperationFailure

with MongoClient(os.environ["MONGODB_URI"], serverSelectionTimeoutMS=5000) as client:
    shop = client[os.environ["MONGODB_DATABASE"]]
    with trace.get_tracer("shop").start_as_current_span("POST /orders"):
        shop.users.create_index("email", unique=True)
        try:
            shop.users.insert_many([{"email": "alice@example.org"} for _ in range(2)])
        except BulkWriteError:
            pass
        shop.orders.insert_many([{"_id": number} for number in range(5)])
        assert len(list(shop.orders.find(batch_size=2))) == 5
        try:
            shop.command("thereIsNoSuchCommand")
        except OperationFailure:
            pass
    shop.users.drop()
    shop.orders.drop()
"""


def instrumented(script: Path, *options: str) -> list[str]:
    """The command line that runs a script under `opentelemetry-instrument`, for its traces alone."""
    return [
        str(Path(sys.executable).parent / "opentelemetry-instrument"),
        *("--metrics_exporter", "none", "--logs_exporter", "none"),
        *options,
        sys.executable,
        str(script),
    ]


def run_instrumented(
    script: str, uri: str, folder: Path, *options: str, database: str = "shop", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script under `opentelemetry-instrument`, with those options and environment variables.

    The other instrumentation of PyMongo, which the tests' environment holds too, is switched off unless a variable says
    otherwise.
    """
    path = folder / "application.py"
    path.write_text(script)
    return subprocess.run(
        instrumented(path, *options),
        env=environment()
        | {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo", "MONGODB_URI": uri, "MONGODB_DATABASE": database}
        | variables,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def run_demo(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run the demo, with those environment variables."""
    return subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parent.parent / "examples" / "demo.py")],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def console_spans(output: str) -> Iterator[dict[str, Any]]:
    """The spans that the console exporter wrote."""
    return (document for document in _documents(output) if "span_id" in document.get("context", ()))


def console_metrics(output: str) -> dict[str, dict[str, Any]]:
    """The data of each metric that the console exporter wrote at last, by the metric's name."""
    return {
        metric["name"]: metric["data"]
        for document in _documents(output)
        for resource in document.get("resource_metrics", ())
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
    }


def _documents(output: str) -> Iterator[dict[str, Any]]:
    """JSON documents, one behind the other."""
    decoder = json.JSONDecoder()
    position = 0
    while (position := output.find("{", position)) >= 0:
        document, position = decoder.raw_decode(output, position)
        yield document
