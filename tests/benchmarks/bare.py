"""A proxy that only passes on: uvloop and httptools on both sides, as the data plane has them, and no gateway between.

`python -m tests.benchmarks.bare PORT BACK`

What it reaches beside nginx is about what a gateway in Python could reach on the machine if all its own work were free.
It knows no timeouts, no limits and no errors.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import cast

import httptools
import uvloop

_kept: deque[_Behind] = deque()
"""Connections to the upstream that wait to be used."""


class _Side(asyncio.Protocol):
    """One connection; `parser` reads messages from it, of which `whole` is called with each."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def message(self, first: bytes) -> bytes:
        """What was read, written again behind another first line."""
        lines = [first, *(b"%b: %b" % field for field in self.fields), b"", b"".join(self.pieces)]
        self.fields.clear()
        self.pieces.clear()
        return b"\r\n".join(lines)


class _Behind(_Side):
    """A connection to the upstream, lent to one front at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._parser = httptools.HttpResponseParser(self)
        self.front: _Front | None = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        front, self.front = self.front, None
        answer = self.message(b"HTTP/1.1 %d OK" % self._parser.get_status_code())
        _kept.append(self)
        if front is not None and not front.transport.is_closing():
            front.transport.write(answer)


class _Front(_Side):
    """A client's connection."""

    def __init__(self, back: int) -> None:
        super().__init__()
        self._back = back
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, target: bytes) -> None:
        self._target = target

    def on_message_complete(self) -> None:
        request = self.message(b"%b %b HTTP/1.1" % (self._parser.get_method(), self._target))
        if _kept:
            self._ask(_kept.pop(), request)
        else:
            connecting = asyncio.get_running_loop().create_task(self._connect(request), name="connect")
            connecting.add_done_callback(asyncio.Task.result)

    async def _connect(self, request: bytes) -> None:
        _, behind = await asyncio.get_running_loop().create_connection(_Behind, "127.0.0.1", self._back)
        self._ask(behind, request)

    def _ask(self, behind: _Behind, request: bytes) -> None:
        behind.front = self
        behind.transport.write(request)


async def serve(port: int, back: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Front(back), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
