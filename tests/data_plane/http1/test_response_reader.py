"""What is a response and what is not."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.http1.limits import ClientLimits
from data_plane.http1.response_reader import ProtocolFault, ResponseReader
from data_plane.messages import Response
from tests.data_plane.http1.test_request_reader import NoFlow, cut


class Read:
    def __init__(self, pieces: list[bytes], method: str = "GET", **limits: Any) -> None:
        self.reader = ResponseReader(ClientLimits(**limits), NoFlow())
        self.reader.expect(method)
        self.response: Response | None = None
        for piece in pieces:
            self.feed(piece)

    def feed(self, piece: bytes) -> None:
        self.reader.feed(piece)
        if self.response is None:
            self.response = self.reader.take_response()

    def body(self) -> bytes | None:
        """None while it is not complete."""
        assert self.response is not None
        if isinstance(self.response.body, bytes):
            return self.response.body
        assert self.reader.body is not None
        return self.reader.body.arrived()


def head(*lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


FAULTS = {
    "length beside chunked": head("Content-Length: 1", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two lengths": head("Content-Length: 1", "Content-Length: 2") + b"a",
    "a list of lengths": head("Content-Length: 1, 1") + b"a",
    "a coding we cannot decode": head("Transfer-Encoding: gzip") + b"a",
    "a coding below chunked": head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "a coding above chunked": head("Transfer-Encoding: chunked", "Transfer-Encoding: gzip") + b"0\r\n\r\n",
    "chunked HTTP/1.0": head("Transfer-Encoding: chunked", first="HTTP/1.0 200 OK") + b"0\r\n\r\n",
    "HTTP/2.0": head("Content-Length: 0", first="HTTP/2.0 200 OK"),
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "a status of two digits": head(first="HTTP/1.1 20 OK"),
    "no status": head(first="HTTP/1.1 OK"),
    "a folded line": head("X: a", " b"),
    "a line that ends in LF": b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 0\r\n\r\n",
    "NUL in a value": head("X: a\0b"),
    "a protocol switched unasked": head("Upgrade: x", "Connection: upgrade", first="HTTP/1.1 101 Switching Protocols"),
    "a broken chunk": head("Transfer-Encoding: chunked") + b"zz\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
}


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
def test_what_is_no_sound_response_is_a_fault(data: bytes, split: bool) -> None:
    with pytest.raises(ProtocolFault):
        Read([data[i : i + 1] for i in range(len(data))] if split else [data])


@pytest.mark.parametrize(
    ("data", "method", "body", "keep_alive"),
    [
        (head("Content-Length: 3") + b"abc", "GET", b"abc", True),
        (head("Content-Length: 0"), "GET", b"", True),
        (head("Content-Length: 3", "Connection: close") + b"abc", "GET", b"abc", False),
        (head("Content-Length: 3", first="HTTP/1.0 200 OK") + b"abc", "GET", b"abc", False),
        (head("Content-Length: 1", "Connection: keep-alive", first="HTTP/1.0 200 OK") + b"a", "GET", b"a", True),
        (head("Transfer-Encoding: chunked") + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n", "GET", b"abc", True),
        (head("Transfer-Encoding: Chunked") + b"0\r\n\r\n", "GET", b"", True),
        (head(first="HTTP/1.1 204 No Content"), "GET", b"", True),
        (head("Content-Length: 5", first="HTTP/1.1 304 Not Modified"), "GET", b"", True),
        (head("Content-Length: 5"), "HEAD", b"", True),
        (head("Transfer-Encoding: chunked"), "HEAD", b"", True),
        (head("Upgrade: h2", "Connection: Upgrade", "Content-Length: 1") + b"a", "GET", b"a", True),
        (head(first="HTTP/1.1 100 Continue") + head("Content-Length: 1") + b"a", "POST", b"a", True),
        (head("Link: x", first="HTTP/1.1 103 Early Hints") * 3 + head("Content-Length: 0"), "GET", b"", True),
        (head("Content-Length: 1") + b"a" + head("Content-Length: 1") + b"b", "GET", b"a", False),
        (head("Content-Length: 1") + b"a\r\nnonsense", "GET", b"a", False),
        (head("Content-Length: 5") + b"hello", "HEAD", b"", False),
        (head(first="HTTP/1.1 200") + b"", "HEAD", b"", False),
    ],
)
def test_a_response_ends_where_its_head_says(data: bytes, method: str, body: bytes, keep_alive: bool) -> None:
    read = Read([data], method)
    assert read.reader.complete
    assert (read.body(), read.reader.keep_alive) == (body, keep_alive)
    assert read.response is not None
    assert read.response.source == "upstream"


def test_a_parser_goes_on_after_the_answer_to_head() -> None:
    read = Read([head("Content-Length: 5")], "HEAD")
    read.reader.expect("GET")
    read.response = None
    read.feed(head("Content-Length: 2") + b"ab")
    assert read.body() == b"ab"


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    read = Read([head("X: y") + b"abc", b"def"])
    assert read.body() is None
    assert read.reader.end()
    assert read.body() == b"abcdef"
    assert not read.reader.keep_alive


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200", head("Content-Length: 3") + b"ab", head("Transfer-Encoding: chunked")]
)
def test_anything_else_that_ends_with_its_connection_is_cut_off(data: bytes) -> None:
    assert not Read([data] if data else []).reader.end()


def test_a_small_body_is_waited_for_and_a_large_one_is_not() -> None:
    assert Read([head("Content-Length: 10"), b"12345"], whole_body_size=10).response is None
    assert Read([head("Content-Length: 11"), b"12345"], whole_body_size=10).response is not None
    assert Read([head("Transfer-Encoding: chunked")], whole_body_size=10).response is not None


def test_limits_of_the_head_hold() -> None:
    with pytest.raises(ProtocolFault):
        Read([head("X: " + "v" * 100)], max_head_size=100)
    with pytest.raises(ProtocolFault):
        Read([b"HTTP/1.1 200 OK\r\nX: ", *[b"v" * 50] * 10], max_head_size=100)
    with pytest.raises(ProtocolFault):
        Read([head(*["X: y"] * 5)], max_headers=4)


def test_endless_interim_answers_extensions_and_trailers_end_somewhere() -> None:
    with pytest.raises(ProtocolFault):
        Read([head(first="HTTP/1.1 103 Early Hints")] * 100)
    with pytest.raises(ProtocolFault):
        Read([head("Transfer-Encoding: chunked"), b"1;" + b"x" * 90_000])
    with pytest.raises(ProtocolFault):
        Read([head("Transfer-Encoding: chunked"), b"0\r\n", *[b"T: " + b"v" * 2000 + b"\r\n"] * 100])


def test_trailers_do_not_turn_up_in_the_next_head() -> None:
    read = Read([head("Transfer-Encoding: chunked") + b"0\r\nX-Trailer: t\r\n\r\n"])
    read.reader.expect("GET")
    read.response = None
    read.feed(head("Content-Length: 0"))
    assert read.response is not None
    assert read.response.headers.raw == [("Content-Length", "0")]


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    body = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        parts = [part for part in cut(body, draw(st.lists(st.integers(0, 60), max_size=4))) if part]
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        return head("X: y", "Transfer-Encoding: chunked") + data, body
    return head("X: y", f"Content-Length: {len(body)}") + body, body


@given(responses(), st.lists(st.integers(0, 200), max_size=6), st.sampled_from([0, 10, 100]))
@settings(deadline=None)
def test_a_response_cut_anywhere_is_the_same(response: tuple[bytes, bytes], places: list[int], whole: int) -> None:
    data, body = response
    read = Read([piece for piece in cut(data, places) if piece], whole_body_size=whole)
    assert read.reader.complete
    assert read.body() == body


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
@settings(deadline=None)
def test_no_bytes_break_the_reader(data: bytes, places: list[int]) -> None:
    reader = ResponseReader(ClientLimits(), NoFlow())
    reader.expect("GET")
    try:
        for piece in cut(b"HTTP/1.1 200 OK\r\n" + data, places):
            reader.feed(piece)
            reader.take_response()
    except ProtocolFault:
        pass


@given(responses(), st.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_response_that_we_accept_is_one_that_h11_reads_alike(
    response: tuple[bytes, bytes], draw: st.DataObject
) -> None:
    data, _ = response
    place = draw.draw(st.integers(17, len(data) - 1))
    damage = draw.draw(st.sampled_from([b"", b"\0", b"\n", b"\r", b" ", b":", b"0", b"\r\n"]))
    data = data[:place] + damage + data[place + draw.draw(st.integers(0, 2)) :]
    try:
        read = Read([data])
    except ProtocolFault:
        return
    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    judge.send(h11.EndOfMessage())
    judge.receive_data(data)
    body = b""
    try:
        while not isinstance(event := judge.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Data):
                body += bytes(event.data)
    except h11.RemoteProtocolError:
        return
    assert read.reader.complete
    assert read.body() == body
