"""A chat is read in one go where it is all here, and found to be what a body still arriving gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai.chat import chat_at_hand, mark_changed, read_chat
from data_plane.errors import LlmError, PayloadTooLarge
from data_plane.exchange import Exchange
from tests.data_plane.builders import exchange


class Arriving:
    """A body that must be waited for."""

    length = None

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, limit: int = 0) -> bytes:
        if limit and len(self._data) > limit:
            raise PayloadTooLarge
        return self._data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


def subject_of(data: bytes, content_type: str | None) -> Exchange:
    return exchange(headers={} if content_type is None else {"Content-Type": content_type}, body=data)


async def read(subject: Exchange, limit: int) -> Any:
    try:
        return await read_chat(subject, limit)
    except LlmError as error:
        return error.status, error.message


@given(
    st.sampled_from([b"", b"{}", b"[]", b"null", b"1", b'{"model":"m"}', b"\xff", b"{"]) | st.binary(max_size=20),
    st.sampled_from([None, "", "application/json", "Application/JSON; charset=utf-8", "text/plain"]),
    st.integers(0, 20),
)
async def test_a_body_that_is_here_gives_what_one_that_arrives_does(
    data: bytes, content_type: str | None, limit: int
) -> None:
    here, arriving = subject_of(data, content_type), subject_of(data, content_type)
    arriving.request.body = Arriving(data)
    assert await read(here, limit) == await read(arriving, limit)
    assert (here.chat is None) == (arriving.chat is None)


def test_a_chat_that_must_be_waited_for_is_not_at_hand() -> None:
    subject = subject_of(b"{}", None)
    subject.request.body = Arriving(b"{}")
    assert chat_at_hand(subject, 0) is None


async def test_a_chat_is_parsed_once_and_the_bytes_follow_what_was_changed() -> None:
    subject = subject_of(b'{"model": "m"}', "application/json")
    chat = chat_at_hand(subject, 0)
    assert chat == {"model": "m"}
    chat["model"] = "n"
    assert await subject.body_bytes() == b'{"model": "m"}'
    mark_changed(subject)
    assert await read_chat(subject, 1) is chat
    assert await subject.body_bytes() == b'{"model":"n"}'
