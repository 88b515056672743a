"""Readers of streams: right for what is right, and an error of ours, in bounded memory, for everything else."""

from __future__ import annotations

import itertools
import json
import struct
import zlib

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai import framing
from data_plane.ai.framing import EventStreamReader, FramingError, SseReader

VECTOR = bytes.fromhex(
    "0000007a00000051ca2c46650b3a6576656e742d7479706507000b6d65737361676553746f700d3a636f6e74656e742d747970650700106170706c"
    "69636174696f6e2f6a736f6e0d3a6d6573736167652d747970650700056576656e747b2273746f70526561736f6e223a22656e645f7475726e227d"
    "5fbf09fc"
)
"""One frame as botocore writes it."""

ALL_TYPES = b"".join(
    struct.pack("!B", len(name)) + name + struct.pack("!B", kind) + value
    for name, kind, value in [
        (b"true", 0, b""),
        (b"false", 1, b""),
        (b"byte", 2, b"\x01"),
        (b"short", 3, b"\x01\x02"),
        (b"int", 4, b"\x01\x02\x03\x04"),
        (b"long", 5, b"\x01" * 8),
        (b"bytes", 6, b"\x00\x03abc"),
        (b"string", 7, b"\x00\x02hi"),
        (b"time", 8, b"\x01" * 8),
        (b"uuid", 9, b"\x01" * 16),
    ]
)


def frame(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_reads_the_frame_that_amazon_writes_and_its_strings() -> None:
    (message,) = EventStreamReader().feed(VECTOR)

    assert json.loads(message.payload) == {"stopReason": "end_turn"}
    assert message.headers == {
        ":event-type": "messageStop",
        ":content-type": "application/json",
        ":message-type": "event",
    }


def test_knows_every_type_of_header_and_keeps_the_strings() -> None:
    (message,) = EventStreamReader().feed(frame(ALL_TYPES, b"x"))

    assert message.headers == {"string": "hi"}
    assert message.payload == b"x"


@pytest.mark.parametrize("position", range(len(VECTOR)))
def test_a_flipped_bit_anywhere_in_a_frame_is_noticed(position: int) -> None:
    broken = bytearray(VECTOR)
    broken[position] ^= 0x10
    reader = EventStreamReader()

    with pytest.raises(FramingError):
        reader.feed(bytes(broken) + VECTOR * 2)


@pytest.mark.parametrize("total", [0, 15, 16 * 1024 * 1024 + 1, 0xFFFFFFFF])
def test_impossible_lengths_are_refused_before_anything_is_awaited(total: int) -> None:
    prelude = struct.pack("!II", total, 0)

    with pytest.raises(FramingError):
        EventStreamReader().feed(prelude + struct.pack("!I", zlib.crc32(prelude)))


def test_headers_longer_than_their_frame_are_refused() -> None:
    prelude = struct.pack("!II", 20, 5)

    with pytest.raises(FramingError):
        EventStreamReader().feed(prelude + struct.pack("!I", zlib.crc32(prelude)))


@pytest.mark.parametrize("headers", [b"\x05ab", b"\x01a\x0a", b"\x01a\x07\x00\x09x", b"\x01a\x07\x00", b"\x01\xff\x00"])
def test_headers_that_cannot_be_read_are_an_error_of_ours(headers: bytes) -> None:
    with pytest.raises(FramingError):
        EventStreamReader().feed(frame(headers, b""))


@given(payloads=st.lists(st.binary(max_size=300), max_size=6), cuts=st.lists(st.integers(min_value=0), max_size=20))
def test_frames_are_the_same_however_they_are_cut_and_as_botocore_reads_them(
    payloads: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(frame(ALL_TYPES, payload) for payload in payloads)
    reader, reference = EventStreamReader(), EventStreamBuffer()
    reference.add_data(data)

    found = [message.payload for piece in pieces_of(data, cuts) for message in reader.feed(piece)]

    assert found == payloads == [message.payload for message in reference]
    assert reader.is_between_messages


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_arbitrary_bytes_give_messages_or_an_error_of_ours(data: bytes, cuts: list[int]) -> None:
    for prefix in (b"", VECTOR, VECTOR[:40]):
        reader = EventStreamReader()
        try:
            for piece in pieces_of(prefix + data, cuts):
                reader.feed(piece)
        except FramingError:
            continue


LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)


@given(
    events=st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=6),
    end=LINE_ENDS,
    noise=st.sampled_from(["", ": ping", "event: x", "id: 7", "retry: 1", "datax: no"]),
    cuts=st.lists(st.integers(min_value=0), max_size=20),
)
def test_events_are_the_same_however_they_are_cut(
    events: list[list[str]], end: str, noise: str, cuts: list[int]
) -> None:
    text = "".join(
        (noise + end if noise else "") + "".join(f"data: {line}{end}" for line in lines) + end for lines in events
    )
    reader = SseReader()

    found = [payload for piece in pieces_of(text.encode(), cuts) for payload in reader.feed(piece)]

    assert found == ["\n".join(lines).encode() for lines in events]
    assert reader.close() is None


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(min_value=0), max_size=10))
def test_any_bytes_at_all_are_read_as_events_the_same_way_however_cut(data: bytes, cuts: list[int]) -> None:
    whole, cut = SseReader(), SseReader()

    expected = [*whole.feed(data), whole.close()]

    assert [*(payload for piece in pieces_of(data, cuts) for payload in cut.feed(piece)), cut.close()] == expected


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data:tight\n\n", [b"tight"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data\n\n", [b""]),
        (b": only a comment\n\n\n\n", []),
        (b"event: message_stop\ndata: {}\n\n", [b"{}"]),
        (b"data: a\r\n\r\ndata: b\n\ndata: c\r\r", [b"a", b"b", b"c"]),
    ],
)
def test_reads_the_spellings_that_servers_use(stream: bytes, payloads: list[bytes]) -> None:
    assert list(SseReader().feed(stream)) == payloads


def test_an_event_without_its_last_empty_line_is_given_at_the_end() -> None:
    reader = SseReader()

    assert list(reader.feed(b"data: [DONE]")) == []
    assert reader.close() == b"[DONE]"


def test_an_event_that_never_ends_is_refused_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_MESSAGE", 1000)
    reader = SseReader()
    for _ in range(100):
        reader.feed(b"data: xxxx")

    with pytest.raises(FramingError):
        reader.feed(b"x")
