"""Runs the tests with each supported version of Python, PyMongo and OpenTelemetry, in a session per combination."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nox

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13", "3.13t", "3.14", "3.14t", "3.15")
"""From old to new. A `t` means free-threaded."""

PYMONGOS: Final = {
    "4.0": ("3.10", "3.11"),  # it uses features that 3.12 deprecates
    # The last version whose events have neither a server connection id nor the duration of a checkout.
    "4.6.3": ("3.10", "3.11", "3.12"),  # it has no wheels for newer Pythons
    # The first version with an asyncio client, which waits in a blocking select.
    "4.9.2": ("3.10", "3.11", "3.12", "3.13"),
    # This version doesn't publish the end of a cancelled command, and the attempts of an operation don't share an id.
    "4.13.2": ("3.10", "3.11", "3.12", "3.13", "3.13t"),  # 4.14 added 3.14 and dropped 3.13t
    # The last version that doesn't publish the end of a cancelled command. 4.19 dropped Python 3.10.
    "4.20.0": ("3.11", "3.12", "3.13", "3.14", "3.14t"),
    "newest": ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t", "3.15"),
}
"""From old to new, with the Pythons that each version supports."""

OPENTELEMETRIES: Final = ("oldest", "newest")

UNPACKED: Final = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "opentelemetry-mongo-events/pythons/bin"
)
"""The directory where `scripts/unpack-pythons` installs Pythons."""
os.environ["PATH"] += f"{os.pathsep}{UNPACKED}"

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "virtualenv"


def executable(python: str) -> str | None:
    """Return the path of a Python, or None if it isn't installed.

    A program of this name may be a shim of pyenv, which runs only the versions that are selected in the environment.
    """
    if python == f"{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}":
        return sys.executable
    env = {**os.environ, "PYENV_VERSION": python}
    try:
        result = subprocess.run(
            [f"python{python}", "-c", "import sys; print(sys.executable)"], env=env, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def diagonal(available: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each PyMongo and each available Python at least once, older ones with older ones.

    The oldest and the newest OpenTelemetry alternate. The newest PyMongo runs with the oldest OpenTelemetry, because
    `make test` covers the newest versions of both.
    """
    chosen = set()
    for number, (pymongo, pythons) in enumerate(PYMONGOS.items()):
        choice = [python for python in pythons if python in available]
        if choice:
            python = choice[round(number / (len(PYMONGOS) - 1) * (len(choice) - 1))]
            chosen.add(python)
            yield python, pymongo, "oldest" if pymongo == "newest" else OPENTELEMETRIES[number % 2]
        else:
            print(f"noxfile: PyMongo {pymongo}: skipped, because no Python that it supports is installed")
    for python in PYMONGOS["newest"]:
        if python in available and python not in chosen:
            yield python, "newest", "oldest"


EXECUTABLES: Final = {python: found for python in PYTHONS if (found := executable(python))}
DIAGONAL: Final = set(diagonal(list(EXECUTABLES)))
GRID: Final = [each for each in itertools.product(PYTHONS, PYMONGOS, OPENTELEMETRIES) if each[0] in PYMONGOS[each[1]]]
# nox looks for Pythons here.
os.environ["PATH"] = os.pathsep.join([*map(os.path.dirname, EXECUTABLES.values()), os.environ["PATH"]])
if missing := [python for python in PYTHONS if python not in EXECUTABLES]:
    print(f"noxfile: Python {', '.join(missing)}: skipped, because it is not installed")


def lower_bounds() -> list[str]:
    """Return requirements for the oldest supported version of each OpenTelemetry package."""
    project = nox.project.load_toml("pyproject.toml")
    required = [*project["project"]["dependencies"], *project["dependency-groups"]["versions"]]
    return [re.sub(">= *([^ ,]+).*", r"== \1", each) for each in required if each.startswith("opentelemetry-")]


@nox.session
@nox.parametrize(
    ("python", "pymongo", "opentelemetry"),
    [
        nox.param(
            python,
            pymongo,
            opentelemetry,
            id=f"python-{python}, pymongo-{pymongo}, opentelemetry-{opentelemetry}",
            tags=["diagonal"] if (python, pymongo, opentelemetry) in DIAGONAL else [],
        )
        for python, pymongo, opentelemetry in GRID
    ],
)
def tests(session: nox.Session, pymongo: str, opentelemetry: str) -> None:
    """Run the tests that need no external servers. Arguments after `--` are passed to pytest."""
    if (pymongo, opentelemetry) == ("newest", "newest"):
        session.install("-e", ".[instruments]", "--group", "test")
        chosen = []
    else:
        versions = [] if pymongo == "newest" else [f"pymongo == {pymongo}"]
        if opentelemetry == "oldest":
            versions += lower_bounds()
        if pymongo not in ("4.0", "4.6.3"):
            versions.append("motor >= 3.7")  # it needs PyMongo 4.9
        session.install("-e", ".[instruments]", "--group", "versions", *versions)
        chosen = ["-m", "not nx and not newest"]
    ignored = ("--ignore=tests/integration", "--ignore=tests/benchmarks", "--ignore=tests/chaos")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *ignored, *chosen, *session.posargs)


@nox.session(default=False)
@nox.parametrize("pymongo", [nox.param(pymongo, id=f"pymongo-{pymongo}") for pymongo in ("4.13.2", "newest")])
def driver_tests(session: nox.Session, pymongo: str) -> None:
    """Run PyMongo's own tests on FerretDB, without and with the instrumentation.

    Arguments after `--` select test files.
    """
    version = [] if pymongo == "newest" else [f"pymongo == {pymongo}"]
    session.install("-e", ".[instruments]", "--group", "versions", *version)
    session.run("python", "-m", "tests.driver_suite", *session.posargs)
