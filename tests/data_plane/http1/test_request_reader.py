"""What is a request and what is not: a table of smuggling attempts, and h11 as the second opinion."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_plane.errors import BadRequest, GatewayError, HeadTooLarge, PayloadTooLarge, UriTooLong
from data_plane.http1.limits import ServerLimits
from data_plane.http1.request_reader import Arrival, Refused, RequestReader
from data_plane.messages import BufferedBody


class NoFlow:
    def hold(self) -> None: ...

    def release(self) -> None: ...

    def wanted(self) -> None: ...


class Read:
    """A reader fed with pieces, and what came of it."""

    def __init__(self, pieces: list[bytes], **limits: Any) -> None:
        self.arrivals: list[Arrival] = []
        self.refused: Refused | None = None
        self.reader = RequestReader(ServerLimits(**limits), NoFlow(), self.arrivals.append)
        for piece in pieces:
            try:
                self.reader.feed(piece)
            except Refused as refused:
                self.refused = refused
                return

    @property
    def error(self) -> GatewayError:
        assert self.refused is not None, [arrival.target for arrival in self.arrivals]
        return self.refused.error

    def bodies(self) -> list[bytes | None]:
        """Of each request; None where the body is not complete."""
        return [
            arrival.body.data if isinstance(arrival.body, BufferedBody) else arrival.incoming.arrived()  # type: ignore[union-attr]
            for arrival in self.arrivals
        ]


def head(*lines: str, first: str = "POST / HTTP/1.1", host: bool = True) -> bytes:
    fields = ["Host: a", *lines] if host else list(lines)
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"0\r\n\r\n"

SMUGGLING = {
    "length beside chunked": head("Content-Length: 5", "Transfer-Encoding: chunked") + CHUNKED,
    "chunked beside length": head("Transfer-Encoding: chunked", "Content-Length: 5") + CHUNKED,
    "two lengths that differ": head("Content-Length: 5", "Content-Length: 6") + b"hello!",
    "two lengths that agree": head("Content-Length: 5", "Content-Length: 5") + b"hello",
    "a list of lengths": head("Content-Length: 5, 5") + b"hello",
    "a signed length": head("Content-Length: +5") + b"hello",
    "a negative length": head("Content-Length: -5") + b"hello",
    "a hexadecimal length": head("Content-Length: 0x5") + b"hello",
    "an underscored length": head("Content-Length: 1_0") + b"hello",
    "an empty length": head("Content-Length: ") + b"hello",
    "a length beyond 64 bits": head("Content-Length: 18446744073709551621") + b"hello",
    "a coding that is not chunked": head("Transfer-Encoding: gzip") + CHUNKED,
    "a coding before chunked": head("Transfer-Encoding: gzip, chunked") + CHUNKED,
    "a coding after chunked": head("Transfer-Encoding: chunked, identity") + CHUNKED,
    "two fields of codings": head("Transfer-Encoding: gzip", "Transfer-Encoding: chunked") + CHUNKED,
    "chunked twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + CHUNKED,
    "almost chunked": head("Transfer-Encoding: xchunked") + CHUNKED,
    "chunked in quotes": head('Transfer-Encoding: "chunked"') + CHUNKED,
    "chunked behind a vertical tab": head("Transfer-Encoding: \x0bchunked") + CHUNKED,
    "an empty coding": head("Transfer-Encoding: ") + CHUNKED,
    "identity": head("Transfer-Encoding: identity") + CHUNKED,
    "chunked in HTTP/1.0": head("Transfer-Encoding: chunked", first="POST / HTTP/1.0") + CHUNKED,
    "a space before the colon": head("Transfer-Encoding : chunked") + CHUNKED,
    "a tab before the colon": head("Content-Length\t: 5") + b"hello",
    "a folded line": head("X: a\r\n b"),
    "a folded first line": head(" X: a"),
    "a line that ends in LF": b"POST / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "a first line that ends in LF": b"POST / HTTP/1.1\nHost: a\r\n\r\n",
    "a head that ends in LF LF": b"POST / HTTP/1.1\r\nHost: a\r\n\n",
    "a lone CR": b"POST / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "NUL in a value": head("X: a\0b"),
    "a control character in a value": head("X: a\x01b"),
    "DEL in a value": head("X: a\x7fb"),
    "a space in a name": head("X Y: a"),
    "an 8-bit name": head("X\xe9: a"),
    "an empty name": head(": a"),
    "a line without a colon": head("X"),
    "no host": head("X: a", host=False),
    "two hosts": head("Host: b"),
    "the same host twice": head("Host: a"),
    "a host with a path": head("Host: a/b", host=False),
    "a host with a user": head("Host: u@a", host=False),
    "a host with a space": head("Host: a b", host=False),
    "a host with a bad port": head("Host: a:b", host=False),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9, spelled out": head(first="GET / HTTP/0.9"),
    "HTTP/1.2": head(first="GET / HTTP/1.2"),
    "HTTP/2.0": head(first="GET / HTTP/2.0"),
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "RTSP": head(first="DESCRIBE / RTSP/1.0"),
    "CONNECT": head(first="CONNECT a:80 HTTP/1.1"),
    "a lower-case method": head(first="get / HTTP/1.1"),
    "an unknown method": head(first="FROB / HTTP/1.1"),
    "a target with a fragment": head(first="GET /a#b HTTP/1.1"),
    "an 8-bit target": head(first="GET /\xe9 HTTP/1.1"),
    "a space in the target": head(first="GET /a b HTTP/1.1"),
    "a relative target": head(first="GET a HTTP/1.1"),
    "an asterisk with GET": head(first="GET * HTTP/1.1"),
    "an absolute target of another scheme": head(first="GET ftp://b/ HTTP/1.1"),
    "an absolute target with a user": head(first="GET http://u:p@b/ HTTP/1.1"),
    "an absolute target without a host": head(first="GET http:///a HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING.keys())
@pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
def test_what_could_be_read_two_ways_is_refused_and_nothing_behind_it_is_read(data: bytes, split: bool) -> None:
    whole = data + NEXT
    read = Read([whole[i : i + 1] for i in range(len(whole))] if split else [whole])
    assert isinstance(read.error, BadRequest)
    assert [arrival.target for arrival in read.arrivals if arrival.target == "/smuggled"] == []
    read.reader.feed(NEXT)
    assert [arrival.target for arrival in read.arrivals if arrival.target == "/smuggled"] == []


BROKEN_CHUNKS = {
    "a size that ends in LF": b"5\nhello\r\n0\r\n\r\n",
    "a space after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "a prefix of the size": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "data longer than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "data that ends in LF": b"5\r\nhello\n0\r\n\r\n",
    "an extension with LF": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
}


@pytest.mark.parametrize("body", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS.keys())
async def test_a_broken_chunk_fails_the_body_it_stands_in_and_ends_the_connection(body: bytes) -> None:
    start = head("Transfer-Encoding: chunked")
    for pieces in ([start + body + NEXT], [start, body + NEXT], [start, *[bytes([byte]) for byte in body + NEXT]]):
        read = Read(pieces)
        assert read.refused is not None
        assert read.refused.in_body
        assert [arrival.target for arrival in read.arrivals] == ["/"]
        with pytest.raises(BadRequest):
            await read.arrivals[0].body.read()


def test_fields_keep_their_case_and_order_and_lose_the_space_around_values() -> None:
    read = Read([head("X-One:  1 \t", "x-two:", "X-ONE: \te\xe9 f\t ")])
    assert read.arrivals[0].headers.raw == [("Host", "a"), ("X-One", "1"), ("x-two", ""), ("X-ONE", "e\xe9 f")]


def test_the_size_of_a_head_is_what_it_took_on_the_wire() -> None:
    data = head("Content-Type: application/json", "X: ")
    assert Read([data]).arrivals[0].size == len(data)
    assert Read([data[:20], data[20:]]).arrivals[0].size == len(data)


@pytest.mark.parametrize(
    ("target", "seen", "host"),
    [
        ("/a/b?c=d", "/a/b?c=d", "a"),
        ("http://b/a?c", "/a?c", "b"),
        ("HTTP://b:81/a", "/a", "b:81"),
        ("https://b", "/", "b"),
        ("http://b?c", "/?c", "b"),
        ("http://[::1]:8080/", "/", "[::1]:8080"),
        ("//b/a", "//b/a", "a"),
    ],
)
def test_an_absolute_target_says_host_and_path(target: str, seen: str, host: str) -> None:
    arrival = Read([head(first=f"GET {target} HTTP/1.1")]).arrivals[0]
    assert (arrival.target, arrival.headers.get_all("host")) == (seen, [host])


def test_options_may_ask_about_the_server_as_such() -> None:
    assert Read([head(first="OPTIONS * HTTP/1.1")]).arrivals[0].target == "*"


def test_http_1_0_needs_no_host_and_closes_unless_asked_otherwise() -> None:
    plain, kept = (
        Read([head(*lines, first="GET / HTTP/1.0", host=False)]).arrivals[0]
        for lines in ((), ("Connection: keep-alive",))
    )
    assert (plain.keep_alive, kept.keep_alive) == (False, True)


def test_nothing_after_a_request_that_closes_is_read() -> None:
    for pieces in ([head("Connection: close") + NEXT], [head("Connection: close"), NEXT]):
        read = Read(pieces)
        assert read.refused is None
        assert len(read.arrivals) == 1


def test_pipelined_requests_of_all_framings_come_one_by_one() -> None:
    data = (
        head("Content-Length: 3")
        + b"abc"
        + head("Transfer-Encoding: chunked", first="PUT /2 HTTP/1.1")
        + b"2;x=y\r\nde\r\n1\r\nf\r\n0\r\nTrailer: t\r\n\r\n"
        + head(first="GET /3 HTTP/1.1")
        + head("Content-Length: 0", first="POST /4 HTTP/1.1")
    )
    for size in (1, 2, 7, 64, len(data)):
        read = Read([data[start : start + size] for start in range(0, len(data), size)])
        assert [arrival.target for arrival in read.arrivals] == ["/", "/2", "/3", "/4"]
        assert read.bodies() == [b"abc", b"def", b"", b""]
        assert all("trailer" not in arrival.headers for arrival in read.arrivals)


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_an_offer_to_upgrade_is_declined_and_hides_no_body(framing: str) -> None:
    """llhttp stops at an upgrade and skips the body; `Upgrade: h2c` is what Java's client sends with every POST."""
    body = b"hello" if "Length" in framing else b"5\r\nhello\r\n0\r\n\r\n"
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", framing)
    data = head(*upgrade) + body + head("Connection: Upgrade", "Upgrade: websocket", first="GET /2 HTTP/1.1") + NEXT
    for size in (1, 3, 50, len(data)):
        read = Read([data[start : start + size] for start in range(0, len(data), size)])
        assert [arrival.target for arrival in read.arrivals] == ["/", "/2", "/smuggled"]
        assert read.bodies() == [b"hello", b"", b""]


