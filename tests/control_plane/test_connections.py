"""The API's connections, over real sockets: who is late is cut, who is not is served, and there are only so many."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from control_plane.connections import MAX_CONNECTIONS, Limits, Server

PATIENCE = 20.0
SHORT = 0.3
WITHOUT_END = 1000.0
FOREVER = dict.fromkeys(("head", "pause", "body", "kept", "untaken"), WITHOUT_END)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


class Peer:
    """A client that does as it is told, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return int(head.split()[1]), await self._reader.readexactly(length)

    async def rest(self) -> bytes:
        """All that still comes until the server closes."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self._reader.read(), PATIENCE)
        return b""

    async def trickle(self, data: bytes) -> None:
        """One byte after the other, each well within any pause, until the server has had enough."""
        closed = asyncio.ensure_future(self.rest())
        while not closed.done():
            self.send(data)
            await asyncio.wait([closed], timeout=SHORT / 6)
        await closed

    def close(self) -> None:
        self._writer.transport.abort()


Connect = Callable[[], Any]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes that it was sent; /early before it looks, /large with very many."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = bytes(1 << 26) if scope["path"] == "/large" else str(size).encode()
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(connections: int = 100, **limits: float) -> AsyncIterator[Connect]:
    """Everything is allowed except what is limited by name."""
    server = Server(application, Limits(connections, **{**FOREVER, **limits}), lifespan="off", log_config=None)  # type: ignore[arg-type]
    peers: list[Peer] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]), name="server")

        async def connect() -> Peer:
            peers.append(Peer(*await asyncio.open_connection(*listener.getsockname())))
            return peers[-1]

        try:
            yield connect
        finally:
            for peer in peers:
                peer.close()
            server.should_exit = True
            await asyncio.wait_for(task, PATIENCE)


async def test_a_connection_on_which_nothing_comes_is_closed() -> None:
    async with serving(head=SHORT) as connect:
        assert await (await connect()).rest() == b""


async def test_a_head_that_trickles_is_cut_however_often_a_byte_comes() -> None:
    async with serving(head=SHORT) as connect:
        for start in (b"GET / HTTP/1.1\r\nX: ", b""):
            peer = await connect()
            peer.send(start)
            await peer.trickle(b"\r\n" if not start else b"a")


async def test_a_late_head_is_answered_408() -> None:
    async with serving(head=SHORT) as connect:
        peer = await connect()
        peer.send(GET[:-2])
        status, body = await peer.answer()
        assert (status, b"head did not come in time" in body) == (408, True)
        assert await peer.rest() == b""


async def test_a_further_request_has_its_own_time_from_its_first_byte() -> None:
    async with serving(head=SHORT) as connect:
        peer = await connect()
        peer.send(GET)
        assert await peer.answer() == (200, b"0")
        idle = asyncio.create_task(peer.rest())
        done, _ = await asyncio.wait([idle], timeout=2 * SHORT)
        assert not done
        peer.send(GET[:-2])
        assert b" 408 " in await idle


async def test_an_answered_connection_that_stays_idle_is_closed() -> None:
    """Also when empty lines come, which a parser skips."""
    async with serving(kept=SHORT) as connect:
        peer = await connect()
        peer.send(GET)
        await peer.answer()
        await peer.trickle(b"\r\n")


async def test_a_body_that_stops_is_answered_408() -> None:
    async with serving(pause=SHORT) as connect:
        peer = await connect()
        peer.send(POST % 10 + b"12345")
        status, body = await peer.answer()
        assert (status, b"body did not come in time" in body) == (408, True)
        assert await peer.rest() == b""


async def test_a_body_that_comes_slowly_is_taken() -> None:
    async with serving(head=SHORT, pause=3 * SHORT, kept=SHORT) as connect:
        peer = await connect()
        peer.send(POST % 12)
        answer = asyncio.create_task(peer.answer())
        for _ in range(12):
            peer.send(b".")
            await asyncio.wait([answer], timeout=SHORT / 3)
        assert await answer == (200, b"12")


async def test_a_body_must_have_come_whole_at_some_time() -> None:
    async with serving(body=SHORT) as connect:
        peer = await connect()
        peer.send(POST % 1_000_000)
        await peer.trickle(b".")


async def test_a_body_that_was_answered_before_it_came_is_not_waited_for_without_end() -> None:
    async with serving(pause=SHORT) as connect:
        peer = await connect()
        peer.send((POST % 10).replace(b" / ", b" /early "))
        assert (await peer.answer())[0] == 200
        await peer.rest()


async def test_who_does_not_take_the_answer_is_cut() -> None:
    async with serving(untaken=SHORT) as connect:
        peer = await connect()
        peer.send(GET.replace(b" / ", b" /large "))
        peer._writer.transport.pause_reading()  # type: ignore[attr-defined]
        lost = asyncio.create_task(peer._writer.wait_closed())
        # The kernel still takes what the client writes: only an answer to it says that nobody is there.
        async with asyncio.timeout(PATIENCE):
            while not lost.done():
                peer.send(b"\r\n")
                await asyncio.wait([lost], timeout=SHORT / 6)
        with contextlib.suppress(ConnectionError):
            await lost


async def test_a_head_without_end_is_refused_by_its_size() -> None:
    async with serving() as connect:
        peer = await connect()
        peer.send(b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" % (b"x" * 1000) * 100)
        status, body = await peer.answer()
        assert (status, b"head is larger than 65536 bytes" in body) == (431, True)


async def test_the_connection_that_is_idle_for_longest_makes_room() -> None:
    async with serving(connections=2) as connect:
        silent, answered, newest = await connect(), await connect(), await connect()
        assert await silent.rest() == b""
        for peer in (answered, newest):
            peer.send(GET)
            assert await peer.answer() == (200, b"0")


async def test_without_an_idle_one_the_new_connection_is_answered_503(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(connections=2) as connect:
        busy = [await connect(), await connect()]
        for peer in busy:
            peer.send(POST % 2 + b"1")
        for _ in range(2):
            status, body = await (refused := await connect()).answer()
            assert (status, b"too many connections" in body) == (503, True)
            assert await refused.rest() == b""
        for peer in busy:
            peer.send(b"2")
            assert await peer.answer() == (200, b"2")
    assert caplog.text.count("connections to the API are refused: 2 are open") == 1


async def test_a_kept_connection_serves_many_requests_also_pipelined() -> None:
    async with serving() as connect:
        peer = await connect()
        for _ in range(20):
            peer.send(POST % 3 + b"abc" + GET)
            assert [await peer.answer(), await peer.answer()] == [(200, b"3"), (200, b"0")]


def test_the_files_that_a_process_may_open_bound_its_connections() -> None:
    assert Limits.within(1024).connections == 256
    assert Limits.within(1 << 20).connections == MAX_CONNECTIONS


@pytest.mark.parametrize("request_line", [b"FOO / HTTP/1.1", b"get / HTTP/1.1", b"\x16\x03\x01"])
async def test_what_is_no_request_is_answered_with_a_problem(request_line: bytes) -> None:
    async with serving() as connect:
        peer = await connect()
        peer.send(request_line + b"\r\nHost: a\r\n\r\n")
        answer = await peer.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert "method" in orjson.loads(body)["message"]
