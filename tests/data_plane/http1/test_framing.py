"""How heads are written: what frames the body, and that no header breaks out of its line."""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.http1.client import Origin
from data_plane.http1.framing import (
    BY_LENGTH,
    CHUNKED,
    NO_BODY,
    UNTIL_CLOSE,
    InvalidHeader,
    chunk,
    request_head,
    response_head,
)
from data_plane.messages import BufferedBody, Head, Headers, Request, Response

ORIGIN = Origin("http", "example.com", 80)


async def pieces() -> AsyncIterator[bytes]:
    yield b"a"


def fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")
    assert lines[-2:] == ["", ""]
    return dict(line.split(": ", 1) for line in lines[1:-2])


def respond(status: int = 200, headers: list[tuple[str, str]] | None = None, body: object = b"abc") -> Response:
    return Response(status, Headers(headers or []), body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "method", "http_1_0", "framing", "expected"),
    [
        (respond(), "GET", False, BY_LENGTH, {"Content-Length": "3"}),
        (respond(headers=[("Content-Length", "99")]), "GET", False, BY_LENGTH, {"Content-Length": "3"}),
        (respond(headers=[("Transfer-Encoding", "chunked")]), "GET", False, BY_LENGTH, {"Content-Length": "3"}),
        (respond(body=b""), "GET", False, BY_LENGTH, {"Content-Length": "0"}),
        (respond(body=pieces()), "GET", False, CHUNKED, {"Transfer-Encoding": "chunked"}),
        (respond(headers=[("Content-Length", "1")], body=pieces()), "GET", False, BY_LENGTH, {"Content-Length": "1"}),
        (
            respond(headers=[("Content-Length", "1x")], body=pieces()),
            "GET",
            False,
            CHUNKED,
            {"Transfer-Encoding": "chunked"},
        ),
        (
            respond(headers=[("Content-Length", "-1")], body=pieces()),
            "GET",
            False,
            CHUNKED,
            {"Transfer-Encoding": "chunked"},
        ),
        (respond(body=pieces()), "GET", True, UNTIL_CLOSE, {"Connection": "close"}),
        (respond(), "GET", True, BY_LENGTH, {"Content-Length": "3", "Connection": "keep-alive"}),
        (respond(), "HEAD", False, NO_BODY, {"Content-Length": "3"}),
        (respond(headers=[("Content-Length", "9")], body=b""), "HEAD", False, NO_BODY, {"Content-Length": "9"}),
        (respond(body=pieces()), "HEAD", False, NO_BODY, {}),
        (respond(204, [("Content-Length", "3")]), "GET", False, NO_BODY, {}),
        (respond(304, [("Content-Length", "9")], b""), "GET", False, NO_BODY, {"Content-Length": "9"}),
        (respond(304, body=b""), "GET", False, NO_BODY, {}),
    ],
)
def test_a_response_is_framed_by_what_its_body_is(
    response: Response, method: str, http_1_0: bool, framing: int, expected: dict[str, str]
) -> None:
    head = response_head(response, method, http_1_0, True)
    seen = fields(head.data)
    assert seen.pop("Date").endswith("GMT")
    assert (head.framing, seen) == (framing, expected)


def test_a_response_that_asks_to_close_closes() -> None:
    head = response_head(respond(headers=[("Connection", "Close"), ("Keep-Alive", "timeout=5")]), "GET", False, True)
    assert not head.keep_alive
    assert fields(head.data)["Connection"] == "close"
    assert "Keep-Alive" not in fields(head.data)


def test_the_date_of_an_upstream_is_kept() -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert response_head(respond(headers=[("date", date)]), "GET", False, True).data.count(b"1994") == 1
    assert fields(response_head(respond(headers=[("date", date)]), "GET", False, True).data).get("Date") is None


