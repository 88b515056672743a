"""A control plane that does what the test says: the real gRPC services over mutual TLS, stored in lists."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_plane.settings import Settings
from gateway_schema.delta import Catalogue, changes_between, delta_of
from gateway_schema.document import hash_of
from gateway_schema.wire import analytics_pb2 as telemetry
from gateway_schema.wire import config_pb2 as pb
from gateway_schema.wire.analytics_pb2_grpc import TelemetryServicer, add_TelemetryServicer_to_server
from gateway_schema.wire.config_pb2_grpc import ConfigSyncServicer, add_ConfigSyncServicer_to_server

PATIENCE = 20.0
"""Seconds after which a test gives up waiting: never reached when things work."""


async def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Poll until something outside this process's events holds; its value."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not (value := condition()):  # noqa: ASYNC110 (what is awaited has no event)
                await asyncio.sleep(0.01)
            return value
    except TimeoutError:
        raise AssertionError(f"it never came to this: {what or condition}") from None


@dataclass(frozen=True)
class Identity:
    certificate: Path
    key: Path


def make_identity(folder: Path, name: str, issuer: Identity | None = None) -> Identity:
    """A certificate and its key in files; self-signed (and able to sign) without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer_key, signer_name = key, subject
    if issuer is not None:
        loaded = serialization.load_pem_private_key(issuer.key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer_key = loaded
        signer_name = x509.load_pem_x509_certificate(issuer.certificate.read_bytes()).subject
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .sign(signer_key, hashes.SHA256())
    )
    made = Identity(folder / f"{name}.pem", folder / f"{name}.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


class ControlPlane(ConfigSyncServicer, TelemetryServicer):
    """`start` and `stop` as often as wanted: the port and what was stored stay."""

    def __init__(self, folder: Path) -> None:
        self.authority = make_identity(folder, "authority")
        self._identity = make_identity(folder, "control-plane", self.authority)
        self.node = make_identity(folder, "node")
        self.port = 0
        self._server: Any = None
        self._nonce = 0
        # Configuration: what nodes said, and what each of their streams has to be sent.
        self.hellos: list[pb.Hello] = []
        self.acks: list[pb.Ack] = []
        self.nacks: list[pb.Nack] = []
        self.statuses: list[pb.Status] = []
        self.refusal: pb.Refusal | None = None
        self.heartbeat = 60
        self._outboxes: list[asyncio.Queue[pb.ControlMessage | None]] = []
        # Telemetry: what was stored, once per epoch and sequence, and what arrived.
        self.reports: list[telemetry.ReportHello] = []
        self.stored: dict[tuple[str, int], telemetry.Batch] = {}
        self.arrived: list[telemetry.Batch] = []
        self.byes: list[telemetry.Bye] = []
        self.acknowledging = True
        self.forgetful = False
        self.taken_over = False
        """The next batch finds another stream in its stream's place."""

    async def start(self) -> None:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_ConfigSyncServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        add_TelemetryServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        credentials = grpc.ssl_server_credentials(
            [(self._identity.key.read_bytes(), self._identity.certificate.read_bytes())],
            self.node.certificate.read_bytes(),
            require_client_auth=True,
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        self._outboxes.clear()
        await self._server.stop(0)

    def settings(self, state_dir: Path, **more: Any) -> Settings:
        values: dict[str, Any] = {
            "control_plane": f"127.0.0.1:{self.port}",
            "certificate": self.node.certificate,
            "certificate_key": self.node.key,
            "control_plane_ca": self.authority.certificate,
            "proxy_port": 0,
            "status_port": 0,
        }
        return Settings(state_dir, **{**values, **more})

    # Configuration.

    async def Stream(self, request_iterator: AsyncIterator[pb.NodeMessage], context: Any) -> None:
        hello = (await anext(aiter(request_iterator))).hello
        self.hellos.append(hello)
        if self.refusal is not None:
            await context.write(pb.ControlMessage(refusal=self.refusal))
            return
        outbox: asyncio.Queue[pb.ControlMessage | None] = asyncio.Queue()
        await context.write(
            pb.ControlMessage(welcome=pb.Welcome(control_plane_name="c", heartbeat_seconds=self.heartbeat))
        )
        self._outboxes.append(outbox)
        listening = asyncio.create_task(self._listen(request_iterator))
        try:
            while (message := await outbox.get()) is not None:
                await context.write(message)
        finally:
            listening.cancel()
            with contextlib.suppress(ValueError):
                self._outboxes.remove(outbox)

    async def _listen(self, messages: AsyncIterator[pb.NodeMessage]) -> None:
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "ack":
                self.acks.append(message.ack)
            elif kind == "nack":
                self.nacks.append(message.nack)
            else:
                self.statuses.append(message.status)

    async def connected(self, streams: int = 1) -> None:
        await eventually(lambda: len(self._outboxes) >= streams, "a node connects")

    def end_streams(self) -> None:
        for outbox in self._outboxes:
            outbox.put_nowait(None)

    def send(self, message: pb.ControlMessage) -> None:
        for outbox in self._outboxes:
            outbox.put_nowait(message)

    def push(self, version: int, document: bytes, *, parts: int = 1, **changes: Any) -> str:
        """Send a snapshot; its nonce."""
        self._nonce += 1
        data = changes.pop("data", None) or zstandard.compress(document)
        size = -(-len(data) // parts)
        for part in range(parts):
            values = {
                "version": version,
                "hash": hash_of(document),
                "nonce": f"n{self._nonce}",
                "part": part,
                "parts": parts,
                "chunk": data[part * size : (part + 1) * size],
            }
            self.send(pb.ControlMessage(snapshot=pb.Snapshot(**{**values, **changes})))
        return f"n{self._nonce}"

    def push_delta(self, version: int, former: bytes, document: bytes, **changes: Any) -> str:
        """Send what leads from one canonical document to another; its nonce."""
        self._nonce += 1
        found = changes_between(Catalogue.read(former), Catalogue.read(document))
        assert found is not None
        delta = delta_of(found)
        values = {
            "from_hash": hash_of(former),
            "to_version": version,
            "hash": hash_of(document),
            "nonce": f"n{self._nonce}",
            "puts": [pb.EntityPut(type=name, entity=entity) for name, _, entity in delta.puts],
            "deletes": [pb.EntityDelete(type=name, id=key) for name, key in delta.deletes],
        }
        self.send(pb.ControlMessage(delta=pb.Delta(**{**values, **changes})))
        return f"n{self._nonce}"

    async def answer_to(self, nonce: str) -> pb.Ack | pb.Nack:
        def found() -> pb.Ack | pb.Nack | None:
            answers: list[pb.Ack | pb.Nack] = [*self.acks, *self.nacks]
            return next((answer for answer in answers if answer.nonce == nonce), None)

        answer: pb.Ack | pb.Nack = await eventually(found, f"an answer to {nonce}")
        return answer

    # Telemetry.

    async def Report(self, request_iterator: AsyncIterator[telemetry.ReportMessage], context: Any) -> None:
        epoch = ""
        async for message in request_iterator:
            kind = message.WhichOneof("message")
            if kind == "hello":
                epoch = message.hello.epoch
                self.reports.append(message.hello)
                if self.forgetful:
                    self.stored.clear()
                    self.forgetful = False
                await context.write(
                    telemetry.ReportAnswer(hello=telemetry.HelloAck(last_durable_sequence=self._last(epoch)))
                )
            elif kind == "batch":
                self.arrived.append(message.batch)
                if self.taken_over:
                    self.taken_over = False
                    await context.abort(grpc.StatusCode.ABORTED, "another stream took its place")
                self.stored.setdefault((epoch, message.batch.sequence), message.batch)
                if self.acknowledging:
                    ack = telemetry.BatchAck(sequence=message.batch.sequence, last_durable_sequence=self._last(epoch))
                    await context.write(telemetry.ReportAnswer(ack=ack))
            else:
                self.byes.append(message.bye)

    def _last(self, epoch: str) -> int:
        last = 0
        while (epoch, last + 1) in self.stored:
            last += 1
        return last

    @property
    def events(self) -> list[telemetry.RequestEvent]:
        return [event for batch in self.stored.values() for event in batch.events]
