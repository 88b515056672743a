"""One client's connection: requests in, answers out in order.

Theory of operation. The parser queues requests as they arrive, and one task per connection, made with its first
request, answers them in turn; between requests it waits on a future. (A task per request would cost 2 µs more.) But
for rides (`express`), which need no task, the task is the only writer; the event loop's callbacks only queue, feed
bodies and move the deadline. Losing the client cancels the task, which is how upstreams learn that nobody waits any
more.

Reading is held while a body's reader is behind or the pipeline is full. At most one deadline runs at a time, for what
the connection waits for just then: a head, a piece of body, room to write, the next request, the end of an upload that
was refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import Any, Protocol, cast

from data_plane.errors import ClientDisconnected, GatewayError, InternalError, RequestTimeout
from data_plane.http1.coalescing import CoalescingTransport
from data_plane.http1.express import MAX_BODY, OpenLine, Ride
from data_plane.http1.framing import CONTINUE, NO_BODY, InvalidHeader, response_head
from data_plane.http1.limits import ServerLimits
from data_plane.http1.request_reader import Arrival, Refused, RequestReader
from data_plane.http1.response_writer import ResponseWriter, Sent
from data_plane.http1.turn import turn_of
from data_plane.http1.watchdog import Watchdog
from data_plane.messages import BufferedBody, Request, Response

logger = logging.getLogger(__name__)


class Application(Protocol):
    """What the server serves."""

    async def answer(self, request: Request) -> tuple[Response, Any]:
        """Answer a request; the second value comes back in `finished`. Raises nothing but CancelledError."""

    def finished(self, token: Any, response: Response, sent: Sent) -> None:
        """Called once for each answered request, after its last byte or its break, when the response is closed."""

    def open_line(self) -> OpenLine | None:
        """A new connection's line for requests whose head is new; None when they all take the ordinary way."""

    def refused(self, error: GatewayError, request: Request | None, peer: tuple[str, int]) -> Response:
        """What to send, in bytes, to a client whose request is not even one; the connection closes after it."""


