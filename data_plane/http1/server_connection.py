"""One client's connection: requests in, answers out in order.

Theory of operation. The parser queues requests as their heads complete. One task per burst answers them in turn: it is
made when a request finds none, takes requests until the queue is empty, and ends, so that an idle connection costs no
task and a pipelined burst only one. The task is the only writer; the event loop's callbacks only queue, feed bodies and
move the deadline. Losing the client cancels the task, which is how upstreams learn that nobody waits any more.

Reading is held while a body's reader is behind or the pipeline is full. At most one deadline runs at a time, for what
the connection waits for just then: a head, a piece of body, room to write, the next request, the end of an upload that
was refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from data_plane.errors import ClientDisconnected, GatewayError, InternalError, RequestTimeout, UpstreamError
from data_plane.http1.framing import (
    BY_LENGTH,
    CHUNKED,
    CONTINUE,
    LAST_CHUNK,
    NO_BODY,
    UNTIL_CLOSE,
    InvalidHeader,
    ResponseHead,
    chunk,
    response_head,
)
from data_plane.http1.limits import ServerLimits
from data_plane.http1.request_reader import Arrival, Refused, RequestReader
from data_plane.http1.watchdog import Watchdog
from data_plane.messages import Request, Response

logger = logging.getLogger(__name__)

Outcome = Literal["complete", "client_closed", "upstream_closed", "gateway_abort"]

_SMALL = 32 * 1024
"""Up to here head and body are joined for one write; beyond, copying costs more than a second buffer."""


@dataclass(slots=True)
class Sent:
    """What became of an answer. `bytes_sent` counts bytes on the wire, head and framing included."""

    head_sent: bool = False
    bytes_sent: int = 0
    outcome: Outcome = "client_closed"


class Application(Protocol):
    """What the server serves."""

    async def answer(self, request: Request) -> tuple[Response, Any]:
        """Answer a request; the second value comes back in `finished`. Raises nothing but CancelledError."""

    def finished(self, token: Any, response: Response, sent: Sent) -> None:
        """Called once for each answered request, after its last byte or its break, when the response is closed."""

    def refused(self, error: GatewayError, request: Request | None, peer: tuple[str, int]) -> Response:
        """What to send to a client whose request is not even one; the connection closes after it."""


class _BrokenBody(Exception):
    """A response's body did not keep to the length that its head told."""


