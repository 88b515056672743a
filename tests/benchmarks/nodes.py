"""A crowd of data plane nodes that serve nothing: each has its own connection, says hello, acknowledges at once, beats.

`python -m tests.benchmarks.nodes ADDRESS CA CERTIFICATE KEY COUNT` prints `ready` when every node runs what it was
sent, then waits to be stopped. Both streams of a node are open, as a real one's are.
"""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from data_plane.settings import VERSION
from gateway_schema.plugins import PLUGINS
from gateway_schema.wire import analytics_pb2, analytics_pb2_grpc
from gateway_schema.wire import config_pb2 as pb
from gateway_schema.wire.config_pb2_grpc import ConfigSyncStub

_AT_ONCE = 20
"""Nodes that connect at a time: a real fleet does not start in one instant."""
_OPTIONS = (
    ("grpc.ssl_target_name_override", "control-plane"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


class SimulatedNode:
    """`ready` is called once, when the node runs its first configuration."""

    def __init__(self, number: int, ready: Callable[[], None]) -> None:
        self._id = str(uuid.uuid4())
        self._number = number
        self._ready: Callable[[], None] | None = ready
        self._version, self._hash = 0, ""
        self._welcomed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._heartbeat = 10.0

    async def live(self, address: str, credentials: Any, turn: asyncio.Semaphore) -> None:
        """For ever."""
        async with grpc.aio.secure_channel(address, credentials, list(_OPTIONS)) as channel:
            stub: Any = ConfigSyncStub(channel)  # type: ignore[no-untyped-call]
            telemetry: Any = analytics_pb2_grpc.TelemetryStub(channel)  # type: ignore[no-untyped-call]
            async with turn:
                report = telemetry.Report()
                hello = analytics_pb2.ReportHello(node_id=self._id, epoch=uuid.uuid4().hex, version=VERSION)
                await report.write(analytics_pb2.ReportMessage(hello=hello))
                await report.read()
                call = stub.Stream()
                await call.write(pb.NodeMessage(hello=self._hello()))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(call), name=f"read {self._number}")
                tasks.create_task(self._beat(call), name=f"beat {self._number}")

    def _hello(self) -> pb.Hello:
        return pb.Hello(node_id=self._id, hostname=f"node-{self._number}", version=VERSION, plugins=sorted(PLUGINS))

    async def _read(self, call: Any) -> None:
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                raise ConnectionError(f"the stream of node {self._number} ended: {await call.code()}")
            kind = message.WhichOneof("message")
            if kind == "refusal":
                raise ConnectionError(message.refusal.message)
            if kind == "welcome":
                self._heartbeat = float(message.welcome.heartbeat_seconds)
                self._welcomed.set()
            elif kind == "snapshot" and message.snapshot.part == message.snapshot.parts - 1:
                await self._acknowledge(call, message.snapshot.nonce, message.snapshot.version, message.snapshot.hash)
            elif kind == "delta":
                await self._acknowledge(call, message.delta.nonce, message.delta.to_version, message.delta.hash)

    async def _acknowledge(self, call: Any, nonce: str, version: int, hash_: str) -> None:
        self._version, self._hash = version, hash_
        ack = pb.Ack(nonce=nonce, version=version, hash=hash_, workers=self._workers())
        await self._write(call, pb.NodeMessage(ack=ack))
        if self._ready is not None:
            self._ready()
            self._ready = None

    async def _beat(self, call: Any) -> None:
        await self._welcomed.wait()
        await asyncio.sleep(random.random() * self._heartbeat)
        while True:
            status = pb.Status(config_version=self._version, hash=self._hash, workers=self._workers())
            await self._write(call, pb.NodeMessage(status=status))
            await asyncio.sleep(self._heartbeat)

    async def _write(self, call: Any, message: pb.NodeMessage) -> None:
        async with self._writing:  # gRPC takes one message at a time
            await call.write(message)

    def _workers(self) -> list[pb.Worker]:
        return [pb.Worker(index=0, pid=1000 + self._number, version=self._version, hash=self._hash, state="ready")]


async def crowd(address: str, ca: Path, certificate: Path, key: Path, count: int) -> None:
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in (ca, key, certificate)))
    turn = asyncio.Semaphore(_AT_ONCE)
    missing = count

    def ready() -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            print("ready", flush=True)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            node = SimulatedNode(number, ready)
            tasks.create_task(node.live(address, credentials, turn), name=f"node {number}")


if __name__ == "__main__":
    address, ca, certificate, key, count = sys.argv[1:]
    asyncio.run(crowd(address, Path(ca), Path(certificate), Path(key), int(count)))
