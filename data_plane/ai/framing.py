"""Cutting a provider's byte stream into messages: server-sent events, and Amazon's binary event stream.

Readers are fed whatever the network delivered, a byte or a megabyte, and give the messages that are complete. They copy
each byte a bounded number of times, so the work is linear in the stream's length, and hold at most one incomplete
message, whose size is capped. Faults of the sender are `FramingError`, never anything else.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Final

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes that one event or frame may have."""


class FramingError(Exception):
    """The stream is not what it claims to be."""


_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_LONGEST_END: Final = 4


class SseReader:
    """Server-sent events: gives the `data` of each event, its lines joined. Comments and other fields are skipped.

    Events end with an empty line; lines with LF, CRLF or CR. A CRLF that is cut after its CR leaves an LF behind, which
    reads as one more empty line and ends nothing.
    """

    __slots__ = ("_buffer", "_scanned")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0

    def feed(self, data: bytes) -> Sequence[bytes]:
        buffer = self._buffer
        if buffer:
            buffer += data
            if _EVENT_END.search(buffer, max(0, self._scanned - _LONGEST_END)) is None:
                self._keep_waiting()
                return ()
            data = bytes(buffer)
            buffer.clear()
        events = data.split(b"\n\n") if b"\r" not in data else _EVENT_END.split(data)
        buffer += events.pop()
        self._keep_waiting()
        return [payload for event in events if (payload := _payload(event)) is not None]

    def close(self) -> bytes | None:
        """The stream is over: the data of an event whose empty line never came, complete or not."""
        event = bytes(self._buffer)
        self._buffer.clear()
        return _payload(event)

    def _keep_waiting(self) -> None:
        self._scanned = len(self._buffer)
        if self._scanned > MAX_MESSAGE:
            self._buffer.clear()
            raise FramingError(f"an event is longer than {MAX_MESSAGE} bytes")


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = []
    for line in _LINE_END.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None


@dataclass(frozen=True, slots=True)
class EventMessage:
    """A frame of an event stream; of its headers only those that are strings, as all that matter are."""

    headers: Mapping[str, str]
    payload: bytes


_PRELUDE: Final = Struct(">III")
_CHECKSUM: Final = Struct(">I")
_LENGTH: Final = Struct(">H")
_OVERHEAD: Final = 16

_FIXED_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Header type → bytes of its value: true, false, byte, short, int, long, timestamp, uuid."""
_BYTES: Final = 6
_STRING: Final = 7
_LONGEST_REMEMBERED: Final = 512


class EventStreamReader:
    """Amazon's `application/vnd.amazon.eventstream`: lengths and both checksums of every frame are verified."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Sequence[EventMessage]:
        buffer = self._buffer
        buffer += data
        messages: list[EventMessage] = []
        start = 0
        while len(buffer) - start >= _PRELUDE.size:
            total, headers_length = self._prelude(start)
            if len(buffer) - start < total:
                break
            messages.append(_message(bytes(buffer[start : start + total]), headers_length))
            start += total
        if start:
            del buffer[:start]
        return messages

    @property
    def is_between_messages(self) -> bool:
        return not self._buffer

    def _prelude(self, start: int) -> tuple[int, int]:
        total, headers_length, checksum = _PRELUDE.unpack_from(self._buffer, start)
        if zlib.crc32(self._buffer[start : start + 8]) != checksum:
            raise FramingError("a frame's prelude does not match its checksum")
        if not _OVERHEAD + headers_length <= total <= MAX_MESSAGE:
            raise FramingError(f"a frame claims {total} bytes, {headers_length} of them headers")
        return total, headers_length


def _message(frame: bytes, headers_length: int) -> EventMessage:
    (checksum,) = _CHECKSUM.unpack_from(frame, len(frame) - 4)
    if zlib.crc32(memoryview(frame)[:-4]) != checksum:
        raise FramingError("a frame does not match its checksum")
    headers_end = _PRELUDE.size + headers_length
    return EventMessage(_headers(frame[_PRELUDE.size : headers_end]), frame[headers_end:-4])


def _read_headers(block: bytes) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    position = 0
    try:
        while position < len(block):
            name_end = position + 1 + block[position]
            name = block[position + 1 : name_end].decode()
            kind = block[name_end]
            position = name_end + 1
            if kind in (_BYTES, _STRING):
                (size,) = _LENGTH.unpack_from(block, position)
                position += _LENGTH.size
            else:
                size = _FIXED_SIZES[kind]
            if position + size > len(block):
                raise FramingError("a frame's header is longer than its block")
            if kind == _STRING:
                headers[name] = block[position : position + size].decode()
            position += size
    except (IndexError, KeyError, ValueError, StructError) as fault:
        raise FramingError("a frame's headers cannot be read") from fault
    return headers


# A stream's frames have the same few header blocks again and again.
_remembered_headers = lru_cache(maxsize=64)(_read_headers)


def _headers(block: bytes) -> Mapping[str, str]:
    """The string headers of a frame."""
    return _remembered_headers(block) if len(block) <= _LONGEST_REMEMBERED else _read_headers(block)
