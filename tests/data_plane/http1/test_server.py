"""The server over real sockets: answers in order, framed right, and told apart from breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from data_plane.errors import BadRequest, ClientDisconnected, GatewayError, InvalidResponse, RequestTimeout
from data_plane.messages import Headers, Request, Response
from tests.data_plane.http1.peers import PATIENCE, Gateway, Slept

Serve = Callable[..., Any]


async def echo(request: Request) -> Response:
    body = await request.body.read()
    return Response(200, Headers([("X-Method", request.method), ("X-Target", request.target)]), body)


async def test_a_request_is_answered_and_the_connection_kept(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as peer:
        for number in range(3):
            data = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" % number
            status, headers, body = await peer.exchange(data, "POST")
            assert (status, headers["x-target"], body) == (200, f"/{number}", b"hello")
            sent = await gateway.outcome()
            assert (sent.head_sent, sent.outcome) == (True, "complete")
    assert gateway.refusals == []


async def test_what_was_sent_is_counted_to_the_byte(serve: Serve) -> None:
    async def stream(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a" * 1000
            yield b""
            yield b"b"

        return Response(200, None, pieces() if request.target == "/stream" else b"x" * 50_000)

    gateway = await serve(stream)
    for target in (b"/stream", b"/whole"):
        async with await gateway.connect() as peer:
            await peer.send(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
            assert (await gateway.outcome()).bytes_sent == len(await peer.rest())


async def test_pipelined_requests_are_answered_in_their_order(serve: Serve) -> None:
    release = asyncio.Event()

    async def slow_first(request: Request) -> Response:
        if request.target == "/0":
            await release.wait()
        return await echo(request)

    gateway = await serve(slow_first, max_pipeline=4)
    async with await gateway.connect() as peer:
        await peer.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(50)))
        release.set()
        seen = [(await peer.receive())[1]["x-target"] for _ in range(50)]
    assert seen == [f"/{number}" for number in range(50)]


@pytest.mark.parametrize(
    ("method", "status", "body"), [("HEAD", 200, b"hello"), ("GET", 204, b""), ("GET", 304, b""), ("HEAD", 200, None)]
)
async def test_answers_without_a_body_have_none(serve: Serve, method: str, status: int, body: bytes | None) -> None:
    closed = asyncio.Event()

    async def answer(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"never sent"

        response = Response(status, None, pieces() if body is None else body)

        async def close() -> None:
            closed.set()

        response.on_close(close)
        return response

    gateway = await serve(answer)
    async with await gateway.connect() as peer:
        for _ in range(2):
            data = f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            assert (await peer.exchange(data, method))[::2] == (status, b"")
            assert (await gateway.outcome()).outcome == "complete"
    assert closed.is_set()


async def test_a_stream_goes_out_piece_by_piece(serve: Serve) -> None:
    source = Slept()

    async def stream(request: Request) -> Response:
        return Response(200, Headers([("Content-Type", "text/event-stream")]), aiter(source))

    gateway = await serve(stream)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert b"Transfer-Encoding: chunked" in head
        for piece in (b"one", b"two"):
            source.say(piece)
            assert await asyncio.wait_for(peer.reader.readexactly(8), PATIENCE) == b"3\r\n%b\r\n" % piece
        source.say(None)
        assert await asyncio.wait_for(peer.reader.readexactly(5), PATIENCE) == b"0\r\n\r\n"
        assert (await gateway.outcome()).outcome == "complete"


async def test_http_1_0_gets_its_stream_until_the_connection_closes(serve: Serve) -> None:
    source = Slept()
    for piece in (b"one", b"two", None):
        source.say(piece)

    async def stream(request: Request) -> Response:
        return Response(200, None, aiter(source))

    gateway = await serve(stream)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await peer.rest()).partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"Transfer-Encoding" not in head
    assert body == b"onetwo"


async def test_http_1_0_may_keep_its_connection_where_the_length_is_known(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert b"Connection: keep-alive" in head
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        assert b"Connection: close" in await peer.rest()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidResponse("reset"), "upstream_closed"),
        (ValueError("bug"), "gateway_abort"),
        (ClientDisconnected(), "client_closed"),
    ],
)
@pytest.mark.parametrize("http", [b"1.1", b"1.0"])
async def test_a_stream_that_breaks_does_not_end_as_if_it_were_whole(
    serve: Serve, error: Exception, outcome: str, http: bytes
) -> None:
    source = Slept()
    closed = asyncio.Event()

    async def stream(request: Request) -> Response:
        response = Response(200, None, aiter(source))

        async def close() -> None:
            closed.set()

        response.on_close(close)
        return response

    gateway = await serve(stream)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % http)
        source.say(b"partial")
        while b"partial" not in await asyncio.wait_for(peer.reader.read(1000), PATIENCE):
            pass
        source.say(error)
        if http == b"1.0":
            with pytest.raises(ConnectionError):
                await peer.rest()
        else:
            assert b"0\r\n\r\n" not in await peer.rest()
        sent = await gateway.outcome()
        assert (sent.head_sent, sent.outcome) == (True, outcome)
        assert closed.is_set()


@pytest.mark.parametrize(("told", "pieces"), [(5, [b"abc", b"def"]), (5, [b"abc"])])
async def test_a_stream_that_is_not_as_long_as_told_breaks(serve: Serve, told: int, pieces: list[bytes]) -> None:
    source = Slept()
    for piece in [*pieces, None]:
        source.say(piece)

    async def stream(request: Request) -> Response:
        return Response(200, Headers([("Content-Length", str(told))]), aiter(source))

    gateway = await serve(stream)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        _, _, body = (await peer.rest()).partition(b"\r\n\r\n")
        assert body == b"abc"
        assert (await gateway.outcome()).outcome == "gateway_abort"


@pytest.mark.parametrize("value", ["a\r\nX-Injected: yes", "a\r\n\r\n<script>", "a\nX-Injected: yes"])
async def test_a_split_response_is_replaced_by_an_error(serve: Serve, value: str) -> None:
    async def split(request: Request) -> Response:
        return Response(200, Headers([("Location", value)]), b"")

    gateway = await serve(split)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = await peer.rest()
        assert data.startswith(b"HTTP/1.1 500 ")
        assert b"Injected" not in data
        assert b"script" not in data
        assert (await gateway.outcome()).outcome == "gateway_abort"


async def test_an_application_that_raises_is_answered_for(serve: Serve) -> None:
    async def broken(request: Request) -> Response:
        raise ValueError("secret")

    gateway = await serve(broken)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = await peer.rest()
    assert data.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in data
    assert gateway.ended.empty()


# Bodies that arrive while they are read.


async def test_an_expectation_is_met_when_the_body_is_wanted(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n")
        line = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert line == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await peer.exchange(b"hello", "POST"))[2] == b"hello"


async def test_an_expectation_is_not_met_by_an_answer_that_wants_no_body(serve: Serve) -> None:
    async def refuse(request: Request) -> Response:
        return Response(401, None, b"no")

    gateway = await serve(refuse)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        data = await peer.rest()
    assert data.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in data


async def test_an_expectation_that_comes_with_its_body_needs_no_permission(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as peer:
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
        await peer.send(data)
        assert (await asyncio.wait_for(peer.reader.readline(), PATIENCE)) == b"HTTP/1.1 200 OK\r\n"


async def test_a_body_is_read_while_it_arrives(serve: Serve) -> None:
    first = asyncio.Event()

    async def count(request: Request) -> Response:
        sizes = []
        async for piece in request.body:
            sizes.append(len(piece))
            first.set()
        return Response(200, None, str(sum(sizes)).encode())

    gateway = await serve(count)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.wait_for(first.wait(), PATIENCE)
        assert (await peer.exchange(b"2\r\nde\r\n0\r\n\r\n", "POST"))[2] == b"5"
        assert (await peer.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "POST"))[2] == b"1"


async def test_a_large_body_is_read_whole(serve: Serve) -> None:
    gateway = await serve(echo)
    data = bytes(range(256)) * 8192
    async with await gateway.connect() as peer:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data)
        sending = asyncio.create_task(peer.send(head + data))
        assert (await peer.receive("POST"))[2] == data
        await sending


async def test_an_upload_that_nobody_reads_is_answered_and_its_answer_not_lost(serve: Serve) -> None:
    """A server that closes with unread bytes makes TCP reset the connection, answer included."""

    async def refuse(request: Request) -> Response:
        return Response(403, None, b"go away")

    gateway = await serve(refuse)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
        data = await asyncio.wait_for(peer.reader.readuntil(b"go away"), PATIENCE)
        for _ in range(50):
            await peer.send(b"x" * 10_000)
        assert data.startswith(b"HTTP/1.1 403 ")
        assert await peer.rest() == b""


async def test_a_malformed_request_is_answered_after_those_before_it(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as peer:
        await peer.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
        data = await peer.rest()
    assert [line for line in data.split(b"\r\n") if b"HTTP/1.1" in line] == [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 400 Bad Request",
    ]
    assert b"/3" not in data
    assert [type(error) for error, _ in gateway.refusals] == [BadRequest]


async def test_a_broken_chunk_reaches_whoever_reads_the_body(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n")
        data = await peer.rest()
    assert data.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in data
    assert data.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("limits", "data", "status"),
    [
        ({"max_head_size": 100}, b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"v" * 100), 400),
        ({"max_target_size": 10}, b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"v" * 100), 414),
        ({"max_body_size": 4}, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 413),
        ({"max_body_size": 4}, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 413),
        ({}, b"GET / HTTP/1.1\r\n\r\n", 400),
    ],
)
async def test_limits_are_answered_with_their_status_and_close(
    serve: Serve, limits: dict[str, int], data: bytes, status: int
) -> None:
    gateway = await serve(echo, **limits)
    async with await gateway.connect() as peer:
        await peer.send(data)
        answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in answer


# Clients that are slow, or leave.


async def test_a_client_that_sends_nothing_is_closed_on(serve: Serve) -> None:
    gateway = await serve(echo, head_timeout=0.05)
    async with await gateway.connect() as peer:
        assert await peer.rest() == b""


async def test_a_head_that_trickles_is_cut_off(serve: Serve) -> None:
    gateway = await serve(echo, head_timeout=0.1)
    async with await gateway.connect() as peer:

        async def trickle() -> None:
            await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
            while True:
                await peer.send(b"X: y\r\n")
                await asyncio.sleep(0.01)

        task = asyncio.create_task(trickle())
        line = await asyncio.wait_for(peer.reader.readline(), PATIENCE)
        task.cancel()
        await asyncio.wait((task,))
        assert line.startswith(b"HTTP/1.1 408 ")
    assert [type(error) for error, _ in gateway.refusals] == [RequestTimeout]


async def test_an_idle_connection_is_closed_quietly(serve: Serve) -> None:
    gateway = await serve(echo, keepalive_timeout=0.05)
    async with await gateway.connect() as peer:
        await peer.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await peer.rest() == b""
    assert gateway.refusals == []


async def test_a_body_that_stops_arriving_times_out(serve: Serve) -> None:
    gateway = await serve(echo, body_timeout=0.05)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
        assert (await peer.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_handler_may_take_its_time(serve: Serve) -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(0.15)
        return Response(200, None, b"ok")

    gateway = await serve(slow, head_timeout=0.05, body_timeout=0.05, keepalive_timeout=0.05, write_timeout=0.05)
    async with await gateway.connect() as peer:
        assert (await peer.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"))[0] == 200


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_stops_the_work_for_it(serve: Serve, leave: str) -> None:
    working = asyncio.Event()

    async def work(request: Request) -> Response:
        working.set()
        await asyncio.Event().wait()
        raise AssertionError

    gateway = await serve(work)
    peer = await gateway.connect()
    await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.wait_for(working.wait(), PATIENCE)
    if leave == "reset":
        peer.writer.transport.abort()
    await peer.close()
    await asyncio.wait_for(gateway.cancelled.wait(), PATIENCE)
    assert gateway.ended.empty()


async def test_a_client_that_leaves_a_stream_ends_it_and_closes_the_response(serve: Serve) -> None:
    source = Slept()
    ended = asyncio.Event()
    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in source:
                yield piece
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        response = Response(200, None, pieces())

        async def close() -> None:
            assert ended.is_set()
            closed.set()

        response.on_close(close)
        return response

    gateway = await serve(stream)
    peer = await gateway.connect()
    await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    source.say(b"first")
    await asyncio.wait_for(peer.reader.readuntil(b"first"), PATIENCE)
    await peer.close()
    sent = await gateway.outcome()
    assert (sent.head_sent, sent.outcome) == (True, "client_closed")
    assert closed.is_set()


async def test_a_client_that_leaves_amid_its_upload_ends_the_body(serve: Serve) -> None:
    reading = asyncio.Event()

    async def work(request: Request) -> Response:
        async for _ in request.body:
            reading.set()
        raise AssertionError

    gateway = await serve(work)
    peer = await gateway.connect()
    await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello")
    await asyncio.wait_for(reading.wait(), PATIENCE)
    await peer.close()
    await asyncio.wait_for(gateway.cancelled.wait(), PATIENCE)


async def test_a_half_closed_client_counts_as_gone_unless_told_otherwise(serve: Serve) -> None:
    working, release = asyncio.Event(), asyncio.Event()

    async def work(request: Request) -> Response:
        working.set()
        await release.wait()
        return Response(200, None, b"answer")

    patient: Gateway = await serve(work, half_close_is_leaving=False)
    async with await patient.connect() as peer:
        await peer.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(working.wait(), PATIENCE)
        peer.writer.write_eof()
        release.set()
        assert (await peer.rest()).count(b"answer") == 2
    release.clear()
    working.clear()
    strict: Gateway = await serve(work)
    async with await strict.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(working.wait(), PATIENCE)
        peer.writer.write_eof()
        await asyncio.wait_for(strict.cancelled.wait(), PATIENCE)
        assert await peer.rest() == b""


@pytest.mark.parametrize("half_close_is_leaving", [True, False])
async def test_a_client_that_half_closes_amid_a_head_gets_no_answer(serve: Serve, half_close_is_leaving: bool) -> None:
    gateway = await serve(echo, half_close_is_leaving=half_close_is_leaving)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHo")
        peer.writer.write_eof()
        assert await peer.rest() == b""
    assert gateway.ended.empty()


# The end of the server.


async def test_draining_finishes_what_was_begun_and_takes_nothing_new(serve: Serve) -> None:
    working, release = asyncio.Event(), asyncio.Event()

    async def work(request: Request) -> Response:
        working.set()
        await release.wait()
        return Response(200, None, b"done")

    gateway = await serve(work)
    busy, idle = await gateway.connect(), await gateway.connect()
    async with busy, idle:
        await busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(working.wait(), PATIENCE)
        draining = asyncio.create_task(gateway.server.drain(PATIENCE))
        assert await idle.rest() == b""
        with pytest.raises(OSError):  # noqa: PT011 (the platform chooses which)
            await gateway.connect()
        release.set()
        data = await busy.rest()
        assert data.endswith(b"done")
        assert b"Connection: close" in data
        await asyncio.wait_for(draining, PATIENCE)
    assert gateway.server.connection_count == 0


async def test_a_request_that_is_on_its_way_when_draining_begins_is_answered(serve: Serve) -> None:
    gateway = await serve(echo)
    async with await gateway.connect() as kept, await gateway.connect() as new:
        await kept.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        draining = asyncio.create_task(gateway.server.drain(PATIENCE))
        await asyncio.sleep(0)  # It begins.
        for peer in (kept, new):
            status, headers, _ = await peer.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (status, headers["connection"]) == (200, "close")
            assert await peer.rest() == b""
        await asyncio.wait_for(draining, PATIENCE)


async def test_draining_breaks_what_does_not_end_in_time(serve: Serve) -> None:
    source = Slept()
    source.say(b"first")

    async def stream(request: Request) -> Response:
        return Response(200, None, aiter(source))

    gateway = await serve(stream)
    async with await gateway.connect() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(peer.reader.readuntil(b"first"), PATIENCE)
        await asyncio.wait_for(gateway.server.drain(0), PATIENCE)
        assert (await gateway.outcome()).outcome == "gateway_abort"
    assert gateway.server.connection_count == 0


async def test_two_servers_share_a_port(serve: Serve) -> None:
    from data_plane.http1.server import Server

    first: Gateway = await serve(echo)
    second = Gateway(echo)
    server = Server(second)
    assert await server.listen("127.0.0.1", first.port) == first.port
    await server.drain(0)


async def test_gateway_errors_from_reading_the_body_can_be_answered(serve: Serve) -> None:
    seen: list[GatewayError] = []

    async def read(request: Request) -> Response:
        try:
            await request.body.read(3)
        except GatewayError as error:
            seen.append(error)
            raise
        raise AssertionError

    gateway = await serve(read)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
        assert (await peer.rest()).startswith(b"HTTP/1.1 413 ")
    assert [error.status for error in seen] == [413]
