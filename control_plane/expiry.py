"""What says a `ttl` (keys of key-auth) is deleted when that is over, like by anybody: a version, a snapshot, a line in
the audit log, an entry in the history.

When it is over is kept with the row (`expires_at`), so a restart forgets nothing and replicas agree. Each replica looks
when the next is due; who is first deletes it, and the others, who wait for the same lock, find nothing. Nobody depends
on it being quick: from that moment on, lists and lookups leave the row out, nodes refuse its key, and a write that
needs the key deletes the row itself (`Repository.delete_expired`).

The API shows the `ttl` that was written. Kong shows what remains of it; decK compares `ttl` with its file, so there a
file that says 3600 differs from its own gateway a second later, and each sync starts the period anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.database import Database
from control_plane.errors import NotFound
from control_plane.holdings import Row
from control_plane.models import ENTITY_TABLES
from control_plane.repository import Repository
from control_plane.secrets import Cipher
from gateway_schema.registry import ENTITY_TYPES

_log = logging.getLogger(__name__)

LONGEST_SECONDS = 30.0
"""Between two looks: what another replica wrote, and did not live to delete, goes this late."""
SHORTEST_SECONDS = 0.05
"""Clocks of loop and database need not agree to the millisecond."""
_EXPIRING = [row for row in ENTITY_TYPES.values() if row.expires]


class Expiry:
    """Deletes what is over, in all control planes. `open` begins, `close` ends it."""

    def __init__(self, database: Database, cipher: Cipher, touch: Callable[[str], None]) -> None:
        """`touch` is called for a control plane in which something was deleted."""
        self._database = database
        self._cipher = cipher
        self._touch = touch
        self._due = math.inf
        self._sooner = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ends = False

    def open(self) -> None:
        self._task = asyncio.create_task(self._keep_sweeping(), name="delete expired credentials")

    async def close(self) -> None:
        self._ends = True
        self._sooner.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def expect(self, rows: Iterable[Row]) -> None:
        """These were committed: wake up for the first of them that is over."""
        if any(moment < self._due for row in rows if (moment := row.expires_at) is not None):
            self._sooner.set()

    async def sweep(self, control_plane_id: str | None = None) -> None:
        """Delete what is over, in one control plane or in all."""
        async with self._database.single() as connection:
            late = await _late(connection, control_plane_id)
        for each in late:
            with contextlib.suppress(NotFound):  # deleted meanwhile, with all that it held
                await self._delete(each)

    async def _delete(self, control_plane_id: str) -> None:
        async with self._database.writing() as session:
            repository = Repository(session, control_plane_id, self._cipher)
            await repository.lock()
            for row in _EXPIRING:
                await repository.delete_expired(row)
        if repository.written:
            self._touch(control_plane_id)

    async def _keep_sweeping(self) -> None:
        while not self._ends:
            self._sooner.clear()
            self._due = math.inf  # until it is known: whatever is written meanwhile wakes
            try:
                await self.sweep()
                async with self._database.single() as connection:
                    self._due = await _next(connection)
            except Exception:
                # The database is away, most likely. Nothing that is over is let in meanwhile.
                _log.exception("expired credentials could not be deleted")
            pause = min(max(self._due - time.time(), SHORTEST_SECONDS), LONGEST_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sooner.wait()


async def _late(connection: AsyncConnection, control_plane_id: str | None) -> set[str]:
    """The control planes that hold what is over."""
    given: dict[str, Any] = {"now": int(time.time())}
    if control_plane_id is not None:
        given["control_plane_id"] = control_plane_id
    found: set[str] = set()
    for row in _EXPIRING:
        found |= set((await connection.execute(_over(row.name, control_plane_id is not None), given)).scalars())
    return found


@cache
def _over(name: str, in_one: bool) -> Select[Any]:
    """Made once for each: putting a statement together takes longer than running it."""
    columns = ENTITY_TABLES[name].c
    query = select(columns.control_plane_id).where(columns.expires_at <= bindparam("now")).distinct()
    return query.where(columns.control_plane_id == bindparam("control_plane_id")) if in_one else query


async def _next(connection: AsyncConnection) -> float:
    """When the next one is over."""
    moments = [
        (await connection.execute(select(func.min(ENTITY_TABLES[row.name].c.expires_at)))).scalar_one()
        for row in _EXPIRING
    ]
    return min((moment for moment in moments if moment is not None), default=math.inf)
