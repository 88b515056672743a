"""The client over real sockets: pools, retries, timeouts, and what it says when an upstream fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from data_plane.errors import InvalidResponse, PayloadTooLarge, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from data_plane.http1.client import Client, Origin, Timeouts
from data_plane.http1.framing import InvalidHeader
from data_plane.messages import Headers, Request, Response
from tests.data_plane.http1.peers import PATIENCE, Slept, answering, forever, get, post, read_request

Start = Callable[..., Any]
Make = Callable[..., Client]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Case: Kept\r\n\r\nok"
WAIT = Timeouts(PATIENCE, PATIENCE, PATIENCE)


async def collect(body: AsyncIterator[bytes], seen: list[bytes]) -> None:
    async for piece in body:
        seen.append(piece)


async def closed_port() -> int:
    """A port on which nobody listens."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def test_a_small_answer_is_bytes_and_its_connection_is_used_again(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(OK))
    client = make_client()
    for _ in range(5):
        response = await client.send(server.origin, post(), WAIT)
        assert (response.status, response.body, response.source) == (200, b"ok", "upstream")
        assert response.headers.raw == [("Content-Length", "2"), ("X-Case", "Kept")]
        assert not response.is_held
    assert (server.connections, client.kept_count) == (1, 1)


async def test_a_request_goes_out_as_it_is_with_host_and_framing(upstream: Start, make_client: Make) -> None:
    seen: list[bytes] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(b"".join(await read_request(reader)))
            writer.write(OK)

    server = await upstream(play)
    client = make_client()
    await client.send(server.origin, get("/a?b=c", [("aCCept", "x"), ("X", "1"), ("X", "2")]), WAIT)
    await client.send(server.origin, post(b"hello", "/", [("Host", "h"), ("Content-Length", "99")]), WAIT)
    assert seen == [
        b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\naCCept: x\r\nX: 1\r\nX: 2\r\n\r\n" % server.port,
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    ]


async def test_requests_at_once_take_a_connection_each_and_then_share(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(OK))
    client = make_client(max_idle_per_origin=3)
    for _ in range(2):
        await asyncio.gather(*(client.send(server.origin, get(), WAIT) for _ in range(5)))
    assert client.kept_count == 3
    assert server.connections == 7


async def test_origins_of_different_trust_share_no_connection(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(OK))
    client = make_client()
    for origin in (server.origin, server.origin._replace(verify=False), server.origin._replace(server_name="b")):
        await client.send(origin, get(), WAIT)
    assert server.connections == 3


async def test_a_connection_is_retired_after_so_many_requests(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(OK))
    client = make_client(max_requests_per_connection=2)
    for _ in range(4):
        await client.send(server.origin, get(), WAIT)
    assert server.connections == 2


async def test_an_idle_connection_is_closed_in_time(upstream: Start, make_client: Make) -> None:
    ended = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        assert await reader.read() == b""
        ended.set()

    server = await upstream(play)
    client = make_client(idle_timeout=0.05)
    await client.send(server.origin, get(), WAIT)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    while client.kept_count:  # noqa: ASYNC110 (the other side heard first)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"surplus",
        OK + OK,
    ],
)
async def test_a_connection_that_is_not_fit_for_it_is_not_used_again(
    upstream: Start, make_client: Make, answer: bytes
) -> None:
    server = await upstream(forever(answer))
    client = make_client()
    for _ in range(3):
        assert (await client.send(server.origin, get(), WAIT)).body == b"ok"
    assert server.connections == 3