@pytest.mark.parametrize(
    ("status", "reason", "line"),
    [
        (200, "", b"HTTP/1.1 200 OK\r\n"),
        (200, "Fine", b"HTTP/1.1 200 Fine\r\n"),
        (599, "", b"HTTP/1.1 599 \r\n"),
    ],
)
def test_the_status_line_tells_the_reason_if_there_is_one(status: int, reason: str, line: bytes) -> None:
    response = Response(status, Headers(), b"", reason=reason)
    assert response_head(response, "GET", False, True).data.startswith(line)


BREAKS = ["a\r\nX: b", "a\nb", "a\rb", "a\r\n\r\nbody", "\n", "\r", "a\0b"]


@pytest.mark.parametrize("value", BREAKS)
def test_no_value_breaks_out_of_its_line(value: str) -> None:
    for headers in (Headers([("X", value)]), Headers([("Date", value)]), Headers([("Host", value)])):
        with pytest.raises(InvalidHeader) as raised:
            response_head(Response(200, headers), "GET", False, True)
        assert "X: b" not in str(raised.value)
        with pytest.raises(InvalidHeader):
            request_head(Request("GET", "/", headers, BufferedBody()), ORIGIN, 0)
    with pytest.raises(InvalidHeader):
        response_head(Response(200, reason=value), "GET", False, True)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\nb", "\xe9", "a\0", " a"])
def test_no_name_is_anything_but_a_token(name: str) -> None:
    headers = Headers([(name, "v")])
    with pytest.raises(InvalidHeader):
        response_head(Response(200, headers), "GET", False, True)
    with pytest.raises(InvalidHeader):
        request_head(Request("GET", "/", headers, BufferedBody()), ORIGIN, 0)


def test_text_that_the_wire_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidHeader):
        response_head(respond(headers=[("X", "\u20ac")]), "GET", False, True)


@pytest.mark.parametrize("target", ["", "/a b", "/a\r\nX: b", "/\u20ac", "/a\0"])
def test_no_target_breaks_the_request_line(target: str) -> None:
    with pytest.raises(InvalidHeader):
        request_head(Request("GET", target, Headers(), BufferedBody()), ORIGIN, 0)


@pytest.mark.parametrize("method", ["", "GE T", "GET\r\n", "G\xe9T"])
def test_no_method_breaks_the_request_line(method: str) -> None:
    with pytest.raises(InvalidHeader):
        request_head(Request(method, "/", Headers(), BufferedBody()), ORIGIN, 0)


@pytest.mark.parametrize(
    ("method", "headers", "length", "expected"),
    [
        ("GET", [], 0, {"Host": "example.com"}),
        ("POST", [], 0, {"Host": "example.com", "Content-Length": "0"}),
        ("GET", [], 5, {"Host": "example.com", "Content-Length": "5"}),
        ("POST", [("content-length", "9"), ("host", "b")], 5, {"host": "b", "Content-Length": "5"}),
        ("POST", [("Transfer-Encoding", "gzip")], None, {"Host": "example.com", "Transfer-Encoding": "chunked"}),
    ],
)
def test_a_request_gets_a_host_and_its_framing(
    method: str, headers: list[tuple[str, str]], length: int | None, expected: dict[str, str]
) -> None:
    head = request_head(Request(method, "/", Headers(headers), BufferedBody()), ORIGIN, length)
    assert fields(head) == expected


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        (Origin("http", "a", 80), "a"),
        (Origin("https", "a", 443), "a"),
        (Origin("https", "a", 80), "a:80"),
        (Origin("http", "::1", 8080), "[::1]:8080"),
    ],
)
def test_an_origin_is_named_as_hosts_are(origin: Origin, authority: str) -> None:
    assert origin.authority == authority


