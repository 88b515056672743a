"""Several control planes on one PostgreSQL: what one of them commits, the others hear of at once.

Whoever changes something that the others keep in memory says so inside its transaction (`announce`): PostgreSQL
delivers the word at the commit, or never. Each process listens on a connection of its own. A word says only what to
look at; what is true is read from the database, so a word that is lost, doubled or forged does no harm. Words are lost
while the connection is away: after each reconnect, and every `POLL_SECONDS` besides (a pooler in between may swallow
words), the versions in the database are compared with those in memory.

A word is three: the subject (a control plane's id, or `certificates`), what became of it (its new version, or `gone`),
and which process says it, for a process knows what it did itself. On SQLite there is one process and nothing to say.

What replicas must have in common: the database; TANDEM_ENCRYPTION_KEY (or copies of the first one's `encryption.key`),
without which a start is refused; TANDEM_ADMIN_TOKEN, if it is used. The certificate authority that nodes trust is kept
in the database, encrypted under that key, and each replica takes it from there (`share_authority`); its server
certificate is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import ColumnElement, Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.cache import SnapshotCache
from control_plane.database import Database, replica_of
from control_plane.identity import read_authority, write_authority
from control_plane.models import ControlPlane, Keyring
from control_plane.pins import Pins
from control_plane.secrets import Cipher

_log = logging.getLogger(__name__)

CHANNEL = "tandem_changes"
POLL_SECONDS = 5.0
CONNECT_SECONDS = 10.0
CHECK_SECONDS = 10.0
"""Between two proofs that the listening connection lives; a proof may take as long."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
_AUTHORITY = "authority"
_CERTIFICATES = "certificates"
_GONE = "gone"


# -- saying


def announced(control_plane_id: ColumnElement[str], replica: ColumnElement[str]) -> ColumnElement[Any]:
    """To be returned by the UPDATE that sets a control plane's version: the others hear of it once its transaction has
    committed."""
    return func.pg_notify(CHANNEL, control_plane_id + " " + cast(ControlPlane.config_version, Text) + " " + replica)


async def announce_gone(session: AsyncSession, control_plane_id: str) -> None:
    """There is no such control plane, and no certificate of its, once this transaction has committed."""
    await _say(session, control_plane_id, _GONE)


async def announce_certificates(session: AsyncSession) -> None:
    """The client certificates are others once this transaction has committed."""
    await _say(session, _CERTIFICATES, "changed")


async def _say(session: AsyncSession, subject: str, what: str) -> None:
    replica = replica_of(session)
    if replica is not None:
        await session.execute(select(func.pg_notify(CHANNEL, f"{subject} {what} {replica}")))


# -- hearing


class Replicas:
    """Follows what other processes do to the database of this one. `open` begins, `close` ends it."""

    def __init__(
        self,
        database: Database,
        snapshots: SnapshotCache,
        pins: Pins,
        forget: Callable[[str], Awaitable[None]],
    ) -> None:
        """`forget` is called for a control plane that was deleted elsewhere."""
        self._database = database
        self._snapshots = snapshots
        self._pins = pins
        self._forget = forget
        self._gone: set[str] = set()
        self._stale_pins = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        if self._database.is_sqlite:
            return
        self._tasks = [
            asyncio.create_task(self._keep_listening(), name="listen to other replicas"),
            asyncio.create_task(self._keep_comparing(), name="compare versions with the database"),
            asyncio.create_task(self._keep_pins(), name="follow certificates of other replicas"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_listening(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._connection() as (connection, lost):
                    await connection.add_listener(CHANNEL, self._heard)
                    await self._catch_up()
                    pause = FIRST_PAUSE_SECONDS
                    await _stay(connection, lost)
                _log.warning("the connection that hears of other replicas' changes ended: making another")
            except Exception as error:
                # Whatever it was, the versions are compared all the same and the next attempt says whether it lasts.
                _log.warning("cannot listen for other replicas' changes: %s", error or type(error).__name__)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - replicas must not return in step
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Any, asyncio.Event]]:
        """A connection outside the pool, and the event of its end."""
        options = {**self._database.connect_options(CHANNEL), "timeout": CONNECT_SECONDS}
        connection = await asyncpg.connect(**options)
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            yield connection, lost
        finally:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=1)  # it may be gone already

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        words = payload.split(" ")
        if len(words) != 3 or words[2] == self._database.replica:
            return
        subject, what, _ = words
        if subject == _CERTIFICATES:
            self._stale_pins.set()
        elif what == _GONE:
            self._gone.add(subject)
            self._stale_pins.set()
        elif what.isdecimal() and self._snapshots.covered(subject) not in (None, int(what)):
            self._snapshots.touch(subject)

    async def _catch_up(self) -> None:
        self._stale_pins.set()
        await self._compare()

    async def _compare(self) -> None:
        """Build what was built from another version than the database has; nothing that nobody ever asked for."""
        # Read first: a control plane that is made while the query runs is not one that is missing from its answer.
        served = self._snapshots.served()
        async with self._database.reading() as session:
            rows = await session.execute(select(ControlPlane.id, ControlPlane.config_version))
            versions: dict[str, int] = {row.id: row.config_version for row in rows}
        for control_plane_id, covered in served.items():
            version = versions.get(control_plane_id)
            if version is None:
                await self._forget(control_plane_id)
            elif version != covered:
                self._snapshots.touch(control_plane_id)

    async def _keep_comparing(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._compare()
            except Exception:
                # The database is away, most likely; the next round tells.
                _log.exception("versions could not be compared with the database")

    async def _keep_pins(self) -> None:
        while True:
            await self._stale_pins.wait()
            self._stale_pins.clear()
            try:
                while self._gone:
                    await self._forget(self._gone.pop())
                await self._pins.refresh()
            except Exception:
                # They are read again every few seconds anyway (`control_plane.wire`).
                _log.exception("certificates could not be read again")


async def _stay(connection: Any, lost: asyncio.Event) -> None:
    """Until the connection ends. Raises when it no longer answers: a network that fell silent breaks nothing."""
    while True:
        try:
            await asyncio.wait_for(lost.wait(), CHECK_SECONDS)
            return
        except TimeoutError:
            await connection.execute("SELECT 1", timeout=CHECK_SECONDS)


# -- one authority for all


async def share_authority(session: AsyncSession, cipher: Cipher, directory: Path) -> None:
    """Make the state directory's certificate authority the one that all replicas have; the first start's is it.

    The caller's transaction is one that only a single replica is in (`Database.starting`).
    """
    kept = await session.get(Keyring, _AUTHORITY)
    if kept is None:
        session.add(Keyring(name=_AUTHORITY, value=cipher.encrypt(read_authority(directory))))
    elif write_authority(directory, cipher.decrypt(kept.value)):
        _log.info("took the certificate authority of this database: nodes trust %s", directory / "ca.pem")
