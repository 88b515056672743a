"""The control plane's gRPC side as one thing with a life: gate, services, and the chores that go with them.

`start` opens it, `close` ends it. Chores run now and then: certificates are read again (another replica may have
changed them), and what is past its retention time goes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc

from control_plane import audit
from control_plane.cache import SnapshotCache
from control_plane.database import Database
from control_plane.discovery import ConfigSync, Pace
from control_plane.errors import StartError
from control_plane.gate import Credentials, Gate
from control_plane.identity import ensure_identity
from control_plane.ingest import Ingest
from control_plane.pins import Pins
from control_plane.roster import Roster, Watcher
from control_plane.settings import Settings
from control_plane.telemetry import Telemetry
from gateway_schema.wire import analytics_pb2_grpc, config_pb2_grpc

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
PINS_SECONDS = 5.0
PRUNE_SECONDS = 600.0
DAY_US = 86_400_000_000
_GRACE_SECONDS = 1.0
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    # A node that vanished without a word is noticed within 40 s, also on a telemetry stream that has nothing to say.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


class Plane(Protocol):
    """What of the control plane the wire needs (`control_plane.plane.ControlPlane`)."""

    @property
    def settings(self) -> Settings: ...
    @property
    def database(self) -> Database: ...
    @property
    def snapshots(self) -> SnapshotCache: ...
    @property
    def pins(self) -> Pins: ...
    @property
    def receipts(self) -> Watcher: ...


class Wire:
    """The running gRPC side. `port` is the one that nodes dial."""

    def __init__(self, plane: Plane, pace: Pace | None = None) -> None:
        self._plane = plane
        self._roster = Roster(plane.database, plane.receipts)
        self._ingest = Ingest(plane.database)
        self._gate = Gate(ensure_identity(plane.settings.state_dir), plane.pins)
        credentials = Credentials(self._gate, plane.pins)
        self._config_sync = ConfigSync(plane.snapshots, self._roster, credentials, pace)
        self._server = grpc.aio.server(options=_OPTIONS)
        telemetry = Telemetry(self._ingest, credentials)
        config_pb2_grpc.add_ConfigSyncServicer_to_server(self._config_sync, self._server)  # type: ignore[no-untyped-call]
        analytics_pb2_grpc.add_TelemetryServicer_to_server(telemetry, self._server)  # type: ignore[no-untyped-call]
        self._chores: list[asyncio.Task[None]] = []
        self.port = 0

    async def open(self) -> None:
        """Listen. Raises OSError when the port is taken, StartError for an address that is none of this machine."""
        await self._plane.pins.refresh()
        self._gate.renew()
        self._plane.pins.on_change(self._gate.renew)
        self._server.add_insecure_port(self._gate.inner_address)
        await self._server.start()
        settings = self._plane.settings
        self.port = await self._listen(settings.grpc_host, settings.grpc_port)
        self._chores = [
            asyncio.create_task(_every(PINS_SECONDS, self._plane.pins.refresh), name="read certificates"),
            asyncio.create_task(_every(PRUNE_SECONDS, self._prune), name="prune analytics"),
        ]
        _log.info("data planes connect to %s:%d", settings.grpc_host, self.port)

    async def _listen(self, host: str, port: int) -> int:
        try:
            return await self._gate.open(host, port)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise
            said = getattr(error, "strerror", None) or error
            raise StartError(f"cannot listen on {host}:{port} for data planes (TANDEM_GRPC_HOST): {said}") from None

    async def close(self) -> None:
        """End the streams, then stop listening."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        self._config_sync.end_streams()
        await self._server.stop(_GRACE_SECONDS)
        await self._gate.close()
        await self._roster.close()
        await self._ingest.close()

    def forget(self, control_plane_id: str, node_id: str) -> None:
        """A node was deleted from the list. On another replica its stream ends with the next word on it."""
        self._config_sync.end_stream(control_plane_id, node_id)

    async def _prune(self) -> None:
        now = time.time()
        await self._ingest.prune(int(now * 1e6) - self._plane.settings.analytics_retention_days * DAY_US)
        await self._roster.prune()
        await audit.prune(self._plane.database, int(now * 1e6) - self._plane.settings.audit_retention_days * DAY_US)


async def start(plane: Plane, pace: Pace | None = None) -> Wire:
    """Open the gRPC side of a control plane; whoever calls closes it. Raises OSError when the port is taken."""
    wire = Wire(plane, pace)
    try:
        await wire.open()
    except BaseException:
        await wire.close()
        raise
    return wire


async def _every(seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await chore()
        except Exception:
            # A chore that fails once is tried again; the streams do not depend on it.
            _log.exception("a chore of the control plane failed")
