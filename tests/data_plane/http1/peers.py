"""The other ends of the wire: raw clients, scripted upstreams, and an application that records what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import h11

from data_plane.errors import GatewayError
from data_plane.http1.client import Origin
from data_plane.http1.server import Sent, Server
from data_plane.messages import BufferedBody, Headers, Request, Response

Answer = Callable[[Request], Awaitable[Response]]
Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PATIENCE = 10.0
"""Seconds after which a test that waits has failed; none of them waits that long when all is well."""


class Gateway:
    """An application, and the server it runs on. `ended` receives (token, response, sent) of each exchange."""

    server: Server
    port: int

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.ended: asyncio.Queue[tuple[Any, Response, Sent]] = asyncio.Queue()
        self.refusals: list[tuple[GatewayError, Request | None]] = []
        self.cancelled = asyncio.Event()

    async def answer(self, request: Request) -> tuple[Response, Any]:
        try:
            return await self._answer(request), request
        except GatewayError as error:
            return Response(error.status, body=error.message.encode()), request
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def finished(self, token: Any, response: Response, sent: Sent) -> None:
        self.ended.put_nowait((token, response, sent))

    def open_line(self) -> None:
        return None

    def refused(self, error: GatewayError, request: Request | None, peer: tuple[str, int]) -> Response:
        assert peer[0] == "127.0.0.1"
        self.refusals.append((error, request))
        return Response(error.status, Headers([("Content-Type", "text/plain")]), error.message.encode())

    async def outcome(self) -> Sent:
        """What became of the next exchange that ends."""
        _, _, sent = await asyncio.wait_for(self.ended.get(), PATIENCE)
        return sent

    async def connect(self, **arguments: Any) -> Peer:
        return Peer(*await asyncio.open_connection("127.0.0.1", self.port, **arguments))

    async def close(self) -> None:
        await self.server.drain(0)


class Peer:
    """A client that writes raw bytes; what it reads is judged by h11."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._judge = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """The next response: status, fields by lower-case name, body."""
        judge = self._judge
        judge.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        judge.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body: list[bytes] = []
        while True:
            event = judge.next_event()
            if event is h11.NEED_DATA:
                judge.receive_data(await asyncio.wait_for(self.reader.read(65536), PATIENCE))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
        assert head is not None
        if judge.our_state is h11.DONE and judge.their_state is h11.DONE:
            judge.start_next_cycle()
        fields_by_name = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return head.status_code, fields_by_name, b"".join(body)

    async def exchange(self, data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        await self.send(data)
        return await self.receive(method)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Upstream:
    """A server whose connections are played by a function; it counts them."""

    def __init__(self, play: Play, *, context: ssl.SSLContext | None = None) -> None:
        self._play = play
        self._context = context
        self._tasks: set[asyncio.Task[Any]] = set()
        self.connections = 0

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def origin(self) -> Origin:
        return Origin("https" if self._context else "http", "127.0.0.1", self.port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The other end left, or the test is over.
        finally:
            self._tasks.discard(task)
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request with a Content-Length, or none."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head, await reader.readexactly(length)


def answering(*answers: bytes) -> Play:
    """A connection that answers each request with the next of `answers`, then closes."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()

    return play


def forever(answer: bytes) -> Play:
    """A connection that answers every request alike."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()

    return play


def get(target: str = "/", headers: list[tuple[str, str]] | None = None, method: str = "GET") -> Request:
    return Request(method, target, Headers(headers or []), BufferedBody())


def post(data: bytes = b"hello", target: str = "/", headers: list[tuple[str, str]] | None = None) -> Request:
    return Request("POST", target, Headers(headers or []), BufferedBody(data))


class Slept:
    """A body that yields what it is told to, when it is told to."""

    def __init__(self, length: int | None = None) -> None:
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.length = length

    def say(self, piece: bytes | Exception | None) -> None:
        """None ends it, an exception is raised."""
        self._pieces.put_nowait(piece)

    async def read(self, limit: int = 0) -> bytes:
        return b"".join([piece async for piece in self])

    async def __aiter__(self) -> Any:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
