"""The servers of demo and tests as subprocesses: on loopback, ready once started, gone once stopped."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, quote_plus, urlencode

import bson
from bson.errors import BSONError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.02
_ANSWER_SECONDS = 0.5
_STARTS = 3
_LOG_TAIL_LINES = 30
_MAX_TRACES = 10_000
_OP_MSG = struct.Struct("<iiiiIB")
# What may happen while a program isn't there yet, or where another one answers on its port.
_NO_ANSWER = (OSError, http.client.HTTPException, LookupError, ValueError, BSONError)


class Missing(Exception):  # noqa: N818 - it reads like the sentence it is
    """A program that isn't on this machine; the message says how to get it."""


class NotReady(Exception):  # noqa: N818 - likewise
    """A program that ended, or wasn't ready in time, at its start; the message holds the tail of its log."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    return _free_ports(1)[0]


def environment() -> dict[str, str]:
    """Return this process's environment without what would instrument or configure a server started from it.

    A program's first selection may wait long enough for a span, or not: a test that wants those says so.

    A program run by ``opentelemetry-instrument`` passes its settings on in ``OTEL_*``, and its own start-up code in
    ``PYTHONPATH``. FerretDB takes every flag from ``FERRETDB_*`` too.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FERRETDB_"))}
    python_path = [
        entry
        for entry in kept.pop("PYTHONPATH", "").split(os.pathsep)
        if entry and Path(entry).parts[-3:] != ("opentelemetry", "instrumentation", "auto_instrumentation")
    ]
    kept["OTEL_PYTHON_MONGO_EVENTS_SELECTIONS"] = "false"
    return {**kept, "PYTHONPATH": os.pathsep.join(python_path)} if python_path else kept


class Process(ABC):
    """A program that runs in a temporary folder of its own, from ``start()`` to ``stop()`` or for a ``with`` block."""

    name: ClassVar[str]
    ports_needed: ClassVar[int] = 1
    seconds_to_start: ClassVar[float] = 20.0
    seconds_to_stop: ClassVar[float] = 10.0

    def __init__(self) -> None:
        self.ports: list[int] = []
        self._popen: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._log: Path | None = None

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """Return the command line; ``folder`` is for the files of this run.

        Raises:
            Missing: The program isn't on this machine.
        """

    @abstractmethod
    def is_ready(self) -> bool:
        """Say whether the running program answers; where it can't be reached, raise what comes of it."""

    @property
    def pid(self) -> int | None:
        """The id of the running process, None when there is none."""
        return None if self._popen is None else self._popen.pid

    @property
    def log(self) -> str:
        """What the program has written to its output, as long as it runs."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    def start(self) -> Self:
        """Start the program and wait until it is ready; does nothing while it runs.

        The ports of the first start are kept for later ones.

        Raises:
            Missing: The program isn't on this machine.
            NotReady: It ended at its start, or wasn't ready in time.
        """
        if self._popen is not None:
            return self
        first = not self.ports
        for starts_left in reversed(range(_STARTS if first else 1)):
            if first:
                self.ports = _free_ports(self.ports_needed)
            try:
                self._run()
                break
            except BaseException as failure:
                port_was_taken = isinstance(failure, NotReady) and "address already in use" in self.log.lower()
                self.stop()
                if first:
                    self.ports = []
                if not (port_was_taken and starts_left):
                    raise
        return self

    def stop(self) -> None:
        """End the program, with force if it doesn't end by itself, and remove its temporary folder."""
        popen, self._popen = self._popen, None
        if popen is not None:
            popen.terminate()
            try:
                popen.wait(self.seconds_to_stop)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
        folder, self._folder, self._log = self._folder, None, None
        if folder is not None:
            folder.cleanup()

    def close(self) -> None:
        """Stop it for good: nothing of it is left."""
        self.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mongo-events-")
        folder = Path(self._folder.name)
        command = self.command(folder)
        self._log = folder / "output.log"
        with self._log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the program that started it, which stops it after its clients.
                start_new_session=True,
            )
        self._wait_until_ready(self._popen)

    def _wait_until_ready(self, popen: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.seconds_to_start
        while True:
            reason = None
            try:
                # Whoever answers on its port: a program that has ended isn't it.
                if self.is_ready() and popen.poll() is None:
                    return
            except _NO_ANSWER as error:
                reason = error
            if popen.poll() is not None:
                raise NotReady(self._with_log(f"ended at its start with exit code {popen.returncode}")) from reason
            if time.monotonic() > deadline:
                raise NotReady(self._with_log(f"wasn't ready in {self.seconds_to_start:g} seconds")) from reason
            time.sleep(_POLL_SECONDS)

    def _with_log(self, what_happened: str) -> str:
        log_tail = self.log.splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f"{self.name} {what_happened}; its log ends with:", *log_tail])


