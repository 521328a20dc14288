"""Where the pictures are, and how they are kept small."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from pictures.needs import pngquant

FOLDER: Final = Path(__file__).resolve().parent.parent / "docs" / "pictures"
MOST_BYTES: Final = 120_000
COLOURS: Final = 64


class TooLarge(Exception):  # noqa: N818 - it reads like the sentence it is
    """A picture that a reader would wait for."""


def keep(name: str, png: bytes) -> Path:
    """Keep a picture, in few colours and without what tells of its making.

    Raises:
        TooLarge: It has more than `MOST_BYTES` all the same.
    """
    done = subprocess.run(
        [pngquant(), "--strip", "--speed", "1", "--nofs", str(COLOURS), "-"],
        input=png,
        stdout=subprocess.PIPE,
        check=True,
    )
    if len(done.stdout) > MOST_BYTES:
        raise TooLarge(f"{name}.png has {len(done.stdout):,} bytes, more than {MOST_BYTES:,}")
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.png"
    path.write_bytes(done.stdout)
    return path
