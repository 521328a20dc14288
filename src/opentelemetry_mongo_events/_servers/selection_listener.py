"""The listener for server selections: instruments those that wait for a server.

The driver logs a selection on the thread that called it, see `selection_log`. It logs nothing if the wait is cancelled,
interrupted or ended by another exception. Each waiting selection is therefore stored with its thread or task, and the
background worker checks whether these are still in the driver's selection.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from opentelemetry_mongo_events._driver.listeners import QuietHeartbeatListener
from opentelemetry_mongo_events._driver.selection_log import listeners_of, observe
from opentelemetry_mongo_events._driver.values import plain_text
from opentelemetry_mongo_events._driver.versions import runs_in_background
from opentelemetry_mongo_events._runtime.background import background_worker
from opentelemetry_mongo_events._runtime.guard import Guard, NeverCopied
from opentelemetry_mongo_events._runtime.process import HAS_GIL, take_over, track
from opentelemetry_mongo_events._runtime.stacks import current_task, frames, thread_frames
from opentelemetry_mongo_events._servers.selections import Selection, set_delay
from opentelemetry_mongo_events._servers.topology_listener import TopologyEvents
from opentelemetry_mongo_events._telemetry import semconv as names
from opentelemetry_mongo_events._telemetry.telemetry import NO_PARENT

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry_mongo_events._servers.state import ServerStates, TopologyState
    from opentelemetry_mongo_events._telemetry.telemetry import Telemetry

# The number of waiting selections that are instrumented at the same time.
_LIMIT: Final = 10_000

# The seconds between two checks of the waiting selections, and the maximum share of the time that the checks may take.
_CHECK_INTERVAL: Final = 0.5
_MAX_CHECK_SHARE: Final = 0.05
_MIN_INTERVAL: Final = 0.01

# The seconds after which a process without instrumented selections checks again whether there are any.
_SEARCH_INTERVAL: Final = 0.01

# The functions of the driver's topology that wait, and that log that a server was selected.
_LOOP: Final = "_select_servers_loop"
_SELECTION: Final = frozenset({_LOOP, "select_server"})

# The name of the driver's exception when no server is found in time.
_TIMEOUT: Final = "ServerSelectionTimeoutError"


class SelectionEvents(NeverCopied, QuietHeartbeatListener):
    """Marks a client whose server selections are instrumented.

    The driver has one log of selections for all clients. From a message, the listeners of its client can be found. If
    this listener is one of them, the selection is instrumented. It is a heartbeat listener because those cost the
    driver the least. It ignores their events.

    Args:
        servers: The state of the servers and topologies.
    """

    def __init__(self, servers: ServerStates) -> None:
        self._servers = servers
        self._in_use: Telemetry | None = None
        if observe(_selections):
            _selections.add(self)

    @property
    def telemetry(self) -> Telemetry | None:
        """Where to report selections; None if they aren't instrumented, or no SDK is installed."""
        telemetry = self._servers.switch.telemetry
        if telemetry is not self._in_use:
            self._in_use = None
            if telemetry is not None and telemetry.config.selections:
                has_sdk = telemetry.tracer_check or telemetry.instruments.provider_check
                self._in_use = telemetry if has_sdk else None
        return self._in_use

    def topology(self, fields: Mapping[str, Any], listeners: Sequence[object]) -> TopologyState | None:
        """Return the state of a client's topology; None if its changes aren't reported.

        Args:
            fields: The fields of the log message.
            listeners: All listeners of the client. A client that was created without a running event loop has no
                topology listener.
        """
        servers = self._servers
        is_reported = servers.switch.of("topology") is not None and any(
            isinstance(each, TopologyEvents) and each.servers is servers for each in listeners
        )
        return servers.prepare(fields["clientId"], fields["topologyDescription"]) if is_reported else None