class NxServer(Process):
    """nx-27017, a MongoDB wire server from PyPI; its databases are in memory and end with it."""

    name = "nx-27017"
    # Version 0.8.1 misses a SIGTERM now and then, right after a connection was closed; there is nothing to lose in it.
    seconds_to_stop = 0.5

    @property
    def uri(self) -> str:
        """The connection string."""
        return f"mongodb://{_LOOPBACK}:{self.ports[0]}"

    def command(self, folder: Path) -> list[str]:
        """Return the command line of a server in memory."""
        if importlib.util.find_spec("nx_27017") is None:
            if sys.version_info >= (3, 15):
                raise Missing(
                    f"{self.name} does not support Python 3.15 yet. Use an older one: "
                    "make demo PYTHON=python3.14 VENV=.venv-3.14"
                )
            raise Missing(f"{self.name} is not installed: pip install nx-27017")
        return [
            # Not `-m`: it warns that the package has imported its module before.
            *(sys.executable, "-c", "from nx_27017.nx_27017 import main; main()"),
            *("--db", "memory"),
            *("--host", _LOOPBACK),
            *("--port", str(self.ports[0])),
            *("--pid-file", str(folder / "nx.pid")),
            *("--log-file", str(folder / "nx.log")),
        ]

    def is_ready(self) -> bool:
        """Say whether it answers a hello."""
        return _answers_hello(_tcp(self.ports[0]))


