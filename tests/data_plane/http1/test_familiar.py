"""Heads that come again are read from memory, and found to be what the readers proper find."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.http1.familiar import Memory
from data_plane.http1.limits import ClientLimits, ServerLimits
from data_plane.http1.request_reader import Arrival, Refused, RequestReader
from data_plane.http1.response_reader import ResponseReader
from data_plane.messages import Head, Headers
from tests.data_plane.http1.test_whole import NoFlow

FIELDS = (b"Host: a", b"X-One: 1", b"X-Two:  two ", b"Content-Type: text/plain", b"x-empty:")


def request(body: bytes, *fields: bytes, length: bytes | None = None, name: bytes = b"Content-Length") -> bytes:
    told = b"%d" % len(body) if length is None else length
    return b"\r\n".join((b"POST /p?q HTTP/1.1", *fields, name + b": " + told, b"", body))


class Conversation:
    """One connection's reader, and what it made of the bytes so far."""

    def __init__(self, **limits: Any) -> None:
        self.arrivals: list[Arrival] = []
        self.reader = RequestReader(ServerLimits(**limits), NoFlow(), self.arrivals.append)

    def say(self, data: bytes) -> Any:
        """What was made of it: the request, None, or the refusal."""
        count = len(self.arrivals)
        try:
            self.reader.feed(data)
        except Refused as refused:
            return type(refused.error)
        if len(self.arrivals) == count:
            return None
        arrival = self.arrivals[-1]
        body = getattr(arrival.body, "data", None)
        return arrival.method, arrival.target, arrival.headers.raw, body, arrival.keep_alive, arrival.size


