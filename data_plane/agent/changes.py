"""From a snapshot's parts to every worker running it, or none: what happens between the stream and the workers.

`Assembly` puts parts together; `Applier` takes snapshots, whole or as deltas, one after the other. While one is being
applied, of those that arrive only the newest is kept: a snapshot that was superseded before its turn is never answered,
because the control plane only waits for its last nonce. Applying goes on when the stream breaks: a half-applied
snapshot would leave workers that disagree.

A delta is made into the whole document and must then have the hash that it names. One that starts from another document
than this node's, or leads elsewhere, is refused with the words that make the control plane send the whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zstandard

from data_plane.agent.deltas import delta_from
from data_plane.agent.fleet import Fleet, Refusal
from data_plane.agent.store import Snapshot, Store
from data_plane.logs import facts
from gateway_schema.delta import WHOLE_WANTED, Catalogue
from gateway_schema.document import hash_of
from gateway_schema.wire import config_pb2 as pb

log = logging.getLogger(__name__)

MAX_COMPRESSED = 256 * 1024 * 1024
MAX_DOCUMENT = 1024 * 1024 * 1024
MAX_DELTA = 16 * 1024 * 1024
MAX_KEPT = 64 * 1024 * 1024
"""A document up to this size is kept in memory for the next delta; a larger one is read from the disk again."""
APPLY_TIMEOUT = 25.0
"""Seconds for all workers to build a snapshot: less than the control plane waits for the answer."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A snapshot as it came, unchecked: `data` is the whole, compressed, unless there is a delta."""

    version: int
    hash: str
    nonce: str
    data: bytes = b""
    delta: pb.Delta | None = None

    @classmethod
    def of_delta(cls, delta: pb.Delta) -> Arrival:
        return cls(delta.to_version, delta.hash, delta.nonce, delta=delta)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arrival: `refusal` None means that all workers run it."""

    arrival: Arrival
    refusal: Refusal | None


class Assembly:
    """Parts of snapshots, in order; a new nonce's first part ends the wait for an older one's rest."""

    def __init__(self) -> None:
        self._first: pb.Snapshot | None = None
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, part: pb.Snapshot) -> Arrival | None:
        """The whole snapshot, with its last part. Parts of a stale nonce, or out of order, lead to nothing."""
        if part.part == 0:
            self._first, self._chunks, self._size = part, [], 0
        first = self._first
        if first is None or part.nonce != first.nonce:
            return None
        self._size += len(part.chunk)
        in_order = part.part == len(self._chunks) < part.parts == first.parts
        if not in_order or self._size > MAX_COMPRESSED:
            self._first = None
            return None
        self._chunks.append(part.chunk)
        if len(self._chunks) < first.parts:
            return None
        self._first = None
        return Arrival(first.version, first.hash, first.nonce, b"".join(self._chunks))


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.error)


class Applier:
    """Applies snapshots. `submit` never waits; whoever submitted is told the outcome through its callback.

    `emptied` is called when what was on disk turns out not to run: the control plane must send anew.
    """

    def __init__(
        self, store: Store, fleet: Fleet, current: Snapshot | None, emptied: Callable[[], None] = lambda: None
    ) -> None:
        self._emptied = emptied
        self._store = store
        self._fleet = fleet
        self.current = current
        """What all workers run, and a restart loads."""
        self._committed: Snapshot | None = None
        """What a restart loads, as long as others lie beside it."""
        self._next: tuple[Arrival, Callable[[Outcome], None]] | None = None
        self._bell = asyncio.Event()
        self._kept: tuple[str, Catalogue] | None = None
        """The current document with its hash, taken apart, once a delta asked for it."""

    def submit(self, arrival: Arrival, tell: Callable[[Outcome], None]) -> None:
        self._next = (arrival, tell)
        self._bell.set()

    async def run(self) -> None:
        """First what was on disk, then what arrives. For ever: ends by cancellation only."""
        if self.current is not None:
            await self._boot(self.current)
        while True:
            await self._bell.wait()
            self._bell.clear()
            if self._next is not None:
                (arrival, tell), self._next = self._next, None
                tell(Outcome(arrival, await self._apply(arrival)))
                await self._tidy()

    async def _boot(self, snapshot: Snapshot) -> None:
        refusal = await self._fleet.boot(snapshot, APPLY_TIMEOUT)
        if refusal is None:
            log.info("serving the snapshot on disk: %s", facts(version=snapshot.version, hash=snapshot.hash))
            return
        log.error("the snapshot on disk cannot run; starting empty: %s", facts(reason=refusal.error))
        self._store.set_aside()
        self.current = None
        self._emptied()

    async def _apply(self, arrival: Arrival) -> Refusal | None:
        known = self.current
        if known is not None and known.current and (known.version, known.hash) == (arrival.version, arrival.hash):
            return None
        try:
            candidate, catalogue = await asyncio.to_thread(self._stage, arrival, known)
        except _Refused as error:
            return error.refusal
        except OSError as error:
            log.error("a snapshot cannot be stored: %s", facts(version=arrival.version, reason=error))
            return Refusal(f"the node cannot store the snapshot: {error.strerror}")
        syncing = asyncio.create_task(self._sync(candidate), name="sync a snapshot")
        try:
            refusal = await self._fleet.apply(candidate, APPLY_TIMEOUT)
        finally:
            unsynced = await syncing
        if refusal is None:
            self._kept = (candidate.hash, catalogue) if catalogue is not None else None
            await self._commit(candidate, unsynced)
        else:
            log.warning("snapshot refused: %s", facts(version=arrival.version, kept=known.version if known else 0))
            if known is None or known.path != candidate.path:
                self._store.discard(candidate)
        return refusal

    def _stage(self, arrival: Arrival, known: Snapshot | None) -> tuple[Snapshot, Catalogue | None]:
        """Unpack, check, write; in a thread, for documents may be large."""
        catalogue = None
        if arrival.delta is not None:
            catalogue = self._changed(arrival.delta, known)
            if catalogue.size > MAX_DOCUMENT:
                raise _unreadable(f"the document holds more than {MAX_DOCUMENT} bytes")
            found = catalogue.hash(self._kept[1] if self._kept is not None else None)
            pieces: Iterable[bytes] = catalogue.pieces()
        else:
            document = _unpacked(arrival.data)
            found = hash_of(document)
            pieces = (document,)
        if found != arrival.hash and catalogue is not None:
            self._kept = None  # it may be what is wrong
            raise _useless(f"the delta leads to the hash {found}, not {arrival.hash}")
        if found != arrival.hash:
            raise _unreadable(f"the snapshot is damaged: its hash is {found}, not {arrival.hash}")
        way = (arrival.delta.from_hash, arrival.delta.SerializeToString()) if arrival.delta is not None else ()
        staged = self._store.stage(arrival.version, arrival.hash, pieces, *way)
        return staged, catalogue if catalogue is not None and catalogue.size <= MAX_KEPT else None

    def _changed(self, message: pb.Delta, known: Snapshot | None) -> Catalogue:
        """The current document with a delta's changes. Raises _Refused."""
        # What another version of this software took is not what the hash stands for here.
        if known is None or not known.current or known.hash != message.from_hash:
            raise _useless(f"the delta starts from {message.from_hash or 'nothing'}, which this node does not run")
        if message.ByteSize() > MAX_DELTA:
            raise _useless(f"the delta is larger than {MAX_DELTA} bytes")
        try:
            if self._kept is None or self._kept[0] != known.hash:
                self._kept = known.hash, Catalogue.read(self._store.read(known))
            return self._kept[1].after(delta_from(message))
        except (OSError, ValueError) as error:
            self._kept = None
            raise _useless(f"the delta cannot be applied: {error}") from None

    async def _sync(self, candidate: Snapshot) -> OSError | None:
        """While the workers build: what the disk says to it, if it does not take it."""
        try:
            await asyncio.to_thread(self._store.sync, candidate)
        except OSError as error:
            return error
        return None

    async def _commit(self, candidate: Snapshot, unsynced: OSError | None) -> None:
        """All workers run it already: a disk that fails now costs a resync after a restart, not the change."""
        self.current = candidate
        try:
            if unsynced is not None:
                raise unsynced
            await asyncio.to_thread(self._store.commit, candidate)
            self._committed = candidate
        except OSError as error:
            log.error("a snapshot will not outlast a restart: %s", facts(version=candidate.version, reason=error))
        log.info("snapshot applied: %s", facts(version=candidate.version, hash=candidate.hash))

    async def _tidy(self) -> None:
        """Remove what the last commit left behind; nobody waits for that."""
        if self._committed is not None:
            committed, self._committed = self._committed, None
            try:
                await asyncio.to_thread(self._store.tidy, committed)
            except OSError as error:
                log.warning("former snapshots stay on disk until the next one: %s", facts(reason=error))


def _useless(reason: str) -> _Refused:
    return _Refused(Refusal(f"{WHOLE_WANTED}: {reason}"))


def _unreadable(reason: str) -> _Refused:
    return _Refused(Refusal(reason, unreadable=True))


def _unpacked(data: bytes) -> bytes:
    """Raises _Refused."""
    try:
        return _decompressed(data)
    except (zstandard.ZstdError, ValueError) as error:
        raise _unreadable(f"the snapshot cannot be decompressed: {error}") from None


def _decompressed(data: bytes) -> bytes:
    """Raises ZstdError, and ValueError for what is cut off or grows beyond all measure."""
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    out = bytearray()
    view = memoryview(data)
    for start in range(0, len(view), 64 * 1024):
        out += unpacker.decompress(view[start : start + 64 * 1024])
        if len(out) > MAX_DOCUMENT:
            raise ValueError(f"it holds more than {MAX_DOCUMENT} bytes")
    if not unpacker.eof:
        raise ValueError("it is cut off")
    return bytes(out)
