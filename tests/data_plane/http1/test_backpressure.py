"""Nobody is written to faster than they read, and nobody is read from faster than their bytes are wanted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from data_plane.http1.client import Client, Timeouts
from data_plane.messages import Request, Response
from tests.data_plane.http1.peers import PATIENCE, get, read_request

Serve = Callable[..., Any]
Make = Callable[..., Client]
PIECE = b"x" * 65536
MANY = 400
BOUND = 300
"""Pieces (20 MB) that kernel buffers on both sides cannot hold."""


async def settled(count: Callable[[], int]) -> int:
    """A count that has stopped growing: the same over many turns of the loop, with time to spare for the kernel."""
    seen = -1
    while seen != count():
        seen = count()
        await asyncio.sleep(0.1)
    return seen


async def test_a_slow_reader_holds_the_stream_it_reads(serve: Serve) -> None:
    made = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(MANY):
            made += 1
            yield PIECE

    async def stream(request: Request) -> Response:
        return Response(200, None, pieces())

    gateway = await serve(stream)
    async with await gateway.connect(limit=1000) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await settled(lambda: made) < BOUND
        size, end = 0, b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            data = await asyncio.wait_for(peer.reader.read(1 << 20), PATIENCE)
            size += len(data)
            end = (end + data)[-7:]
        assert size > MANY * len(PIECE)
        assert (await gateway.outcome()).outcome == "complete"


async def test_a_reader_that_takes_nothing_is_given_up(serve: Serve) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield PIECE

    async def stream(request: Request) -> Response:
        return Response(200, None, pieces())

    gateway = await serve(stream, write_timeout=0.1)
    async with await gateway.connect(limit=1000) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await gateway.outcome()).outcome == "client_closed"


async def test_a_slow_application_holds_the_upload_it_reads(serve: Serve) -> None:
    go = asyncio.Event()

    async def work(request: Request) -> Response:
        await go.wait()
        size = 0
        async for piece in request.body:
            size += len(piece)
        return Response(200, None, str(size).encode())

    gateway = await serve(work)
    async with await gateway.connect() as peer:
        sent = 0

        async def upload() -> None:
            nonlocal sent
            await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (MANY * len(PIECE)))
            for _ in range(MANY):
                await peer.send(PIECE)
                sent += 1

        task = asyncio.create_task(upload())
        assert await settled(lambda: sent) < BOUND
        go.set()
        assert int((await peer.receive("POST"))[2]) == MANY * len(PIECE)
        await task


async def test_a_full_pipeline_holds_its_client_and_all_is_answered_in_the_end(serve: Serve) -> None:
    go = asyncio.Event()

    async def work(request: Request) -> Response:
        await go.wait()
        return Response(200, None, b"ok")

    gateway = await serve(work, max_pipeline=2)
    async with await gateway.connect() as peer:
        sent = 0

        async def pipeline() -> None:
            nonlocal sent
            for _ in range(MANY * 4):
                await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % PIECE[:16384])
                sent += 1

        task = asyncio.create_task(pipeline())
        assert await settled(lambda: sent) < BOUND * 4
        go.set()
        for _ in range(MANY * 4):
            assert (await peer.receive())[2] == b"ok"
        await task


async def test_a_response_is_read_no_faster_than_it_is_wanted(upstream: Any, make_client: Make) -> None:
    sent = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MANY * len(PIECE)))
        for _ in range(MANY):
            writer.write(PIECE)
            await writer.drain()
            sent += 1

    server = await upstream(play)
    client = make_client()
    response = await client.send(server.origin, get(), Timeouts(1, 1, 0.2))
    assert not isinstance(response.body, bytes)
    assert await settled(lambda: sent) < BOUND
    size = 0
    async for piece in response.body:  # That nobody read for longer than the read timeout was our own doing.
        size += len(piece)
    assert size == MANY * len(PIECE)
    await response.close()


async def test_what_pours_from_upstream_to_client_goes_no_faster_than_the_client_takes(
    serve: Serve, upstream: Any, make_client: Make
) -> None:
    sent = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(MANY):
            writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    server = await upstream(play)
    client = make_client()

    async def proxy(request: Request) -> Response:
        response = await client.send(server.origin, get(), Timeouts(1, 1, 5))
        answer = Response(200, None, response.body)
        answer.on_close(response.close)
        return answer

    gateway = await serve(proxy)
    async with await gateway.connect(limit=1000) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await settled(lambda: sent) < BOUND
        _, _, body = await peer.receive()
        assert body == PIECE * MANY
        assert (await gateway.outcome()).outcome == "complete"


async def test_an_upload_is_written_no_faster_than_it_is_taken(upstream: Any, make_client: Make) -> None:
    go = asyncio.Event()
    taken = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        while taken < MANY * len(PIECE):
            taken += len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()

    made = 0

    class Source:
        length = MANY * len(PIECE)

        async def read(self, limit: int = 0) -> bytes:
            raise AssertionError

        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal made
            for _ in range(MANY):
                made += 1
                yield PIECE

    server = await upstream(play)
    client = make_client()
    request = get(method="PUT")
    request.body = Source()
    task = asyncio.create_task(client.send(server.origin, request, Timeouts(1, PATIENCE, PATIENCE)))
    assert await settled(lambda: made) < BOUND
    go.set()
    assert (await asyncio.wait_for(task, PATIENCE)).status == 200
    assert taken == MANY * len(PIECE)


async def test_small_pieces_are_sent_without_delay(serve: Serve) -> None:
    async def answer(request: Request) -> Response:
        return Response(200, None, b"ok")

    gateway = await serve(answer)
    async with await gateway.connect() as peer:
        await peer.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        (connection,) = gateway.server._connections
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
