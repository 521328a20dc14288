"""The test suites of the guide to test suites, run by pytest; its other snippets are run by `test_docs`."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._config import ENVIRONMENT_PREFIX, OPTIONS
from tests.pages import ROOT
from tests.servers.processes import environment

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.scripted import ScriptedServer

PAGE = (ROOT / "docs/guides/test-suites.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_each_file_is_here() -> None:
    assert list(FILES) == ["conftest.py", "test_orders.py", "shared/conftest.py"]


@pytest.mark.parametrize("fixtures", ["conftest.py", "shared/conftest.py"])
def test_the_tests_of_the_guide_pass(fixtures: str, server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(FILES[fixtures].replace("mongodb://localhost:27017", server.uri))
    (tmp_path / "test_orders.py").write_text(FILES["test_orders.py"])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    assert "2 passed" in run.stdout


def test_the_variables_of_the_guide_switch_everything_off(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = re.findall(r"^```shell\n(export .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    variables = dict(re.findall(r"^export (\w+)=(\w+)$", first, re.MULTILINE))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert event_listeners() == []
    switches = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name, option in OPTIONS.items() if option.default is True}
    assert variables.keys() == switches - {f"{ENVIRONMENT_PREFIX}COMMAND_SPANS"}
    assert set(second.splitlines()) < set(first.splitlines())
