"""The current snapshot of each control plane: built once per quiet moment, packed once, shared by all streams.

`refresh` is for who has just committed and wants to know the snapshot that holds it; `touch` is for a flurry of small
writes: the first of them, which comes into silence, is built at once, and all that follow it are built together when
they pause; `watch` waits for a snapshot other than the one a node has. A build that began before a commit does not
count for it: wishes are numbered, and a build answers only those that were made before it started to read. Who wishes
may know the version that the snapshot must hold; when all do, it need not be looked up.

Of former snapshots only the steps from each to the next are kept, as far as they are small. A node that has one of them
gets a delta, over as many steps as it takes; any other node gets all of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import zstandard

from control_plane.errands import Errands, aside
from control_plane.errors import NotFound, StartError
from gateway_schema.delta import Catalogue, Changes, Delta, changes_between, combined, delta_of, size_of

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
MAX_DELTA_BYTES = 256 * 1024
"""A larger delta costs more than it spares: it is not compressed, and every stream serialises its own."""
MAX_STEPS = 256
MAX_STEP_BYTES = 1 << 20
"""What all steps of a control plane may take together: combining them must not take long."""
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
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def plugins(self) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Step:
    """From a former snapshot to the next one."""

    version: int
    hash: str
    """Version and hash of the former one."""
    changes: Changes
    size: int


@dataclass(frozen=True, slots=True)
class Way:
    """A delta, and the snapshot that it starts from."""

    version: int
    hash: str
    delta: Delta


class Parcel:
    """A snapshot with what the wire needs of it; each form is made when it is first asked for, and once."""

    def __init__(self, snapshot: Snapshot, steps: tuple[Step, ...] = ()) -> None:
        """`steps` lead here, the last one from the snapshot before this one."""
        self.snapshot = snapshot
        self._steps = steps
        self._packing = asyncio.Lock()
        self._parts: tuple[bytes, ...] | None = None
        self._ways: dict[str, Way | None] = {}

    @property
    def plugins(self) -> frozenset[str]:
        """Names of the plugins that the configuration uses and that are switched on."""
        return self.snapshot.plugins

    async def parts(self) -> tuple[bytes, ...]:
        """The zstd-compressed payload, cut into pieces of at most 1 MiB."""
        async with self._packing:
            if self._parts is None:
                self._parts = await asyncio.to_thread(_packed, self.snapshot.payload)
            return self._parts

    def way_from(self, known_hash: str) -> Way | None:
        """The delta from a former snapshot; None when that one is not known, or the whole is hardly larger."""
        # Of several with equal content the newest: fewer steps lead to the same.
        places = (place for place in reversed(range(len(self._steps))) if self._steps[place].hash == known_hash)
        place = next(places, None)
        if place is None:
            return None
        if known_hash not in self._ways:
            self._ways[known_hash] = self._way(self._steps[place:])
        return self._ways[known_hash]

    def _way(self, steps: tuple[Step, ...]) -> Way | None:
        changes = combined(step.changes for step in steps)
        if size_of(changes) > min(MAX_DELTA_BYTES, self.snapshot.catalogue.size // 2):
            return None
        return Way(steps[0].version, steps[0].hash, delta_of(changes))

    def differing(self, snapshot: Snapshot) -> int:
        """How many entities `next` has to look at, less than a microsecond each."""
        former = self.snapshot.catalogue.entities
        return sum(len(rows) for name, rows in snapshot.catalogue.entities.items() if former.get(name) is not rows)

    def next(self, snapshot: Snapshot) -> Parcel:
        """The parcel of the snapshot that follows this one."""
        changes = changes_between(self.snapshot.catalogue, snapshot.catalogue)
        if changes is None:
            return Parcel(snapshot)
        steps = deque((*self._steps, Step(self.snapshot.version, self.snapshot.hash, changes, size_of(changes))))
        total = sum(step.size for step in steps)
        while len(steps) > MAX_STEPS or total > MAX_STEP_BYTES:
            total -= steps.popleft().size
        return Parcel(snapshot, tuple(steps))


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    current: Parcel | None = None
    wanted: int = 0
    """The number of the last wish."""
    built: int = 0
    """The last one that is fulfilled."""
    vague: int = 0
    """The last one that came without a version."""
    version: int = -1
    """The newest version that anyone wishes for whose wish is not fulfilled."""
    covered: int = -1
    """The version that the last build read; `current` may be older, for equal hashes keep the older one."""
    last_touch: float = -math.inf
    toucher: asyncio.Task[None] | None = None
    trouble: str = ""
    """Why the last build failed, if that is the operator's to mend."""


