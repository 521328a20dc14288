"""The guide to Kubernetes: its program is instrumented as the operator does it, and ended as a pod is."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.instrumentation import auto_instrumentation

from tests.servers.processes import environment
from tests.test_guides import files, text_of

if TYPE_CHECKING:
    from tests.servers.scripted import ScriptedServer

GUIDE = "kubernetes"

pytestmark = pytest.mark.newest


def test_a_pod_that_is_ended_exports_its_spans(server: ScriptedServer, tmp_path: Path) -> None:
    from tests.otlp import Receiver, trees

    ((name, text),) = files(GUIDE).items()
    (tmp_path / name).write_text(text.replace("mongodb://localhost:27017", server.uri))
    injected = [str(Path(auto_instrumentation.__file__).parent), *filter(None, sys.path)]
    with Receiver() as receiver:
        variables = {
            "PYTHONPATH": ":".join(injected),
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
        }
        with subprocess.Popen(
            [sys.executable, str(tmp_path / name)],
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as pod:
            assert pod.stdout is not None
            assert pod.stdout.readline() == "found\n"
            pod.send_signal(signal.SIGTERM)
            _, errors = pod.communicate()

    assert (pod.returncode, errors) == (0, "")
    assert ["find orders, 0 rows"] in trees(receiver.spans)["find orders"]


def test_the_resources_are_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    resources = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text_of(GUIDE), re.MULTILINE | re.DOTALL)
    ]

    assert [each.get("kind") for each in resources] == ["Instrumentation", "Deployment", None]
