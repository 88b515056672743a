"""Headers as a multi-map: whatever is done to them, look-ups tell what the list says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.errors import PayloadTooLarge
from data_plane.messages import BufferedBody, Headers, Request, Response

NAMES = st.sampled_from(["Host", "host", "HOST", "X-A", "x-a", "Accept", "Via"])
PAIRS = st.lists(st.tuples(NAMES, st.sampled_from("abc")), max_size=6)
STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "add", "remove", "look"]), NAMES, st.sampled_from("xyz")), max_size=8
)


@given(PAIRS, STEPS)
def test_look_ups_and_list_agree_whatever_was_done(
    pairs: list[tuple[str, str]], steps: list[tuple[str, str, str]]
) -> None:
    headers, model = Headers(pairs), list(pairs)
    for step, name, value in steps:
        places = [place for place, (other, _) in enumerate(model) if other.lower() == name.lower()]
        if step == "set":
            headers.set(name, value)
            if places:
                model[places[0]] = (name, value)
                model = [pair for place, pair in enumerate(model) if place not in places[1:]]
            else:
                model.append((name, value))
        elif step == "add":
            headers.add(name, value)
            model.append((name, value))
        elif step == "remove":
            assert headers.remove(name) is bool(places)
            model = [pair for place, pair in enumerate(model) if place not in places]
        values = [value for other, value in model if other.lower() == name.lower()]
        assert headers.raw == model
        assert headers.get_all(name) == values
        assert headers.get(name) == (values[0] if values else None)
        assert (name in headers) is bool(values)
        assert headers.has_repeats is (len({other.lower() for other, _ in model}) < len(model))


def test_a_copy_stands_alone() -> None:
    original = Headers([("A", "1")])
    copy = original.copy()
    copy.set("a", "2")
    copy.add("B", "3")
    assert original.raw == [("A", "1")]
    assert copy.raw == [("a", "2"), ("B", "3")]


def test_headers_show_names_and_never_values() -> None:
    assert repr(Headers([("Authorization", "Bearer secret")])) == "Headers(Authorization)"


def test_a_target_is_path_and_query() -> None:
    request = Request("GET", "/a%20b?c=d?e", Headers(), BufferedBody())
    assert (request.path, request.query) == ("/a%20b", "c=d?e")


async def test_a_buffered_body_knows_its_limit() -> None:
    body = BufferedBody(b"12345")
    assert (body.length, await body.read(5)) == (5, b"12345")
    with pytest.raises(PayloadTooLarge):
        await body.read(4)
    assert [piece async for piece in body] == [b"12345"]
    assert [piece async for piece in BufferedBody()] == []


async def test_a_response_is_closed_once() -> None:
    closed = 0

    async def close() -> None:
        nonlocal closed
        closed += 1

    response = Response(200)
    assert not response.is_held
    response.on_close(close)
    response.on_close(close)
    assert response.is_held
    await response.close()
    await response.close()
    assert closed == 2
    assert not response.is_held


async def test_a_streamed_response_stays_readable_once_read() -> None:
    async def pieces() -> object:
        yield b"a"
        yield b"b"

    response = Response(200, body=pieces())  # type: ignore[arg-type]
    assert await response.read() == b"ab"
    assert response.body == b"ab"
    assert await response.read() == b"ab"
    with pytest.raises(PayloadTooLarge):
        await Response(200, body=pieces()).read(1)  # type: ignore[arg-type]