class ServerConnection(asyncio.Protocol):
    """Implements asyncio's protocol and `body.Flow`."""

    def __init__(self, application: Application, limits: ServerLimits, siblings: set[ServerConnection]) -> None:
        self._application = application
        self._limits = limits
        self._siblings = siblings
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(self._loop, self._expired)
        self._queue: deque[Arrival | Refused] = deque()
        self._current: Arrival | None = None
        self._task: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._unwritten = 0
        self._held_by_body = False
        self._reading = True
        self._draining = False
        self._lingering = False
        self._eof = False
        self._lost = False
        self._given_up = False

    # What the server calls.

    def drain(self) -> None:
        """Close as soon as nothing is being answered."""
        self._draining = True
        if self._task is None and not self._reader.in_head:
            self._transport.close()

    def abort(self) -> None:
        """Break it, whatever it does: our own decision, not the client's."""
        self._given_up = True
        self._cancel()
        self._transport.abort()

    async def closed(self) -> None:
        """Wait until the connection and its task are over."""
        if not self._lost:
            if self._gone is None:
                self._gone = self._loop.create_future()
            await asyncio.shield(self._gone)
        if self._task is not None:
            await asyncio.wait((self._task,))

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # Which uvloop's is in all but name.
        self._siblings.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = transport.get_extra_info("peername")
        self._peer: tuple[str, int] = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
        self._reader = RequestReader(self._limits, self, self._arrived, self._peer)
        self._watchdog.set(self._limits.head_timeout)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        reader = self._reader
        was_in_head = reader.in_head
        try:
            reader.feed(data)
        except Refused as refusal:
            if not refusal.in_body:
                self._enqueue(refusal)
            return
        if self._task is None:
            if reader.in_head and not was_in_head:
                self._watchdog.set(self._limits.head_timeout)
        elif reader.body is not None:
            self._await_client()

    def eof_received(self) -> bool:
        """The client sends no more. Returns whether we may still write."""
        self._eof = True
        self._break_body()
        if self._task is None or self._lingering or self._limits.half_close_is_leaving:
            self._cancel()
            return False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._siblings.discard(self)
        self._watchdog.close()
        self._break_body()
        self._cancel()
        self.resume_writing()
        if self._gone is not None:
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()
            self._unwritten = self._transport.get_write_buffer_size()
            self._watchdog.set(self._limits.write_timeout)

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
        if not self._lost:
            self._await_client()

    # What bodies call (`body.Flow`).

    def hold(self) -> None:
        self._held_by_body = True
        self._regulate()

    def release(self) -> None:
        self._held_by_body = False
        self._regulate()

    def wanted(self) -> None:
        current = self._current
        if current is not None and current.expects_continue and current.body is not None:
            current.expects_continue = False
            if current.body.received == 0 and not self._lost:
                self._transport.write(CONTINUE)

    # Waiting and holding back.

    def _regulate(self) -> None:
        hold = self._held_by_body or len(self._queue) >= self._limits.max_pipeline
        if hold == self._reading and not self._transport.is_closing():
            self._reading = not hold
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
            self._await_client()

    def _await_client(self) -> None:
        """Set the deadline for what the client owes us while a request is answered."""
        if self._writable is not None or self._lingering:
            return
        if self._task is None:
            return
        if self._reader.body is not None and self._reading:
            self._watchdog.set(self._limits.body_timeout)
        else:
            self._watchdog.clear()

    def _expired(self) -> None:
        if self._writable is not None:
            self._write_expired()
        elif self._task is not None and self._reader.body is not None:
            self._reader.body.fail(RequestTimeout())
        elif self._reader.in_head:
            self._enqueue(Refused(RequestTimeout()))
        else:
            self._transport.close()

    def _write_expired(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left < self._unwritten:  # Slow, but the client takes what we write.
            self._unwritten = left
            self._watchdog.set(self._limits.write_timeout)
        else:
            self._cancel()
            self._transport.abort()

    def _break_body(self) -> None:
        body = self._reader.body
        if body is not None:
            body.fail(ClientDisconnected())

    def _cancel(self) -> None:
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()

    # Answering.

    def _arrived(self, arrival: Arrival) -> None:
        self._enqueue(arrival)

    def _enqueue(self, entry: Arrival | Refused) -> None:
        self._queue.append(entry)
        if self._task is None:
            self._watchdog.clear()
            self._task = self._loop.create_task(self._answer_all(), name="http1 answers")
        elif len(self._queue) >= self._limits.max_pipeline:
            self._regulate()

    async def _answer_all(self) -> None:
        keep_alive = True
        try:
            while keep_alive and self._queue:
                entry = self._queue.popleft()
                if not self._reading:
                    self._regulate()
                if isinstance(entry, Refused):
                    response = self._application.refused(entry.error, entry.request, self._peer)
                    await self._refuse(response, entry.request)
                    keep_alive = False
                else:
                    self._current = entry
                    keep_alive = await self._answer(entry)
        finally:
            self._task = self._current = None
        if not self._lost:
            self._rest(keep_alive)

    def _rest(self, keep_alive: bool) -> None:
        """After the last answer: wait for the next request, or part."""
        if not keep_alive:
            self._part()
        elif self._eof or (self._draining and not self._reader.in_head):
            self._transport.close()
        else:
            limits = self._limits
            self._watchdog.set(limits.head_timeout if self._reader.in_head else limits.keepalive_timeout)
        self._regulate()

    def _part(self) -> None:
        """Close; but if the client may still be sending, read on for a while, or TCP resets our answer away."""
        if self._eof or self._transport.is_closing():
            self._transport.close()
            return
        self._lingering = True
        self._queue.clear()
        self._transport.write_eof()
        self._watchdog.set(self._limits.linger_timeout)

    async def _answer(self, arrival: Arrival) -> bool:
        """Answer one request; says whether the connection may live on."""
        request = arrival.request
        try:
            response, token = await self._application.answer(request)
        except Exception:
            logger.exception("the application raised instead of answering")
            response = self._application.refused(InternalError(), request, self._peer)
            await self._refuse(response, request)
            return False
        sent = Sent()
        try:
            return await self._send(response, arrival, sent)
        finally:
            if self._given_up and sent.outcome == "client_closed":
                sent.outcome = "gateway_abort"
            try:
                await response.close()
            finally:
                self._application.finished(token, response, sent)

    async def _refuse(self, response: Response, request: Request | None) -> None:
        """Send an answer that ends the connection. Its body is bytes."""
        method = "GET" if request is None else request.method
        head = response_head(response, method, False, False)
        body = response.body if head.framing == BY_LENGTH and isinstance(response.body, bytes) else b""
        await self._write(head.data + body)

    async def _send(self, response: Response, arrival: Arrival, sent: Sent) -> bool:
        keep_alive = arrival.keep_alive and not self._draining
        body = response.body
        incoming = arrival.body
        if incoming is not None and not incoming.is_complete and isinstance(body, bytes):
            keep_alive = False  # An answer before the request's end: the rest is not worth reading.
        try:
            head = response_head(response, arrival.request.method, arrival.http_1_0, keep_alive)
        except InvalidHeader:
            logger.exception("a response's head cannot be written")
            sent.outcome = "gateway_abort"
            sent.head_sent = True
            await self._refuse(self._application.refused(InternalError(), arrival.request, self._peer), arrival.request)
            return False
        arrival.expects_continue = False
        sent.head_sent = True
        if isinstance(body, bytes):
            await self._send_bytes(head, body, sent)
        elif head.framing == NO_BODY:
            await self._send_bytes(head, b"", sent)
        else:
            await self._send_stream(head, response, sent)
        return head.keep_alive and sent.outcome == "complete" and (incoming is None or incoming.is_complete)

    async def _send_bytes(self, head: ResponseHead, body: bytes, sent: Sent) -> None:
        data = head.data
        if head.framing != NO_BODY:
            if len(body) <= _SMALL:
                data += body
            else:
                self._transport.write(data)
                sent.bytes_sent = len(data)
                data = body
        sent.bytes_sent += len(data)
        self._transport.write(data)
        if self._writable is not None:
            await self._writable
        sent.outcome = "complete"

    async def _send_stream(self, head: ResponseHead, response: Response, sent: Sent) -> None:
        """Write a body as it comes. Once the head is out, a failure can only show as a connection that breaks."""
        body = response.body
        assert not isinstance(body, bytes)
        sent.bytes_sent = len(head.data)
        self._transport.write(head.data)
        try:
            if head.framing == BY_LENGTH:
                await self._write_exactly(head.length, response, sent)
            else:
                await self._write_pieces(head.framing, response, sent)
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

    async def _write_pieces(self, framing: int, response: Response, sent: Sent) -> None:
        body = response.body
        assert not isinstance(body, bytes)
        write = self._transport.write
        chunked = framing == CHUNKED
        async for piece in body:
            if not piece:
                continue
            data = chunk(piece) if chunked else piece
            sent.bytes_sent += len(data)
            write(data)
            if self._writable is not None:
                await self._writable
        if chunked:
            sent.bytes_sent += len(LAST_CHUNK)
            await self._write(LAST_CHUNK)

    async def _write_exactly(self, length: int, response: Response, sent: Sent) -> None:
        body = response.body
        assert not isinstance(body, bytes)
        left = length
        async for piece in body:
            left -= len(piece)
            if left < 0:
                raise _BrokenBody(f"more than the {length} bytes its head told")
            sent.bytes_sent += len(piece)
            await self._write(piece)
        if left:
            raise _BrokenBody(f"{left} of {length} bytes are missing")

    async def _write(self, data: bytes) -> None:
        if data:
            self._transport.write(data)
        if self._writable is not None:
            await self._writable

    def _break_off(self, framing: int) -> None:
        """End an answer so that the client sees it is not whole."""
        if framing == UNTIL_CLOSE:
            self._transport.abort()  # A clean end would look like the end of the body.
        else:
            self._transport.close()
