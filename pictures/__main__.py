"""Make all pictures, or those of the named modules: `python -m pictures traces dashboard demo`."""

from __future__ import annotations

import importlib
import sys

from pictures.needs import missing
from tests.servers.processes import Missing

MODULES = ("traces", "dashboard", "demo")


def main(names: list[str]) -> int:
    """Make them; the exit code."""
    if unknown := [name for name in names if name not in MODULES]:
        print(f"There is no {', '.join(unknown)}: {', '.join(MODULES)} are.", file=sys.stderr)
        return 2
    chosen = [importlib.import_module(f"pictures.{name}") for name in names or MODULES]
    if told := missing(dict.fromkeys(need for module in chosen for need in module.NEEDS)):
        print(*told, sep="\n", file=sys.stderr)
        return 1
    try:
        for module in chosen:
            for path in module.pictures():
                print(f"{path.stat().st_size:7,} bytes  {path}")
    except Missing as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