async def test_what_an_upstream_says_unasked_is_no_answer(upstream: Start, make_client: Make) -> None:
    """An answer to a question nobody asked must not become the answer to the next one."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        await writer.drain()
        await reader.read()

    server = await upstream(play)
    client = make_client()
    for _ in range(3):
        assert (await client.send(server.origin, get(), WAIT)).body == b"ok"
        while client.kept_count:  # noqa: ASYNC110 (until the surplus has been seen)
            await asyncio.sleep(0.001)
    assert server.connections == 3


async def test_a_connection_that_the_upstream_closed_is_not_taken(upstream: Start, make_client: Make) -> None:
    server = await upstream(answering(OK))
    client = make_client()
    for _ in range(3):
        assert (await client.send(server.origin, post(), WAIT)).body == b"ok"
        while client.kept_count:  # noqa: ASYNC110 (until the close has been seen)
            await asyncio.sleep(0.001)
    assert server.connections == 3


# Stale connections.


def stale(*first: bytes) -> Any:
    """A first connection that reads one request more than it answers; later ones answer all."""
    played = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal played
        played += 1
        if played > 1:
            return await forever(OK)(reader, writer)
        for answer in first:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        await reader.readuntil(b"\r\n\r\n")

    return play


@pytest.mark.parametrize("request_", [get(), post()], ids=["GET", "POST"])
async def test_a_kept_connection_that_breaks_silently_is_replaced_once(
    upstream: Start, make_client: Make, request_: Request
) -> None:
    server = await upstream(stale(OK))
    client = make_client()
    await client.send(server.origin, get(), WAIT)
    assert (await client.send(server.origin, request_, WAIT)).body == b"ok"
    assert server.connections == 2


async def test_a_new_connection_that_breaks_silently_is_an_error(upstream: Start, make_client: Make) -> None:
    server = await upstream(stale())
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(server.origin, get(), WAIT)
    assert (raised.value.kind, raised.value.sent) == ("reset", True)
    assert server.connections == 1


async def test_a_kept_connection_that_breaks_amid_its_answer_is_an_error(upstream: Start, make_client: Make) -> None:
    server = await upstream(stale(OK + b""))
    client = make_client()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"HTTP/1.1 2")

    server = await upstream(play)
    await client.send(server.origin, get(), WAIT)
    with pytest.raises(InvalidResponse) as raised:
        await client.send(server.origin, get(), WAIT)
    assert raised.value.kind == "reset"
    assert server.connections == 1


async def test_a_streamed_request_is_not_sent_twice(upstream: Start, make_client: Make) -> None:
    server = await upstream(stale(OK))
    client = make_client()
    await client.send(server.origin, get(), WAIT)
    request = post()
    body = Slept()
    body.say(b"a")
    body.say(None)
    request.body = body
    with pytest.raises(InvalidResponse) as raised:
        await client.send(server.origin, request, WAIT)
    assert (raised.value.kind, raised.value.sent) == ("reset", True)
    assert server.connections == 1


@pytest.mark.parametrize(("request_", "again"), [(get(), True), (post(), False)], ids=["GET", "POST"])
async def test_what_an_upstream_may_have_worked_on_is_done_again_only_if_harmless(
    upstream: Start, make_client: Make, request_: Request, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_plane.http1.client._RACE", -1.0)
    server = await upstream(stale(OK))
    client = make_client()
    await client.send(server.origin, get(), WAIT)
    if again:
        assert (await client.send(server.origin, request_, WAIT)).body == b"ok"
    else:
        with pytest.raises(InvalidResponse):
            await client.send(server.origin, request_, WAIT)
    assert server.connections == (2 if again else 1)


# Bodies that stream.

LONG = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_stream_is_handed_over_with_its_head(upstream: Start, make_client: Make) -> None:
    more = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(LONG + b"3\r\none\r\n")
            await more.wait()
            more.clear()
            writer.write(b"3;e=x\r\ntwo\r\n0\r\nTrailer: t\r\n\r\n")

    server = await upstream(play)
    client = make_client()
    for _ in range(2):
        response = await client.send(server.origin, get(), WAIT)
        assert not isinstance(response.body, bytes)
        assert await anext(response.body) == b"one"
        more.set()
        assert [piece async for piece in response.body] == [b"two"]
        assert client.kept_count == 1
        await response.close()
    assert server.connections == 1


async def test_a_stream_may_be_read_whole(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONG)
        for piece in (b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"):
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(piece)
        await reader.read()

    server = await upstream(play)
    response = await make_client().send(server.origin, get(), WAIT)
    assert await response.read() == b"ab"
    await response.close()


async def test_a_body_left_unread_closes_its_connection(upstream: Start, make_client: Make) -> None:
    gone = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONG + b"3\r\none\r\n")
        await writer.drain()
        try:
            await reader.read()
        finally:
            gone.set()

    server = await upstream(play)
    client = make_client()
    response = await client.send(server.origin, get(), WAIT)
    await response.close()
    await response.close()
    await asyncio.wait_for(gone.wait(), PATIENCE)
    assert client.kept_count == 0


async def test_closing_an_old_response_does_not_touch_its_connections_next_exchange(
    upstream: Start, make_client: Make
) -> None:
    release = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONG + b"3\r\none\r\n")
        await writer.drain()
        await release.wait()
        writer.write(b"0\r\n\r\n")
        await read_request(reader)
        writer.write(LONG + b"3\r\ntwo\r\n")
        await writer.drain()
        release.clear()
        await release.wait()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    server = await upstream(play)
    client = make_client()
    old = await client.send(server.origin, get(), WAIT)
    release.set()
    assert await old.read() == b"one"
    new = await client.send(server.origin, get(), WAIT)
    await old.close()
    release.set()
    assert await new.read() == b"two"
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (LONG + b"3\r\none\r\n", b"one"),
        (LONG + b"3\r\no", b"o"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000, b"x" * 70_000),
    ],
)
async def test_a_body_that_breaks_off_says_so_after_what_came(
    upstream: Start, make_client: Make, answer: bytes, came: bytes
) -> None:
    server = await upstream(answering(answer))
    response = await make_client().send(server.origin, get(), WAIT)
    assert not isinstance(response.body, bytes)
    seen: list[bytes] = []
    with pytest.raises(UpstreamError) as raised:
        await collect(response.body, seen)
    assert raised.value.kind == "reset"
    assert b"".join(seen) == came
    await response.close()


async def test_a_small_body_that_breaks_off_is_no_response_at_all(upstream: Start, make_client: Make) -> None:
    server = await upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"))
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(server.origin, get(), WAIT)
    assert raised.value.kind == "reset"


async def test_a_body_may_end_with_its_connection(upstream: Start, make_client: Make) -> None:
    server = await upstream(answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000))
    client = make_client()
    response = await client.send(server.origin, get(), WAIT)
    assert await response.read() == b"x" * 200_000
    assert client.kept_count == 0


async def test_a_broken_chunk_is_a_fault_in_the_stream(upstream: Start, make_client: Make) -> None:
    go = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONG + b"3\r\none\r\n")
        await go.wait()
        writer.write(b"zz\r\n")
        await reader.read()

    server = await upstream(play)
    response = await make_client().send(server.origin, get(), WAIT)
    assert not isinstance(response.body, bytes)
    assert await anext(response.body) == b"one"
    go.set()
    with pytest.raises(InvalidResponse) as raised:
        await anext(response.body)
    assert raised.value.kind == "protocol"


@pytest.mark.parametrize(
    "answer", [b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
async def test_what_is_no_http_is_an_invalid_response(upstream: Start, make_client: Make, answer: bytes) -> None:
    server = await upstream(forever(answer))
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(server.origin, get(), WAIT)
    assert (raised.value.kind, raised.value.sent, raised.value.status) == ("protocol", True, 502)


async def test_interim_answers_are_passed_over(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK))
    response = await make_client().send(server.origin, get(), WAIT)
    assert (response.status, "link" in response.headers) == (200, False)


async def test_the_answer_to_head_has_no_body_and_keeps_the_connection(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"))
    client = make_client()
    for _ in range(3):
        response = await client.send(server.origin, get(method="HEAD"), WAIT)
        assert (response.body, response.headers.get("content-length")) == (b"", "5000")
    assert server.connections == 1


# Requests that stream.


async def test_a_body_of_unknown_length_goes_out_in_chunks(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"0\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in head
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    server = await upstream(play)
    client = make_client()
    for _ in range(2):
        request = post()
        request.body = body = Slept()
        sending = asyncio.create_task(client.send(server.origin, request, WAIT))
        for piece in (b"one", b"", b"three", None):
            body.say(piece)
        response = await asyncio.wait_for(sending, PATIENCE)
        assert response.body == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"
    assert server.connections == 1


async def test_a_body_of_known_length_goes_out_as_it_is(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await reader.read()

    server = await upstream(play)
    request = post()
    request.body = body = Slept(length=6)
    for piece in (b"one", b"two", None):
        body.say(piece)
    assert (await make_client().send(server.origin, request, WAIT)).body == b"onetwo"


@pytest.mark.parametrize("pieces", [[b"toolong"], [b"abc"]])
async def test_a_body_that_is_not_as_long_as_it_said_is_not_sent_as_if(
    upstream: Start, make_client: Make, pieces: list[bytes]
) -> None:
    server = await upstream(forever(OK))
    request = post()
    request.body = body = Slept(length=6)
    for piece in [*pieces, None]:
        body.say(piece)
    with pytest.raises(ValueError, match="length"):
        await make_client().send(server.origin, request, WAIT)


async def test_an_error_of_the_requests_own_body_reaches_the_sender(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(OK))
    client = make_client()
    request = post()
    request.body = body = Slept()
    body.say(b"a")
    body.say(PayloadTooLarge())
    with pytest.raises(PayloadTooLarge):
        await client.send(server.origin, request, WAIT)
    assert client.kept_count == 0


async def test_an_answer_before_the_requests_end_is_handed_over(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()

    server = await upstream(play)
    client = make_client()
    request = post()
    request.body = body = Slept()
    body.say(b"a")
    response = await asyncio.wait_for(client.send(server.origin, request, WAIT), PATIENCE)
    assert (response.status, response.body) == (413, b"no")
    assert client.kept_count == 0


# Failures and timeouts.


async def test_a_refused_connection_was_not_sent_to(make_client: Make) -> None:
    origin = Origin("http", "127.0.0.1", await closed_port())
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(origin, get(), WAIT)
    assert (raised.value.kind, raised.value.sent) == ("refused", False)


async def test_a_name_that_does_not_resolve_is_unavailable(make_client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    async def fail(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("data_plane.http1.client._addresses", fail)
    with pytest.raises(UpstreamUnavailable) as raised:
        await make_client().send(Origin("http", "no-such-host.invalid", 80), get(), WAIT)
    assert (raised.value.kind, raised.value.sent, raised.value.status) == ("dns", False, 503)


async def test_the_next_address_of_a_name_is_tried(
    upstream: Start, make_client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await upstream(forever(OK))

    async def two(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]  # Nobody listens on the first.

    monkeypatch.setattr("data_plane.http1.client._addresses", two)
    assert (await make_client().send(server.origin._replace(host="name"), get(), WAIT)).body == b"ok"


async def test_a_name_is_resolved(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(OK))
    assert (await make_client().send(server.origin._replace(host="localhost"), get(), WAIT)).body == b"ok"


async def test_connecting_takes_no_longer_than_allowed(make_client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("data_plane.http1.client._addresses", never)
    with pytest.raises(UpstreamTimeout) as raised:
        await make_client().send(Origin("http", "slow", 80), get(), Timeouts(0.05, 1, 1))
    assert (raised.value.kind, raised.value.sent, raised.value.status) == ("timeout_connect", False, 504)


async def test_an_upstream_that_says_nothing_times_out(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await upstream(play)
    client = make_client()
    with pytest.raises(UpstreamTimeout) as raised:
        await client.send(server.origin, post(), Timeouts(1, 1, 0.05))
    assert (raised.value.kind, raised.value.sent) == ("timeout_read", True)
    assert client.kept_count == 0


async def test_the_read_timeout_is_between_two_reads_and_not_for_the_whole(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONG)
        for _ in range(6):
            await asyncio.sleep(0.1)
            writer.write(b"1\r\na\r\n")
            await writer.drain()
        await reader.read()

    server = await upstream(play)
    response = await make_client().send(server.origin, get(), Timeouts(1, 1, 0.4))
    assert not isinstance(response.body, bytes)
    seen: list[bytes] = []
    with pytest.raises(UpstreamTimeout):
        await collect(response.body, seen)
    assert b"".join(seen) == b"aaaaaa"


async def test_an_upstream_that_takes_nothing_times_out(upstream: Start, make_client: Make) -> None:
    hold = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()

    server = await upstream(play)
    with pytest.raises(UpstreamTimeout) as raised:
        await make_client().send(server.origin, post(b"x" * 50_000_000), Timeouts(1, 0.1, 30))
    assert (raised.value.kind, raised.value.sent) == ("timeout_write", True)


async def test_a_cancelled_send_closes_its_connection(upstream: Start, make_client: Make) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        try:
            await reader.read()
        finally:
            gone.set()

    server = await upstream(play)
    client = make_client()
    sending = asyncio.create_task(client.send(server.origin, post(), WAIT))
    await asyncio.wait_for(asked.wait(), PATIENCE)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await asyncio.wait_for(gone.wait(), PATIENCE)
    assert client.kept_count == 0


async def test_closing_the_client_fails_what_is_under_way(upstream: Start, make_client: Make) -> None:
    asked = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()

    server = await upstream(play)
    client = make_client()
    sending = asyncio.create_task(client.send(server.origin, post(), WAIT))
    await asyncio.wait_for(asked.wait(), PATIENCE)
    await client.close()
    with pytest.raises(InvalidResponse):
        await sending


@pytest.mark.parametrize("headers", [[("X", "a\r\nb")], [("X y", "a")]])
async def test_a_header_that_would_split_the_request_is_not_sent(
    upstream: Start, make_client: Make, headers: list[tuple[str, str]]
) -> None:
    server = await upstream(forever(OK))
    with pytest.raises(InvalidHeader):
        await make_client().send(server.origin, get("/", headers), WAIT)
    assert server.connections == 0


async def test_errors_tell_nothing_that_was_sent(upstream: Start, make_client: Make) -> None:
    server = await upstream(forever(b"nonsense secret-in-answer\r\n"))
    with pytest.raises(UpstreamError) as raised:
        await make_client().send(server.origin, get("/secret-path", [("Authorization", "Bearer secret-key")]), WAIT)
    assert "secret" not in f"{raised.value!r} {raised.value} {raised.value.detail}"


async def test_through_server_and_client_a_stream_passes_unchanged(
    upstream: Start, make_client: Make, serve: Start
) -> None:
    """Both ends together, as the data plane uses them; a client that leaves stops the upstream."""
    gone = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONG)
        try:
            while True:
                writer.write(b"5\r\nevent\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)
        finally:
            gone.set()

    server = await upstream(play)
    client = make_client()

    async def proxy(request: Request) -> Response:
        forward = Request(request.method, request.target, Headers(), request.body)
        return await client.send(server.origin, forward, WAIT)

    gateway = await serve(proxy)
    async with await gateway.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        await asyncio.wait_for(peer.reader.readuntil(b"event\r\n5\r\nevent\r\n"), PATIENCE)
    assert (await gateway.outcome()).outcome == "client_closed"
    await asyncio.wait_for(gone.wait(), PATIENCE)
    assert client.kept_count == 0


async def test_giving_up_an_answer_that_came_breaks_no_other_exchange(upstream: Start, make_client: Make) -> None:
    """The first one's answer is here, its connection already carries the second one's request, and only then is the
    first one cancelled, before it could hear of its answer."""
    asked: list[asyncio.StreamWriter] = []
    told = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            asked.append(writer)
            told.set()

    server = await upstream(play)
    client = make_client()
    first = asyncio.ensure_future(client.send(server.origin, post(), WAIT))
    await asyncio.wait_for(told.wait(), PATIENCE)
    told.clear()
    (connection,) = client.pool(server.origin).connections  # type: ignore[union-attr]
    connection.data_received(OK)
    second = client.send(server.origin, post(), WAIT)
    waiter = second.send(None)  # type: ignore[arg-type]  # as far as its first wait
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(told.wait(), PATIENCE)
    asked[-1].write(OK)
    response = await asyncio.wait_for(waiter, PATIENCE)  # type: ignore[arg-type]
    assert response.body == b"ok"
    assert server.connections == 1
    second.close()


async def test_an_answer_that_nobody_waits_for_any_more_is_no_part_of_the_next(
    upstream: Start, make_client: Make
) -> None:
    """It comes between the cancelling and the hearing of it."""
    asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            asked.put_nowait(writer)

    server = await upstream(play)
    client = make_client()
    first = asyncio.ensure_future(client.send(server.origin, post(), WAIT))
    await asyncio.wait_for(asked.get(), PATIENCE)
    (connection,) = client.pool(server.origin).connections  # type: ignore[union-attr]
    first.cancel()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
    second = asyncio.ensure_future(client.send(server.origin, post(), WAIT))
    (await asyncio.wait_for(asked.get(), PATIENCE)).write(OK)
    assert (await asyncio.wait_for(second, PATIENCE)).body == b"ok"
    with pytest.raises(asyncio.CancelledError):
        await first