class FerretDB(Process):
    """FerretDB on SQLite; it keeps its data over ``stop()`` and ``start()``, until ``close()`` or the end of ``with``.

    Args:
        replica_set: The name of the replica set of which it is the only member.
        unix_socket: A path of its own that ends in ``.sock``, to listen on in place of a port.
        user: The user to create, and to name in the connection string.
        password: The password of that user.
        data_dir: A folder for its data that outlives it, in place of a temporary one.
    """

    name = "FerretDB v1.24.2"
    # While a client is connected its own end takes three seconds; what SQLite has written outlives a killed process.
    seconds_to_stop = 0.5

    def __init__(
        self,
        replica_set: str | None = None,
        unix_socket: Path | None = None,
        user: str | None = None,
        password: str | None = None,
        data_dir: Path | None = None,
    ) -> None:
        super().__init__()
        self._replica_set = replica_set
        self._unix_socket = unix_socket
        self._user = user
        self._password = password
        self._data_dir = data_dir
        self._own_data_dir: tempfile.TemporaryDirectory[str] | None = None

    @property
    def uri(self) -> str:
        """The connection string."""
        host = quote_plus(str(self._unix_socket)) if self._unix_socket else f"{_LOOPBACK}:{self.ports[0]}"
        user = f"{quote_plus(self._user)}:{quote_plus(self._password or '')}@" if self._user else ""
        options = f"/?replicaSet={self._replica_set}" if self._replica_set else ""
        return f"mongodb://{user}{host}{options}"

    def stop(self) -> None:
        """End it, and remove its socket, which stays behind when it is killed."""
        super().stop()
        if self._unix_socket is not None:
            self._unix_socket.unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop it and start it again: the same address, the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its data, unless they are in a folder given to it."""
        self.stop()
        data_dir, self._own_data_dir = self._own_data_dir, None
        if data_dir is not None:
            data_dir.cleanup()

    def command(self, folder: Path) -> list[str]:
        """Return the command line of a server with its data in a folder."""
        program = _built(self.name)
        data_dir = self._data_dir
        if data_dir is None:
            self._own_data_dir = self._own_data_dir or tempfile.TemporaryDirectory(prefix="mongo-events-data-")
            data_dir = Path(self._own_data_dir.name)
        command = [
            str(program),
            "--handler=sqlite",
            f"--sqlite-url=file:{data_dir}/",
            f"--state-dir={data_dir}",
            "--debug-addr=-",
            "--telemetry=disable",
        ]
        if self._unix_socket:
            command += ["--listen-addr=", f"--listen-unix={self._unix_socket}"]
        else:
            command += [f"--listen-addr={_LOOPBACK}:{self.ports[0]}"]
        if self._replica_set:
            command += [f"--repl-set-name={self._replica_set}"]
        if self._user:
            command += [
                "--test-enable-new-auth",
                "--setup-database=admin",
                f"--setup-username={self._user}",
                f"--setup-password={self._password or ''}",
            ]
        return command

    def is_ready(self) -> bool:
        """Say whether it answers a hello."""
        return _answers_hello(_unix(self._unix_socket) if self._unix_socket else _tcp(self.ports[0]))


class Jaeger(Process):
    """Jaeger with its traces in memory: takes them by OTLP, gives them back over HTTP.

    Args:
        ui_assets: The folder of Jaeger's built web page; without it there is the API alone.
    """

    name = "Jaeger v1.76.0"
    ports_needed = 4

    def __init__(self, ui_assets: Path | None = None) -> None:
        super().__init__()
        self._ui_assets = ui_assets

    @property
    def query_url(self) -> str:
        """Where its API is, and its web page."""
        return f"http://{_LOOPBACK}:{self.ports[0]}"

    @property
    def otlp_http_endpoint(self) -> str:
        """Where OTLP over HTTP goes; traces to ``/v1/traces`` below it."""
        return f"http://{_LOOPBACK}:{self.ports[2]}"

    @property
    def otlp_grpc_endpoint(self) -> str:
        """Where OTLP over gRPC goes."""
        return f"http://{_LOOPBACK}:{self.ports[3]}"

    def services(self) -> list[str]:
        """Return the names of the services that it has traces of."""
        services: list[str] = self._get("/api/services")["data"] or []
        return services

    def traces(self, service: str) -> list[dict[str, Any]]:
        """Return the traces that a service has spans in, in Jaeger's own format."""
        query = urlencode({"service": service, "limit": _MAX_TRACES})
        traces: list[dict[str, Any]] = self._get(f"/api/traces?{query}")["data"]
        return traces

    def trace(self, trace_id: str) -> dict[str, Any]:
        """Return one trace in Jaeger's own format.

        Raises:
            LookupError: It has no trace of this id (32 hexadecimal digits).
        """
        trace: dict[str, Any] = self._get(f"/api/traces/{quote(trace_id)}")["data"][0]
        return trace

    def otlp_trace(self, trace_id: str) -> dict[str, Any]:
        """Return one trace as OTLP JSON, ``{"resourceSpans": [...]}``: the attributes of links are there too.

        Raises:
            LookupError: It has no trace of this id (32 hexadecimal digits).
        """
        trace: dict[str, Any] = self._get(f"/api/v3/traces/{quote(trace_id)}")["result"]
        return trace

    def wait_for_traces(
        self, service: str, until: int | Callable[[list[dict[str, Any]]], bool] = 1, timeout: float = 15.0
    ) -> list[dict[str, Any]]:
        """Return the traces of a service once they are there: a trace shows a moment after it was sent.

        Args:
            service: The name of the service.
            until: How many traces there must be, or what must be true of them.
            timeout: How many seconds to wait.

        Raises:
            TimeoutError: They weren't there in time; the message tells those that were.
        """
        deadline = time.monotonic() + timeout
        while True:
            traces = self.traces(service)
            if until(traces) if callable(until) else len(traces) >= until:
                return traces
            if time.monotonic() > deadline:
                spans = [[span["operationName"] for span in trace["spans"]] for trace in traces]
                raise TimeoutError(f"{self.name} has after {timeout:g} seconds these traces of {service}: {spans}")
            time.sleep(_POLL_SECONDS)

    def command(self, folder: Path) -> list[str]:
        """Return the command line, with the configuration written to ``folder``."""
        program = _built(self.name)
        query_http, query_grpc, otlp_http, otlp_grpc = ({"endpoint": f"{_LOOPBACK}:{port}"} for port in self.ports)
        query: dict[str, Any] = {
            "storage": {"traces": "memory"},
            "http": query_http,
            "grpc": query_grpc,
            # Else it sends traces of itself to port 4317, and its end waits ten seconds for them to get there.
            "enable_tracing": False,
        }
        if self._ui_assets is not None:
            query["ui"] = {"assets_path": str(self._ui_assets.resolve())}
        configuration = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                # Without a level its own metrics are served at port 8888, whoever has it.
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": _MAX_TRACES}}}},
                "jaeger_query": query,
            },
            "receivers": {"otlp": {"protocols": {"grpc": otlp_grpc, "http": otlp_http}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }
        file = folder / "jaeger.yaml"
        file.write_text(json.dumps(configuration))  # JSON is YAML
        return [str(program), "--config", str(file)]

    def is_ready(self) -> bool:
        """Say whether its API answers and every port is open."""
        for port in self.ports:
            _tcp(port).close()
        self.services()
        return True

    def _get(self, path: str) -> Any:
        return _answer(self.name, self.ports[0], path)


class Prometheus(Process):
    """Prometheus as Debian packages it: scrapes targets on loopback, evaluates rules, answers queries.

    Args:
        targets: Where to scrape ``/metrics``: names of jobs, each with the ``host:port`` of its only target.
        rule_files: Files of recording and alert rules.
        interval: Every how many seconds it scrapes and evaluates.
    """

    name = "Prometheus"

    def __init__(
        self, targets: Mapping[str, str] | None = None, rule_files: Sequence[Path] = (), interval: float = 0.2
    ) -> None:
        super().__init__()
        self._targets = targets or {}
        self._rule_files = rule_files
        self._interval = interval

    @property
    def url(self) -> str:
        """Where its API is, and its web page."""
        return f"http://{_LOOPBACK}:{self.ports[0]}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now: for each series its ``metric`` (the labels) and ``value`` (time, text).

        Raises:
            ValueError: The expression is none, or gives a scalar or a text; the message holds what Prometheus says.
        """
        data = self._get("/api/v1/query", {"query": expression})
        if data["resultType"] not in ("vector", "matrix"):
            raise ValueError(f"{expression} is no vector but a {data['resultType']}")
        result: list[dict[str, Any]] = data["result"]
        return result

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return what an expression was: for each series its ``metric`` and ``values`` (time, text).

        Args:
            expression: What to ask.
            start: The first time, in seconds since the epoch.
            end: The last one.
            step: How many seconds are from one to the next.

        Raises:
            ValueError: The expression is none; the message holds what Prometheus says.
        """
        asked = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        result: list[dict[str, Any]] = self._get("/api/v1/query_range", asked)["result"]
        return result

    def wait_for(
        self,
        expression: str,
        until: int | Callable[[list[dict[str, Any]]], bool] = 1,
        timeout: float = 15.0,
    ) -> list[dict[str, Any]]:
        """Return what an expression is once it is that: what was measured shows with the next scrape.

        Args:
            expression: What to ask, again and again.
            until: How many series there must be, or what must be true of them.
            timeout: How many seconds to wait.

        Raises:
            TimeoutError: It wasn't in time; the message tells what it was.
            ValueError: The expression is none.
        """
        deadline = time.monotonic() + timeout
        while True:
            result = self.query(expression)
            if until(result) if callable(until) else len(result) >= until:
                return result
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} is after {timeout:g} seconds {result}")
            time.sleep(_POLL_SECONDS)

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules of all files, as the API tells them: ``type``, ``name``, ``query``, ``health``, ..."""
        groups = self._get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def command(self, folder: Path) -> list[str]:
        """Return the command line, with the configuration written to ``folder``."""
        interval = f"{self._interval * 1000:.0f}ms"
        configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(file.resolve()) for file in self._rule_files],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in self._targets.items()
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(configuration))  # JSON is YAML
        return [
            _installed("prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={_LOOPBACK}:{self.ports[0]}",
            "--log.level=warn",
        ]

    def is_ready(self) -> bool:
        """Say whether it answers a query."""
        return self.query("vector(1)") != []

    def _get(self, path: str, form: dict[str, str] | None = None) -> Any:
        return _answer(self.name, self.ports[0], path, form)["data"]


def promtool(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run Prometheus' checker of rules, configurations and metrics to its end; its output is text.

    Args:
        arguments: Its command line.
        text: What it reads from its standard input.

    Raises:
        Missing: The program isn't on this machine.
    """
    return subprocess.run(
        [_installed("promtool"), *arguments],
        env=environment(),
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def _answer(name: str, port: int, path: str, form: dict[str, str] | None = None) -> Any:
    # No urllib: it would go through a proxy named in the environment.
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=10)
    try:
        if form is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    told = f"{name} answered {response.status} at {path}: {body.decode(errors='replace')}"
    if response.status == http.HTTPStatus.NOT_FOUND:
        raise LookupError(f"{name} has nothing at {path}")
    if response.status in (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNPROCESSABLE_ENTITY):
        raise ValueError(told)
    if response.status != http.HTTPStatus.OK:
        raise OSError(told)
    return json.loads(body)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:  # all at once: they are different
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((_LOOPBACK, 0))
        return [sock.getsockname()[1] for sock in sockets]


def _built(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "opentelemetry-mongo-events" / "bin" / name.lower().replace(" ", "-")
    if not program.exists():
        raise Missing(f"{name} is not built: run scripts/build-servers")
    return program


def _installed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Missing(
            f"{program} is not installed: run scripts/build-servers as root,"
            " or apt-get install --no-install-recommends prometheus"
        )
    return path


def _tcp(port: int) -> socket.socket:
    return socket.create_connection((_LOOPBACK, port), timeout=_ANSWER_SECONDS)


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_ANSWER_SECONDS)
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def _answers_hello(sock: socket.socket) -> bool:
    # Bytes, no MongoClient: a program that is instrumented would find the start of its server in its own telemetry.
    command = bson.encode({"hello": 1, "$db": "admin"})
    with sock, sock.makefile("rb") as replies:
        # Length, request id, response to, opcode OP_MSG; flags, and the kind of the one section.
        sock.sendall(_OP_MSG.pack(_OP_MSG.size + len(command), 1, 0, 2013, 0, 0) + command)
        head = replies.read(_OP_MSG.size)
        if len(head) < _OP_MSG.size:
            return False
        reply = bson.decode(replies.read(_OP_MSG.unpack(head)[0] - _OP_MSG.size))
    return bool(reply["ok"])