class SnapshotCache:
    """Snapshots by control plane id.

    `load` makes one of what is committed, or, when it is given a version, of any state since that was committed; its
    errors reach who asked.
    """

    def __init__(self, load: Callable[[str, int | None], Awaitable[Snapshot]]) -> None:
        self._load = load
        self._errands = Errands("build snapshot")
        self._entries: dict[str, _Entry] = {}
        self._on_made: list[Callable[[Parcel, bool], None]] = []

    def on_made(self, listener: Callable[[Parcel, bool], None]) -> None:
        """Call with each new snapshot, and whether it is the first one of its control plane that this cache made."""
        self._on_made.append(listener)

    async def refresh(self, control_plane_id: str, version: int | None = None) -> Snapshot:
        """The snapshot with everything committed before this call, or, given a version, with all up to that one; an
        equal hash keeps the older version."""
        return (await self._refresh(control_plane_id, version)).snapshot

    def touch(self, control_plane_id: str, version: int | None = None) -> None:
        """Something was committed: build at once when it was quiet before, else once for all when it is quiet again.

        `version`: the one that was made, where that is known.
        """
        entry = self._entry(control_plane_id)
        _wish(entry, version)
        now = asyncio.get_running_loop().time()
        silent, entry.last_touch = now - entry.last_touch >= QUIET_SECONDS, now
        if entry.toucher is None or entry.toucher.done():
            name = f"snapshot {control_plane_id}"
            work = self._build_for_touches(control_plane_id, entry, at_once=silent)
            entry.toucher = asyncio.create_task(work, name=name)

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

    async def _refresh(self, control_plane_id: str, version: int | None = None) -> Parcel:
        wish = _wish(self._entry(control_plane_id), version)
        return await self._errands.run(self._fulfil(control_plane_id, wish))

    async def _fulfil(self, control_plane_id: str, wish: int) -> Parcel:
        entry = self._entry(control_plane_id)
        async with entry.lock:
            if entry.built < wish or entry.current is None:
                covered = entry.wanted
                try:
                    parcel = await self._build(control_plane_id, entry)
                except NotFound:  # deleted, maybe while somebody asked: nothing of it stays
                    if self._entries.get(control_plane_id) is entry:
                        del self._entries[control_plane_id]
                    raise
                entry.built = covered
                if parcel is not entry.current:
                    for listener in self._on_made:
                        listener(parcel, entry.current is None)
                    self._set(entry, parcel)
            assert entry.current is not None
            return entry.current

    async def _build(self, control_plane_id: str, entry: _Entry) -> Parcel:
        named = entry.vague <= entry.built and entry.version > entry.covered  # never back to what is older
        snapshot = await self._load(control_plane_id, entry.version if named else None)
        known = entry.current
        if known is None or known.snapshot.hash != snapshot.hash:
            if known is None:
                known = Parcel(snapshot)
            else:
                known = await aside(known.differing(snapshot), known.next, snapshot)
        entry.covered = snapshot.version
        entry.trouble = ""
        return known

    @staticmethod
    def _set(entry: _Entry, parcel: Parcel) -> None:
        entry.current = parcel
        woken, entry.changed = entry.changed, asyncio.Event()
        woken.set()

    async def _build_for_touches(self, control_plane_id: str, entry: _Entry, *, at_once: bool) -> None:
        """Until a build has read all that was touched. A change that comes alone waits for no other."""
        clock = asyncio.get_running_loop().time
        deadline = clock() if at_once else clock() + PATIENCE_SECONDS
        while True:
            # No event tells of silence, hence a loop of sleeps.
            while (pause := min(entry.last_touch + QUIET_SECONDS, deadline) - clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(pause)
            seen = entry.wanted
            try:
                await self._errands.run(self._fulfil(control_plane_id, seen))
            except Exception as error:
                # Nobody waits for this build; streams keep what they have and the next change builds again.
                _tell(control_plane_id, entry, error)
            if entry.wanted == seen:
                return
            deadline = clock() + PATIENCE_SECONDS


def _tell(control_plane_id: str, entry: _Entry, error: Exception) -> None:
    """What only the operator can mend is said once: builds are tried again with every change and every few seconds."""
    message = "no snapshot could be built for control plane %s: %s"
    if not isinstance(error, StartError):
        _log.error(message, control_plane_id, error, exc_info=error)
    elif entry.trouble != str(error):
        entry.trouble = str(error)
        _log.error(message, control_plane_id, error)


def _wish(entry: _Entry, version: int | None) -> int:
    """Note it; returns its number."""
    if entry.built == entry.wanted:
        entry.version = -1
    entry.wanted += 1
    if version is None:
        entry.vague = entry.wanted
    else:
        entry.version = max(entry.version, version)
    return entry.wanted


def _packed(payload: bytes) -> tuple[bytes, ...]:
    data = zstandard.ZstdCompressor(level=3).compress(payload)
    return tuple(data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)) or (b"",)
