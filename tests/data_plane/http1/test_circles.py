"""Connections that are over leave no circles: the garbage collector stops the event loop while it takes them apart."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from data_plane.http1.client import Client, Timeouts
from data_plane.messages import Request, Response
from tests.data_plane.http1.peers import PATIENCE, Gateway, get, read_request

Serve = Callable[..., Any]
Make = Callable[..., Client]
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def leavings() -> Iterator[Callable[[], list[str]]]:
    """Says which objects of ours only the garbage collector can free of those that were left since the test began."""
    gc.disable()
    gc.freeze()

    def found() -> list[str]:
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            names = {type(thing).__name__ for thing in gc.garbage if type(thing).__module__.startswith("data_plane.")}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        return sorted(names)

    yield found
    gc.unfreeze()
    gc.enable()


async def settled() -> None:
    """Let tasks end, and those hear of it who wait for that."""
    for _ in range(5):
        await asyncio.sleep(0)


async def all_gone(gateway: Gateway) -> None:
    await gateway.server.drain(PATIENCE)
    assert gateway.server.connection_count == 0
    await settled()


async def quietly(gateway: Gateway) -> None:
    async with await gateway.connect() as peer:
        for _ in range(3):
            assert (await peer.exchange(REQUEST))[0] == 200
            await gateway.outcome()


async def with_a_torn_request(gateway: Gateway) -> None:
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nshort")
        assert (await gateway.outcome()).outcome == "complete"


async def with_garbage(gateway: Gateway) -> None:
    async with await gateway.connect() as peer:
        await peer.send(b"\x00\x01\r\n\r\n")
        assert b" 400 " in await peer.rest()


@pytest.mark.parametrize("use", [quietly, with_a_torn_request, with_garbage])
async def test_a_clients_connection_leaves_none(
    serve: Serve, leavings: Callable[[], list[str]], use: Callable[[Gateway], Awaitable[None]]
) -> None:
    async def answer(request: Request) -> Response:
        return Response(200, None, b"done")

    gateway = await serve(answer)
    await use(gateway)
    await all_gone(gateway)
    assert leavings() == []


async def test_a_stream_that_its_client_cuts_off_leaves_none(serve: Serve, leavings: Callable[[], list[str]]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    async def answer(request: Request) -> Response:
        return Response(200, None, pieces())

    gateway = await serve(answer)
    async with await gateway.connect() as peer:
        await peer.send(REQUEST)
        await peer.reader.readuntil(b"first")
    assert (await gateway.outcome()).outcome == "client_closed"
    await all_gone(gateway)
    assert leavings() == []


async def test_an_upstreams_connection_leaves_none(
    upstream: Any, make_client: Make, leavings: Callable[[], list[str]]
) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await asyncio.sleep(0.01)  # Else the body comes with its head, and there is nothing to stream.
            writer.write(b"0\r\n\r\n")

    server = await upstream(play)
    client = make_client()
    for _ in range(2):
        response = await client.send(server.origin, get(), Timeouts(1, 1, 1))
        assert await response.read() == b"hello"
        await response.close()
        del response
    await client.close()
    await settled()
    assert leavings() == []