NAMES = st.text("abcXYZ019-_!", min_size=1, max_size=10)
VALUES = st.text(st.characters(max_codepoint=0x17F), max_size=20)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.binary(max_size=30), st.integers(200, 599))
def test_whatever_is_written_reads_as_one_response_with_these_headers(
    headers: list[tuple[str, str]], body: bytes, status: int
) -> None:
    """Either it is refused, or an independent parser sees exactly our headers and our body."""
    response = respond(status, headers, body)
    try:
        head = response_head(response, "GET", False, True)
    except InvalidHeader:
        return
    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    judge.send(h11.EndOfMessage())
    judge.receive_data(head.data + (b"" if head.framing == NO_BODY else body))
    try:
        event = judge.next_event()
    except h11.RemoteProtocolError:
        # h11 takes no control characters; they cannot end a line, and llhttp refuses them on their way in.
        assert any(ord(char) < 32 or ord(char) == 127 for _, value in headers for char in value)
        return
    assert isinstance(event, h11.Response)
    ours = {"content-length", "transfer-encoding", "connection", "keep-alive", "date"}
    seen = [(name.decode(), value.decode("latin-1")) for name, value in event.headers if name.decode() not in ours]
    assert seen == [(n.lower(), v.strip(" \t")) for n, v in headers if n.lower() not in ours]
    assert judge.trailing_data[0] == (b"" if head.framing == NO_BODY else body) or not body


@given(st.binary(min_size=1, max_size=5000))
def test_a_chunk_says_its_size_in_hexadecimal(data: bytes) -> None:
    size, _, rest = chunk(data).partition(b"\r\n")
    assert int(size, 16) == len(data)
    assert rest == data + b"\r\n"


NAMES = st.sampled_from(["Date", "Connection", "Content-Length", "content-type", "X-A", "X-B", "Keep-Alive", "Via"])
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from(["", "1", "close", "keep-alive", "Mon, 1 Jan 2024"])), max_size=6)


@given(FIELDS, FIELDS, st.sampled_from([200, 204, 304, 404]), st.sampled_from(["GET", "HEAD"]), st.data())
def test_a_head_that_comes_again_is_written_as_if_it_were_new(
    first: list[tuple[str, str]], added: list[tuple[str, str]], status: int, method: str, data: st.DataObject
) -> None:
    head = Head(first)
    http_1_0, keep_alive, is_stream, changes = (data.draw(st.booleans()) for _ in range(4))
    reason = data.draw(st.sampled_from(["", "Odd"]))
    for length in ("1", "22", "1"):
        again = head.headers(length)
        for name, value in added:
            again.add(name, value)
        if changes:
            again.set("X-A", "changed")
            again.remove("x-b")
        written = [
            response_head(
                Response(status, headers, pieces() if is_stream else b"body", reason=reason),
                method,
                http_1_0,
                keep_alive,
            )
            for headers in (again, Headers(again.raw))
        ]
        for one in written:
            one.data = b"\r\n".join(line for line in one.data.split(b"\r\n") if not line.startswith(b"Date: "))
        assert [(one.data, one.framing, one.length, one.keep_alive) for one in written[:1]] == [
            (one.data, one.framing, one.length, one.keep_alive) for one in written[1:]
        ]


@given(FIELDS, st.sampled_from(["GET", "POST"]), st.sampled_from(["/", "/a?b"]), st.sampled_from([None, 0, 7, 123]))
def test_a_request_that_comes_again_is_written_as_if_it_were_new(
    first: list[tuple[str, str]], method: str, target: str, length: int | None
) -> None:
    head = Head(first)
    for origin in (ORIGIN, Origin("http", "other.test", 8080), ORIGIN):
        again, fresh = (
            Request(method, target, headers, BufferedBody()) for headers in (head.headers("5"), Headers(first))
        )
        assert request_head(again, origin, length) == request_head(fresh, origin, length)


def test_a_header_that_would_break_out_does_not_when_it_comes_again() -> None:
    head = Head([("X-A", "1\r\nX-Evil: 1")])
    for _ in range(2):
        with pytest.raises(InvalidHeader):
            response_head(Response(200, head.headers(""), b""), "GET", False, True)
        with pytest.raises(InvalidHeader):
            request_head(Request("POST", "/", head.headers(""), BufferedBody()), ORIGIN, 0)
