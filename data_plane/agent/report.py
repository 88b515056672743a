"""The node's side of Telemetry (`proto/analytics.proto`): the spool's batches up, acknowledgements down.

After Hello the control plane says which batch of this epoch it stored last; everything behind that is sent again, then
what is new. At most four batches are under way. A batch that nobody acknowledges for long means that the connection
is dead, whatever TCP says: the stream is opened anew, and the same batches go out under the same numbers.

A stream that the control plane ends with ABORTED was replaced by another one of this node and epoch, which we did not
open: two nodes run from copies of one state directory. Numbers of one would count as repetitions of the other's, so
numbering begins anew, with all that is not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc

from data_plane.agent.framing import BATCH_BYTES, BATCH_EVENTS
from data_plane.agent.link import STREAM_ERRORS, Backoff, Disconnected, code_of, first_to_end, greet, read, reason_of
from data_plane.agent.spool import Sealed, Spool, SpoolError
from data_plane.logs import facts
from data_plane.settings import VERSION
from gateway_schema.wire import analytics_pb2 as pb
from gateway_schema.wire.analytics_pb2_grpc import TelemetryStub

log = logging.getLogger(__name__)

WINDOW = 4
LINGER = 0.25
"""Seconds that events wait for a fuller batch."""
HELLO_TIMEOUT = 15.0
ACK_TIMEOUT = 60.0
CLOCK_TOLERANCE = 2.0
"""Seconds by which the node's clock may differ from the control plane's before the log mentions it."""


class Reporter:
    """Call `arrived` when something came into the spool."""

    def __init__(self, channel: Any, node_id: str, spool: Spool) -> None:
        self._stub: Any = TelemetryStub(channel)  # type: ignore[no-untyped-call]
        self._node_id = node_id
        self._spool = spool
        self._bell = asyncio.Event()
        self._backoff = Backoff()
        self._silent = False
        self._closing = False
        self.connected = False

    def arrived(self) -> None:
        self._bell.set()

    async def run(self) -> None:
        """Until `close`, or cancellation."""
        while not self._closing:
            try:
                await self._converse()
            except (*STREAM_ERRORS, SpoolError, OSError) as error:
                self._lost(reason_of(error))
                if code_of(error) is grpc.StatusCode.ABORTED:
                    self._part_from_twin()
            except Exception:
                # A fault of ours in one conversation; giving up for ever would fill the spool.
                log.exception("the telemetry stream failed")
            finally:
                self.connected = False
            if not self._closing:
                await self._pause()

    async def _pause(self) -> None:
        """Wait before the next attempt; closing cuts it short, because there will be none."""
        until = time.monotonic() + self._backoff.next()
        while not self._closing and (left := until - time.monotonic()) > 0:
            await self._rung(left)

    def close(self) -> None:
        """Send what is there, say goodbye and end `run`; without a connection end it at once."""
        self._closing = True
        self._bell.set()

    def _part_from_twin(self) -> None:
        """Another stream took this one's place while we held it: a process that is not us has our id and our spool."""
        log.error(
            "another node reports under this node's id: was its state directory copied? Stop one of them, empty its "
            "state directory and start it again: %s",
            facts(node=self._node_id),
        )
        try:
            self._spool.begin_anew()
        except SpoolError as error:
            log.warning("numbering cannot begin anew: %s", facts(reason=error))

    def _lost(self, reason: str) -> None:
        if not self._silent:
            # The configuration stream speaks of the control plane's absence; this is about analytics only.
            log.info("analytics wait on disk until the control plane takes them: %s", facts(reason=reason))
        self._silent = True

    # One stream.

    async def _converse(self) -> None:
        call = self._stub.Report()
        try:
            self._greeted(await greet(call, pb.ReportMessage(hello=self._hello()), HELLO_TIMEOUT))
            flight = _Flight(self._spool, call)
            await first_to_end(send=self._send(flight), acknowledgements=self._listen(call, flight))
        finally:
            call.cancel()

    def _hello(self) -> pb.ReportHello:
        clock = time.time_ns() // 1000
        return pb.ReportHello(node_id=self._node_id, epoch=self._spool.epoch, version=VERSION, clock_us=clock)

    def _greeted(self, answer: pb.ReportAnswer) -> None:
        if answer.WhichOneof("message") != "hello":
            raise Disconnected("the control plane did not answer the greeting")
        epoch = self._spool.epoch
        self._spool.resume(answer.hello.last_durable_sequence)
        if self._spool.epoch != epoch:
            raise Disconnected("numbering begins anew")
        ahead = time.time() - answer.hello.clock_us / 1_000_000
        if abs(ahead) > CLOCK_TOLERANCE:
            log.warning("this node's clock differs from the control plane's: %s", facts(ahead_seconds=round(ahead, 1)))
        self.connected = True
        self._silent = False
        self._backoff.reset()

    async def _listen(self, call: Any, flight: _Flight) -> None:
        while True:
            answer = await self._read_acknowledgement(call, flight)
            self._spool.acknowledge(answer.last_durable_sequence)
            flight.acknowledged(answer.last_durable_sequence, answer.slow_down_ms / 1000)
            self._bell.set()

    async def _read_acknowledgement(self, call: Any, flight: _Flight) -> pb.BatchAck:
        """The next one; silence is fine as long as nothing is under way."""
        reading = asyncio.create_task(read(call), name="telemetry stream: read")
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=ACK_TIMEOUT / 4)
                if not reading.done() and flight.oldest_age() > ACK_TIMEOUT:
                    raise Disconnected(f"a batch was not acknowledged within {ACK_TIMEOUT:g} seconds")
            if reading.cancelled():
                raise Disconnected("the stream was cancelled")
            answer: pb.ReportAnswer = reading.result()
        finally:
            reading.cancel()
        if answer.WhichOneof("message") != "ack":
            raise Disconnected("the control plane sent something that is no acknowledgement")
        return answer.ack

    async def _send(self, flight: _Flight) -> None:
        for repeated in self._spool.unacknowledged():
            while flight.full:
                await self._rung()
            await flight.send(repeated)
        while True:
            while flight.full:
                await self._rung()
            await self._linger()
            batch = self._spool.seal()
            if batch is not None:
                # On disk before it is on the wire: its number must mean the same events even after a loss of power.
                await self._spool.flush()
                await flight.send(batch)
            elif not self._closing:
                await self._rung()
            elif flight.empty:
                await flight.say_goodbye(self._spool.last_sequence)
                return
            else:
                await self._rung()

    async def _linger(self) -> None:
        """Give a small batch a moment to grow."""
        until = time.monotonic() + LINGER
        while self._spool.unsent_events < BATCH_EVENTS and self._spool.unsent_bytes < BATCH_BYTES:
            left = until - time.monotonic()
            if left <= 0 or self._closing or not self._spool.unsent_events:
                return
            await self._rung(left)

    async def _rung(self, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._bell.wait()
        except TimeoutError:
            return
        self._bell.clear()


class _Flight:
    """The batches that are under way on one stream."""

    def __init__(self, spool: Spool, call: Any) -> None:
        self._spool = spool
        self._call = call
        self._sent: dict[int, float] = {}
        self._pause = 0.0

    @property
    def full(self) -> bool:
        return len(self._sent) >= WINDOW

    @property
    def empty(self) -> bool:
        return not self._sent

    def oldest_age(self) -> float:
        """Seconds since the oldest batch under way was sent."""
        return time.monotonic() - min(self._sent.values(), default=float("inf"))

    async def send(self, batch: Sealed) -> None:
        pause, self._pause = self._pause, 0.0
        await asyncio.sleep(min(pause, 5.0))
        self._sent[batch.sequence] = time.monotonic()
        await self._call.write(pb.ReportMessage(batch=pb.Batch.FromString(batch.payload)))

    def acknowledged(self, sequence: int, pause: float) -> None:
        for sent in [number for number in self._sent if number <= sequence]:
            del self._sent[sent]
        self._pause = pause

    async def say_goodbye(self, last_sequence: int) -> None:
        await self._call.write(pb.ReportMessage(bye=pb.Bye(last_sequence=last_sequence)))
        await self._call.done_writing()
        await asyncio.wait_for(self._call.code(), 2.0)
