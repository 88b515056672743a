"""Small writes go out together when the turn of the event loop ends (`turn` says why)."""

from __future__ import annotations

import asyncio
from typing import Final

from data_plane.http1.turn import turn_of

_LARGE: Final = 16 * 1024
"""Bytes that wait for one connection at the most. What is longer is worth its own call and goes at once."""


class CoalescingTransport:
    """A transport as far as connections need one. The protocol may hear of full buffers later than by its write."""

    __slots__ = (
        "_pending",
        "_transport",
        "_turn",
        "abort",
        "get_extra_info",
        "get_write_buffer_size",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._turn = turn_of(asyncio.get_running_loop())
        self._pending = b""
        # What needs nothing from us is the transport's own: one call less.
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        if len(data) > _LARGE:
            self.flush()
            self._transport.write(data)
        elif not self._pending:
            self._pending = data
            self._turn.write(self)
        else:
            self._pending += data
            if len(self._pending) > _LARGE:
                self.flush()

    def flush(self) -> None:
        """Write what waits. For a protocol that hears of the peer's end and will not keep the transport open."""
        data, self._pending = self._pending, b""
        if data and not self.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()