class ServerConnection(asyncio.Protocol):
    """Implements asyncio's protocol and `body.Flow`."""

    def __init__(self, application: Application, limits: ServerLimits, siblings: set[ServerConnection]) -> None:
        self._application = application
        self._limits = limits
        self._max_express_body = min(MAX_BODY, limits.max_body_size or MAX_BODY)
        self._siblings = siblings
        self._loop = asyncio.get_running_loop()
        self._turn = turn_of(self._loop)
        self._watchdog = Watchdog(self._loop, self._expired)
        self._queue: deque[Arrival | Refused] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        """What the task waits on when there is nothing to answer."""
        self._current: Arrival | None = None
        self._open_line = application.open_line()
        self._ride: Ride | None = None
        """A request that takes the express way; the task rests meanwhile, and what comes behind it waits."""
        self._gone: asyncio.Future[None] | None = None
        self._held_by_body = False
        self._reading = True
        self._unread = False
        """The client may still be sending what we shall not read."""
        self.is_draining = False
        self._lingering = False
        self._eof = False
        self._lost = False
        self._given_up = False

    @property
    def _is_answering(self) -> bool:
        return self._task is not None and (self._idle is None or self._ride is not None)

    # What the server calls.

    def drain(self, grace: float) -> None:
        """Close once nothing is being answered. A client that has a request on its way just now still gets its answer,
        and is told there that it was the last one: an idle connection stays open for `grace` seconds."""
        self.is_draining = True
        if self._is_answering or self._reader.in_head:
            return
        if grace > 0:
            self._watchdog.set(grace)
        else:
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
        # Which uvloop's is in all but name.
        self._transport = CoalescingTransport(cast(asyncio.Transport, transport))
        self._writer = ResponseWriter(self._transport)
        self._siblings.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = transport.get_extra_info("peername")
        self.peer: tuple[str, int] = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
        self._reader = RequestReader(self._limits, self, self._enqueue, self.peer)
        self._watchdog.set(self._limits.head_timeout)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        reader = self._reader
        if self._idle is not None and self._takes_express(data):
            return
        was_in_head = reader.in_head
        try:
            reader.feed(data)
        except Refused as refusal:
            refusal.__traceback__ = None  # It holds the frames that hold it.
            self._unread = True
            if not refusal.in_body:
                self._enqueue(refusal)
            return
        if reader.body is not None:
            self._await_client()
        elif not was_in_head and reader.in_head and not self._is_answering:
            self._watchdog.set(self._limits.head_timeout)

    def eof_received(self) -> bool:
        """The client sends no more. Returns whether we may still write."""
        self._eof = True
        self._break_body()
        if not self._is_answering or self._lingering or self._limits.half_close_is_leaving:
            self._transport.flush()
            self._cancel()
            return False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._siblings.discard(self)
        self._watchdog.close()
        self._break_body()
        self._cancel()
        self._writer.unblock()
        self._reader.close()
        self._current = None
        if self._task is not None:
            # With what it ended with, a task holds all its frames, and so this connection: a circle.
            self._task.add_done_callback(self._forget_task)
        if self._gone is not None:
            self._gone.set_result(None)

    def _forget_task(self, _: asyncio.Task[None]) -> None:
        self._task = None

    def pause_writing(self) -> None:
        self._writer.block(self._loop)
        self._watchdog.set(self._limits.write_timeout)

    def resume_writing(self) -> None:
        self._writer.unblock()
        self._await_client()

    # The express way (`express.Platform`).

    def _takes_express(self, data: bytes) -> bool:
        reader = self._reader
        familiar = reader.memory.last
        if familiar is None or familiar.line is None or self._ride is not None or not reader.is_between:
            return False
        if self.is_draining or self._transport.get_write_buffer_size():
            return False  # An answer that would have to wait for a slow client is not done when it is written.
        body = familiar.rest_of(data)
        if body is None or len(body) > self._max_express_body:
            return False
        ride = self._ride = Ride(familiar.line, self, familiar, body)
        self._turn.take(ride)
        return True

    def _takes_open_line(self, arrival: Arrival) -> bool:
        line = self._open_line
        if line is None or arrival.data is None or self._queue or self.is_draining or not line.takes(arrival):
            return False
        assert isinstance(arrival.body, BufferedBody)
        body = arrival.body.data
        if len(body) > self._max_express_body or self._transport.get_write_buffer_size():
            return False
        ride = self._ride = Ride(line, self, None, body)
        ride.data, ride.arrival = arrival.data, arrival
        self._turn.take(ride)
        return True

    def deliver(self, data: bytes) -> None:
        self._ride = None
        self._transport.write(data)
        if self._queue or self._eof:
            self._wake()
        else:
            limits = self._limits
            self._watchdog.set(limits.keepalive_timeout if self._reader.is_between else limits.head_timeout)

    def derail(self, ride: Ride) -> None:
        arrival = self.request_of(ride)
        if ride.behind is None:
            self._ride = None
        else:
            arrival.ride = ride
        self._queue.appendleft(arrival)
        self._wake()

    def request_of(self, ride: Ride) -> Arrival:
        if ride.familiar is not None:
            return self._reader.arrival_of(ride.familiar, ride.body)
        arrival, ride.arrival = ride.arrival, None
        if arrival is None:
            arrival = self._reader.whole(ride.data)
        assert isinstance(arrival, Arrival), "what could be read once can be read again"
        return arrival

    # What bodies call (`body.Flow`).

    def hold(self) -> None:
        self._held_by_body = True
        self._regulate()

    def release(self) -> None:
        self._held_by_body = False
        self._regulate()

    def wanted(self) -> None:
        current = self._current
        if current is not None and current.expects_continue:
            current.expects_continue = False
            if current.incoming is not None and current.incoming.received == 0 and not self._lost:
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
        if not self._is_answering or self._writer.blocked is not None or self._lingering or self._lost:
            return
        if self._reader.body is not None and self._reading:
            self._watchdog.set(self._limits.body_timeout)
        else:
            self._watchdog.clear()

    def _expired(self) -> None:
        if self._writer.blocked is not None:
            if self._writer.has_moved():
                self._watchdog.set(self._limits.write_timeout)
            else:
                self._cancel()
                self._transport.abort()
        elif self._lingering:
            self._transport.close()
        elif self._is_answering:
            if self._reader.body is not None:
                self._reader.body.fail(RequestTimeout())
        elif self._reader.in_head:
            self._unread = True
            self._enqueue(Refused(RequestTimeout()))
        else:
            self._transport.close()

    def _break_body(self) -> None:
        if self._reader.body is not None:
            self._reader.body.fail(ClientDisconnected())

    def _cancel(self) -> None:
        self._queue.clear()
        ride, self._ride = self._ride, None
        if ride is not None:
            ride.leave()
        if self._task is not None:
            self._task.cancel()

    # Answering.

    def _enqueue(self, entry: Arrival | Refused) -> None:
        if self._idle is not None and self._ride is None and type(entry) is Arrival and self._takes_open_line(entry):
            return
        if type(entry) is Arrival:
            entry.data = None  # It is in no need of that any more, and a body is long at times.
        self._queue.append(entry)
        if self._idle is not None and self._ride is None:
            self._wake()
        elif self._task is None:
            self._watchdog.clear()
            self._task = self._loop.create_task(self._serve(), name="http1 answers")
        elif len(self._queue) >= self._limits.max_pipeline:
            self._regulate()

    def _wake(self) -> None:
        """Let the task look what there is to do."""
        idle, self._idle = self._idle, None
        self._watchdog.clear()
        if idle is not None and not idle.done():
            idle.set_result(None)

    async def _serve(self) -> None:
        """Answer requests in order for as long as the connection lives."""
        queue = self._queue
        try:
            while True:
                while queue:
                    entry = queue.popleft()
                    if not self._reading:
                        self._regulate()
                    if isinstance(entry, Refused):
                        await self._refuse(entry.error, entry.request)
                        return self._part()
                    if not await self._answer(entry):
                        return self._part()
                if self._eof or (self.is_draining and not self._reader.in_head):
                    return self._transport.close()
                idle = self._rest()
                await idle
        except Exception:
            # The application broke its promise to raise nothing; the client must not wait for it.
            logger.exception("a connection broke")
            self._transport.abort()

    def _rest(self) -> asyncio.Future[None]:
        """Nothing is left to answer: a future that the next request resolves."""
        self._current = None
        limits = self._limits
        self._watchdog.set(limits.head_timeout if self._reader.in_head else limits.keepalive_timeout)
        idle = self._idle = self._loop.create_future()
        return idle

    async def _answer(self, arrival: Arrival) -> bool:
        """Answer one request; says whether the connection may live on."""
        self._current = arrival
        self._ride = None
        try:
            response, token = await self._application.answer(arrival)
        except Exception:
            logger.exception("the application raised instead of answering")
            await self._refuse(InternalError(), arrival)
            return False
        sent = Sent()
        try:
            return await self._send(response, arrival, sent)
        finally:
            if self._given_up and sent.outcome == "client_closed":
                sent.outcome = "gateway_abort"
            try:
                if response.is_held:
                    await response.close()
            finally:
                self._application.finished(token, response, sent)

    async def _send(self, response: Response, arrival: Arrival, sent: Sent) -> bool:
        body, incoming = response.body, arrival.incoming
        keep_alive = arrival.keep_alive and not self.is_draining
        if incoming is not None and isinstance(body, bytes) and not incoming.is_complete:
            keep_alive = False  # An answer before the request's end: the rest is not worth reading.
        try:
            head = response_head(response, arrival.method, arrival.http_version == "1.0", keep_alive)
        except InvalidHeader:
            logger.exception("a response's head cannot be written")
            sent.outcome = "gateway_abort"
            sent.head_sent = True
            sent.bytes_sent = await self._refuse(InternalError(), arrival)
            return False
        arrival.expects_continue = False
        if isinstance(body, bytes) or head.framing == NO_BODY:
            sent.head_sent = True
            rest = body if isinstance(body, bytes) and head.framing != NO_BODY else b""
            sent.bytes_sent = self._writer.write_whole(head.data, rest)
            if self._writer.blocked is not None:
                await self._writer.blocked
            sent.outcome = "complete"
        else:
            await self._writer.stream(head, body, sent)
            if sent.outcome != "complete":
                return False
        if incoming is not None and not incoming.is_complete:
            self._unread = True
            return False
        return head.keep_alive

    async def _refuse(self, error: GatewayError, request: Request | None) -> int:
        """Send an answer that ends the connection; returns its size."""
        response = self._application.refused(error, request, self.peer)
        head = response_head(response, "GET" if request is None else request.method, False, False)
        body = response.body if head.framing != NO_BODY and isinstance(response.body, bytes) else b""
        size = self._writer.write_whole(head.data, body)
        if self._writer.blocked is not None:
            await self._writer.blocked
        return size

    def _part(self) -> None:
        """Close; but if the client may still be sending, read on for a while, or TCP resets our answer away."""
        unread = self._unread or bool(self._queue) or not self._reading
        self._queue.clear()
        if self._lost or self._transport.is_closing():
            return
        if self._eof or not unread:
            self._transport.close()
            return
        self._lingering = True
        self._held_by_body = False
        self._regulate()
        self._transport.write_eof()
        self._watchdog.set(self._limits.linger_timeout)
