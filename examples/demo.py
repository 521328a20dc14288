"""Runs the shop on an embedded server under `opentelemetry-instrument`, and prints its traces and metrics.

During a payment, the server is killed and started again, so the transaction of the payment is repeated. At night, the
server is killed and starts again after a second and a half: one order fails, and the next one waits.

If `OTEL_EXPORTER_OTLP_ENDPOINT` is set, the traces are sent there instead of printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.application import console_metrics, console_spans, instrumented  # noqa: E402  # needs the path above
from tests.servers.processes import Missing, NxServer, environment  # noqa: E402  # needs the path above

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = dict[str, Any]

# The attributes that are shown next to the name and the duration.
DETAILS = {
    "db.operation.batch.size": "batch of {}",
    "db.response.returned_rows": "{} rows",
    "mongodb.client.operation.write_error_count": "{} write error(s)",
    "mongodb.client.operation.attempt": "attempt {}",
    "mongodb.client.server_selection.selector": "{}",
    "mongodb.client.transaction.attempt": "attempt {}",
    "mongodb.client.transaction.outcome": "{}",
}

SELECT = "select server"
WAIT = "mongodb.client.connection.wait_time"
# The waits that are shown for a command.
WAITS = {
    WAIT: "for a connection",
    "mongodb.client.server_selection.wait_time": "for a server",
}
# Seconds. Shorter waits are not shown: finding the server or creating a connection takes a few milliseconds.
LONG = 0.05

# The metrics of the summary, each with the attribute that it is grouped by.
MEASURED = {
    "db.client.operation.duration": "db.operation.name",
    "mongodb.client.transaction.duration": "mongodb.client.transaction.outcome",
    "db.client.connection.wait_time": None,
    "db.client.connection.use_time": None,
    "mongodb.client.connection.closed": "mongodb.client.connection.close_reason",
    "mongodb.client.pool.cleared": None,
    "mongodb.client.heartbeat.duration": "error.type",
    "mongodb.client.server.changes": "mongodb.client.server.type",
    "mongodb.client.server_selection.wait_time": "error.type",
    "mongodb.client.outage.duration": None,
}


def main() -> int:
    """Run the demo. Returns the exit code."""
    console = Console(highlight=False)
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    console.print("Starting the embedded server (nx-27017) ...")
    try:
        with NxServer() as server:
            console.print(f"Running examples/shop.py under opentelemetry-instrument, on {server.uri} ...")
            exit_code, output = run_shop(server, to_console=not endpoint)
    except Missing as error:
        print(error, file=sys.stderr)
        return 1
    if exit_code:
        console.print(f"The shop failed with exit code {exit_code}.")
        return exit_code
    spans = list(console_spans(output))
    commands = sum(is_command(span) for span in spans)
    if endpoint:
        console.print(f"The traces of the service 'shop' were sent to {endpoint}.")
    else:
        printed: set[str | None] = {None}
        for trace in traces(spans):
            console.print()
            if (text := remark(trace)) not in printed:
                printed.add(text)
                console.print(text, style="bold yellow")
            console.print(tree(trace, spans))
        console.print(f"\n{len(spans)} spans, {commands} of them MongoDB commands.")
    metrics = console_metrics(output)
    console.print("\nMetrics:\n")
    console.print(summary(metrics))
    return 0 if metrics and (endpoint or commands) else 1


def run_shop(server: NxServer, *, to_console: bool) -> tuple[int, str]:
    """Run the shop, and stop the server twice. Returns the exit code of the shop and its stdout."""
    exporter = "console" if to_console else "otlp"
    with (
        tempfile.TemporaryFile("w+") as output,  # not a pipe: nothing reads it while the shop runs
        subprocess.Popen(  # noqa: S603  # our own script
            instrumented(
                *(HERE / "shop.py", "--traces_exporter", exporter, "--metrics_exporter", "console"),
                *("--service_name", "shop"),
            ),
            env=shop_environment(server.uri),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        ) as shop,
    ):
        assert shop.stderr is not None  # noqa: S101  # it is a pipe
        is_first_payment = True
        for line in shop.stderr:
            sys.stderr.write(line)
            if is_first_payment and "waits for the bank" in line:
                is_first_payment = False
                server.stop()
                server.start()
            if "through the night" in line:
                server.stop()
                time.sleep(1.5)
                server.start()
        exit_code = shop.wait()
        output.seek(0)
        return exit_code, output.read()


def shop_environment(uri: str) -> dict[str, str]:
    """Return the environment of the shop. Of this process's `OTEL_*` variables, it has those of the OTLP exporter."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_OTLP_")}
    # The development environment also has the other instrumentation, for which ours would create no command spans.
    return (
        environment()
        | {
            "MONGODB_URI": uri,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo",
            "OTEL_PYTHON_MONGO_EVENTS_SELECTIONS": "true",
        }
        | kept
        | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}  # the installed exporter
    )


def traces(spans: list[Span]) -> Iterator[list[Span]]:
    """Return the spans of each trace. Spans and traces are ordered by their start."""
    by_id: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span["start_time"]):
        by_id.setdefault(span["context"]["trace_id"], []).append(span)
    yield from by_id.values()


