"""The tests with each Python, PyMongo and OpenTelemetry that this works with: a session for each combination."""

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
"""From old to new; with a `t`, free-threaded."""

PYMONGOS: Final = {
    "4.0": ("3.10", "3.11"),  # it calls what 3.12 deprecates
    # The last version whose events tell no server connection id and no duration of a checkout.
    "4.6.3": ("3.10", "3.11", "3.12"),  # the last that it has wheels for
    # The first with an asyncio client, which waits in a blocking select.
    "4.9.2": ("3.10", "3.11", "3.12", "3.13"),
    # Publishes no end of a cancelled command, and attempts share no operation id.
    "4.13.2": ("3.10", "3.11", "3.12", "3.13", "3.13t"),  # 4.14 came for 3.14, and dropped 3.13t
    # The last version that publishes no end of a cancelled command. 4.19 dropped Python 3.10.
    "4.20.0": ("3.11", "3.12", "3.13", "3.14", "3.14t"),
    "newest": ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t", "3.15"),
}
"""From old to new, with the Pythons that each can be had for."""

OPENTELEMETRIES: Final = ("oldest", "newest")

UNPACKED: Final = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "opentelemetry-mongo-events/pythons/bin"
)
"""Where `scripts/unpack-pythons` puts Pythons."""
os.environ["PATH"] += f"{os.pathsep}{UNPACKED}"

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "virtualenv"


def executable(python: str) -> str | None:
    """Where that Python is, or None.

    A program of its name may be pyenv's, which runs only those that it is told to.
    """
    if python == f"{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}":
        return sys.executable
    told = {**os.environ, "PYENV_VERSION": python}
    try:
        asked = subprocess.run(
            [f"python{python}", "-c", "import sys; print(sys.executable)"], env=told, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return asked.stdout.strip() or None


def diagonal(there: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each PyMongo and each Python, of those that are there: the older the one, the older the other.

    OpenTelemetry's ends come in turn. With the newest PyMongo it is the oldest: the newest of both is in `make test`.
    """
    chosen = set()
    for number, (pymongo, pythons) in enumerate(PYMONGOS.items()):
        choice = [python for python in pythons if python in there]
        if choice:
            python = choice[round(number / (len(PYMONGOS) - 1) * (len(choice) - 1))]
            chosen.add(python)
            yield python, pymongo, "oldest" if pymongo == "newest" else OPENTELEMETRIES[number % 2]
        else:
            print(f"noxfile: PyMongo {pymongo}: left out, since no Python that runs it is here")
    for python in PYMONGOS["newest"]:
        if python in there and python not in chosen:
            yield python, "newest", "oldest"


EXECUTABLES: Final = {python: found for python in PYTHONS if (found := executable(python))}
DIAGONAL: Final = set(diagonal(list(EXECUTABLES)))
GRID: Final = [each for each in itertools.product(PYTHONS, PYMONGOS, OPENTELEMETRIES) if each[0] in PYMONGOS[each[1]]]
# Where nox looks for a Python.
os.environ["PATH"] = os.pathsep.join([*map(os.path.dirname, EXECUTABLES.values()), os.environ["PATH"]])
if missing := [python for python in PYTHONS if python not in EXECUTABLES]:
    print(f"noxfile: Python {', '.join(missing)}: left out, since not here")


def lower_bounds() -> list[str]:
    """The oldest of each package of OpenTelemetry's."""
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
    """Run the tests that need no server of other programs; pytest is given what follows a `--`."""
    if (pymongo, opentelemetry) == ("newest", "newest"):
        session.install("-e", ".[instruments]", "--group", "test")
        chosen = []
    else:
        versions = [] if pymongo == "newest" else [f"pymongo == {pymongo}"]
        if opentelemetry == "oldest":
            versions += lower_bounds()
        if pymongo not in ("4.0", "4.6.3"):
            versions.append("motor >= 3.7")  # which needs PyMongo 4.9
        session.install("-e", ".[instruments]", "--group", "versions", *versions)
        chosen = ["-m", "not nx and not newest"]
    ignored = ("--ignore=tests/integration", "--ignore=tests/benchmarks", "--ignore=tests/chaos")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *ignored, *chosen, *session.posargs)


@nox.session(default=False)
@nox.parametrize("pymongo", [nox.param(pymongo, id=f"pymongo-{pymongo}") for pymongo in ("4.13.2", "newest")])
def driver_tests(session: nox.Session, pymongo: str) -> None:
    """Run PyMongo's own tests on FerretDB without and with everything on; `--` may be followed by some of its files."""
    version = [] if pymongo == "newest" else [f"pymongo == {pymongo}"]
    session.install("-e", ".[instruments]", "--group", "versions", *version)
    session.run("python", "-m", "tests.driver_suite", *session.posargs)
