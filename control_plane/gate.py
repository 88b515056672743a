"""TLS in front of gRPC: pinned client certificates, checked by us, refused with a line in the log that says why.

grpc's Python server can ask for client certificates, but whoever fails its verification vanishes without a trace: not
even that somebody was refused can be logged. It also takes no certificate that is pinned without its issuer. So TLS
ends here, and the bytes go on over a Unix socket in a private directory. Each connection is bound to a name of its own
there, which grpc reports as the peer; `origin` turns it back into the certificate. A peer that is not in that table
came another way and is nobody.

OpenSSL verifies that the node holds the key of a certificate that is or was registered. Time and revocation are left
to `Pin.refusal`, which knows what to say. Session tickets are off: each connection shows its certificate anew.

It runs on a loop of its own in a thread, because it needs the standard loop (uvloop loses the reason of a failed
handshake), and because the encryption of one node's snapshot then delays nobody's query.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from control_plane.identity import Identity
from control_plane.pins import Pin, Pins, fingerprint_of

_log = logging.getLogger(__name__)

T = TypeVar("T")

HANDSHAKE_SECONDS = 10.0
MAX_CONNECTIONS = 10_000
_FAREWELL_SECONDS = 2.0
_CHUNK = 1 << 16
_NO_CHECK_TIME = 0x20_0000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name."""
_SELF_SIGNED, _NO_ISSUER = 18, 20
"""OpenSSL's codes for a certificate that is, or ends in, one that nobody registered."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who is at the other end of a connection."""

    fingerprint: str
    address: str
    control_plane_id: str
    """With which the certificate was registered when the connection was made: its streams are of that one's nodes."""


class Gate:
    """Accepts nodes' TLS connections and passes their bytes to grpc's Unix socket."""

    def __init__(self, identity: Identity, pins: Pins) -> None:
        self._identity = identity
        self._pins = pins
        self._directory = Path(tempfile.mkdtemp(prefix="tandem-"))
        self._origins: dict[str, Origin] = {}
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._count = 0
        self._context = self._new_context()
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="tandem-gate", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def inner_address(self) -> str:
        """Where grpc must listen."""
        return f"unix:{self._directory / 'grpc'}"

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when it is taken."""
        self._thread.start()
        return await self._in_thread(self._listen(host, port))

    def origin(self, peer: str) -> Origin | None:
        """The certificate behind a peer as grpc names it."""
        return self._origins.get(peer.rsplit("/", 1)[-1])

    def renew(self) -> None:
        """Certificates changed: new connections are judged by the new set, those of certificates taken back end."""
        self._context = self._new_context()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cut_revoked)

    async def close(self) -> None:
        if self._thread.is_alive():
            await self._in_thread(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join, 5)
        self._loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._identity.certificate, self._identity.key)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["h2"])
        if bundle := self._pins.bundle:
            context.load_verify_locations(cadata=bundle)
        return context

    # -- in the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return await asyncio.wrap_future(future)

    async def _listen(self, host: str, port: int) -> int:
        self._server = await asyncio.start_server(self._accept, host, port, limit=4 * _CHUNK, reuse_address=True)
        return int(self._server.sockets[0].getsockname()[1])

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports that were just closed say so to their protocols

    def _cut_revoked(self) -> None:
        for name, origin in list(self._origins.items()):
            pin = self._pins.of(origin.fingerprint)
            if pin is None or pin.revoked or pin.control_plane_id != origin.control_plane_id:
                gone = pin is None or pin.revoked
                what = "was revoked" if gone else "was registered with another control plane"
                _log.warning("node connection from %s ends: its client certificate %s", origin.address, what)
                self._writers[name].transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = _address_of(writer)
        if len(self._tasks) >= MAX_CONNECTIONS:
            _log.error("node connection from %s refused: %d are open already", address, MAX_CONNECTIONS)
            writer.transport.abort()
            return
        task = self._loop.create_task(self._serve(reader, writer, address), name=f"gate {address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        try:
            fingerprint = await self._handshake(writer, address)
            if fingerprint is not None:
                pin = self._pins.of(fingerprint)
                origin = Origin(fingerprint, address, pin.control_plane_id if pin is not None else "")
                await self._pass_on(reader, writer, origin)
        except OSError as error:
            _log.info("node connection from %s broke: %s", address, error)
        finally:
            writer.transport.abort()

    async def _handshake(self, writer: asyncio.StreamWriter, address: str) -> str | None:
        try:
            await writer.start_tls(self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        except ssl.SSLError as error:
            _log.warning("node connection from %s refused: %s", address, _reason(error))
            return None
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return fingerprint_of(certificate)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, origin: Origin) -> None:
        self._count += 1
        name = f"c{self._count}"
        self._origins[name], self._writers[name] = origin, writer
        try:
            inner_reader, inner_writer = await self._dial(name)
            try:
                await _pump_both(reader, writer, inner_reader, inner_writer)
            finally:
                inner_writer.close()
            await _finish(writer)
        finally:
            # The name is free again only when grpc can no longer take a new connection for this one.
            del self._origins[name], self._writers[name]
            (self._directory / name).unlink(missing_ok=True)

    async def _dial(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inner.setblocking(False)
            inner.bind(os.fspath(self._directory / name))
            await self._loop.sock_connect(inner, os.fspath(self._directory / "grpc"))
            return await asyncio.open_unix_connection(sock=inner, limit=4 * _CHUNK)
        except BaseException:
            inner.close()
            raise


class Credentials:
    """Who a gRPC peer is, by the client certificate that the gate saw."""

    def __init__(self, gate: Gate, pins: Pins) -> None:
        self._gate = gate
        self._pins = pins

    def judge(self, peer: str) -> tuple[Pin | None, tuple[str, str] | None]:
        """The peer's pin and, when it may not be served, a code and a sentence."""
        origin = self._gate.origin(peer)
        pin = self._pins.of(origin.fingerprint) if origin is not None else None
        if origin is None or pin is None:
            return None, ("unknown_certificate", "unknown client certificate: it is registered with no control plane")
        if pin.control_plane_id != origin.control_plane_id:
            moved = "the client certificate was registered with another control plane: the node must connect again"
            return pin, ("revoked_certificate", moved)
        return pin, pin.refusal(datetime.now(UTC))

    def address(self, peer: str) -> str:
        origin = self._gate.origin(peer)
        return origin.address if origin is not None else "an unknown address"


async def _pump_both(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
) -> None:
    """Bytes both ways until either side ends. HTTP/2 has no use for half-closed connections."""
    pumps = [
        asyncio.create_task(_pump(reader, inner_writer), name="gate inward"),
        asyncio.create_task(_pump(inner_reader, writer), name="gate outward"),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # a broken connection is how most nodes leave
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Let the last bytes go out: they may be the reason why the stream ends."""
    with contextlib.suppress(OSError, TimeoutError):  # the node may be gone already, or read no more
        async with asyncio.timeout(_FAREWELL_SECONDS):
            writer.close()
            await writer.wait_closed()


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (_SELF_SIGNED, _NO_ISSUER):
            return "unknown client certificate: it is registered with no control plane"
        return f"client certificate not accepted: {error.verify_message}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it presented no client certificate"
    return f"TLS handshake failed: {error.reason or error}"


def _address_of(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "an unknown address"
