"""A TCP proxy between a client and its server that injects faults of the network, by a seeded plan."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from typing_extensions import Self

DELAY: Final = "delay"
"""A reply comes late."""
RESET: Final = "reset"
"""The connection is reset (RST) in place of a reply, or after the first bytes of it."""
RESET_REQUEST: Final = "reset of a request"
"""The connection is reset before the server gets the request."""
HALF_OPEN: Final = "half-open"
"""The connection stays, and nothing comes through it any more."""
TRUNCATED: Final = "truncated"
"""A reply ends in its middle, and the connection with it."""
GARBLED_LENGTH: Final = "garbled length"
"""A reply tells another length than it has."""
GARBLED_OP_CODE: Final = "garbled op code"
"""A reply is of a kind that isn't known."""
GARBLED_BODY: Final = "garbled body"
"""Some bytes of a reply behind its header are others. Not of a hello: a monitor of the driver's may end of that."""
SLOW: Final = "slow bytes"
"""A reply comes byte by byte."""
REFUSAL: Final = "refusal"
"""For a moment nobody listens; also the connection that has just come is reset."""

FAULTS: Final = (
    *(DELAY, RESET, HALF_OPEN, TRUNCATED, GARBLED_LENGTH, GARBLED_OP_CODE, GARBLED_BODY, SLOW),
    *(RESET_REQUEST, REFUSAL),
)

_CONNECTION: Final = "connection"
_REQUEST: Final = "request"
_REPLY: Final = "reply"
_HELLO: Final = "reply to a hello"
_OCCASIONS: Final = {fault: frozenset({_REPLY, _HELLO}) for fault in FAULTS} | {
    GARBLED_BODY: frozenset({_REPLY}),
    RESET_REQUEST: frozenset({_REQUEST}),
    REFUSAL: frozenset({_CONNECTION}),
}

T = TypeVar("T")

_HEADER: Final = struct.Struct("<iiii")
_LARGEST_MESSAGE: Final = 48_000_000
_CHUNK: Final = 65_536
_LONGEST_DELAY: Final = 0.05
_REFUSING_SECONDS: Final = 0.05
_SLOWLY: Final = 200
"""So many bytes come one by one; then the reply goes on as usual."""
_ABORTS: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: a close is a reset."""


class FaultyProxy:
    """Forwards connections to a server on the loopback interface, and injects faults, until `close()`.

    The plan: all faults in an order by chance, again and again, with a number of messages by chance between them. Each
    waits for its occasion. So all kinds happen, of whatever kind the load is.

    Args:
        port: That of the server.
        seed: Of the plan.
        every: Between two faults there are so many connections, requests and replies on average; 0 for no faults.
        faults: Those of the plan.

    Attributes:
        port: Where it listens.
        every: As above, and can be set meanwhile. What is half-open stays so.
        injected: How often each fault was injected.
    """

    def __init__(self, port: int, seed: object, every: int, faults: Sequence[str] = FAULTS) -> None:
        self.every = every
        self.injected: Counter[str] = Counter()
        self._target = port
        self._chance = random.Random(f"{seed} proxy")
        self._plan = self._shuffled(faults)
        self._next = next(self._plan)
        self._wait = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        self._thread.start()
        self._server = self._run(self._listen(0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """A connection string that leads to the server through it."""
        return f"mongodb://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Reset all connections, and listen no more."""
        if not self._loop.is_closed():
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", port, reuse_address=True, backlog=128)

    async def _end(self) -> None:
        self._is_ending = True
        self._server.close()
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.wait(self._serving)
        for _ in range(3):
            await asyncio.sleep(0)  # for what is about to be accepted

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_ending:
            _reset(writer)
            return

        def is_gone(task: asyncio.Task[None]) -> None:  # also of one that was cancelled before it began
            self._serving.discard(task)
            _reset(writer)

        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(is_gone)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What a cancellation and a connection that breaks have in common: this one is over.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if self._fault(_CONNECTION):
                await self._refuse(writer)
            else:
                await _Connection(self, reader, writer).serve(self._target)

    async def _refuse(self, writer: asyncio.StreamWriter) -> None:
        if self._server.is_serving():
            self._server.close()
            _reset(writer)
            while not self._server.is_serving():
                await asyncio.sleep(_REFUSING_SECONDS)
                with contextlib.suppress(OSError):  # somebody's connection has the port meanwhile
                    self._server = await self._listen(self.port)

    def _shuffled(self, faults: Sequence[str]) -> Iterator[str]:
        while True:
            yield from self._chance.sample(faults, len(faults))

    def _fault(self, occasion: str) -> str | None:
        """The fault that strikes on this occasion, if any does."""
        if not self.every:
            return None
        self._wait -= 1
        if self._wait > 0 or occasion not in _OCCASIONS[self._next]:
            return None
        fault, self._next = self._next, next(self._plan)
        self._wait = self._chance.randint(1, 2 * self.every)
        self.injected[fault] += 1
        return fault


class _Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultyProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._half_open = False

    async def serve(self, port: int) -> None:
        """Forward in both directions, until one side ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        directions = [asyncio.ensure_future(self._requests(writer)), asyncio.ensure_future(self._replies(reader))]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            _reset(writer)  # before it waits, when it may be cancelled once more
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _requests(self, writer: asyncio.StreamWriter) -> None:
        while data := await self._reader.read(_CHUNK):
            if self._half_open:
                continue
            if self._proxy._fault(_REQUEST):
                return
            writer.write(data)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader) -> None:
        while True:
            header = await reader.readexactly(_HEADER.size)
            length, *_ = _HEADER.unpack(header)
            await self._reply(bytearray(header + await reader.readexactly(length - _HEADER.size)))

    async def _reply(self, message: bytearray) -> None:
        """Forward a reply.

        Raises:
            ConnectionResetError: A fault: the connection is over.
        """
        chance = self._proxy._chance
        fault = self._proxy._fault(_HELLO if b"maxWireVersion" in message else _REPLY)
        if fault == DELAY:
            await asyncio.sleep(chance.uniform(0, _LONGEST_DELAY))
        elif fault == RESET:
            await self._send(message[: chance.choice((0, chance.randrange(len(message))))])
            raise ConnectionResetError
        elif fault == HALF_OPEN:
            self._half_open = True
            await asyncio.Event().wait()  # until the client gives up
        elif fault == TRUNCATED:
            await self._send(message[: chance.randrange(1, len(message))])
            self._writer.close()
            await self._writer.wait_closed()
            raise ConnectionResetError
        elif fault == GARBLED_LENGTH:
            length = chance.choice((0, -1, 7, len(message) - 1, len(message) + 1, _LARGEST_MESSAGE, 2**31 - 1))
            struct.pack_into("<i", message, 0, length)
        elif fault == GARBLED_OP_CODE:
            struct.pack_into("<i", message, 12, chance.choice((0, 1, 2013, 2004, -1, 99)) ^ chance.getrandbits(8))
        elif fault == GARBLED_BODY:
            for _ in range(chance.randint(1, 8)):
                message[chance.randrange(_HEADER.size, len(message))] = chance.getrandbits(8)
        elif fault == SLOW:
            for position in range(min(_SLOWLY, len(message))):
                await self._send(message[position : position + 1])
                await asyncio.sleep(0)
            message = message[_SLOWLY:]
        await self._send(message)

    async def _send(self, data: bytes | bytearray) -> None:
        if data:
            self._writer.write(bytes(data))
            await self._writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset, unless it is closed."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTS)
    writer.transport.abort()
