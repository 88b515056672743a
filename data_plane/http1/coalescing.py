"""Small writes of one turn of the event loop go out together, when the turn ends.

Theory. A write to a socket whose reader sleeps on another core wakes it, and that costs the writer more than the write:
on a virtual machine some 10 µs, which the kernel takes within the system call. One turn of a busy loop answers many
requests. Were each written as soon as it is ready, the reader would take it, find nothing more, and be asleep again by
the time of the next. Written in a row they wake it once. And pieces for one connection become one write.

Nothing waits for longer than the turn: the loop calls back before it looks for events again, and after `_MOST` writes
nobody waits for the rest. What is large enough to be worth its own call goes at once.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Final

log = logging.getLogger(__name__)

_LARGE: Final = 16 * 1024
"""Bytes that wait for one connection at the most."""
_MOST: Final = 16
"""Connections that wait at the most. Bounds the time, too: that of as many requests."""


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
        self._turn = _turns.setdefault(asyncio.get_running_loop(), _Turn())
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
            turn = self._turn
            turn.waiting.append(self)
            if not turn.is_called:
                turn.call()
            elif len(turn.waiting) >= _MOST:
                turn.write()
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


class _Turn:
    """What waits for the end of the present turn of one loop."""

    __slots__ = ("is_called", "waiting")

    def __init__(self) -> None:
        self.is_called = False
        self.waiting: list[CoalescingTransport] = []

    def call(self) -> None:
        self.is_called = True
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.is_called = False
        self.write()

    def write(self) -> None:
        waiting, self.waiting = self.waiting, []
        for transport in waiting:
            try:
                transport.flush()
            except Exception:
                log.exception("a connection could not be written to")


_turns: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn]] = weakref.WeakKeyDictionary()
