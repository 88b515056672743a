"""Bodies on their way in: order, endings, and holding the sender back."""

from __future__ import annotations

import asyncio

import pytest

from data_plane.errors import ClientDisconnected, PayloadTooLarge
from data_plane.http1.body import IncomingBody
from data_plane.http1.limits import HIGH_WATER


class Flow:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")

    def wanted(self) -> None:
        self.calls.append("wanted")


def body(length: int | None = None) -> tuple[IncomingBody, Flow]:
    flow = Flow()
    return IncomingBody(flow, length), flow


async def waiting(task: asyncio.Task[object], flow: Flow) -> None:
    """Let a task run until it waits for the body."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert "wanted" in flow.calls or task.done()


async def test_pieces_that_came_together_are_read_together() -> None:
    incoming, _ = body()
    for piece in (b"a", b"b", b"c"):
        incoming.feed(piece)
    iterator = aiter(incoming)
    assert await anext(iterator) == b"abc"
    incoming.feed(b"d")
    incoming.finish()
    assert [piece async for piece in iterator] == [b"d"]


async def test_a_body_read_whole_can_be_read_again_in_any_way() -> None:
    incoming, flow = body()
    task = asyncio.create_task(incoming.read())
    await waiting(task, flow)
    incoming.feed(b"ab")
    incoming.feed(b"c")
    incoming.finish()
    assert await task == b"abc"
    assert await incoming.read() == b"abc"
    assert [piece async for piece in incoming] == [b"abc"]
    assert incoming.arrived() == b"abc"


async def test_a_body_taken_in_pieces_is_not_there_to_be_read_whole() -> None:
    incoming, _ = body()
    incoming.feed(b"a")
    assert await anext(aiter(incoming)) == b"a"
    incoming.finish()
    assert incoming.arrived() is None
    with pytest.raises(RuntimeError):
        await incoming.read()


async def test_what_arrived_before_an_error_is_delivered_first() -> None:
    incoming, _ = body()
    incoming.feed(b"a")
    incoming.fail(ClientDisconnected())
    incoming.feed(b"late")
    iterator = aiter(incoming)
    assert await anext(iterator) == b"a"
    with pytest.raises(ClientDisconnected):
        await anext(iterator)
    assert not incoming.is_complete


async def test_an_error_ends_a_read_that_waits() -> None:
    incoming, flow = body()
    task = asyncio.create_task(incoming.read())
    await waiting(task, flow)
    incoming.fail(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await task


async def test_a_sender_ahead_of_its_reader_is_held_until_the_reader_has_caught_up() -> None:
    incoming, flow = body()
    incoming.feed(b"x" * HIGH_WATER)
    assert flow.calls == []
    incoming.feed(b"x")
    assert flow.calls == ["hold"]
    assert len(await anext(aiter(incoming))) == HIGH_WATER + 1
    assert flow.calls == ["hold", "release"]


async def test_whoever_reads_all_holds_nobody() -> None:
    incoming, flow = body()
    incoming.feed(b"x" * (HIGH_WATER + 1))
    task = asyncio.create_task(incoming.read())
    await waiting(task, flow)
    incoming.feed(b"x" * (2 * HIGH_WATER))
    assert flow.calls == ["hold", "release", "wanted"]
    incoming.finish()
    assert len(await task) == 3 * HIGH_WATER + 1


@pytest.mark.parametrize("ending", ["finish", "fail"])
async def test_a_body_that_has_ended_holds_nobody_though_unread(ending: str) -> None:
    incoming, flow = body()
    incoming.feed(b"x" * (HIGH_WATER + 1))
    if ending == "finish":
        incoming.finish()
    else:
        incoming.fail(ClientDisconnected())
    assert flow.calls == ["hold", "release"]


async def test_a_limit_stops_a_read_as_early_as_it_can() -> None:
    announced, flow = body(length=11)
    with pytest.raises(PayloadTooLarge):
        await announced.read(10)
    assert flow.calls == []
    chunked, flow = body()
    task = asyncio.create_task(chunked.read(10))
    await waiting(task, flow)
    chunked.feed(b"x" * 11)
    with pytest.raises(PayloadTooLarge):
        await task
    exact, _ = body(length=10)
    exact.feed(b"x" * 10)
    exact.finish()
    assert await exact.read(10) == b"x" * 10
    with pytest.raises(PayloadTooLarge):
        await exact.read(9)


async def test_a_read_that_was_cancelled_loses_nothing() -> None:
    incoming, flow = body()
    incoming.feed(b"a")
    task = asyncio.create_task(incoming.read())
    await waiting(task, flow)
    task.cancel()
    await asyncio.wait((task,))
    incoming.feed(b"b")
    incoming.finish()
    assert await incoming.read() == b"ab"


async def test_two_readers_at_once_are_a_mistake_that_shows() -> None:
    incoming, flow = body()
    task = asyncio.create_task(incoming.read())
    await waiting(task, flow)
    with pytest.raises(RuntimeError):
        await anext(aiter(incoming))
    incoming.finish()
    assert await task == b""


class Sink:
    """An outlet that notes what it was given, and takes `most` pieces."""

    def __init__(self, most: int = 100) -> None:
        self.written: list[bytes] = []
        self.most = most

    @property
    def is_open(self) -> bool:
        return len(self.written) < self.most

    def write(self, piece: bytes) -> None:
        self.written.append(piece)


async def pouring(sink: Sink) -> tuple[IncomingBody, Flow, asyncio.Task[bytes]]:
    """A body, its flow, and a task that waits for a piece while others go to `sink`."""
    incoming, flow = body()
    incoming.pour(sink)
    task = asyncio.ensure_future(anext(incoming))
    await waiting(task, flow)
    return incoming, flow, task


async def test_a_reader_that_pours_sleeps_through_all_that_its_outlet_takes() -> None:
    sink = Sink()
    incoming, _, task = await pouring(sink)
    for piece in (b"a", b"b"):
        incoming.feed(piece)
        await asyncio.sleep(0)
    assert (sink.written, task.done(), incoming.received) == ([b"a", b"b"], False, 2)
    incoming.finish()
    with pytest.raises(StopAsyncIteration):
        await task


async def test_an_outlet_that_closes_wakes_the_reader_with_what_it_did_not_take() -> None:
    sink = Sink(most=1)
    incoming, _, task = await pouring(sink)
    for piece in (b"a", b"b", b"c"):
        incoming.feed(piece)
    assert (await task, sink.written) == (b"bc", [b"a"])


async def test_pouring_ends_with_the_wait() -> None:
    sink = Sink()
    incoming, _, task = await pouring(sink)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    incoming.feed(b"a")
    assert (await anext(incoming), sink.written) == (b"a", [])


async def test_a_sender_is_held_when_the_outlet_is_closed() -> None:
    incoming, flow, task = await pouring(Sink(most=0))
    incoming.feed(b"x" * (HIGH_WATER + 1))
    assert flow.calls[-1] == "hold"
    assert len(await task) == HIGH_WATER + 1


async def test_a_body_that_was_poured_is_not_there_to_be_read_whole() -> None:
    incoming, _, task = await pouring(Sink())
    incoming.feed(b"a")
    incoming.fail(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await task
    assert incoming.arrived() is None
    with pytest.raises(RuntimeError, match="already taken in pieces"):
        await incoming.read()
