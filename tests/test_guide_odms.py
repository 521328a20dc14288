"""The programs of the guide to ODMs, and the trees that it shows of their spans."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest

from tests.application import console_spans, run_instrumented
from tests.servers.processes import NxServer
from tests.test_guides import files, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS = files("odms")

pytestmark = [pytest.mark.nx, pytest.mark.newest]


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with NxServer() as server:
        yield server.uri


def shown(program: str) -> list[str]:
    """The tree of the guide after a program."""
    text = text_of("odms").partition(f"# {program}\n")[2]
    (tree,) = re.findall(r"^```text\n(.*?)^```", text.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    return str(tree).splitlines()


def drawn(spans: list[dict[str, Any]]) -> list[str]:
    """The same of the spans of a program; without what a client sends at its close, and its discovery."""
    spans = sorted(spans, key=lambda span: span["start_time"])
    children = {span["context"]["span_id"]: [] for span in spans}  # type: dict[str, list[str]]
    for span in spans:
        if span["parent_id"]:
            children[span["parent_id"]].append(span["name"])
    lines = []
    for span in spans:
        if not span["parent_id"] and span["name"] not in ("endSessions admin", "mongodb.client.discovery"):
            names = children[span["context"]["span_id"]]
            lines += [span["name"], *(f"├── {name}" for name in names[:-1]), *(f"└── {name}" for name in names[-1:])]
    return lines


def test_each_program_is_here() -> None:
    assert list(PROGRAMS) == ["beanie_orders.py", "mongoengine_orders.py", "odmantic_orders.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_the_spans_that_the_guide_shows(program: str, uri: str, tmp_path: Path) -> None:
    if program == "odmantic_orders.py" and sys.version_info >= (3, 14):
        pytest.skip("ODMantic finds no fields of its models")
    text = PROGRAMS[program].replace("mongodb://localhost:27017", uri)
    # It calls `instrument()` itself.
    disabled = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo,mongo_events"}
    process = run_instrumented(text, uri, tmp_path, "--traces_exporter", "console", **disabled)

    assert (process.returncode, process.stderr) == (0, "")
    expected = shown(program)
    if program == "beanie_orders.py" and metadata.version("beanie") == "2.0.0":
        expected.remove("listCollections shop")
    assert drawn(list(console_spans(process.stdout))) == expected
