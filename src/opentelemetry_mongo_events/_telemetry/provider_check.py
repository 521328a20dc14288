"""Checks whether an SDK is installed: the providers of the API itself discard all telemetry."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ProviderCheck:
    """True once the provider is not one of the API's own.

    The check is repeated for the global provider, since an application may set it at any time.

    Args:
        provider: Returns the current provider.
        api: The module of the API that defines the providers to ignore.
        interval: Seconds between two checks. The result is needed for each command, and looking at the global provider
            takes longer than everything else. None for a provider that never changes: it is checked once, now.

    Attributes:
        found_sdk: The last result. Once true, it stays true. Faster to read than `bool()` of this object.
        next_check: From when on, by `time.perf_counter()`, `bool()` of this object may have another result.
    """

    __slots__ = ("_api", "_interval", "_provider", "found_sdk", "next_check")

    def __init__(self, provider: Callable[[], object], api: str, interval: float | None) -> None:
        self._provider = provider
        self._api = api
        self._interval = interval
        self.found_sdk = interval is None and self._check()
        self.next_check = math.inf if interval is None else 0.0

    def __bool__(self) -> bool:
        if not self.found_sdk and self._interval is not None and time.perf_counter() >= self.next_check:
            self.found_sdk = self._check()
            self.next_check = time.perf_counter() + self._interval
        return self.found_sdk

    def _check(self) -> bool:
        module = type(self._provider()).__module__
        return module != self._api and not module.startswith(f"{self._api}.")
