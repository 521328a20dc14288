"""The words match the code."""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING

import pytest
from opentelemetry import metrics, trace
from pymongo import MongoClient

import opentelemetry_mongo_events
from opentelemetry_mongo_events._commands.description import _OLD_NAMES
from opentelemetry_mongo_events._config import ENVIRONMENT_PREFIX, OPTIONS
from opentelemetry_mongo_events._query_text.text import query_text
from opentelemetry_mongo_events._telemetry import semconv
from pictures.files import FOLDER, MOST_BYTES
from tests.pages import PAGES, ROOT, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from opentelemetry_mongo_events import MongoEventsInstrumentor
    from tests.servers.scripted import ScriptedServer

# One that begins with a file's name is part of a program: test_guides.py runs those.
SNIPPETS = [
    pytest.param(snippet, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name != "tutorial.md"  # whole programs, which tests of their own run
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    if not re.match(r"# \S+\.py\n", snippet)
]


NO_NAMES = {
    "DISCOVERY",
    "IDLE",
    "INTERRUPTED",
    "MONGODB",
    "OTHER",
    "OUTAGE",
    "SCHEMA_URL",
    "SCOPE",
    "SELECT_SERVER",
    "TRANSACTION",
    "USED",
}


def is_event(constant: str) -> bool:
    return constant.endswith(("_CHANGED", "_CLEARED", "_CLOSED", "_FAILED", "_OPENED", "_SUCCEEDED"))


def is_metric(constant: str) -> bool:
    return constant.startswith(("DB_CLIENT_", "MONGODB_CLIENT_"))


def emitted() -> set[str]:
    """Every attribute's name that the code has."""
    constants = {name: getattr(semconv, name) for name in semconv.__all__ if not is_metric(name) and not is_event(name)}
    return {value for name, value in constants.items() if isinstance(value, str) and name not in NO_NAMES}


def measured() -> set[str]:
    """Every metric's name that the code has."""
    return {getattr(semconv, name) for name in semconv.__all__ if is_metric(name)}


def old() -> set[str]:
    return {getattr(semconv, name) for name in semconv.__all__ if name.startswith("OLD_")}


def test_each_attribute_is_in_the_reference_and_no_other() -> None:
    spans = [cells[0].strip("`") for cells in rows("docs/spans.md", "## Attributes")]
    selections = [cells[0].strip("`") for cells in rows("docs/spans.md", "## Server selections")]
    transactions = [cells[0].strip("`") for cells in rows("docs/spans.md", "## Transactions")]
    metrics = [cells[0].strip("`") for cells in rows("docs/metrics.md", "## Attributes")]

    events = [cells[0].strip("`") for cells in rows("docs/outages.md", "## Attributes")]

    assert sorted({*spans, *selections, *transactions, *metrics, *events}) == sorted(emitted() - old())
    for page in (spans, selections, transactions, metrics, events):
        assert len(page) == len(set(page))


def test_each_event_and_each_span_of_a_clients_own_is_in_the_reference() -> None:
    events = {getattr(semconv, name) for name in semconv.__all__ if is_event(name) and not is_metric(name)}
    page = (ROOT / "docs/outages.md").read_text()
    documented = [cells[0].strip("`") for cells in rows("docs/outages.md", "## Events")]

    assert sorted(f"mongodb.client.{name}" for name in documented) == sorted(events)
    assert {semconv.DISCOVERY, semconv.OUTAGE} == set(re.findall(r"^### `(mongodb\.client\.\w+)`$", page, re.MULTILINE))


def test_each_metric_is_in_the_reference_and_no_other() -> None:
    documented = [
        cells[0].strip("`")
        for heading in ("## Commands", "## Transactions", "## Connection pools", "## Servers and heartbeats")
        for cells in rows("docs/metrics.md", heading)
    ]

    assert sorted(documented) == sorted(measured())


def test_each_old_name_is_in_the_reference_with_its_new_one() -> None:
    documented = {cells[0].strip("`"): cells[1].strip("`") for cells in rows("docs/spans.md", "## The old names")}

    assert documented == {old_name: new for new, old_name in _OLD_NAMES.items()} | {
        "db.operation": "db.operation.name",
        "db.statement": "db.operation.name",
    }
    assert documented.keys() == old()


def test_the_schema_is_that_of_the_reference() -> None:
    version = semconv.SCHEMA_URL.rpartition("/")[2]

    assert f"(schema {version})" in (ROOT / "docs/spans.md").read_text()


def test_each_option_is_in_the_reference_with_its_variable_and_default() -> None:
    documented = [cells[:3] for cells in rows("docs/options.md", "# Options")]

    def default(value: object) -> str:
        return "none" if value == frozenset() else f"`{str(value).lower()}`"

    assert documented == [
        [f"`{name}`", f"`{ENVIRONMENT_PREFIX}{name.upper()}`", default(option.default)]
        for name, option in OPTIONS.items()
    ]
    assert [cells[0] for cells in rows("README.md", "## Options")] == [f"`{name}`" for name in OPTIONS]


def test_each_text_of_the_reference_is_that_of_its_command() -> None:
    page = (ROOT / "docs/what-is-captured.md").read_text()
    pairs = re.findall(r"^```python\n(.*?)^```\n+```json\n(.*?)\n```", page, re.MULTILINE | re.DOTALL)

    assert len(pairs) == page.count("```json") == 5
    for source, text in pairs:
        command = ast.literal_eval(source)
        assert query_text(next(iter(command)), command, is_raw=False, limit=4096) == text


def test_the_cut_text_of_the_reference_is_that_of_its_command() -> None:
    page = (ROOT / "docs/what-is-captured.md").read_text()
    ((limit, text),) = re.findall(r"`query_text_max_length=(\d+)`:\n\n```text\n(.*?)\n```", page)
    stages = [{"$match": {"note": "x" * 5_000, "state": "open"}}, {"$sort": {"total": 1}}, {"$out": "days"}]
    command = {"aggregate": "orders", "pipeline": stages, "cursor": {}}

    assert query_text("aggregate", command, is_raw=True, limit=int(limit)) == text


def test_each_alert_is_explained_and_tested() -> None:
    deployed = ROOT / "deploy" / "prometheus"
    alerts = re.findall(r"- alert: (\w+)", (deployed / "mongodb-client.rules.yml").read_text())
    tested = re.findall(r"- alertname: (\w+)", (deployed / "mongodb-client.test.yml").read_text())

    assert [cells[0].strip("`") for cells in rows("docs/prometheus-and-grafana.md", "## The alerts")] == alerts
    assert set(tested) == set(alerts)


def test_panels_that_the_documentation_names_are_in_the_dashboard() -> None:
    shown = {
        panel["title"] for panel in json.loads((ROOT / "deploy/grafana/mongodb-client.json").read_text())["panels"]
    }
    named = [
        name
        for cells in rows("docs/prometheus-and-grafana.md", "## The alerts")
        for name in re.findall(r"\*([^*]+)\*", cells[2])
    ]

    assert named
    assert [name for name in named if name not in shown] == []


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert versions[0] == opentelemetry_mongo_events.__version__


@pytest.fixture
def here(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a snippet finds its server; its clients are closed after it."""
    clients: list[MongoClient[Any]] = []
    original = MongoClient.__init__

    def remembered(self: MongoClient[Any], *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        clients.append(self)

    monkeypatch.setattr(MongoClient, "__init__", remembered)
    yield server.uri
    for client in clients:
        client.close()


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The providers that a snippet makes the global ones, which they aren't for the other tests; shut down."""
    made: list[Any] = []
    monkeypatch.setattr(metrics, "set_meter_provider", made.append)
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    yield made
    for provider in made:
        provider.shutdown()


@pytest.fixture
def scraped(snippet: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A snippet that is scraped by Prometheus is so at a free port, until the end of the test."""
    if "prometheus" not in snippet:
        yield
        return
    prometheus_client = pytest.importorskip("prometheus_client")
    start = prometheus_client.start_http_server
    started: list[Any] = []

    def start_elsewhere(port: int, **options: Any) -> Any:
        started.append(start(0, **options))
        return started[-1]

    monkeypatch.setattr(prometheus_client, "start_http_server", start_elsewhere)
    yield
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def driver(snippet: str) -> None:
    """The driver is one that has the client which a snippet makes."""
    if "AsyncMongoClient" in snippet:
        pytest.importorskip("pymongo", minversion="4.9")
    if "motor" in snippet:
        pytest.importorskip("motor.motor_asyncio", exc_type=ImportError)
    for vendor in ("logfire", "sentry_sdk"):
        if f"import {vendor}" in snippet:
            pytest.importorskip(vendor)


@pytest.mark.parametrize("snippet", SNIPPETS)
@pytest.mark.usefixtures("driver", "providers", "scraped")
def test_a_snippet_runs(snippet: str, here: str, instrumentor: MongoEventsInstrumentor) -> None:
    exec(compile(snippet.replace("mongodb://localhost:27017", here), "snippet", "exec"), {})


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    local = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]

    assert [link for link in local if not (page.parent / link).exists()] == []


def test_each_picture_is_shown_and_small() -> None:
    shown = [
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]{40,}\]\(([^)]+)\)", page.read_text())  # with words for who can't see it
    ]
    there = {path: path.stat().st_size for path in FOLDER.iterdir()}

    assert there.keys() == set(shown)
    assert max(there.values()) <= MOST_BYTES
    assert sum(there.values()) <= 500_000


def test_the_two_commands_of_the_readme_are_targets() -> None:
    commands = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()

    assert commands == ["demo", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
