"""The Telemetry service: batches up, acknowledgements down (`proto/analytics.proto`).

A batch is answered after the transaction that stored it. A batch that cannot be stored now ends the stream with
UNAVAILABLE or INTERNAL, and the node sends it again; one that can never be stored ends it with INVALID_ARGUMENT.

A spool has one stream, of which the newest wins: an older one is most often dead already, and nobody hears that it ends
with ABORTED. Who does hear it is a second process with the same spool (nodes that were started from copies of one state
directory), and begins another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from control_plane.gate import Credentials
from control_plane.ingest import Ingest, InvalidBatch, Reporter
from control_plane.pins import Pin
from control_plane.rpc_faults import kept_here
from control_plane.texts import clean
from gateway_schema.wire import analytics_pb2, analytics_pb2_grpc

_log = logging.getLogger(__name__)

_HELLO_SECONDS = 10.0
_SLOW_SECONDS = 0.5
"""A batch that takes longer to store than this makes the control plane ask for a pause as long."""
_MAX_PAUSE_MS = 5_000


@dataclass(eq=False, slots=True)
class _Stream:
    """Of one spool."""

    address: str
    replaced: asyncio.Event = field(default_factory=asyncio.Event)
    """By a newer one."""
    took_over: bool = False
    """From an older one that had not ended."""


class Telemetry(analytics_pb2_grpc.TelemetryServicer):
    """One stream per node. Batches of a stream are stored one after the other; the wire holds back the rest."""

    def __init__(self, ingest: Ingest, credentials: Credentials) -> None:
        self._ingest = ingest
        self._credentials = credentials
        self._streams: dict[tuple[str, str], dict[str, _Stream]] = {}
        """By control plane and node, and then by epoch."""

    async def Report(self, request_iterator: AsyncIterator[analytics_pb2.ReportMessage], context: Any) -> None:
        async with kept_here(context, f"the telemetry stream of {self._credentials.address(context.peer())}"):
            await self._converse(request_iterator, context)

    async def _converse(self, request_iterator: AsyncIterator[analytics_pb2.ReportMessage], context: Any) -> None:
        pin = await self._admitted(context)
        messages = aiter(request_iterator)
        reporter = await self._hello(messages, pin.control_plane_id)
        if reporter is None:
            message = "the first message must be a ReportHello with a node id and an epoch"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
            return
        stream = self._open(reporter, self._credentials.address(context.peer()))
        try:
            await context.write(await self._welcome(reporter))
            await self._take(reporter, messages, stream, context)
        finally:
            self._leave(reporter, stream)

    def _open(self, reporter: Reporter, address: str) -> _Stream:
        """A spool's new stream; its older one ends."""
        streams = self._streams.setdefault((reporter.control_plane_id, reporter.node_id), {})
        made, older = _Stream(address), streams.get(reporter.epoch)
        if older is not None:
            _log.info("node %s reports again, from %s: its older stream ends", reporter.node_id, address)
            made.took_over = True
            older.replaced.set()
        twin = next((other for epoch, other in streams.items() if epoch != reporter.epoch and other.took_over), None)
        if twin is not None:
            # Who had to make room is back, with another spool: it was alive.
            _log.error(
                "two nodes report under the id %s, from %s and from %s: was a state directory copied? "
                "Stop one of them, empty its state directory and start it again",
                *(reporter.node_id, twin.address, address),
            )
        streams[reporter.epoch] = made
        return made

    def _leave(self, reporter: Reporter, stream: _Stream) -> None:
        node = (reporter.control_plane_id, reporter.node_id)
        streams = self._streams.get(node, {})
        if streams.get(reporter.epoch) is stream:
            del streams[reporter.epoch]
        if not streams:
            self._streams.pop(node, None)

    async def _take(self, reporter: Reporter, messages: AsyncIterator[Any], stream: _Stream, context: Any) -> None:
        while (received := await _next(messages, stream)) is not None:
            kind = received.WhichOneof("message")
            if kind == "bye":
                await self._ingest.ended(reporter)
                return
            if kind == "batch":
                await self._admitted(context)  # a stream may outlive its certificate
                await context.write(await self._answer(reporter, received.batch, context))
        if stream.replaced.is_set():
            await context.abort(grpc.StatusCode.ABORTED, "another stream of this node and epoch took its place")

    async def _admitted(self, context: Any) -> Pin:
        """The peer's pin; a peer that may not be served has its stream ended."""
        pin, refusal = self._credentials.judge(context.peer())
        if pin is None or refusal is not None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal[1] if refusal else "")
        assert pin is not None
        return pin

    async def _hello(
        self, messages: AsyncIterator[analytics_pb2.ReportMessage], control_plane_id: str
    ) -> Reporter | None:
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            message = await asyncio.wait_for(anext(messages), _HELLO_SECONDS)
            hello = message.hello
            if message.WhichOneof("message") == "hello" and 0 < len(hello.epoch) <= 64 and hello.epoch.isprintable():
                with contextlib.suppress(ValueError):  # not a UUID: the same answer as for no hello at all
                    node_id = str(uuid.UUID(hello.node_id))
                    return Reporter(control_plane_id, node_id, hello.epoch, clean(hello.version, 64))
        return None

    async def _welcome(self, reporter: Reporter) -> analytics_pb2.ReportAnswer:
        last = await self._ingest.last_durable(reporter)
        hello = analytics_pb2.HelloAck(clock_us=time.time_ns() // 1000, last_durable_sequence=last)
        return analytics_pb2.ReportAnswer(hello=hello)

    async def _answer(self, reporter: Reporter, batch: analytics_pb2.Batch, context: Any) -> analytics_pb2.ReportAnswer:
        started = time.monotonic()
        try:
            last = await self._ingest.apply(reporter, batch)
        except InvalidBatch as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        spent = time.monotonic() - started
        pause = min(int(spent * 1000), _MAX_PAUSE_MS) if spent > _SLOW_SECONDS else 0
        ack = analytics_pb2.BatchAck(sequence=batch.sequence, last_durable_sequence=last, slow_down_ms=pause)
        return analytics_pb2.ReportAnswer(ack=ack)


async def _next(messages: AsyncIterator[analytics_pb2.ReportMessage], stream: _Stream) -> Any:
    """The next message; None at the end of the stream, and once a newer one has its place."""
    reading = asyncio.ensure_future(anext(messages, None))
    replaced = asyncio.ensure_future(stream.replaced.wait())
    try:
        await asyncio.wait({reading, replaced}, return_when=asyncio.FIRST_COMPLETED)
        return None if stream.replaced.is_set() else await reading
    finally:
        for task in (reading, replaced):
            task.cancel()
        await asyncio.gather(reading, replaced, return_exceptions=True)
