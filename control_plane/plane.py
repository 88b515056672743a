"""The control plane, assembled: database, keys, caches, gRPC side. One process, one loop; the HTTP side is `app`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from control_plane import wire
from control_plane.auth import ensure_admin
from control_plane.cache import SnapshotCache
from control_plane.database import Database
from control_plane.errands import aside
from control_plane.expiry import Expiry
from control_plane.history import History
from control_plane.holdings import HoldingsCache
from control_plane.pins import Pins
from control_plane.receipts import Receipts
from control_plane.replicas import Replicas, share_authority
from control_plane.secrets import Cipher, open_cipher, read_check, read_keys, watch_keys
from control_plane.settings import Settings, make_state_dir
from control_plane.snapshot import Snapshot, build
from control_plane.throttle import Throttle


class ControlPlane:
    """What the handlers share. `open` makes it ready, `close` ends it; `running` does both."""

    def __init__(self, settings: Settings) -> None:
        """Raises StartError, and ValueError for a database that is not supported."""
        self.settings = settings
        make_state_dir(settings)
        self.database = Database(settings.database_url)
        self.snapshots = SnapshotCache(self._load_snapshot)
        self.receipts = Receipts()
        self.snapshots.on_made(self.receipts.made)
        self.pins = Pins(self.database)
        self.replicas = Replicas(self.database, self.snapshots, self.pins, self.forget)
        self.throttle = Throttle()
        self.cipher: Cipher
        self.holdings: HoldingsCache
        self.history: History
        self.expiry: Expiry
        self.wire: wire.Wire | None = None

    @property
    def grpc_address(self) -> str:
        """host:port that data planes dial."""
        port = self.wire.port if self.wire is not None else self.settings.grpc_port
        return f"{self.settings.grpc_host}:{port}"

    async def open(self) -> None:
        """Raises StartError for what the operator can mend, OSError when the gRPC port is taken."""
        keys = read_keys(self.settings)
        await self._open_database(keys)
        self.holdings = HoldingsCache(self.cipher)
        kept = (self.settings.history_snapshots, self.settings.history_days)
        self.history = History(self.database, self.cipher, self.holdings.load, *kept)
        self.expiry = Expiry(self.database, self.cipher, self.touch)
        self.wire = await wire.start(self)
        await self._let_admin_in()
        self.replicas.open()
        self.expiry.open()

    async def close(self) -> None:
        """In the reverse order of `open`, each part also when the one before it failed or was cut short."""
        async with contextlib.AsyncExitStack() as parts:
            parts.push_async_callback(self.database.close)
            parts.push_async_callback(self.snapshots.close)
            if self.wire is not None:
                parts.push_async_callback(self.history.close)
                parts.push_async_callback(self.wire.close)
                parts.push_async_callback(self.expiry.close)
            parts.push_async_callback(self.replicas.close)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ControlPlane]:
        try:
            await self.open()
            yield self
        finally:
            await self.close()

    def touch(self, control_plane_id: str, version: int | None = None) -> None:
        """An entity was committed, and made this version: make a snapshot, soon."""
        self.snapshots.touch(control_plane_id, version)
        self.history.touched(control_plane_id)

    async def forget(self, control_plane_id: str) -> None:
        """A control plane was deleted: its nodes are nobody's, its snapshots nothing."""
        self.snapshots.forget(control_plane_id)
        self.holdings.forget(control_plane_id)
        self.history.forget(control_plane_id)
        self.receipts.forget(control_plane_id)
        await self.pins.refresh()

    async def _open_database(self, keys: list[str]) -> None:
        with self.database.at_start():
            await self.database.migrate()
            async with self.database.starting() as session:
                check = partial(read_check, self.settings.database_url)
                self.cipher = await open_cipher(session, keys, watch_keys(self.settings), check)
                if not self.database.is_sqlite:
                    await share_authority(session, self.cipher, self.settings.state_dir)

    async def _let_admin_in(self) -> None:
        """Once nothing more can fail: a start that does not succeed ends no token of one that runs."""
        with self.database.at_start():
            async with self.database.starting() as session:
                await ensure_admin(session, self.settings)

    async def _load_snapshot(self, control_plane_id: str, version: int | None) -> Snapshot:
        holdings = self.holdings.known(control_plane_id, version) if version is not None else None
        if holdings is None:
            async with self.database.reading() as session:
                holdings = await self.holdings.load(session, control_plane_id)
        return await aside(holdings.unbuilt, build, holdings)
