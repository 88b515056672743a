"""The express way changes nothing that anybody sees: not the service, not the client, not who reads the events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import h11
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.express import OpenLine
from data_plane.http1.express import Line
from data_plane.http1.server_connection import ServerConnection
from tests.data_plane.builders import gateway
from tests.data_plane.http1.peers import PATIENCE, Peer, Upstream, read_request
from tests.data_plane.stage import Rides, Stage, impersonal, ordinarily, unlike

OWN_FIELDS = ("request_id", "started_us", "finished_us", "total_us", "upstream_us", "gateway_us", "receive_us")
"""Of events: what differs from exchange to exchange. So does `response_size`, by the digits of latencies."""


def run(story: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(story)


# What is said.

FIELDS = (
    b"accept: x",
    b"X-Empty:",
    b"x-padded: \t a  b \t",
    b"Via: 1.0 c",
    b"X-Forwarded-For: 1.2.3.4",
    b"x-forwarded-proto: HTTPS",
    b"X-Forwarded-Host: e.example",
    b"X-Forwarded-Port: 1",
    b"X-Forwarded-Prefix: /p",
    b"X-Forwarded-Path: /p/q",
    b"X-Real-IP: 5.6.7.8",
    b"Connection: keep-alive",
    b"connection: X-Drop",
    b"Connection: close",
    b"X-Drop: 1",
    b"Keep-Alive: timeout=5",
    b"Proxy: evil",
    b"TE: trailers",
    b"te: gzip",
    b"X-Kong-Request-Id: mine",
    b"Kong-Debug: 1",
    b"User-Agent: \xff\xe9",
    b"COOKIE: a=b",
    b"Cookie: c=d",
    b"Expect: 100-continue",
    b"X-Claim: 00000000000000000000000000000000",
)
ANSWER_FIELDS = (
    b"Server: theirs",
    b"Via: 1.0 y",
    b"Connection: keep-alive",
    b"Connection: Keep-Alive",
    b"connection: X-Drop",
    b"Connection: close",
    b"X-Drop: 1",
    b"Content-Type: t/t",
    b"x-EMPTY:",
    b"Keep-Alive: timeout=5",
    b"X-Kong-Request-Id: theirs",
    b"X-Kong-Upstream-Latency: 7",
    b"X-Kong-Proxy-Latency: 7",
    b"X-Kong-Response-Latency: 7",
    b"TE: x",
    b"Set-Cookie: a=b",
    b"set-cookie: \xe9",
    b"X-Cache: \t padded \t",
)
SIZES = st.sampled_from([0, 0, 1, 9, 10, 99, 100, 4000, 33_000])
STATUSES = (b"200 OK", b"200 OK", b"201 Made", b"404 Not Found", b"500 Oops", b"204 No Content", b"304 Not Modified")


@st.composite
def requests(draw: st.DrawFn) -> list[bytes]:
    """Requests with one head, but for the length, and perhaps one with another in between."""
    method = draw(st.sampled_from([b"GET", b"POST", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD"]))
    target = draw(st.sampled_from([b"/a", b"/a", b"/a/b?x=%20", b"/a?", b"/a//../c?=&", b"/none"]))
    host = draw(st.sampled_from([b"Host: h", b"host: H.example:81", b"HOST:   h  "]))
    name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-lENGTH"]))
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=5, unique=True))
    has_length = draw(st.booleans()) or method in (b"POST", b"PUT", b"PATCH")
    sizes = [draw(SIZES) if has_length else 0 for _ in range(draw(st.integers(5, 8)))]
    first = draw(st.integers(0, len(fields)))
    said = []
    for number, size in enumerate(sizes):
        lines = [*fields[:first], host, *fields[first:]]
        if has_length:
            lines.insert(first, name + b": %d" % size)
        if number == 4 and draw(st.booleans()):
            lines.append(b"X-Odd: one out")
        said.append(b"\r\n".join((method + b" " + target + b" HTTP/1.1", *lines, b"", b"%d" % number * size)))
    return said


@st.composite
def answers(draw: st.DrawFn) -> list[list[bytes]]:
    """Answers, each in the pieces it is written in."""
    status = draw(st.sampled_from(STATUSES))
    fields = draw(st.lists(st.sampled_from(ANSWER_FIELDS), max_size=4, unique=True))
    if draw(st.integers(0, 3)):
        fields.append(b"Date: now")
    said = []
    for number in range(8):
        body = b"%d" % number * draw(SIZES)
        odd = number > 4 and draw(st.booleans())
        if status[:3] in (b"204", b"304"):
            body = b""
        head = [b"HTTP/1.1 " + status, *fields, *([b"X-Odd: one out"] if odd else [])]
        if odd and body and draw(st.booleans()):
            whole = b"\r\n".join((*head, b"Transfer-Encoding: chunked", b"", b"%x" % len(body), body, b"0", b"", b""))
        else:
            whole = b"\r\n".join((*head, b"Content-Length: %d" % len(body), b"", body))
        cut = draw(st.integers(1, len(whole))) if odd and draw(st.booleans()) else len(whole)
        said.append([piece for piece in (whole[:cut], whole[cut:]) if piece])
    return said


class Talk(NamedTuple):
    """What was seen of a conversation."""

    service: list[bytes]
    client: bytes
    events: list[str]


class Setting:
    """A gateway and a service, for one conversation after the other: the n-th request gets the n-th answer."""

    def __init__(self, said: list[list[bytes]]) -> None:
        self.said = said
        self.stage = Stage()
        self.stage.server = Upstream(self._play)
        self.requests: list[bytes] = []

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = b"".join(await read_request(reader))
            pieces = self.said[len(self.requests) % len(self.said)]
            self.requests.append(data)
            if data.startswith(b"HEAD "):
                pieces = [b"".join(pieces).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"]
            for piece in pieces:
                writer.write(piece)
                for _ in range(3):
                    await asyncio.sleep(0)

    async def talk(self, segments: list[bytes], *, waits: bool = True) -> Talk:
        """One client's connection: each segment arrives at once; without `waits`, the last two before any answer."""
        node = self.stage.node
        self.requests.clear()
        node.events.clear()
        client = await self.stage.connect()
        await until(lambda: node.worker._server.connection_count == 1)
        (server,) = node.worker._server._connections
        seen = asyncio.create_task(client.rest())
        for number, segment in enumerate(segments):
            if server._lost or server._transport.is_closing():
                break
            server.data_received(segment)
            if waits or number != len(segments) - 2:
                await until(lambda: is_over(server))
        if not server._lost and not server._transport.is_closing():
            client.writer.write_eof()
        data = await seen
        await client.close()
        await until(lambda: node.worker._server.connection_count == 0 and not node.worker.pipeline.runtime.exchanges)
        return Talk(
            [impersonal(request) for request in self.requests],
            data,
            [impersonal_event(event) for event in node.events],
        )