def alone(data: bytes) -> Any:
    """What a reader that knows the host, but no such head, makes of it."""
    conversation = Conversation()
    conversation.say(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    return conversation.say(data)


@given(
    st.permutations(FIELDS),
    st.lists(st.binary(max_size=1200), min_size=2, max_size=5),
    st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]),
)
def test_a_head_that_came_before_means_what_it_meant(fields: list[bytes], bodies: list[bytes], name: bytes) -> None:
    conversation = Conversation()
    conversation.say(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    for body in bodies:
        said = request(body, *fields, name=name)
        assert conversation.say(said) == alone(said)


@given(st.data())
def test_one_byte_more_or_less_or_other_is_judged_by_the_readers_proper(data: st.DataObject) -> None:
    sound = request(b"0123456789", b"Host: a", b"X-One: 1")
    position = data.draw(st.integers(0, len(sound) - 1))
    value = bytes([data.draw(st.integers(0, 255))])
    kind = data.draw(st.sampled_from(["insert", "delete", "replace"]))
    changed = sound[:position] + (b"" if kind == "delete" else value) + sound[position + (kind != "insert") :]
    conversation = Conversation()
    conversation.say(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    conversation.say(sound)
    conversation.say(sound)
    assert conversation.say(changed) == alone(changed)


@pytest.mark.parametrize("told", [b"+3", b"03", b"3 ", b" 3", b"3,3", b"0x3", b"2", b"4", b"", b"3\xb2"])
def test_a_length_that_is_not_the_bodys_own_is_no_match(told: bytes) -> None:
    conversation = Conversation()
    conversation.say(request(b"abc", b"Host: a"))
    odd = request(b"abc", b"Host: a", length=told)
    conversation.say(request(b"abc", b"Host: a"))
    familiar = conversation.reader.memory.last
    assert familiar is not None
    assert familiar.rest_of(odd) is None
    assert conversation.say(odd) == alone(odd)


def test_two_requests_in_one_read_are_two() -> None:
    conversation = Conversation()
    one = request(b"abc", b"Host: a")
    conversation.say(one)
    conversation.say(one + one)
    assert len(conversation.arrivals) == 3


def test_changing_one_requests_headers_changes_no_others() -> None:
    conversation = Conversation()
    one = request(b"abc", b"Host: a", b"X-One: 1")
    conversation.say(one)
    for change in (
        lambda headers: headers.add("X-New", "n"),
        lambda headers: headers.set("X-One", "2"),
        lambda headers: headers.remove("X-One"),
        lambda headers: headers.remove_all(frozenset({"x-one"})),
        lambda headers: headers.extend([("X-New", "n")]),
    ):
        conversation.say(one)
        headers = conversation.arrivals[-1].headers
        assert headers.origin is not None
        change(headers)
        assert headers.origin is None
        assert headers.raw != conversation.arrivals[0].headers.raw
        assert headers.get("x-one") == dict(headers.raw).get("X-One")
        assert headers.get("x-new") == dict(headers.raw).get("X-New")
        conversation.say(one)
        again = conversation.arrivals[-1].headers
        assert again.raw == [("Host", "a"), ("X-One", "1"), ("Content-Length", "3")]
        assert again.get("x-new") is None
        assert again.get("x-one") == "1"


def test_the_first_requests_headers_are_its_own_too() -> None:
    conversation = Conversation()
    one = request(b"abc", b"Host: a")
    conversation.say(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    conversation.say(one)
    conversation.arrivals[-1].headers.set("Host", "evil")
    conversation.say(one)
    assert conversation.arrivals[-1].headers.get("host") == "a"


def test_limits_hold_for_what_is_remembered() -> None:
    conversation = Conversation(max_body_size=4)
    conversation.say(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    conversation.say(request(b"abc", b"Host: a"))
    assert conversation.say(request(b"abcde", b"Host: a")) not in (None, ())
    assert len(conversation.arrivals) == 2


def test_answers_are_remembered_too() -> None:
    reader = ResponseReader(ClientLimits(), NoFlow())
    for body in (b"abc", b"a longer one", b"", b"abc"):
        reader.expect("GET")
        reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX: y\r\n\r\n%b" % (len(body), body))
        response = reader.take_response()
        assert response is not None
        assert (response.status, response.body) == (200, body)
        assert response.headers.raw == [("Content-Length", str(len(body))), ("X", "y")]
        assert reader.complete
        assert reader.keep_alive


def test_a_connection_that_never_says_the_same_twice_is_remembered_less() -> None:
    memory = Memory()
    kept = []
    for number in range(200):
        before = memory.last
        memory.keep(b"GET /%d HTTP/1.1\r\n\r\n" % number, 22, Headers(), None)
        kept.append(memory.last is not before)
    assert all(kept[:8])
    assert 1 <= sum(kept[8:]) <= 4


def test_notes_are_bounded() -> None:
    head = Head([("Host", "a")])
    for number in range(1000):
        head.note(number, number)
    assert len(head.notes) <= 16
    assert head.notes[999] == 999


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_are_not_remembered(status: int) -> None:
    """Their length is not that of the bytes behind them, even where the two are equal."""
    reader = ResponseReader(ClientLimits(), NoFlow())
    for body in (b"", b"", b"HTTP/1.1 200 OK\r\n\r\n"):
        reader.expect("GET")
        reader.feed(b"HTTP/1.1 %d Any\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        response = reader.take_response()
        assert response is not None
        assert (response.status, response.body) == (status, b"")
        assert reader.keep_alive == (not body)


@given(st.integers(1, 12), st.integers(0, 30))
def test_a_head_keeps_to_its_limit_whatever_length_it_tells(digits: int, slack: int) -> None:
    short = request(b"", b"Host: a", length=b"1") + b"x"
    longer = request(b"", b"Host: a", length=b"%d" % (digits * 5000)) + b"x" * (digits * 5000)
    limit = len(short) - 1 + slack
    conversation, stranger = Conversation(max_head_size=limit), Conversation(max_head_size=limit)
    for one in (conversation, stranger):
        one.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    conversation.say(short)
    conversation.say(short)
    assert conversation.say(longer) == stranger.say(longer)