class _Selections:
    """The waiting server selections of this process.

    There is no lock, because each step is one operation of a dictionary. The thread that removes a selection from
    `open` ends it.

    Attributes:
        guard: Counts and logs failures.
        open: The waiting selections, as an ordered set.
    """

    def __init__(self) -> None:
        self.guard = Guard()
        self._listeners: dict[weakref.ref[SelectionEvents], None] = {}
        self._last_active: Callable[[], SelectionEvents | None] = lambda: None
        self.forget()

    def forget(self) -> None:
        """Forget all selections after a fork: they belong to the parent process."""
        self.open: dict[Selection, None] = {}
        self._by_runner: dict[int, Selection] = {}
        self._next_check = self._next_search = 0.0

    def add(self, listener: SelectionEvents) -> None:
        """Add the listener of a client, for as long as it exists."""
        self._next_search = 0.0
        self._listeners[weakref.ref(listener, lambda gone: self._listeners.pop(gone, None))] = None

    def is_active(self) -> bool:
        """Whether the selections of any client are instrumented."""
        # Since PyMongo 4.18, this is called several times per selection.
        listener = self._last_active()
        if listener is not None and listener.telemetry is not None:
            return True
        if time.monotonic() < self._next_search:
            return False
        for reference in list(self._listeners):
            listener = reference()
            if listener is not None and listener.telemetry is not None:
                self._last_active = reference
                return True
        self._next_search = time.monotonic() + _SEARCH_INTERVAL
        return False

    def is_waiting(self) -> bool:
        """Whether a selection is waiting in the current thread, task or greenlet."""
        return self._current() is not None

    def started(self, _: Mapping[str, Any]) -> None:
        """End an earlier wait of the same thread or task. It was interrupted, which the driver doesn't log."""
        self._end_earlier()

    def waiting(self, fields: Mapping[str, Any]) -> None:
        """Begin a wait, if the client has a listener.

        A selection inside another one, caused by the application's own `server_selector`, is not instrumented.
        """
        if not self._end_earlier() or len(self.open) >= _LIMIT or not is_instrumentation_enabled():
            return
        if background_worker.is_working:  # the telemetry pipeline uses MongoDB: each selection would lead to the next
            return
        take_over()
        listeners = listeners_of(fields["topologyDescription"])
        for listener in listeners:
            if isinstance(listener, SelectionEvents) and (telemetry := listener.telemetry) is not None:
                break
        else:
            return
        context = get_current()
        if context and runs_in_background():
            context = NO_PARENT
        selection = Selection(fields, telemetry, listener.topology(fields, listeners), context)
        track(self)
        try:
            self.open[selection] = None
            self._by_runner[selection.key] = selection
        finally:  # the selection has to be ended even if a signal handler raises
            background_worker.wake()

    def succeeded(self, fields: Mapping[str, Any]) -> None:
        """End a wait: a server was selected."""
        selection = self._current()
        # The loop of this selection has ended. If another loop is running, this selection is inside another one.
        if selection is None or selection.client_id != fields["clientId"] or _loops() > 0 or not self._take(selection):
            return
        at = time.monotonic()
        address = (plain_text(fields["serverHost"]) or "", fields["serverPort"])
        if selection.precedes_command:
            set_delay(max(0.0, at - selection.since), address)
        selection.end(at, address=address, replica_set=fields["topologyDescription"].replica_set_name)

    def failed(self, fields: Mapping[str, Any]) -> None:
        """End a wait, or a selection that may not wait: no server was found in time."""
        if self._current() is None:
            self.waiting(fields)
        selection = self._current()
        if selection is not None and selection.client_id == fields["clientId"] and not _is_nested():
            self._end_later(selection, time.monotonic(), _TIMEOUT)

    def end_all(self) -> None:
        """End all waits as interrupted. Called at the exit of the interpreter; never raises."""
        for selection in list(self.open):
            self._end_interrupted(selection, time.monotonic())

    def check(self) -> float | None:
        """End the waits that were cancelled or interrupted. Runs on the background thread; never raises.

        Returns:
            The seconds until the next check; None if no selection waits.
        """
        if not self.open:
            return None
        started = time.monotonic()
        if started >= self._next_check:  # the worker may have been woken for another reason
            self.guard.run("the check of server selections", self._check, started)
            ended = time.monotonic()
            self._next_check = ended + max(_CHECK_INTERVAL, (ended - started) / _MAX_CHECK_SHARE)
        return max(_MIN_INTERVAL, self._next_check - time.monotonic())

    def _check(self, now: float) -> None:
        waiting = [selection for selection in list(self.open) if now - selection.since >= _CHECK_INTERVAL]
        # Check twice: a task that starts to run during the check may be missed.
        for _ in range(2):
            threads = thread_frames() if waiting else {}
            waiting = [selection for selection in waiting if not _is_selecting(selection, threads)]
        for selection in waiting:
            self._end_interrupted(selection, now)

    def _end_earlier(self) -> bool:
        """End an earlier wait of the same thread or task. Returns False if that selection contains the current one."""
        selection = self._current()
        if selection is not None:
            if _is_nested():
                return False
            self._end_later(selection, time.monotonic(), names.INTERRUPTED)
        return True

    def _current(self) -> Selection | None:
        """Return the selection that waits in the current thread, task or greenlet."""
        if not self.open:  # the usual case
            return None
        task = current_task()
        selection = self._by_runner.get(threading.get_ident() if task is None else id(task))
        return selection if selection in self.open else None

    def _take(self, selection: Selection) -> bool:
        """Remove a selection. Returns False if another thread has removed it."""
        if self._by_runner.get(selection.key) is selection:
            self._by_runner.pop(selection.key, None)
        return self.open.pop(selection, self) is None

    def _end_interrupted(self, selection: Selection, at: float) -> None:
        """End a wait as interrupted, on the background worker's thread or at the exit of the interpreter."""
        if self._take(selection):
            background_worker.run("a server selection", functools.partial(selection.end, at, names.INTERRUPTED))

    def _end_later(self, selection: Selection, at: float, error: str) -> None:
        """End a wait on the background worker's thread, because the driver holds a lock now."""
        if self._take(selection) and not background_worker.submit(
            "a server selection", functools.partial(selection.end, at, error)
        ):
            selection.leave_topology()


def _is_loop(frame: types.FrameType) -> bool:
    """Whether a frame belongs to the driver and waits for a server."""
    return frame.f_code.co_name == _LOOP and _is_drivers(frame)


def _is_selection(frame: types.FrameType) -> bool:
    """Whether a frame belongs to the driver and selects a server."""
    return frame.f_code.co_name in _SELECTION and _is_drivers(frame)


def _is_drivers(frame: types.FrameType) -> bool:
    return bool(frame.f_globals.get("__name__", "").startswith("pymongo."))


def _loops() -> int:
    """Return the number of selections that are waiting on the current stack."""
    return sum(map(_is_loop, frames(sys._getframe())))


def _is_nested() -> bool:
    """Whether the current selection, which is in its loop, runs inside another one."""
    return _loops() > 1


def _is_selecting(selection: Selection, threads: dict[int, types.FrameType]) -> bool:
    """Whether a thread or task is still in the driver's selection or, without the GIL, whether it still exists."""
    stack = selection.runner.frames(threads)
    return stack is not None and (not HAS_GIL or any(map(_is_selection, stack)))


_selections: Final = _Selections()

background_worker.register(_selections.check, _selections.end_all)