def is_over(server: ServerConnection) -> bool:
    """Nothing is to be answered, or the client has more to say first."""
    waits = server._reader.body is not None and not server._queue
    return server._lost or server._transport.is_closing() or server._lingering or not server._is_answering or waits


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (nobody announces it)
            await asyncio.sleep(0)


def impersonal_event(event: Any) -> str:
    copy = type(event).FromString(event.SerializeToString())
    assert event.finished_us - event.started_us == event.total_us
    for name in (*OWN_FIELDS, "response_size"):
        copy.ClearField(name)
    presence = [event.HasField(name) for name in ("upstream_us", "receive_us")]
    return f"{copy} {presence}"


async def both_ways(
    segments: list[bytes],
    said: list[list[bytes]],
    *,
    node_settings: dict[str, Any] | None = None,
    waits: bool = True,
    kinds: Sequence[type[Line]] = (),
    **route: Any,
) -> tuple[Talk, Talk, int]:
    """The same conversation in the ordinary way, and with the express way; and how many requests took that, on lines
    of these `kinds`."""
    setting = Setting(said)
    with pytest.MonkeyPatch.context() as patch:
        rides = Rides(patch, *kinds)
        async with setting.stage.server, gateway(**(node_settings or {})) as node:
            setting.stage.node = node
            object.__setattr__(node.worker._server._limits, "half_close_is_leaving", False)
            await node.apply(setting.stage.document(service={"retries": 0}, **route), 1)
            with patch.context() as off:
                ordinarily(off)
                ordinary = await setting.talk(segments, waits=waits)
            assert rides.boarded == 0
            express = await setting.talk(segments, waits=waits)
            return ordinary, express, rides.boarded


def compare(ordinary: Talk, express: Talk) -> None:
    assert express.service == ordinary.service
    assert impersonal(express.client) == impersonal(ordinary.client)
    assert express.events == ordinary.events


