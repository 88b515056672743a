"""Frames of the Unix socket between a node's agent and its workers.

A frame is a 4-byte big-endian length, a 1-byte kind and a payload of `length - 1` bytes. Payloads are JSON objects,
save that of EVENTS: a fixed header (`EVENTS_HEADER`) and the bytes of an `analytics.Batch` with events and deltas only.

    worker → agent   HELLO {worker, index, pid, version, hash, state}            first, once per connection
                     APPLIED {offer} · REFUSED {offer, error, entity_type, entity_id, entity_name, field, unreadable}
                     EVENTS number, count, dropped, batch
    agent → worker   SNAPSHOT {offer, version, hash, path, base, changes} · ACK {number} · DRAIN {}

Numbers of EVENTS count from 1 without holes per worker process; ACK n means that batches 1…n are in the spool.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import orjson

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of kind and payload; a longer announcement means that the peer does not speak this protocol."""

BATCH_EVENTS = 500
BATCH_BYTES = 256 * 1024
"""What a batch of events holds at the most; a single event may be larger."""

_LENGTH = struct.Struct(">I")
EVENTS_HEADER = struct.Struct(">QIQ")
"""Batch number, events in it (folded ones included), events the worker lost since its previous batch."""


class Kind(IntEnum):
    HELLO = 1
    APPLIED = 2
    REFUSED = 3
    EVENTS = 4
    SNAPSHOT = 16
    ACK = 17
    DRAIN = 18


class FrameError(Exception):
    """The peer sent what is no frame of this protocol: the connection ends."""


def encode(kind: Kind, payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload) + 1) + bytes((kind,)) + payload


def encode_json(kind: Kind, **values: Any) -> bytes:
    return encode(kind, orjson.dumps(values))


def encode_events(number: int, count: int, dropped: int, batch: bytes) -> bytes:
    return encode(Kind.EVENTS, EVENTS_HEADER.pack(number, count, dropped) + batch)


def decode_events(payload: bytes) -> tuple[int, int, int, bytes]:
    """(number, count, dropped, batch). Raises FrameError."""
    if len(payload) < EVENTS_HEADER.size:
        raise FrameError("an EVENTS frame is shorter than its header")
    number, count, dropped = EVENTS_HEADER.unpack_from(payload)
    return number, count, dropped, payload[EVENTS_HEADER.size :]


def decode_json(payload: bytes) -> dict[str, Any]:
    """Raises FrameError when the payload is no JSON object."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise FrameError(f"a frame's payload is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FrameError("a frame's payload is not a JSON object")
    return value


async def read_frame(reader: asyncio.StreamReader) -> tuple[Kind, bytes] | None:
    """The next frame, or None when the peer closed between two frames. Raises FrameError, OSError."""
    try:
        head = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("the connection ended inside a frame") from None
        return None
    (length,) = _LENGTH.unpack(head)
    if not 1 <= length <= MAX_FRAME:
        raise FrameError(f"a frame announces {length} bytes")
    try:
        body = await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise FrameError("the connection ended inside a frame") from None
    try:
        return Kind(body[0]), body[1:]
    except ValueError:
        raise FrameError(f"a frame is of the unknown kind {body[0]}") from None


# What follows writes fields of analytics.Batch from messages that are serialised already. Protobuf messages may be
# concatenated field by field, so nothing is parsed on a worker's path.

_EVENTS_TAG = b"\x12"  # field 2, length-delimited
_DELTAS_TAG = b"\x1a"  # field 3, length-delimited


def batch_of(events: Iterable[bytes] = (), deltas: Iterable[bytes] = ()) -> bytes:
    """The bytes of an `analytics.Batch` that holds these serialised messages."""
    out = bytearray()
    for tag, messages in ((_DELTAS_TAG, deltas), (_EVENTS_TAG, events)):
        for message in messages:
            out += tag
            _put_varint(out, len(message))
            out += message
    return bytes(out)


def _put_varint(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
