"""One connection to an upstream, which carries one exchange at a time.

Theory of operation. `start` writes the request and returns one future, which the first feed that completes the response
(or its head, when the body is long or unbounded) resolves: a small answer costs one wake-up. A body that streams is fed
to its reader from `data_received`, with no task between. Instead of a future a ride may wait (`express`): it takes a
small answer in the same turn, or derails and becomes such a future. As soon as the last byte is parsed the connection
goes back to its pool, whoever still reads the body. An answer that comes before a streamed request was sent whole is
handed over at once; the connection is then not used again.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

from data_plane.errors import InvalidResponse, UpstreamError, UpstreamTimeout
from data_plane.http1.coalescing import CoalescingTransport
from data_plane.http1.express import Ride
from data_plane.http1.framing import LAST_CHUNK, chunk
from data_plane.http1.limits import ClientLimits, Timeouts
from data_plane.http1.response_reader import ProtocolFault, ResponseReader
from data_plane.http1.turn import turn_of
from data_plane.http1.watchdog import Watchdog
from data_plane.messages import Body, Response

_SMALL = 32 * 1024


class StaleConnection(InvalidResponse):
    """A kept connection broke before any byte of an answer: the upstream had most likely closed it already.

    `age` says how long after the request was sent, in seconds.
    """

    age = 0.0


class ClientConnection(asyncio.Protocol):
    """Implements asyncio's protocol and `body.Flow`. `keep` takes it when free, `forget` hears when it is lost."""

    def __init__(
        self,
        limits: ClientLimits,
        keep: Callable[[ClientConnection], bool],
        forget: Callable[[ClientConnection], None],
    ) -> None:
        self._limits = limits
        self._keep = keep
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._turn = turn_of(self._loop)
        self._watchdog = Watchdog(self._loop, self._expired)
        self._reader = ResponseReader(limits, self)
        self._timeouts = Timeouts()
        self._waiter: asyncio.Future[Response] | None = None
        self._ride: Ride | None = None
        """In place of a waiter: who rides on what is under way."""
        self._upload: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._unwritten = 0
        self._served = 0
        self._started = 0.0
        self._busy = False
        self._is_landing = False
        """The answer to the ride is here, and waits for its turn."""
        self._lost = False

    @property
    def is_usable(self) -> bool:
        return not self._lost and not self._transport.is_closing()

    # What the client calls.

    def start(
        self, method: str, head: bytes, data: bytes | None, body: Body, timeouts: Timeouts
    ) -> asyncio.Future[Response]:
        """Send a request, whole (`data`) or streamed (`body`). Whoever stops waiting for the response calls `abort`."""
        waiter: asyncio.Future[Response] = self._loop.create_future()
        if self._lost:
            waiter.set_exception(InvalidResponse("reset", "closed before it was used"))
            return waiter
        self._waiter = waiter
        self._busy = True
        self._timeouts = timeouts
        self._reader.expect(method)
        if data is None:
            self._transport.write(head)
            self._upload = self._loop.create_task(self._send_stream(body), name="http1 upload")
            return waiter
        if len(data) <= _SMALL:
            self._transport.write(head + data)
        else:
            self._transport.write(head)
            self._transport.write(data)
        if self._writable is None:
            self._started = self._watchdog.set(timeouts.read)
        return waiter

    def carry(self, ride: Ride, method: str, data: bytes, timeouts: Timeouts) -> None:
        """Send a whole request, head and body. Its answer goes to the ride; for a connection that is usable."""
        self._ride = ride
        self._busy = True
        self._timeouts = timeouts
        self._reader.expect(method)
        self._transport.write(data)
        if self._writable is None:
            self._started = self._watchdog.set(timeouts.read)

    def landed(self, ride: Ride) -> None:
        """What could be done to deliver a ride's answer is done; where that was not enough it derails."""
        self._is_landing = False
        if ride.has_arrived:
            self._ride = None
        else:
            self._give(ride.response(), self._derail(ride))
        self._release()

    def drop(self, ride: Ride) -> None:
        """Break off: nobody waits for this ride's answer. If it has come already, the connection may be another's."""
        if ride.waiter is not None:
            self.give_up(ride.waiter)
        elif self._ride is ride:
            self._break_off()

    def give_up(self, waiter: asyncio.Future[Response]) -> None:
        """The same for whoever waits in the ordinary way, or has been answered just now and not yet heard of it."""
        is_its = self._waiter is waiter
        if not is_its and waiter.done() and not waiter.cancelled():
            # To look is also to keep asyncio from complaining that nobody did.
            is_its = waiter.exception() is None and waiter.result().body is self._reader.body
        if is_its:
            self._break_off()

    def _break_off(self) -> None:
        self._ride = self._waiter = None
        if self._busy:
            self._busy = False
            self.abort()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        if self._upload is not None:
            self._upload.cancel()
        if not self._lost:
            self._transport.abort()

    async def closed(self) -> None:
        if not self._lost:
            if self._closed is None:
                self._closed = self._loop.create_future()
            await asyncio.shield(self._closed)
        if self._upload is not None:
            await asyncio.wait((self._upload,))

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Which uvloop's is in all but name.
        self._transport = CoalescingTransport(cast(asyncio.Transport, transport))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self._is_landing or (self._waiter is not None and self._waiter.done()):
            # Nobody asked (a farewell, or a stream out of step), or whoever did has just ceased to wait.
            self._transport.abort()
            return
        reader = self._reader
        ride = self._ride
        if ride is not None:
            recalled = reader.recall(data)
            if recalled is not None:
                ride.came_again(recalled)
                self._land(ride)
                return
        try:
            reader.feed(data)
        except ProtocolFault as fault:
            self._fail(InvalidResponse("protocol", str(fault), sent=True))
            return
        if ride is not None:
            if self._arrives(ride):
                return
        else:
            self._hand_over()
        if reader.complete:
            self._release()
        elif self._writable is None:
            self._watchdog.set(self._timeouts.read)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._watchdog.close()
        self._forget(self)
        if self._busy:
            if error is None and self._reader.end():
                self._hand_over()
                self._busy = False
            else:
                self._fail(self._broken(error))
        self.resume_writing()
        self._reader.close()
        if self._closed is not None:
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()
            self._unwritten = self._transport.get_write_buffer_size()
            self._watchdog.set(self._timeouts.write)

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
            if not self._lost and self._busy:
                self._await_answer()

    # What bodies call (`body.Flow`).

    def hold(self) -> None:
        if not self._lost:
            self._transport.pause_reading()
            self._watchdog.clear()

    def release(self) -> None:
        if not self._lost:
            self._transport.resume_reading()
            if self._busy:
                self._watchdog.set(self._timeouts.read)

    def wanted(self) -> None:
        pass

    # Sending.

    async def _send_stream(self, body: Body) -> None:
        """Write a request's body as it comes. Its own failure (the client left, it is too large) ends the exchange."""
        try:
            await self._write_pieces(aiter(body), body.length)
        except Exception as error:
            self._fail(error)
        finally:
            self._upload = None
        if self._busy and not self._lost:
            self._await_answer()

    async def _write_pieces(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        left = length
        async for piece in pieces:
            if self._lost:
                return
            if left is not None:
                left -= len(piece)
                if left < 0:
                    raise ValueError("a request's body is longer than its length")
            if piece:
                self._transport.write(piece if length is not None else chunk(piece))
            if self._writable is not None:
                await self._writable
        if length is None:
            self._transport.write(LAST_CHUNK)
        elif left:
            raise ValueError("a request's body is shorter than its length")

    # Receiving.

    def _arrives(self, ride: Ride) -> bool:
        """Deliver what came, if it is the whole answer to a ride: True. One that will be more than small derails."""
        response = self._reader.take_response()
        if response is None:
            return False
        if not self._reader.complete:
            self._give(response, self._derail(ride))
            return False
        ride.came(response)
        self._land(ride)
        return True

    def _land(self, ride: Ride) -> None:
        """Wait for the turn's end, or not so long: `landed` goes on, perhaps before this returns."""
        self._is_landing = True
        self._turn.take(ride)

    def _derail(self, ride: Ride) -> asyncio.Future[Response]:
        """Someone must wait for this answer in the ordinary way."""
        self._ride = None
        waiter: asyncio.Future[Response] = self._loop.create_future()
        self._waiter = waiter
        ride.derail(waiter)
        return waiter

    def _hand_over(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        response = self._reader.take_response()
        if response is not None:
            self._give(response, waiter)

    def _give(self, response: Response, waiter: asyncio.Future[Response]) -> None:
        self._waiter = None
        body = self._reader.body
        if body is not None:
            response.on_close(functools.partial(self._abandon, body))
        waiter.set_result(response)

    def _release(self) -> None:
        """The answer is complete: back to the pool, or away."""
        self._busy = False
        self._served += 1
        if self._upload is not None:
            self.abort()
        elif (
            self._reader.keep_alive
            and self._writable is None
            and self._served < self._limits.max_requests_per_connection
            and not self._transport.is_closing()
            and self._keep(self)
        ):
            self._watchdog.set(self._limits.idle_timeout)
        else:
            self._transport.close()

    async def _abandon(self, body: object) -> None:
        """Whoever read this body reads no more; if it is not over, neither it nor the connection can be used."""
        if self._busy and self._reader.body is body:
            self._busy = False
            self.abort()

    # Ending badly.

    def _await_answer(self) -> None:
        if self._upload is None:
            self._watchdog.set(self._timeouts.read)
        else:
            self._watchdog.clear()  # The next piece is the client's to send; the server watches it.

    def _expired(self) -> None:
        if not self._busy:
            self._transport.close()
        elif self._writable is None:
            self._fail(UpstreamTimeout("timeout_read", "no byte for too long", sent=True))
        else:
            left = self._transport.get_write_buffer_size()
            if left < self._unwritten:  # Slow, but the upstream takes what we write.
                self._unwritten = left
                self._watchdog.set(self._timeouts.write)
            else:
                self._fail(UpstreamTimeout("timeout_write", "no byte was taken for too long", sent=True))

    def _broken(self, error: Exception | None) -> UpstreamError:
        detail = "closed before its answer was complete" if error is None else f"{type(error).__name__}: {error}"
        if not self._served or self._reader.began:
            return InvalidResponse("reset", detail, sent=True)
        stale = StaleConnection("reset", detail, sent=True)
        stale.age = self._loop.time() - self._started
        return stale

    def _fail(self, error: Exception) -> None:
        if not self._busy or self._is_landing:
            return
        if self._ride is not None:
            self._derail(self._ride)
        self._busy = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        elif self._reader.body is not None:
            self._reader.body.fail(error)
        self.abort()
