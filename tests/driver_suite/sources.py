"""Where PyMongo's own tests come from: its source distribution, kept outside the tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

import pymongo

from tests.servers.processes import environment

# What the tests read, and not the driver's own packages: it is the installed one that is tested.
_TAKEN: Final = ("test", "tools", "doc", "pyproject.toml")

# FerretDB doesn't report it.
_UNREPORTED: Final = re.compile(r'self\.server_parameters\["enableTestCommands"\]')
_CONTEXTS: Final = ("test/__init__.py", "test/asynchronous/__init__.py")


def unpack(folder: Path) -> None:
    """Put the tests of the installed PyMongo into a folder, as they run on FerretDB.

    Raises:
        CalledProcessError: The source distribution could not be downloaded.
    """
    top = f"pymongo-{pymongo.version}"
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(_source_distribution()) as archive:
            archive.extractall(unpacked, filter="data")
        for name in _TAKEN:
            source = Path(unpacked, top, name)
            if source.exists():
                source.rename(folder / name)
    for name in _CONTEXTS:
        context = folder / name
        if context.exists():
            text = context.read_text()
            context.write_text(_UNREPORTED.sub('self.server_parameters.get("enableTestCommands")', text))


def _source_distribution() -> Path:
    """The archive, downloaded where it isn't in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "opentelemetry-mongo-events", "sdist")
    archive = cache / f"pymongo-{pymongo.version}.tar.gz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # In a folder of its own: an interrupted download leaves nothing.
        with tempfile.TemporaryDirectory(dir=cache) as download:
            pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pymongo")
            subprocess.run([*pip, "-d", download, f"pymongo=={pymongo.version}"], check=True, env=environment())
            (downloaded,) = Path(download).iterdir()
            downloaded.replace(archive)
    return archive
