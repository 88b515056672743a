"""The current snapshot of each control plane: built once per quiet moment, compressed once, shared by all streams.

`refresh` is for who has just committed and wants to know the snapshot that holds it; `touch` is for a flurry of small
writes; `watch` waits for a snapshot other than the one a node has. A build that began before a commit does not count
for it: `refresh` numbers the wishes, and a build answers only those that were made before it started to read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import orjson
import zstandard

from control_plane.errands import Errands

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
HISTORY = 8
QUIET_SECONDS = 0.02
PATIENCE_SECONDS = 0.25
"""A flurry that never pauses is built this long after its first change at the latest."""


class Snapshot(Protocol):
    """What a build gives (`control_plane.snapshot.Snapshot`): canonical bytes with their hash and version."""

    @property
    def control_plane_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def hash(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


@dataclass(frozen=True)
class Parcel:
    """A snapshot made ready for the wire."""

    snapshot: Snapshot
    parts: tuple[bytes, ...]
    """The zstd-compressed payload, cut into pieces of at most 1 MiB."""

    @cached_property
    def plugins(self) -> frozenset[str]:
        """Names of the plugins that the configuration uses and that are switched on."""
        document = orjson.loads(self.snapshot.payload)
        rows = document.get("entities", {}).get("plugins", ())
        return frozenset(row["name"] for row in rows if row.get("enabled", True))


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    history: deque[Parcel] = field(default_factory=lambda: deque(maxlen=HISTORY))
    wanted: int = 0
    built: int = 0
    covered: int = -1
    """The version that the last build read; `current` may be older, for equal hashes keep the older one."""
    last_touch: float = 0.0
    toucher: asyncio.Task[None] | None = None

    @property
    def current(self) -> Parcel | None:
        return self.history[-1] if self.history else None


class SnapshotCache:
    """Snapshots by control plane id. `load` reads one from the database; its errors reach who asked."""

    def __init__(self, load: Callable[[str], Awaitable[Snapshot]]) -> None:
        self._load = load
        self._errands = Errands("build snapshot")
        self._entries: dict[str, _Entry] = {}
        self._on_made: list[Callable[[Parcel, bool], None]] = []

    def on_made(self, listener: Callable[[Parcel, bool], None]) -> None:
        """Call with each new snapshot, and whether it is the first one of its control plane that this cache made."""
        self._on_made.append(listener)

    async def refresh(self, control_plane_id: str) -> Snapshot:
        """The snapshot with everything committed before this call; an equal hash keeps the older version."""
        return (await self._refresh(control_plane_id)).snapshot

    def touch(self, control_plane_id: str) -> None:
        """Something was committed: build soon, once for all changes of the next quiet moment."""
        entry = self._entry(control_plane_id)
        entry.last_touch = asyncio.get_running_loop().time()
        if entry.toucher is None or entry.toucher.done():
            name = f"snapshot {control_plane_id}"
            entry.toucher = asyncio.create_task(self._build_when_quiet(control_plane_id, entry), name=name)

    async def get(self, control_plane_id: str) -> Parcel:
        """The current snapshot, built if there is none yet."""
        entry = self._entry(control_plane_id)
        return entry.current or await self._refresh(control_plane_id)

    async def watch(self, control_plane_id: str, known_hash: str) -> Parcel:
        """Wait until the current snapshot is another than `known_hash`, and return the newest one."""
        parcel = await self.get(control_plane_id)
        while parcel.snapshot.hash == known_hash:
            await self._entry(control_plane_id).changed.wait()
            parcel = await self.get(control_plane_id)
        return parcel

    def history(self, control_plane_id: str) -> tuple[Parcel, ...]:
        """The last few snapshots, oldest first."""
        entry = self._entries.get(control_plane_id)
        return tuple(entry.history) if entry else ()

    def served(self) -> dict[str, int]:
        """The control planes that anybody ever asked for, each with the version that its last build read."""
        return {control_plane_id: entry.covered for control_plane_id, entry in self._entries.items()}

    def covered(self, control_plane_id: str) -> int | None:
        """The version that the last build read, -1 before the first; None when nobody ever asked."""
        entry = self._entries.get(control_plane_id)
        return entry.covered if entry is not None else None

    def forget(self, control_plane_id: str) -> None:
        """Drop a deleted control plane's snapshots."""
        entry = self._entries.pop(control_plane_id, None)
        if entry is not None and entry.toucher is not None:
            entry.toucher.cancel()

    async def close(self) -> None:
        """Cancel the builds that wait for a quiet moment, finish those that do not."""
        tasks = [entry.toucher for entry in self._entries.values() if entry.toucher is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._errands.close()

    # -- building

    def _entry(self, control_plane_id: str) -> _Entry:
        return self._entries.setdefault(control_plane_id, _Entry())

    async def _refresh(self, control_plane_id: str) -> Parcel:
        return await self._errands.run(self._fulfil(control_plane_id))

    async def _fulfil(self, control_plane_id: str) -> Parcel:
        entry = self._entry(control_plane_id)
        entry.wanted += 1
        wish = entry.wanted
        async with entry.lock:
            if entry.built < wish or entry.current is None:
                covered = entry.wanted
                parcel = await self._build(control_plane_id, entry)
                entry.built = covered
                if parcel is not entry.current:
                    for listener in self._on_made:
                        listener(parcel, entry.current is None)
                    self._set(entry, parcel)
            assert entry.current is not None
            return entry.current

    async def _build(self, control_plane_id: str, entry: _Entry) -> Parcel:
        snapshot = await self._load(control_plane_id)
        known = entry.current
        if known is None or known.snapshot.hash != snapshot.hash:
            known = await asyncio.to_thread(_pack, snapshot)
        entry.covered = snapshot.version
        return known

    @staticmethod
    def _set(entry: _Entry, parcel: Parcel) -> None:
        entry.history.append(parcel)
        woken, entry.changed = entry.changed, asyncio.Event()
        woken.set()

    async def _build_when_quiet(self, control_plane_id: str, entry: _Entry) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + PATIENCE_SECONDS
        while True:
            # No event tells of silence, hence a loop of sleeps.
            while (pause := min(entry.last_touch + QUIET_SECONDS, deadline) - clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(pause)
            seen = entry.last_touch
            try:
                await self._refresh(control_plane_id)
            except Exception:
                # Nobody waits for this build; streams keep what they have and the next change builds again.
                _log.exception("no snapshot could be built for control plane %s", control_plane_id)
            if entry.last_touch == seen:
                return
            deadline = clock() + PATIENCE_SECONDS


def _pack(snapshot: Snapshot) -> Parcel:
    data = zstandard.ZstdCompressor(level=3).compress(snapshot.payload)
    parts = tuple(data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
    parcel = Parcel(snapshot, parts or (b"",))
    _ = parcel.plugins  # read here, once and off the loop
    return parcel
