"""Headers and queries on their way to and from values, for whatever a client or a program makes of them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data_plane.messages import Headers
from data_plane.plugins.datakit.values import (
    NodeError,
    Value,
    apply_headers,
    encode_query,
    read_body,
    read_headers,
    read_query,
    write_headers,
)

WIRE = st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f", codec="utf-8"), max_size=12).map(
    lambda text: text.encode().decode("latin-1")
)
"""Header text as it is on the wire when its writer wrote UTF-8."""
ARGUMENTS = st.lists(st.text(max_size=6), min_size=2, max_size=3) | st.text(max_size=6)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True).map(lambda name: f"X-{name}")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(NAMES, WIRE), max_size=8))
def test_headers_come_back_as_they_went_out(pairs: list[tuple[str, str]]) -> None:
    copy = Headers()
    apply_headers(copy, write_headers(read_headers(Headers(pairs))))

    original = Headers(pairs)
    assert {name.lower() for name, _ in copy} == {name.lower() for name, _ in original}
    for name, _ in pairs:
        assert copy.get_all(name) == original.get_all(name)


@given(JSON)
def test_no_value_makes_a_header_that_breaks_a_message(data: Any) -> None:
    headers = Headers()
    try:
        apply_headers(headers, write_headers(Value(data)))
    except NodeError:
        return
    for name, value in headers:
        assert not set(name + value) & set("\r\n\0")
        assert name
        (name + value).encode("latin-1")


@given(st.dictionaries(st.text(max_size=6), ARGUMENTS))
def test_queries_come_back_as_they_went_out(arguments: dict[str, Any]) -> None:
    assert read_query(encode_query(arguments)).data == arguments


@given(st.text(max_size=60))
def test_any_query_is_read(query: str) -> None:
    assert isinstance(read_query(query).data, dict)


@given(st.binary(max_size=60), st.sampled_from([None, "text/plain", "application/json", "application/x+json; a=b"]))
def test_any_body_is_read_or_refused(raw: bytes, content_type: str | None) -> None:
    try:
        value = read_body(raw, content_type)
    except NodeError:
        return
    assert value.is_null == (value.data is None)
    assert isinstance(value.text, str)


def test_utf8_headers_are_read_as_text_and_written_as_bytes() -> None:
    wire = "é€".encode().decode("latin-1")

    value = read_headers(Headers([("X-A", wire)]))

    assert value.data == {"X-A": "é€"}
    assert write_headers(value) == {"X-A": [wire]}