def test_many_offers_to_upgrade_in_one_read_are_all_declined() -> None:
    one = head("Connection: Upgrade", "Upgrade: websocket", first="GET / HTTP/1.1")
    assert len(Read([one * 2000]).arrivals) == 2000


@pytest.mark.parametrize("split", [False, True], ids=["at once", "in pieces"])
def test_too_long_a_head_is_refused(split: bool) -> None:
    data = head(*[f"X-{number}: {'v' * 100}" for number in range(20)])
    pieces = [data[start : start + 200] for start in range(0, len(data), 200)] if split else [data]
    assert isinstance(Read(pieces, max_head_size=1500).error, HeadTooLarge)
    assert Read(pieces, max_head_size=len(data)).refused is None


def test_too_many_fields_are_refused() -> None:
    assert isinstance(Read([head(*["X: "] * 9)], max_headers=9).error, HeadTooLarge)
    assert Read([head(*["X: "] * 8)], max_headers=9).refused is None


def test_a_value_without_an_end_is_refused_before_it_is_all_kept() -> None:
    read = Read([b"GET / HTTP/1.1\r\nHost: a\r\nX: ", *[b"v" * 1000] * 100], max_head_size=4000)
    assert isinstance(read.error, HeadTooLarge)


def test_too_long_a_target_is_refused_whether_it_ends_or_not() -> None:
    assert isinstance(Read([head(first=f"GET /{'a' * 100} HTTP/1.1")], max_target_size=100).error, UriTooLong)
    assert isinstance(Read([b"GET /" + b"a" * 50, b"a" * 50], max_target_size=100).error, UriTooLong)
    assert Read([head(first=f"GET /{'a' * 99} HTTP/1.1")], max_target_size=100).refused is None


