"""A real gateway between raw sockets: clients that write bytes, a service that says byte for byte what it is told.

async with stage() as play:
    client = await play.warm()
    play.answer = None
    await client.send(GET)
    asked = await play.asked()
    asked.say(OK)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from data_plane.express import ChainLine, OpenLine, ServiceLine
from data_plane.http1.express import Line, Ride, Steps
from data_plane.http1.turn import turn_of
from tests.data_plane.builders import Gateway, document, gateway
from tests.data_plane.http1.peers import PATIENCE, Peer, Upstream, read_request

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 2\r\n\r\nok"
WARM = 3
"""Requests after which the next one like them rides: the host is known, the head, then the line."""

_OWN = re.compile(
    rb"(?<=\r\nX-Kong-Upstream-Latency: )\d+|(?<=\r\nX-Kong-Proxy-Latency: )\d+|(?<=\r\nX-Kong-Response-Latency: )\d+|"
    rb"(?<=\r\nX-Kong-Request-Id: )[0-9a-f]{32}|(?<=\r\nDate: )\w\w\w, [^\r]*GMT|(?<=request_id: )[0-9a-f]{32}|"
    rb'(?<="request_id":")[0-9a-f]{32}|(?<=\r\nX-Tandem-Decision: )[0-9a-f]{24}|'
    rb'(?<="created":)\d{10}|(?<="id":"chatcmpl-)[0-9a-f]{24}|(?<=\r\nx-amz-date: )\d{8}T\d{6}Z|'
    rb"(?<= Credential=AKIDEXAMPLE/)\d{8}|(?<=, Signature=)[0-9a-f]{64}"
)


def post(body: bytes, *fields: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join((b"POST /a HTTP/1.1", b"Host: h", *fields, length, b"", body))


def unlike(requests: list[bytes]) -> list[bytes]:
    """The same requests, no two of which have one head."""
    return [request.replace(b"\r\n", b"\r\nX-Number: %d\r\n" % number, 1) for number, request in enumerate(requests)]


def ordinarily(patch: pytest.MonkeyPatch) -> None:
    """Let nothing take the express way."""
    patch.setattr("data_plane.pipeline.line_for", lambda *_: None)
    patch.setattr(OpenLine, "takes", lambda *_: False)


def end_turn() -> None:
    """Do at once what waits for the end of the loop's present turn."""
    turn_of(asyncio.get_running_loop())._do()


def impersonal(data: bytes) -> bytes:
    """Bytes without what differs from exchange to exchange."""
    return _OWN.sub(b"*", data)


class Rides:
    """How often the express way was taken, and how it ended."""

    def __init__(self, patch: pytest.MonkeyPatch, *kinds: type[Line]) -> None:
        """`kinds`: of lines; by default those for heads that came before."""
        self.boarded = self.arrived = self.derailed = self.abandoned = 0
        for kind in kinds or (ServiceLine, ChainLine):
            self._watch(patch, kind)

    def _watch(self, patch: pytest.MonkeyPatch, kind: type[Line]) -> None:
        board, arrive, derailed, abandon = kind.board, kind.arrive, kind.derailed, kind.abandon

        def count_board(line: Line, ride: Ride) -> Steps:
            yield from board(line, ride)
            self.boarded += ride.behind is not None

        def count_arrive(line: Line, ride: Ride) -> Steps:
            yield from arrive(line, ride)
            self.arrived += ride.has_arrived

        def count_derailed(line: Line, ride: Ride) -> None:
            self.derailed += 1
            derailed(line, ride)

        def count_abandon(line: Line, ride: Ride) -> None:
            self.abandoned += 1
            abandon(line, ride)

        patch.setattr(kind, "board", count_board)
        patch.setattr(kind, "arrive", count_arrive)
        patch.setattr(kind, "derailed", count_derailed)
        patch.setattr(kind, "abandon", count_abandon)

    @property
    def all(self) -> tuple[int, int, int, int]:
        return self.boarded, self.arrived, self.derailed, self.abandoned


class Asked:
    """A request as the service got it, and the connection to answer it on."""

    def __init__(self, data: bytes, writer: asyncio.StreamWriter, broken: asyncio.Event) -> None:
        self.data = data
        self.writer = writer
        self._broken = broken

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def leave(self, data: bytes = b"") -> None:
        """Close, after saying so much."""
        self.writer.write(data)
        self.writer.close()

    async def broken(self) -> None:
        """Wait until the gateway ends this connection."""
        await asyncio.wait_for(self._broken.wait(), PATIENCE)


class Stage:
    """The gateway `node`, and the service behind it: answers each request with `answer`, or waits to be told."""

    node: Gateway

    def __init__(self) -> None:
        self.answer: bytes | None = OK
        self.server = Upstream(self._play)
        self.requests: list[bytes] = []
        self._asked: asyncio.Queue[Asked] = asyncio.Queue()
        self._peers: list[Peer] = []

    def document(
        self, *, service: dict[str, Any] | None = None, more: dict[str, Any] | None = None, **route: Any
    ) -> Any:
        """One route, /a, to the service, as it is."""
        to = {"name": "s", "url": f"http://127.0.0.1:{self.server.port}", **(service or {})}
        fields = {"name": "r", "paths": ["/a"], "strip_path": False, "service": "s", **route}
        return document(services=[to], routes=[fields], **(more or {}))

    async def asked(self) -> Asked:
        """The next request that waits to be answered."""
        return await asyncio.wait_for(self._asked.get(), PATIENCE)

    async def connect(self) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.node.port))
        self._peers.append(peer)
        return peer

    async def warm(self, request: bytes = GET, answer: bytes = OK) -> Peer:
        """A client whose next request like this one rides; from then on the test answers."""
        client = await self.connect()
        self.answer = answer
        for _ in range(WARM):
            assert (await client.exchange(request))[0] == int(answer[9:12])
        self.answer = None
        return client

    async def close(self) -> None:
        for peer in self._peers:
            await peer.close()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broken = asyncio.Event()
        try:
            while True:
                data = b"".join(await read_request(reader))
                self.requests.append(data)
                if self.answer is None:
                    self._asked.put_nowait(Asked(data, writer, broken))
                else:
                    writer.write(self.answer)
        finally:
            broken.set()


@asynccontextmanager
async def stage(settings: dict[str, Any] | None = None, **arguments: Any) -> AsyncIterator[Stage]:
    """`arguments` go to `Stage.document`."""
    play = Stage()
    async with play.server, gateway(**(settings or {})) as node:
        play.node = node
        await node.apply(play.document(**arguments), 1)
        try:
            yield play
        finally:
            await play.close()
