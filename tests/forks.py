"""Children of the tests' own process."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def in_child(check: Callable[[], bool]) -> bool:
    """Whether `check` is true in a forked child."""
    with warnings.catch_warnings():
        # From 3.12 on Python, and before it PyMongo, warn of a fork while threads run: that is what is tried here.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        passed = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                passed = check()
        except BaseException as error:
            print(repr(error), file=sys.stderr)  # noqa: T201  # the child's only way to tell
        finally:
            os._exit(0 if passed else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