def test_pipelined_heads_do_not_add_up_to_one_too_large() -> None:
    one = head("X: " + "v" * 100)
    half = len(one) // 2
    assert len(Read([one[:half], one[half:] + one * 50 + one[:half], one[half:]], max_head_size=300).arrivals) == 52


def test_a_body_announced_too_large_is_refused_with_the_request_that_brings_it() -> None:
    read = Read([head("Content-Length: 11", first="PUT /big HTTP/1.1")], max_body_size=10)
    assert isinstance(read.error, PayloadTooLarge)
    assert read.refused is not None
    assert read.refused.request is not None
    assert read.refused.request.target == "/big"
    assert Read([head("Content-Length: 10")], max_body_size=10).refused is None


async def test_a_chunked_body_that_grows_too_large_fails_its_reader() -> None:
    start = head("Transfer-Encoding: chunked")
    read = Read([start, b"8\r\n12345678\r\n", b"8\r\n12345678\r\n"], max_body_size=10)
    with pytest.raises(PayloadTooLarge):
        await read.arrivals[0].body.read()
    at_once = Read([start + b"8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n"], max_body_size=10)
    assert isinstance(at_once.error, PayloadTooLarge)


@pytest.mark.parametrize("noise", [b"1;" + b"x" * 2000 + b"\r\na\r\n", b"0\r\n" + b"T: " + b"v" * 2000 + b"\r\n"])
def test_endless_extensions_and_trailers_end_somewhere(noise: bytes) -> None:
    rest = noise if noise.startswith(b"1") else b"T: " + b"v" * 2000 + b"\r\n"
    read = Read([head("Transfer-Encoding: chunked"), noise, *[rest] * 100])
    assert isinstance(read.error, BadRequest)


