"""What can be imported, and what the package says of itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import opentelemetry_mongo_events
from opentelemetry_mongo_events import Config, MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._config import OPTIONS

DISTRIBUTION = metadata.distribution("opentelemetry-mongo-events")


def test_the_exports() -> None:
    assert sorted(opentelemetry_mongo_events.__all__) == [
        "Config",
        "MongoEventsInstrumentor",
        "__version__",
        "event_listeners",
    ]


def test_the_version_is_the_distributions() -> None:
    assert opentelemetry_mongo_events.__version__ == DISTRIBUTION.version


def test_the_entry_point_is_the_instrumentor() -> None:
    entry_points = [each for each in DISTRIBUTION.entry_points if each.group == "opentelemetry_instrumentor"]

    assert [(each.name, each.load()) for each in entry_points] == [("mongo_events", MongoEventsInstrumentor)]


def test_the_versions_of_pymongo_are_those_of_the_extra() -> None:
    extra = [each for each in DISTRIBUTION.requires or [] if "instruments" in each]

    assert len(extra) == 1
    assert extra[0].replace('"', "'").split(";")[0].strip() == "pymongo<5,>=4.0"
    assert list(MongoEventsInstrumentor().instrumentation_dependencies()) == ["pymongo >= 4.0.dev0, < 5"]


@pytest.mark.parametrize("version", ["4.0", "4.18.0.dev0", "4.18.0b1", "4.18.0rc1", "4.18.0.post1", "4.20.1"])
def test_development_versions_of_pymongo_are_instrumented(version: str) -> None:
    (requirement,) = map(Requirement, MongoEventsInstrumentor().instrumentation_dependencies())

    assert requirement.specifier.contains(version)
    assert not requirement.specifier.contains("3.13")
    assert not requirement.specifier.contains("5.0")


def test_the_package_is_typed() -> None:
    assert (Path(inspect.getfile(opentelemetry_mongo_events)).parent / "py.typed").is_file()


@pytest.mark.parametrize("public", [Config, MongoEventsInstrumentor, event_listeners])
def test_what_is_public_is_documented(public: Any) -> None:
    assert inspect.getdoc(public)


def test_every_option_is_told_of() -> None:
    assert all(f"    {name}:" in (Config.__doc__ or "") for name in OPTIONS)


def test_nothing_happens_at_import() -> None:
    # Not even PyMongo is imported: an environment without it can load the entry point.
    script = (
        "import sys, threading, logging, opentelemetry_mongo_events as m;"
        "from opentelemetry import trace;"
        "assert 'pymongo' not in sys.modules;"
        "assert not m.MongoEventsInstrumentor().is_instrumented_by_opentelemetry;"
        "from opentelemetry_mongo_events._runtime.process import _fork_handler, _states;"
        "assert (_states, _fork_handler) == ({}, {});"  # nothing is registered with `os` for forks
        "assert trace._TRACER_PROVIDER is None and threading.active_count() == 1"
    )

    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
