"""Whether anything is made of telemetry: the API's own providers throw it away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ProviderCheck:
    """True once a provider is another than those of the API's own.

    The global provider may be set later than it is asked for.

    Args:
        provider: Gives the provider of now.
        api: The module of the API that such providers are in.
        look_again: After how many seconds it is looked at again. This is asked for each command, and to look at the
            global provider takes longer than all else.
    """

    __slots__ = ("_api", "_every", "_look_again", "_provider", "found_sdk")

    def __init__(self, provider: Callable[[], object], api: str, look_again: float) -> None:
        self._provider = provider
        self._api = api
        self._every = look_again
        self.found_sdk = False
        """What was seen last: once it is true it stays so, and is quicker to ask than this object itself."""
        self._look_again = 0.0

    def __bool__(self) -> bool:
        if not self.found_sdk and time.perf_counter() >= self._look_again:
            module = type(self._provider()).__module__
            self.found_sdk = module != self._api and not module.startswith(f"{self._api}.")
            self._look_again = time.perf_counter() + self._every
        return self.found_sdk