def test_a_large_body_in_small_chunks_is_no_attack() -> None:
    assert Read([head("Transfer-Encoding: chunked"), *[b"1\r\nx\r\n"] * 50_000, b"0\r\n\r\n"]).refused is None


# A second opinion: what we accept, h11 accepts, and both see the same.

TOKENS = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
TARGETS = st.text("abcXYZ019-._~%/?&=;:@!$'()*+,", max_size=30).map(lambda text: "/" + text)
FRAMING = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    fields = draw(st.lists(st.tuples(TOKENS.filter(lambda name: name.lower() not in FRAMING), VALUES), max_size=5))
    body = draw(st.binary(max_size=40))
    lines = [f"{draw(METHODS)} {draw(TARGETS)} HTTP/1.1", "Host: example.com", *[f"{n}: {v}" for n, v in fields]]
    if draw(st.booleans()):
        lines.append("Transfer-Encoding: chunked")
        data = b"".join(
            b"%x%b\r\n%b\r\n" % (len(part), draw(st.sampled_from([b"", b";a=b", b";c"])), part)
            for part in cut(body, draw(st.lists(st.integers(0, 40), max_size=3)))
            if part
        )
        data += b"0\r\n" + draw(st.sampled_from([b"", b"T: v\r\n"])) + b"\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
        data = body
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return (data[start:end] for start, end in pairwise(edges))


def judged(data: bytes) -> list[tuple[str, str, list[tuple[str, str]], bytes]] | None:
    """The requests that h11 sees; None when it refuses."""
    judge = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    judge.receive_data(data)
    seen: list[tuple[str, str, list[tuple[str, str]], bytes]] = []
    try:
        while True:
            event = judge.next_event()
            if isinstance(event, h11.Request):
                fields = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers.raw_items()]
                seen.append((event.method.decode(), event.target.decode(), fields, b""))
            elif isinstance(event, h11.Data):
                seen[-1] = (*seen[-1][:3], seen[-1][3] + bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                judge.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                judge.send(h11.EndOfMessage())
                if judge.our_state is h11.MUST_CLOSE:
                    return seen
                judge.start_next_cycle()
            else:
                return seen
    except h11.RemoteProtocolError:
        return None


def ours(read: Read) -> list[tuple[str, str, list[tuple[str, str]], bytes | None]]:
    return [
        (arrival.method, arrival.target, arrival.headers.raw, body)
        for arrival, body in zip(read.arrivals, read.bodies(), strict=True)
    ]


@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=6))
@settings(deadline=None)
def test_requests_cut_anywhere_read_as_h11_reads_them(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    expected = judged(data)
    assume(expected is not None)
    assert expected is not None
    read = Read([piece for piece in cut(data, places) if piece])
    assert read.refused is None
    seen = ours(read)
    assert [request[:2] for request in seen] == [request[:2] for request in expected]
    assert [request[3] for request in seen] == [request[3] for request in expected]
    assert [request[2] for request in seen] == [request[2] for request in expected]


@given(requests(), st.data())
@settings(deadline=None, max_examples=300)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None)
def test_a_damaged_request_that_we_accept_is_one_that_h11_reads_alike(data: bytes, draw: st.DataObject | None) -> None:
    """Strictness may differ where nobody is fooled; what both accept must have the same frame."""
    if draw is not None:
        place = draw.draw(st.integers(0, len(data) - 1))
        damage = draw.draw(st.sampled_from([b"", b"\0", b"\n", b"\r", b" ", b"\t", b":", b"\x80", b"0", b"\r\n"]))
        data = data[:place] + damage + data[place + draw.draw(st.integers(0, 2)) :]
    read = Read([data])
    expected = judged(data)
    if read.refused is not None or expected is None:
        return
    seen = [(method, body) for method, _, _, body in ours(read) if body is not None]
    assert seen == [(method, body) for method, _, _, body in expected][: len(seen)]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
@settings(deadline=None)
def test_no_bytes_break_the_reader(data: bytes, places: list[int]) -> None:
    read = Read([piece for piece in cut(data, places) if piece])
    assert read.refused is None or isinstance(read.refused.error, GatewayError)


@pytest.mark.parametrize("place", range(1, 120))
def test_a_chunked_request_split_at_this_place_is_the_same(place: int) -> None:
    data = head("Transfer-Encoding: chunked", "X: a") + b"a;ext=1\r\n0123456789\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n" + NEXT
    read = Read([data[:place], data[place:]] if place < len(data) else [data])
    assert [arrival.target for arrival in read.arrivals] == ["/", "/smuggled"]
    assert read.bodies() == [b"0123456789abc", b""]
