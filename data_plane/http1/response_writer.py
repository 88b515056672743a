"""Responses on their way to a client: written at once where they are whole, piece by piece where they stream."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from data_plane.errors import ClientDisconnected, UpstreamError
from data_plane.http1.coalescing import CoalescingTransport
from data_plane.http1.framing import BY_LENGTH, CHUNKED, LAST_CHUNK, UNTIL_CLOSE, ResponseHead, chunk

logger = logging.getLogger(__name__)

Outcome = Literal["complete", "client_closed", "upstream_closed", "gateway_abort"]

_SMALL = 32 * 1024
"""Up to here head and body are joined for one write; beyond, copying costs more than a second buffer."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger."""


@dataclass(slots=True)
class Sent:
    """What became of an answer. `bytes_sent` counts bytes on the wire, head and framing included."""

    head_sent: bool = False
    bytes_sent: int = 0
    outcome: Outcome = "client_closed"


class BrokenBody(Exception):
    """A response's body did not keep to the length that its head told."""


class ResponseWriter:
    """Writes to one client, no faster than it takes."""

    __slots__ = ("_transport", "_unwritten", "blocked")

    def __init__(self, transport: CoalescingTransport) -> None:
        self._transport = transport
        self._unwritten = 0
        self.blocked: asyncio.Future[None] | None = None
        """Done when the client has taken enough of what waits for it; None while we may write."""

    def block(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.blocked is None:
            self.blocked = loop.create_future()
            self._unwritten = self._transport.get_write_buffer_size()

    def unblock(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None and not blocked.done():
            blocked.set_result(None)

    def has_moved(self) -> bool:
        """Whether the client took anything since it was last asked (or since writing was blocked)."""
        before, self._unwritten = self._unwritten, self._transport.get_write_buffer_size()
        return self._unwritten < before

    def write_whole(self, head: bytes, body: bytes) -> int:
        """Returns the bytes written; wait for `blocked`, if it is set."""
        if len(body) <= _SMALL:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return len(head) + len(body)

    async def stream(self, head: ResponseHead, body: AsyncIterator[bytes], sent: Sent) -> None:
        """Write a body as it comes. Once the head is out, a failure can only show as a connection that breaks."""
        sent.head_sent = True
        sent.bytes_sent = len(head.data)
        self._transport.write(head.data)
        try:
            if head.framing == BY_LENGTH:
                await self._write_exactly(head.length, body, sent)
            else:
                await self._write_pieces(head.framing, body, sent)
            sent.outcome = "complete"
        except UpstreamError:
            sent.outcome = "upstream_closed"
        except ClientDisconnected:
            sent.outcome = "client_closed"
        except Exception:
            logger.exception("a response's body broke")
            sent.outcome = "gateway_abort"
        finally:
            if sent.outcome != "complete":
                self._break_off(head.framing)
                aclose = getattr(body, "aclose", None)
                if aclose is not None:
                    await aclose()

    async def _write_pieces(self, framing: int, body: AsyncIterator[bytes], sent: Sent) -> None:
        outlet = _Outlet(self, self._transport.write, framing == CHUNKED, sent)
        pour = getattr(body, "pour", None)
        async for piece in body:
            if piece:  # An empty chunk would end the body.
                outlet.write(piece)
                if self.blocked is not None:
                    await self.blocked
            if pour is not None:
                pour(outlet)
        if framing == CHUNKED:
            sent.bytes_sent += len(LAST_CHUNK)
            self._transport.write(LAST_CHUNK)
            if self.blocked is not None:
                await self.blocked

    async def _write_exactly(self, length: int, body: AsyncIterator[bytes], sent: Sent) -> None:
        left = length
        async for piece in body:
            left -= len(piece)
            if left < 0:
                raise BrokenBody(f"more than the {length} bytes its head told")
            sent.bytes_sent += len(piece)
            self._transport.write(piece)
            if self.blocked is not None:
                await self.blocked
        if left:
            raise BrokenBody(f"{left} of {length} bytes are missing")

    def _break_off(self, framing: int) -> None:
        """End an answer so that the client sees it is not whole."""
        if framing != UNTIL_CLOSE:
            self._transport.close()
            return
        # Here a clean end would look like the end of the body, so the connection must end with a reset.
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()


class _Outlet:
    """Implements `body.Outlet`: the client, for the pieces of one body."""

    __slots__ = ("_chunked", "_sent", "_write", "_writer")

    def __init__(self, writer: ResponseWriter, write: Callable[[bytes], None], chunked: bool, sent: Sent) -> None:
        self._writer = writer
        self._write = write
        self._chunked = chunked
        self._sent = sent

    @property
    def is_open(self) -> bool:
        return self._writer.blocked is None

    def write(self, piece: bytes) -> None:
        data = chunk(piece) if self._chunked else piece
        self._sent.bytes_sent += len(data)
        self._write(data)
