"""The quick way of reading finds what the readers proper find, or leaves the message to them."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_plane.http1.limits import ClientLimits, ServerLimits
from data_plane.http1.request_reader import Arrival, Refused, RequestReader
from data_plane.http1.response_reader import ProtocolFault, ResponseReader
from data_plane.http1.whole import WholeReader
from data_plane.messages import BufferedBody

FIRST = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n"


class NoFlow:
    def hold(self) -> None: ...

    def release(self) -> None: ...

    def wanted(self) -> None: ...


def requests_in(*pieces: bytes) -> tuple[list[Any], Any]:
    """What a reader finds after a first request, which makes it know the host; and what it refuses."""
    arrivals: list[Arrival] = []
    reader = RequestReader(ServerLimits(max_body_size=64), NoFlow(), arrivals.append)
    refusal = None
    try:
        for piece in (FIRST, *pieces):
            reader.feed(piece)
    except Refused as refused:
        refusal = type(refused.error)
    found = []
    for arrival in arrivals[1:]:
        body = arrival.body if isinstance(arrival.body, BufferedBody) else arrival.incoming
        data = body.data if isinstance(body, BufferedBody) else body.arrived()  # type: ignore[union-attr]
        found.append((arrival.method, arrival.target, arrival.headers.raw, data, arrival.keep_alive))
    return found, refusal


def response_in(*pieces: bytes) -> Any:
    reader = ResponseReader(ClientLimits(), NoFlow())
    reader.expect("GET")
    try:
        for piece in pieces:
            reader.feed(piece)
    except ProtocolFault:
        return "fault"
    response = reader.take_response()
    if response is None:
        return None
    body = response.body if isinstance(response.body, bytes) else None
    return response.status, response.headers.raw, body, reader.complete, reader.keep_alive


NAMES = st.sampled_from(
    ["Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Expect", "X-A", "x_b", "X y", ""]
)
VALUES = st.sampled_from(
    ["a", "b", "0", "3", "5", "chunked", "keep-alive", "close", "h2c", "100-continue", "", "a\rb", "a\nb", "\xe9\x85"]
)
BLANKS = st.sampled_from(["", " ", "\t", "  ", "\x0b"])
LINES = st.builds(
    lambda n, c, x, v, y: f"{n}{c}{x}{v}{y}", NAMES, st.sampled_from([":", ":", ":", " :", ""]), BLANKS, VALUES, BLANKS
)
BODIES = st.sampled_from([b"", b"abc", b"abcde", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])


def message(first: str, lines: list[str], ending: str, body: bytes) -> bytes:
    return ending.join([first, *lines, "", ""]).encode("latin-1") + body


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            "GET / HTTP/1.1",
            "POST /x HTTP/1.1",
            "POST  / HTTP/1.1",
            "GET * HTTP/1.1",
            "GET /#f HTTP/1.1",
            "GET / HTTP/1.0",
            "CONNECT / HTTP/1.1",
            "get / HTTP/1.1",
            "GET http://a/ HTTP/1.1",
        ]
    ),
    st.lists(LINES, max_size=3),
    st.booleans(),
    st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]),
    BODIES,
)
@example("POST / HTTP/1.1", ["Content-Length: 3", "Content-Length: 3"], True, "\r\n", b"abc")
@example("POST / HTTP/1.1", ["content-length: 3", "transfer-encoding: chunked"], True, "\r\n", b"abc")
@example("POST / HTTP/1.1", ["Content-Length: 03"], True, "\r\n", b"abc")
def test_a_request_is_the_same_whole_and_in_pieces(
    first: str, lines: list[str], with_host: bool, ending: str, body: bytes
) -> None:
    data = message(first, ["Host: a", *lines] if with_host else lines, ending, body)
    assert requests_in(data) == requests_in(data[:1], data[1:])


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            "HTTP/1.1 200 OK",
            "HTTP/1.1 200",
            "HTTP/1.1 204 No",
            "HTTP/1.1 100 Go",
            "HTTP/1.0 200 OK",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 304 Not",
            "HTTP/2.0 200 OK",
            "HTTP/1.1  200 OK",
        ]
    ),
    st.lists(LINES, max_size=3),
    st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]),
    BODIES,
)
@example("HTTP/1.1 200 OK", ["Content-Length: 3"], "\r\n", b"abc")
@example("HTTP/1.1 304 Not", ["Content-Length: 3"], "\r\n", b"abc")
def test_a_response_is_the_same_whole_and_in_pieces(first: str, lines: list[str], ending: str, body: bytes) -> None:
    data = message(first, lines, ending, body)
    assert response_in(data) == response_in(data[:1], data[1:])


PLAIN = b"POST /x?y HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX: 1: 2 \r\nContent-Length: 3\r\n\r\nabc"


def test_a_plain_message_is_read_the_quick_way() -> None:
    whole = WholeReader(httptools.HttpRequestParser).read(PLAIN)
    assert whole is not None
    first, headers, body, head_size = whole
    assert first == "POST /x?y HTTP/1.1"
    assert headers.raw[2:] == [("X", "1: 2"), ("Content-Length", "3")]
    assert headers.get("x") == "1: 2"
    assert body == b"abc"
    assert head_size == len(PLAIN) - 3


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        PLAIN + b"d",
        PLAIN + PLAIN,
        PLAIN.replace(b"keep-alive", b"close"),
        PLAIN.replace(b"Connection: keep-alive", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"Connection: keep-alive", b"Upgrade: websocket"),
        PLAIN.replace(b"Connection: keep-alive", b"host: b"),
        PLAIN.replace(b"Connection: keep-alive", b"Expect: 100-continue"),
        PLAIN.replace(b"X: ", b"X : "),
        PLAIN.replace(b"X: ", b" X: "),
        PLAIN.replace(b"1: 2 ", b"1\n2"),
    ],
)
def test_anything_else_is_left_to_the_reader_proper_also_afterwards(data: bytes) -> None:
    reader = WholeReader(httptools.HttpRequestParser)
    assert reader.read(data) is None
    assert reader.read(PLAIN) is not None