@settings(max_examples=250)
@given(
    requests(),
    answers(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.fixed_dictionaries({"strip_path": st.booleans(), "preserve_host": st.booleans()}),
)
def test_a_conversation_is_the_same(
    said: list[bytes], told: list[list[bytes]], strange: bool, trusted: bool, debug: bool, route: dict[str, bool]
) -> None:
    node_settings = {"trusted_ips": ("127.0.0.1",) if trusted else (), "allow_debug_header": debug}
    ordinary, express, _ = run(both_ways(unlike(said) if strange else said, told, node_settings=node_settings, **route))
    compare(ordinary, express)


BASE = b"POST /a HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nContent-Length: %d\r\n\r\n%b"
GREETING = [[b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 2\r\n\r\n%02d" % number] for number in range(20)]


def base(body: bytes) -> bytes:
    return BASE % (len(body), body)


def test_such_conversations_do_ride() -> None:
    """What the properties here compare would be the same without an express way, too."""
    ordinary, express, rides = run(both_ways([base(b"%d" % number) for number in range(10)], GREETING))
    compare(ordinary, express)
    assert rides == 7
    assert len(express.events) == 10


def test_so_do_those_without_two_heads_alike() -> None:
    """But for the first: whether its host is sound is looked at in the ordinary way."""
    said = unlike([base(b"%d" % number) for number in range(10)])
    ordinary, express, rides = run(both_ways(said, GREETING, kinds=(OpenLine,)))
    compare(ordinary, express)
    assert rides == 9
    assert len(express.events) == 10


@settings(max_examples=150)
@given(st.data())
def test_a_request_with_a_byte_changed_is_the_same(data: st.DataObject) -> None:
    """Where it is not sound it ends the connection, and where it leaves something open, the next one fills it."""
    sound = base(b"0123456789")
    position = data.draw(st.integers(0, len(sound) - 1))
    value = data.draw(st.sampled_from([b"\r", b"\n", b"\0", b" ", b":", b"0", b"+", b"1", b"\xb2", b"x", b"\t", b"/"]))
    kind = data.draw(st.sampled_from(["insert", "delete", "replace"]))
    changed = sound[:position] + (b"" if kind == "delete" else value) + sound[position + (kind != "insert") :]
    segments = [base(b"abc")] * 4 + [changed, base(b"behind")]
    ordinary, express, rides = run(both_ways(segments, GREETING, waits=False))
    compare(ordinary, express)
    assert rides


SMUGGLED = base(b"smuggled")


@pytest.mark.parametrize(
    "odd",
    [
        base(SMUGGLED),
        base(b"\r\n\r\n" + SMUGGLED),
        SMUGGLED * 2,
        base(b"0\r\n\r\n" + SMUGGLED),
        BASE.replace(b"%d", b"+%d") % (3, b"abc"),
        BASE.replace(b"%d", b"-%d") % (3, b"abc"),
        BASE.replace(b"%d", b"0%d") % (3, b"abc"),
        BASE.replace(b"%d", b"0x%d") % (3, b"abc"),
        BASE.replace(b"%d", b"%d_0") % (1, b"0123456789"),
        BASE.replace(b"%d", b"%d ") % (3, b"abc"),
        BASE.replace(b"%d", b"%d,3") % (3, b"abc"),
        BASE.replace(b"%d", b"%d\r\nContent-Length: 3") % (3, b"abc"),
        BASE.replace(b"%d", b"%d\r\nTransfer-Encoding: chunked") % (3, b"abc"),
        BASE.replace(b"%d", b"\xd9\xa3") % (b"abc",),
        BASE.replace(b"%d", b"3\xb2") % (b"abc",),
        BASE.replace(b"%d", b"\xb3") % (b"abc",),
        BASE.replace(b"%d", b"") % (b"",),
        BASE % (2, b"abc"),
        BASE % (2, b"ab" + SMUGGLED),
        BASE % (4, b"abc"),
        BASE % (10**19, b"abc"),
        base(b"abc") + b"\r\n",
        b"\r\n" + base(b"abc"),
        base(b"abc").replace(b"POST", b"GET"),
        base(b"abc").replace(b"HTTP/1.1", b"HTTP/1.0"),
        base(b"abc").replace(b"Host: h", b"Host: evil"),
        base(b"abc").replace(b"\r\n", b"\n"),
        base(b"abc")[:-4],
        base(b"abc")[:30],
    ],
)
def test_what_is_odd_is_judged_in_the_ordinary_way(odd: bytes) -> None:
    segments = [base(b"abc")] * 4 + [odd, base(b"behind")]
    ordinary, express, rides = run(both_ways(segments, GREETING, waits=False))
    compare(ordinary, express)
    assert rides >= 1


FAULTS = (
    *["none"] * 20,
    "pieces",
    "strange head",
    "chunked",
    "interim",
    "surplus",
    "closes after",
    "says it closes",
    "closes at once",
    "cut head",
    "cut body",
    "cut stream",
    "rubbish",
    "silence",
)


class Unreliable:
    """A service that says back what it was told, and then something goes wrong."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await read_request(reader)
            head = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: %d\r\n" % len(body)
            fault = self._dice.choice(FAULTS)
            if fault == "silence":
                await reader.read()
                return
            for piece in self._said(fault, head, body):
                writer.write(piece)
                for _ in range(self._dice.randrange(6)):
                    await asyncio.sleep(0)
            if fault.startswith(("closes", "cut")):
                return

    def _said(self, fault: str, head: bytes, body: bytes) -> list[bytes]:
        whole = head + b"\r\n" + body
        cut = self._dice.randrange(1, len(head))
        stream = b"HTTP/1.1 200 OK\r\nDate: now\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body)
        return {
            "pieces": [whole[:cut], whole[cut:]],
            "strange head": [head + b"X-Odd: %d\r\n\r\n" % self._dice.randrange(3) + body],
            "chunked": [stream, b"0\r\n\r\n"],
            "interim": [b"HTTP/1.1 103 Early Hints\r\n\r\n", whole],
            "surplus": [whole + whole.replace(body, b"x" * len(body))],
            "says it closes": [head + b"Connection: close\r\n\r\n" + body],
            "closes at once": [],
            "cut head": [whole[:cut]],
            "cut body": [whole[:-1]],
            "cut stream": [stream],
            "rubbish": [b"rubbish " + body + b"\r\n\r\n"],
        }.get(fault, [whole])


class Customer:
    """A client that asks again and again, and keeps account of what it saw."""

    def __init__(self, stage: Stage, dice: random.Random, name: int, *, strange: bool) -> None:
        self._stage = stage
        self._strange = strange
        self._dice = dice
        self._name = name
        self.seen: dict[str, int] = {}
        """By the request's id, the status."""
        self.broken = 0
        """Answers that broke off."""
        self.unseen = 0
        """Requests whose answer it did not wait for."""

    async def ask(self, count: int) -> None:
        client = await self._stage.connect()
        for number in range(count):
            body = b"customer %d, number %04d" % (self._name, number)
            request = base(body)
            await client.send(unlike([request] * (number + 1))[-1] if self._strange else request)
            if not self._dice.randrange(8):
                for _ in range(4 + self._dice.randrange(12)):  # Its request is there, and has begun.
                    await asyncio.sleep(0)
                await self._leave(client)
                client = await self._stage.connect()
                continue
            try:
                status, fields, said = await client.receive("POST")
            except h11.RemoteProtocolError:
                self.broken += 1
            else:
                self.seen[fields["x-kong-request-id"]] = status
                assert status != 200 or said == body
                if fields.get("connection") != "close":
                    continue
            await client.close()
            client = await self._stage.connect()

    async def _leave(self, client: Peer) -> None:
        """The gateway has the whole request, and perhaps its answer is on its way."""
        client.writer.write_eof()
        said = await client.rest()
        if said:
            self.seen[said.partition(b"\r\nX-Kong-Request-Id: ")[2][:32].decode()] = int(said[9:12])
        else:
            self.unseen += 1
        await client.close()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_however_the_service_fails_each_request_has_one_event_and_its_own_answer(
    seed: int, clients: int, strange: bool
) -> None:
    run(many_ask(random.Random(seed), clients, strange=strange))


@pytest.mark.parametrize("strange", [False, True])
def test_such_customers_do_ride(strange: bool) -> None:
    assert run(many_ask(random.Random(1), 3, strange=strange)) > 20


async def many_ask(dice: random.Random, clients: int, *, strange: bool) -> int:
    """Returns how many requests took the express way."""
    stage = Stage()
    stage.server = Upstream(Unreliable(dice).play)
    with pytest.MonkeyPatch.context() as patch:
        rides = Rides(patch, *((OpenLine,) if strange else ()))
        async with stage.server, gateway() as node:
            stage.node = node
            patch.setattr("data_plane.express._STRIKES", 1000)
            await node.apply(stage.document(service={"read_timeout": 20, "retries": 1}), 1)
            customers = [Customer(stage, dice, name, strange=strange) for name in range(clients)]
            await asyncio.gather(*(customer.ask(25) for customer in customers))
            await stage.close()
            await until(lambda: not node.worker.pipeline.runtime.exchanges)
            seen = {key: status for customer in customers for key, status in customer.seen.items()}
            told = {event.request_id.hex(): event for event in node.events}
            assert len(told) == len(node.events) == 25 * clients
            assert {key: told[key].status for key in seen} == seen
            assert len(seen) + sum(one.broken + one.unseen for one in customers) == len(told)
            cut = [event for event in node.events if event.outcome == "upstream_closed"]
            left = [event for event in node.events if event.status == 499]
            assert len(cut) >= sum(one.broken for one in customers)
            assert len(left) <= sum(one.unseen for one in customers)
            ended = rides.arrived + rides.derailed  # And some that derailed were left the very moment.
            assert ended <= rides.boarded <= ended + rides.abandoned
            return rides.boarded