def remark(trace: list[Span]) -> str | None:
    """Return what is worth looking at in a trace, if anything is."""
    names = {span["name"] for span in trace}
    attributes = [span["attributes"] for span in trace]
    if "mongodb.client.discovery" in names:
        return "The client finds its server."
    if "mongodb.client.outage" in names:
        return "An outage: its events, the failed command, and the request that waited."
    if any("mongodb.client.transaction.attempt" in each for each in attributes):
        return "A retried transaction: the server went away while the first one was open."
    if any(waited_in_outage(span) for span in trace):
        return "A request during the outage: it waited until the server was back."
    if any(each.get("error.type") == "11000" for each in attributes):
        return "A duplicate key: the reply says ok, but the span is an error."
    if any(each.get(WAIT, 0) > LONG for each in attributes):
        return "A slow request: it waited for the only connection."
    if any(each.get("db.operation.name") == "getMore" for each in attributes):
        return "A normal request: a find, and the getMore for the rest of its cursor."
    return None


def waited_in_outage(span: Span) -> bool:
    """Whether a span is a selection that waited long for a server, after the client had discovered its servers."""
    return (
        span["name"] == SELECT
        and span["attributes"]["mongodb.client.topology.type"] != "Unknown"
        and seconds(span) > LONG
    )


def tree(trace: list[Span], spans: list[Span]) -> Tree:
    """Return a trace as a tree. `spans` are those of all traces, to resolve links."""
    children: dict[str | None, list[Span]] = {}
    for span in trace:
        children.setdefault(span["parent_id"], []).append(span)
    names = {span["context"]["span_id"]: span["name"] for span in spans}

    def add(tree: Tree, span: Span) -> Tree:
        for line in story(span):
            tree.add(line)
        for child in children.get(span["context"]["span_id"], []):
            add(tree.add(label(child, names)), child)
        return tree

    (root,) = children[None]
    return add(Tree(label(root, names)), root)


def story(span: Span) -> Iterator[Text]:
    """Return lines with the query text and the events of a span."""
    if "db.query.text" in span["attributes"]:
        yield Text(span["attributes"]["db.query.text"], "dim", no_wrap=True, overflow="ellipsis")
    started = moment(span["start_time"])
    for event in span["events"]:
        attributes = event["attributes"]
        after = (moment(event["timestamp"]) - started).total_seconds()
        line = Text.assemble((f"{after * 1000:6.0f} ms  ", "dim"))  # otherwise the whole line is dim
        line.append(f"{event['name'].removeprefix('mongodb.client.'):<20}", "magenta")
        if "server.port" in attributes:
            line.append(f"{attributes['server.address']}:{attributes['server.port']}  ")
        for kind in ("server", "topology"):
            if f"mongodb.client.{kind}.type" in attributes:
                previous, current = (attributes[f"mongodb.client.{kind}.{name}"] for name in ("previous_type", "type"))
                line.append(f"{previous} -> {current}  ", "green")
        line.append(attributes.get("error.type", ""), "bold red")
        line.rstrip()
        yield line


def moment(stamp: str) -> datetime:
    """Parse a time of the console exporter."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))


def seconds(span: Span) -> float:
    """Return the duration of a span."""
    return (moment(span["end_time"]) - moment(span["start_time"])).total_seconds()


def label(span: Span, names: dict[str, str]) -> Text:
    """Return a span as one line: its name, duration, details, error and links."""
    line = Text.assemble(
        (span["name"], "bold" if is_command(span) else "bold cyan"),
        (f"  {seconds(span) * 1000:.1f} ms", "dim"),
    )
    for name, text in DETAILS.items():
        if name in span["attributes"]:
            line.append(f"  {text.format(span['attributes'][name])}", "green")
    for name, awaited in WAITS.items():
        if (waited := span["attributes"].get(name, 0)) > LONG:
            line.append(f"  waited {waited * 1000:.0f} ms {awaited}", "bold yellow")
    if span["status"]["status_code"] == "ERROR":
        error = span["attributes"]["error.type"] if is_command(span) else ""  # it would be too long for an outage
        line.append(f"  ERROR {span['status'].get('description') or error}".rstrip(), "bold red")
    for link in span["links"]:
        other = link["context"]["span_id"].removeprefix("0x")
        line.append(f"  -> {names.get(link['context']['span_id'], other)}", "yellow")
    return line


def summary(metrics: dict[str, Any]) -> Table:
    """Return a table of the metrics: number of values, mean and maximum of a histogram, or the sum of other metrics."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="dim")  # fits 80 columns
    table.add_column("metric", no_wrap=True)
    table.add_column("of", style="green", no_wrap=True)
    for column in ("n", "mean, ms", "max, ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, grouped_by in MEASURED.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for point in metrics.get(name, {}).get("data_points", ()):
            groups.setdefault(str(point["attributes"].get(grouped_by, "")), []).append(point)
        shown = name
        for of, points in sorted(groups.items()):
            if "count" in points[0]:
                count = sum(point["count"] for point in points)
                mean = sum(point["sum"] for point in points) / count
                longest = max(point["max"] for point in points)
                table.add_row(shown, of, str(count), f"{mean * 1000:,.1f}", f"{longest * 1000:,.1f}")
            else:
                table.add_row(shown, of, str(sum(point["value"] for point in points)))
            shown = ""
    return table


def is_command(span: Span) -> bool:
    """Whether a span is a MongoDB command."""
    return bool(span["kind"] == "SpanKind.CLIENT")


if __name__ == "__main__":
    sys.exit(main())
