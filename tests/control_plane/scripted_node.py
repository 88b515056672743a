"""A data plane node that does what a test says: it speaks the wire and nothing else."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.plane import ControlPlane
from control_plane.settings import VERSION
from gateway_schema.delta import Catalogue, Delta
from gateway_schema.document import hash_of
from gateway_schema.wire import analytics_pb2, analytics_pb2_grpc, config_pb2, config_pb2_grpc

PATIENCE = 20.0
"""Seconds after which a test that waits for the control plane has failed."""


@dataclass(frozen=True)
class KeyPair:
    cert: str
    key: bytes


def key_pair(valid_days: float = 30) -> KeyPair:
    """A self-signed client certificate; with negative days one that has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "data-plane")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM).decode(), private)


@asynccontextmanager
async def channel(plane: ControlPlane, pair: KeyPair | None) -> AsyncIterator[Any]:
    """A connection as a node makes it: it trusts `ca.pem` only and asks for the name `control-plane`."""
    ca = (plane.settings.state_dir / "ca.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(ca, pair.key if pair else None, pair.cert.encode() if pair else None)
    assert plane.wire is not None
    options = [("grpc.ssl_target_name_override", "control-plane"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{plane.wire.port}", credentials, options) as opened:
        yield opened


@dataclass
class Received:
    """A snapshot as a node has it in the end: its parts put together, or what a delta made of the one before."""

    version: int
    hash: str
    nonce: str
    payload: bytes
    delta: config_pb2.Delta | None = None


class ScriptedNode:
    """One configuration stream."""

    def __init__(self, opened: Any, node_id: str | None = None) -> None:
        self.id = node_id or str(uuid.uuid4())
        self.known: dict[str, bytes] = {}
        """Documents by hash: what deltas may start from."""
        self._call = config_pb2_grpc.ConfigSyncStub(opened).Stream()

    async def hello(
        self,
        known: Received | None = None,
        version: str = VERSION,
        plugins: Sequence[str] = ("key-auth",),
        hostname: str = "node",
    ) -> config_pb2.ControlMessage:
        """Say hello, running `known`; returns the first answer: a Welcome or a Refusal."""
        if known is not None:
            self.known[known.hash] = known.payload
        hello = config_pb2.Hello(
            node_id=self.id,
            hostname=hostname,
            version=version,
            plugins=plugins,
            hash=known.hash if known else "",
            config_version=known.version if known else 0,
            workers=[],
        )
        await self.send(config_pb2.NodeMessage(hello=hello))
        return await self.receive()

    async def send(self, message: config_pb2.NodeMessage) -> None:
        await asyncio.wait_for(self._call.write(message), PATIENCE)

    async def receive(self) -> config_pb2.ControlMessage:
        message = await asyncio.wait_for(self._call.read(), PATIENCE)
        assert message is not grpc.aio.EOF, await self._call.code()
        return message

    async def ended(self) -> grpc.StatusCode:
        """Wait for the end of the stream, whatever comes before it."""
        with suppress(grpc.aio.AioRpcError):  # raised for an end that is not OK; the code says which
            while await asyncio.wait_for(self._call.read(), PATIENCE) is not grpc.aio.EOF:
                pass
        return await self._call.code()

    async def snapshot(self) -> Received:
        """The next snapshot, however it comes; one that was sent whole has no `delta`."""
        message = await self.receive()
        received = self._changed(message.delta) if message.HasField("delta") else await self._whole(message)
        self.known[received.hash] = received.payload
        return received

    async def _whole(self, message: config_pb2.ControlMessage) -> Received:
        parts: list[config_pb2.Snapshot] = []
        while True:
            assert message.WhichOneof("message") == "snapshot", message
            parts.append(message.snapshot)
            if len(parts) == parts[0].parts:
                break
            message = await self.receive()
        first = parts[0]
        payload = zstandard.ZstdDecompressor().decompress(b"".join(part.chunk for part in parts), 1 << 28)
        return Received(first.version, first.hash, first.nonce, payload)

    def _changed(self, delta: config_pb2.Delta) -> Received:
        puts = [(put.type, orjson.loads(put.entity)["id"], put.entity) for put in delta.puts]
        deletes = [(delete.type, delete.id) for delete in delta.deletes]
        former = Catalogue.read(self.known[delta.from_hash])
        payload = former.after(Delta(tuple(puts), tuple(deletes))).payload()
        assert hash_of(payload) == delta.hash
        return Received(delta.to_version, delta.hash, delta.nonce, payload, delta)

    async def ack(self, received: Received, nonce: str | None = None) -> None:
        worker = config_pb2.Worker(index=0, pid=7, version=received.version, hash=received.hash, state="ready")
        ack = config_pb2.Ack(
            nonce=nonce or received.nonce, version=received.version, hash=received.hash, workers=[worker]
        )
        await self.send(config_pb2.NodeMessage(ack=ack))

    async def nack(self, received: Received, **fault: str | bool) -> None:
        nack = config_pb2.Nack(nonce=received.nonce, version=received.version, **fault)  # type: ignore[arg-type]
        await self.send(config_pb2.NodeMessage(nack=nack))

    async def status(self, received: Received, *workers: config_pb2.Worker) -> None:
        status = config_pb2.Status(config_version=received.version, hash=received.hash, workers=workers)
        await self.send(config_pb2.NodeMessage(status=status))


class ScriptedReporter:
    """One telemetry stream."""

    def __init__(self, opened: Any, node_id: str, **hello: str) -> None:
        self._call = analytics_pb2_grpc.TelemetryStub(opened).Report()
        self._hello = analytics_pb2.ReportHello(**{"epoch": "e" * 32, "version": VERSION, "node_id": node_id, **hello})

    async def hello(self) -> int:
        """Say hello; returns the last durable sequence."""
        await self._call.write(analytics_pb2.ReportMessage(hello=self._hello))
        return (await self._receive()).hello.last_durable_sequence

    async def report(self, batch: analytics_pb2.Batch) -> int:
        """Send a batch and wait for its acknowledgement; returns the last durable sequence."""
        await self._call.write(analytics_pb2.ReportMessage(batch=batch))
        answer = await self._receive()
        assert answer.ack.sequence == batch.sequence
        return answer.ack.last_durable_sequence

    async def code(self) -> grpc.StatusCode:
        return await asyncio.wait_for(self._call.code(), PATIENCE)

    async def _receive(self) -> analytics_pb2.ReportAnswer:
        answer = await asyncio.wait_for(self._call.read(), PATIENCE)
        assert answer is not grpc.aio.EOF, await self._call.code()
        return answer
