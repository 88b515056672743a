"""Small writes of one turn go out together when it ends; none is lost, late, or out of its order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from data_plane.http1 import coalescing, turn
from data_plane.http1.coalescing import CoalescingTransport
from data_plane.http1.server_connection import ServerConnection
from tests.data_plane.http1.peers import Peer
from tests.data_plane.stage import GET, OK, stage

LARGE = b"l" * (coalescing._LARGE + 1)


class Recorder:
    """A transport that says what is done with it. `log` may be shared by several."""

    def __init__(self, name: str = "", log: list[Any] | None = None) -> None:
        self._name = name
        self.log: list[Any] = [] if log is None else log
        self._closed = False

    def write(self, data: bytes) -> None:
        self.log.append((self._name, data) if self._name else data)

    def write_eof(self) -> None:
        self.log.append("eof")

    def close(self) -> None:
        self._closed = True
        self.log.append("close")

    def abort(self) -> None:
        self._closed = True
        self.log.append("abort")

    def is_closing(self) -> bool:
        return self._closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    pause_reading = resume_reading = write_eof


def coalesced(inner: Recorder) -> CoalescingTransport:
    return CoalescingTransport(inner)  # type: ignore[arg-type]


async def next_turn() -> None:
    await asyncio.sleep(0)


async def test_writes_to_one_connection_are_one() -> None:
    inner = Recorder()
    transport = coalesced(inner)
    transport.write(b"head")
    transport.write(b"body")
    assert inner.log == []
    await next_turn()
    assert inner.log == [b"headbody"]
    transport.write(b"more")
    await next_turn()
    assert inner.log == [b"headbody", b"more"]


async def test_connections_are_written_to_in_their_order_and_before_what_is_called_later() -> None:
    log: list[Any] = []
    transports = [coalesced(Recorder(name, log)) for name in "abc"]
    for transport in transports:
        transport.write(b"1")
    asyncio.get_running_loop().call_soon(log.append, "later")
    transports[0].write(b"2")
    await next_turn()
    assert log == [("a", b"12"), ("b", b"1"), ("c", b"1"), "later"]


async def test_no_more_than_so_many_wait() -> None:
    log: list[Any] = []
    transports = [coalesced(Recorder(str(number), log)) for number in range(turn._MOST + 1)]
    for transport in transports[:-1]:
        assert log == []
        transport.write(b"x")
    assert len(log) == turn._MOST
    transports[-1].write(b"x")
    assert len(log) == turn._MOST
    await next_turn()
    assert len(log) == turn._MOST + 1


async def test_what_is_large_goes_at_once_behind_what_waits() -> None:
    inner = Recorder()
    transport = coalesced(inner)
    transport.write(b"head")
    transport.write(LARGE)
    assert inner.log == [b"head", LARGE]
    await next_turn()
    assert inner.log == [b"head", LARGE]


async def test_many_small_writes_do_not_pile_up() -> None:
    inner = Recorder()
    transport = coalesced(inner)
    piece = LARGE[: len(LARGE) // 4]
    for _ in range(40):
        transport.write(piece)
    await next_turn()
    assert b"".join(inner.log) == piece * 40
    assert max(map(len, inner.log)) <= len(LARGE) + len(piece)


@pytest.mark.parametrize("end", ["close", "write_eof"])
async def test_what_waits_goes_before_the_end(end: str) -> None:
    inner = Recorder()
    transport = coalesced(inner)
    transport.write(b"farewell")
    getattr(transport, end)()
    assert inner.log == [b"farewell", end.removeprefix("write_")]
    await next_turn()
    assert len(inner.log) == 2


async def test_what_waits_for_a_connection_that_is_broken_off_is_dropped() -> None:
    inner = Recorder()
    transport = coalesced(inner)
    transport.write(b"never mind")
    transport.abort()
    await next_turn()
    assert inner.log == ["abort"]


async def test_one_that_cannot_be_written_to_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def broken(data: bytes) -> None:
        raise RuntimeError("no such handle")

    bad, good = Recorder(), Recorder()
    bad.write = broken  # type: ignore[method-assign]
    for inner in (bad, good):
        coalesced(inner).write(b"x")
    await next_turn()
    assert good.log == [b"x"]
    assert "could not be written to" in caplog.text


async def told_in_the_same_turn(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[ServerConnection, asyncio.BaseTransport], None]
) -> tuple[int, bytes, bytes]:
    """What a client gets when `then` happens in the turn in which its answer is delivered."""
    raw: dict[ServerConnection, asyncio.BaseTransport] = {}
    made, deliver = ServerConnection.connection_made, ServerConnection.deliver

    def connection_made(self: ServerConnection, transport: asyncio.BaseTransport) -> None:
        raw[self] = transport
        made(self, transport)

    def deliver_then(self: ServerConnection, data: bytes) -> None:
        deliver(self, data)
        then(self, raw[self])

    monkeypatch.setattr(ServerConnection, "connection_made", connection_made)
    async with stage() as play:
        client: Peer = await play.warm()
        monkeypatch.setattr(ServerConnection, "deliver", deliver_then)
        await client.send(GET)
        (await play.asked()).say(OK)
        return await client.receive()


async def test_a_client_that_ends_as_its_answer_comes_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(connection: ServerConnection, transport: asyncio.BaseTransport) -> None:
        if not connection.eof_received():
            transport.close()  # As the loop does.

    assert (await told_in_the_same_turn(monkeypatch, ends))[::2] == (200, b"ok")


async def test_draining_as_an_answer_comes_lets_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def drains(connection: ServerConnection, _: asyncio.BaseTransport) -> None:
        connection.drain(0)

    assert (await told_in_the_same_turn(monkeypatch, drains))[::2] == (200, b"ok")
