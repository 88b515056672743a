"""What a control plane held, version by version: who made it, when, and the way back.

An apply, a saved plan and a rollback each make an entry of their own. Single writes (decK's, the Admin API's) come in
flurries: one that has been quiet for a moment is one entry, with the names that the audit log has for it. Before an
apply the state it found is entered too, if nobody had entered it: every apply can be rolled back.

An entry bears the time of its last write, not the one at which it was entered: what is written in between belongs to
the next, and its lines in the audit log are found by that time.

What cannot be entered because the database is away is entered when it is back, or stands in a newer entry.

Entries hold rows as they were written, with their owners, so that a way back brings no defaults along. They hold
secrets, and are encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import ownership
from control_plane.bulk import insert_rows
from control_plane.database import Database, is_away
from control_plane.errors import CommitInDoubt, NotFound
from control_plane.holdings import NO_CONTROL_PLANE, Holdings, Row
from control_plane.models import AUDIT_LOG, SNAPSHOTS, ControlPlane
from control_plane.ownership import Owners
from control_plane.planned import row_changes
from control_plane.sealed import seal, unseal
from control_plane.secrets import Cipher
from control_plane.snapshot import build
from gateway_schema.registry import ENTITY_TYPES

_log = logging.getLogger(__name__)

QUIET_SECONDS = 2.0
PATIENCE_SECONDS = 30.0
"""A flurry of single writes that never pauses is entered this often."""
BREATH_SECONDS = 0.25
"""A plan's entry waits so long: packing it would compete with the change itself, on its way to the nodes just then."""
AGAIN_SECONDS = 3.0
"""Between two attempts while the database is away."""
_MAX_AUTHORS = 5
_AGAINST_DELETION = select(ControlPlane.id).with_for_update(read=True, key_share=True)

Load = Callable[[AsyncSession, str], Awaitable[Holdings]]


