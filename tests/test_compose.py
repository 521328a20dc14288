"""The compose file of examples/: what can be told of it without pulling an image."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

yaml = pytest.importorskip("yaml")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
BUILT = {service["image"] for service in SERVICES.values() if "build" in service}
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+(-[\w.-]+)?")


def mounts(name: str) -> dict[str, Path]:
    """What a service sees at which path."""
    split = [volume.split(":") for volume in SERVICES[name].get("volumes", ())]
    return {target: EXAMPLES / source for source, target, _ in split}


def test_ports_are_open_on_loopback_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert len(ports) == len(set(ports)) == 4
    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


def test_images_are_pinned_or_built_here() -> None:
    base = re.findall(r"^FROM (\S+)", (EXAMPLES / "compose" / "Dockerfile").read_text(), re.MULTILINE)
    images = {service["image"] for service in SERVICES.values()}

    assert len(BUILT) == len(base) == 1
    assert [image for image in [*(images - BUILT), *base] if not PINNED.fullmatch(image)] == []
    # No registry is asked for what is built here.
    assert {service["pull_policy"] for service in SERVICES.values() if service["image"] in BUILT} == {"build", "never"}


def test_what_is_mounted_exists_and_is_read_only() -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]

    assert len(volumes) == 5
    assert [volume for volume in volumes if not volume.endswith(":ro")] == []
    assert [path for name in SERVICES for path in mounts(name).values() if not path.is_file()] == []


def test_who_is_awaited_tells_when_it_is_ready() -> None:
    for service in SERVICES.values():
        for awaited, how in service.get("depends_on", {}).items():
            assert how["condition"] in ("service_healthy", "service_completed_successfully")
            assert ("healthcheck" in SERVICES[awaited]) == (how["condition"] == "service_healthy"), awaited


def test_what_the_image_is_made_of_exists_and_is_let_in() -> None:
    root = EXAMPLES.parent
    copied = [
        source
        for line in re.findall(r"^COPY (.+) \S+$", (EXAMPLES / "compose" / "Dockerfile").read_text(), re.MULTILINE)
        for source in line.split()
    ]
    let_in = (EXAMPLES / "compose" / "Dockerfile.dockerignore").read_text().splitlines()

    assert (EXAMPLES / SERVICES["shop"]["build"]["context"]).resolve() == root
    assert (root / SERVICES["shop"]["build"]["dockerfile"]).is_file()
    assert "src" in copied
    assert [source for source in copied if not (root / source).exists() or f"!{source}" not in let_in] == []


def test_grafana_finds_its_sources_and_its_dashboard() -> None:
    mounted = mounts("grafana")
    told = {
        path.parent.name if (path := Path(target)).suffix == ".yml" else path.suffix: (path, source)
        for target, source in mounted.items()
    }
    sources = {each["uid"]: each for each in yaml.safe_load(told["datasources"][1].read_text())["datasources"]}
    (provider,) = yaml.safe_load(told["dashboards"][1].read_text())["providers"]

    assert {urlsplit(each["url"]).hostname for each in sources.values()} <= SERVICES.keys()
    (exemplars,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["datasourceUid"] in sources
    assert told[".json"][0].parent == Path(provider["options"]["path"])
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == str(told[".json"][0])


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool")
    for target, source in mounts("prometheus").items():
        shutil.copy(source, tmp_path / Path(target).name)

    check = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )

    assert check.returncode == 0, check.stderr
    assert "1 rule files found" in check.stdout


def compose() -> list[str] | None:
    """The command that is Docker Compose, of version 2 or later."""
    for command in (["docker", "compose"], ["docker-compose"]):
        program = shutil.which(command[0])
        if program is None:
            continue
        version = subprocess.run(
            [program, *command[1:], "version", "--short"], capture_output=True, text=True, check=False
        )
        if version.returncode == 0 and not version.stdout.startswith("1."):
            return [program, *command[1:]]
    return None


def test_compose_takes_the_file() -> None:
    command = compose()
    if command is None:
        pytest.skip("there is no Docker Compose")

    config = subprocess.run(
        [*command, "-f", EXAMPLES / "compose.yaml", "config", "--quiet"], capture_output=True, text=True, check=False
    )

    assert (config.returncode, config.stdout, config.stderr) == (0, "", "")
