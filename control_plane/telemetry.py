"""The Telemetry service: batches up, acknowledgements down (`proto/analytics.proto`).

A batch is answered after the transaction that stored it. A batch that cannot be stored now ends the stream with
UNAVAILABLE or INTERNAL, and the node sends it again; one that can never be stored ends it with INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from control_plane.gate import Credentials
from control_plane.ingest import Ingest, InvalidBatch, Reporter
from control_plane.pins import Pin
from control_plane.rpc_faults import kept_here
from control_plane.texts import clean
from gateway_schema.wire import analytics_pb2, analytics_pb2_grpc

_HELLO_SECONDS = 10.0
_SLOW_SECONDS = 0.5
"""A batch that takes longer to store than this makes the control plane ask for a pause as long."""
_MAX_PAUSE_MS = 5_000


class Telemetry(analytics_pb2_grpc.TelemetryServicer):
    """One stream per node. Batches of a stream are stored one after the other; the wire holds back the rest."""

    def __init__(self, ingest: Ingest, credentials: Credentials) -> None:
        self._ingest = ingest
        self._credentials = credentials

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
        await context.write(await self._welcome(reporter))
        async for received in messages:
            kind = received.WhichOneof("message")
            if kind == "bye":
                await self._ingest.ended(reporter)
                return
            if kind == "batch":
                await self._admitted(context)  # a stream may outlive its certificate
                await context.write(await self._answer(reporter, received.batch, context))

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