@dataclass(frozen=True, slots=True)
class State:
    """What was held at one version, and whose it was."""

    holdings: Holdings
    owners: Owners
    as_of_us: int = 0
    """Unix microseconds: lines of the audit log up to then tell how it came about, later ones what came after. Needed
    to enter it."""

    @property
    def version(self) -> int:
        return self.holdings.version


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the history, without what was held."""

    version: int
    hash: str
    author: str
    action: str
    created_ms: int
    summary: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Made:
    """What a committed plan made of what it found."""

    before: State
    after: State
    hash: str | None
    author: str
    action: str


@dataclass(slots=True)
class _Flurry:
    """Single writes that follow each other closely; loop time of the first and the last."""

    first: float
    last: float
    count: int = 0
    task: asyncio.Task[None] | None = None


class History:
    """The kept snapshots: the newest `keep` of each control plane, and none older than `keep_days` but the newest."""

    def __init__(self, database: Database, cipher: Cipher, load: Load, keep: int, keep_days: int) -> None:
        self._database = database
        self._cipher = cipher
        self._load = load
        self._keep = keep
        self._keep_days = keep_days
        self._last: dict[str, State] = {}
        self._flurries: dict[str, _Flurry] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._awaited: dict[str, asyncio.Event] = {}
        """Set once somebody waits for what is being entered."""
        self._missed: dict[str, _Made] = {}
        """The last plan that could not be entered, the database being away: its entry says what it found, too."""

    # -- writing

    def record(self, before: State, after: State, hash_: str | None, author: str, action: str) -> None:
        """Enter the state that a committed plan made, and the one it found if that was not entered yet.

        Soon, not now: what was written is live already, and nobody should wait for its memory. Who reads the history
        does (`settled`). A process that is killed in between leaves it to the next apply.
        """
        control_plane_id = before.holdings.control_plane_id
        due = asyncio.get_running_loop().time() + BREATH_SECONDS
        made = _Made(before, after, hash_, author, action)
        work = self._record(control_plane_id, self._writing.get(control_plane_id), due, made)
        task = asyncio.create_task(work, name=f"history {control_plane_id}")
        self._writing[control_plane_id] = task
        task.add_done_callback(lambda done: self._written(control_plane_id, done))

    async def settled(self, control_plane_id: str) -> None:
        """Wait until what this process committed so far is entered, or put off because the database is away.

        Not to be awaited inside a transaction.
        """
        if task := self._writing.get(control_plane_id):
            self._awaited.setdefault(control_plane_id, asyncio.Event()).set()
            await asyncio.wait([task])

    async def _record(self, control_plane_id: str, earlier: asyncio.Task[None] | None, due: float, made: _Made) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        awaited = self._awaited.setdefault(control_plane_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(awaited.wait(), max(0.0, due - asyncio.get_running_loop().time()))
        made_up = await self._make_up(control_plane_id)
        if not (made_up and await self._attempt(control_plane_id, self._enter_made(made))):
            self._missed[control_plane_id] = made
            self.touched(control_plane_id)  # who waits for a quiet moment waits for the database too

    async def _attempt(self, control_plane_id: str, entering: Coroutine[Any, Any, None]) -> bool:
        """False when the database is away, and the same is to be tried again."""
        try:
            await entering
        except NotFound:
            self._last.pop(control_plane_id, None)  # the control plane was deleted meanwhile
        except Exception as error:
            if isinstance(error, CommitInDoubt) or is_away(error):
                return False
            # What was written is committed and live; the next entry holds what this one would have held.
            _log.exception("no history could be written for control plane %s", control_plane_id)
        return True

    async def _make_up(self, control_plane_id: str) -> bool:
        """Enter the plan that was missed, before what came after it. False while the database is away."""
        missed = self._missed.get(control_plane_id)
        if missed is not None:
            if not await self._attempt(control_plane_id, self._enter_missed(missed)):
                return False
            if self._missed.get(control_plane_id) is missed:
                del self._missed[control_plane_id]
        return True

    async def _enter_missed(self, missed: _Made) -> None:
        async with self._database.reading() as session:
            newest = await self.entries(session, missed.after.holdings.control_plane_id, None, 1)
        if not newest or newest[0].version <= missed.after.version:  # else another replica's counts it
            await self._enter_made(missed)

    async def _enter_made(self, made: _Made) -> None:
        control_plane_id, version = made.before.holdings.control_plane_id, made.before.version
        if version > 0 and not await self._knows(control_plane_id, version):
            await self._enter(made.before, None, None, "changes")
        self._remember(made.before)
        await self._enter(made.after, made.hash, made.author, made.action)

    def _written(self, control_plane_id: str, task: asyncio.Task[None]) -> None:
        if self._writing.get(control_plane_id) is task:
            del self._writing[control_plane_id]
            self._awaited.pop(control_plane_id, None)

    def touched(self, control_plane_id: str) -> None:
        """A single entity was committed: enter what is held when the flurry is over."""
        now = asyncio.get_running_loop().time()
        flurry = self._flurries.get(control_plane_id)
        if flurry is None or flurry.task is None or flurry.task.done():
            flurry = self._flurries[control_plane_id] = _Flurry(now, now)
            work = self._enter_when_quiet(control_plane_id, flurry)
            flurry.task = asyncio.create_task(work, name=f"history {control_plane_id}")
        flurry.last = now
        flurry.count += 1

    def forget(self, control_plane_id: str) -> None:
        """The control plane was deleted."""
        self._last.pop(control_plane_id, None)
        self._missed.pop(control_plane_id, None)
        flurry = self._flurries.pop(control_plane_id, None)
        if flurry is not None and flurry.task is not None:
            flurry.task.cancel()

    async def close(self) -> None:
        """Enter what is to be entered now, also what waits for a quiet moment."""
        await asyncio.gather(*(self.settled(control_plane_id) for control_plane_id in list(self._writing)))
        waiting = {key: item.task for key, item in self._flurries.items() if item.task and not item.task.done()}
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
        for control_plane_id in waiting:
            if not await self._enter_current(control_plane_id):
                _log.error("the database is away: the last entry of control plane %s is not made", control_plane_id)

    async def _enter_when_quiet(self, control_plane_id: str, flurry: _Flurry) -> None:
        clock = asyncio.get_running_loop().time
        told = False
        while True:
            # No event tells of silence, hence a loop of sleeps.
            while (pause := min(flurry.last + QUIET_SECONDS, flurry.first + PATIENCE_SECONDS) - clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(pause)
            seen = flurry.count  # the loop's clock need not tell two writes apart
            if await self._enter_current(control_plane_id):
                if flurry.count == seen:
                    return
            else:
                if not told:
                    _log.warning("the database is away: the history of control plane %s waits for it", control_plane_id)
                told = True
                await asyncio.sleep(AGAIN_SECONDS)
            flurry.first = clock()

    async def _enter_current(self, control_plane_id: str) -> bool:
        """False when the database is away."""
        await self.settled(control_plane_id)  # an entry counts from the one before it
        made_up = await self._make_up(control_plane_id)
        return made_up and await self._attempt(control_plane_id, self._enter_held(control_plane_id))

    async def _enter_held(self, control_plane_id: str) -> None:
        async with self._database.reading() as session:
            holdings = await self._load(session, control_plane_id)
            owners = await ownership.load(session, control_plane_id)
            last = (await session.execute(_last_write(control_plane_id))).first()
        if not await self._knows(control_plane_id, holdings.version):
            state = State(holdings, owners, last.at_us if last is not None else _now_us())
            await self._enter(state, None, None, "changes")

    async def _enter(self, state: State, hash_: str | None, author: str | None, action: str) -> None:
        control_plane_id = state.holdings.control_plane_id
        previous = await self._previous(control_plane_id, state.version)
        sealed, hash_, summary = await asyncio.to_thread(self._pack, state, previous, hash_)
        async with self._database.writing() as session:
            written_us = state.as_of_us
            if author is None:
                author, written_us = await self._authors(session, state)
            values = {
                "control_plane_id": control_plane_id,
                "version": state.version,
                "hash": hash_,
                "author": author,
                "action": action,
                "created_ms": written_us // 1000,
                "summary": summary,
                "payload": sealed,
            }
            if (await session.execute(_AGAINST_DELETION.where(ControlPlane.id == control_plane_id))).first() is None:
                raise NotFound(NO_CONTROL_PLANE)
            await insert_rows(session, SNAPSHOTS, [values], overwrite=True)
            await self._prune(session, control_plane_id, _now_us() // 1000)
        self._remember(state)

    def _pack(self, state: State, previous: State | None, hash_: str | None) -> tuple[bytes, str, dict[str, int]]:
        held = previous.holdings if previous else Holdings(state.holdings.control_plane_id, 0, {})
        creates, updates, deletes = row_changes(held, state.holdings)
        summary = {"creating": len(creates), "updating": len(updates), "deleting": len(deletes)}
        return seal(self._cipher, _encoded(state)), hash_ or build(state.holdings).hash, summary

    def _remember(self, state: State) -> None:
        known = self._last.get(state.holdings.control_plane_id)
        if known is None or known.version <= state.version:
            self._last[state.holdings.control_plane_id] = state

    async def _authors(self, session: AsyncSession, state: State) -> tuple[str, int]:
        """Who wrote since the entry before, as the audit log tells, and when last."""
        control_plane_id = state.holdings.control_plane_id
        last = (await session.execute(_last_write(control_plane_id, state.as_of_us))).first()
        if last is None:
            return "unknown", state.as_of_us
        earlier = _entries(control_plane_id).where(SNAPSHOTS.c.version < state.version)
        before = (await session.execute(earlier.order_by(SNAPSHOTS.c.version.desc()).limit(1))).first()
        since_us = (before.created_ms + 1) * 1000 if before is not None else 0
        names = _writes((AUDIT_LOG.c.principal_name,), control_plane_id, state.as_of_us)
        names = names.where(AUDIT_LOG.c.at_us >= since_us).distinct().limit(_MAX_AUTHORS)
        # Nobody is found where all of it fell into the millisecond of the entry before: then it was who wrote last.
        found = sorted((await session.execute(names)).scalars()) or [last.principal_name]
        return ", ".join(found)[:256], last.at_us

    async def _prune(self, session: AsyncSession, control_plane_id: str, now: int) -> None:
        mine = SNAPSHOTS.c.control_plane_id == control_plane_id
        newest = select(SNAPSHOTS.c.version).where(mine).order_by(SNAPSHOTS.c.version.desc()).limit(self._keep)
        kept = list((await session.execute(newest)).scalars())
        too_old = SNAPSHOTS.c.created_ms < now - self._keep_days * 86_400_000
        gone = (SNAPSHOTS.c.version < kept[-1]) | (too_old & (SNAPSHOTS.c.version != kept[0]))
        await session.execute(delete(SNAPSHOTS).where(mine, gone))

    # -- reading

    async def entries(self, session: AsyncSession, control_plane_id: str, before: int | None, size: int) -> list[Entry]:
        """Newest first."""
        query = _entries(control_plane_id).order_by(SNAPSHOTS.c.version.desc()).limit(size)
        if before is not None:
            query = query.where(SNAPSHOTS.c.version < before)
        return [Entry(*row) for row in await session.execute(query)]

    async def entry(self, session: AsyncSession, control_plane_id: str, version: int) -> Entry:
        """Raises NotFound."""
        found = (await session.execute(_entries(control_plane_id).where(SNAPSHOTS.c.version == version))).first()
        if found is None:
            raise NotFound(f"there is no snapshot {version}: it never was one, or it is no longer kept")
        return Entry(*found)

    async def state(self, session: AsyncSession, control_plane_id: str, version: int) -> State:
        """What was held at a version. Raises NotFound."""
        await self.entry(session, control_plane_id, version)
        query = select(SNAPSHOTS.c.payload).where(
            SNAPSHOTS.c.control_plane_id == control_plane_id, SNAPSHOTS.c.version == version
        )
        payload = (await session.execute(query)).scalar_one()
        return await asyncio.to_thread(self._unpack, control_plane_id, version, payload)

    def _unpack(self, control_plane_id: str, version: int, payload: bytes) -> State:
        return _decoded(control_plane_id, version, unseal(self._cipher, payload))

    async def _knows(self, control_plane_id: str, version: int) -> bool:
        known = self._last.get(control_plane_id)
        if known is not None and known.version == version:
            return True
        async with self._database.reading() as session:
            query = _entries(control_plane_id).where(SNAPSHOTS.c.version == version)
            return (await session.execute(query)).first() is not None

    async def _previous(self, control_plane_id: str, version: int) -> State | None:
        """What the entry before a version holds. The last one that this process knows may have been followed by another
        replica's."""
        known = self._last.get(control_plane_id)
        async with self._database.reading() as session:
            found = await self.entries(session, control_plane_id, version, 1)
            newest = found[0].version if found else 0
            if known is not None and newest <= known.version < version:
                return known
            return await self.state(session, control_plane_id, newest) if found else None


