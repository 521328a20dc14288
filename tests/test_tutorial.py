"""The programs of the tutorial, on the embedded server. The whole of it runs with the integration tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.application import console_spans, run_instrumented
from tests.pages import ROOT, output_of, scripts
from tests.servers.processes import NxServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = "docs/tutorial.md"

pytestmark = pytest.mark.nx


@pytest.fixture
def uri() -> Iterator[str]:
    with NxServer() as server:
        yield server.uri


def run(script: str, uri: str, folder: Path) -> tuple[str, list[dict[str, object]]]:
    """What a program says, and its spans."""
    text = scripts(PAGE)[script].replace("mongodb://localhost:27017", uri)
    selections = {"OTEL_PYTHON_MONGO_EVENTS_SELECTIONS": "true"}  # as the reader has it
    process = run_instrumented(text, uri, folder, "--traces_exporter", "console", **selections)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.partition("{")[0], list(console_spans(process.stdout))


def test_the_shop_says_and_shows_what_the_tutorial_says(uri: str, tmp_path: Path) -> None:
    said, spans = run("shop.py", uri, tmp_path)

    assert said == output_of(PAGE, "shop.py")
    texts = {
        attributes["db.query.text"] for each in spans if isinstance(attributes := each["attributes"], dict)
        if "db.query.text" in attributes
    }  # fmt: skip
    assert re.findall(r'^(\{"find":.*\})$', (ROOT / PAGE).read_text(), re.MULTILINE) == [
        text for text in texts if text.startswith('{"find":"users"')
    ]
    statuses = [
        status["status_code"]
        for each in spans
        if each["name"] == "insert users" and isinstance(status := each["status"], dict)
    ]
    assert statuses == ["UNSET", "ERROR"]


def test_the_programs_of_the_tutorial_are_found() -> None:
    assert list(scripts(PAGE)) == ["shop.py", "slow.py", "outage.py"]