def _now_us() -> int:
    return time.time_ns() // 1000


def _writes(columns: Sequence[Any], control_plane_id: str, until_us: int | None) -> Any:
    """The lines of the audit log about entities of a control plane."""
    log = AUDIT_LOG.c
    query = select(*columns).where(log.control_plane_id == control_plane_id, log.entity_type.in_(ENTITY_TYPES))
    return query.where(log.at_us <= until_us) if until_us is not None else query


def _last_write(control_plane_id: str, until_us: int | None = None) -> Any:
    log = AUDIT_LOG.c
    return _writes((log.principal_name, log.at_us), control_plane_id, until_us).order_by(log.id.desc()).limit(1)


def _entries(control_plane_id: str) -> Any:
    columns = SNAPSHOTS.c
    return select(
        *(columns.version, columns.hash, columns.author, columns.action, columns.created_ms, columns.summary)
    ).where(columns.control_plane_id == control_plane_id)


def _encoded(state: State) -> dict[str, list[Any]]:
    return {
        name: [
            [row.id, row.written, row.created_at, row.updated_at, sorted(state.owners.of(row))]
            for row in state.holdings.of(name).values()
        ]
        for name in ENTITY_TYPES
    }


def _decoded(control_plane_id: str, version: int, data: Mapping[str, list[Any]]) -> State:
    rows: dict[str, dict[str, Row]] = {}
    owners = []
    for name, listed in data.items():
        row_type = ENTITY_TYPES[name]
        held = rows[name] = {}
        for entity_id, written, created_at, updated_at, owner in listed:
            row = held[entity_id] = Row(row_type, entity_id, written, created_at, updated_at)
            if owner:
                owners.append((row, frozenset(owner)))
    return State(Holdings(control_plane_id, version, rows), Owners().after(owners))
