"""A worker's journal: what it reported and its agent has not written down yet, where a killed process leaves it.

A file, mapped into memory: a record costs a copy, no system call, and what a process copied there outlives it. The
agent reads the journals of workers that are gone, takes from them what never reached the spool, and removes them. The
lock on the file, which dies with its process, tells who is gone.

    file    two halves, each a row of records; the half with the higher generation is the newer one
    record  length (4) · CRC-32 (4) · kind (1) · number (8) · index (8) · bytes, big-endian; length covers all behind it

    START   number: the last batch formed before; index: this half's generation
    EVENT   index: its place in the row of all events, from 1; bytes: a serialised RequestEvent
    MARK    batch `number` ends with the event `index`; bytes: the event that it begins with; written before it is sent

The generation is the seed of a half's checksums: what is left of an older generation is no record of the newer one. A
half is begun anew once the agent has acknowledged all events in it, so only the last two generations ever count, and an
event's mark is in its own or in the later one. Events that fit into neither half, because no agent came for long, are
in memory only; so are those that were folded, from the moment that a batch takes the sums along.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from zlib import crc32

from data_plane.agent.framing import BATCH_BYTES, BATCH_EVENTS, batch_of
from data_plane.agent.spool_state import Intake

HALF = 8 * 1024 * 1024
"""Bytes: room for the events that a channel keeps before it folds them."""
SWITCH = 256 * 1024
"""Bytes after which the other half is begun, if it is free: in quiet times few pages are ever touched."""
RESERVE = 64 * 1024
"""Bytes of a half that are for marks only: an event whose batch goes unmarked could count twice."""
SUFFIX = ".journal"

_HEAD = struct.Struct(">II")
_BODY = struct.Struct(">BQQ")
_FIRST = struct.Struct(">Q")
_PACK_HEAD, _PACK_BODY = _HEAD.pack, _BODY.pack
_OVERHEAD = _HEAD.size + _BODY.size


def journals_of(state_dir: Path) -> Path:
    """The folder of a node's journals."""
    return state_dir / "journals"


class _Kind(IntEnum):
    START = 1
    EVENT = 2
    MARK = 3


_EVENT = int(_Kind.EVENT)
"""A plain number, which is packed faster."""


@dataclass(slots=True)
class _Half:
    base: int
    generation: int = 0
    used: int = 0
    last_event: int = 0


class Journal:
    """The writing end. Making it raises OSError. Never blocks, never raises afterwards."""

    def __init__(self, path: Path, half: int = HALF, switch: int = SWITCH, reserve: int = RESERVE) -> None:
        self._path = path
        self._switch = switch
        self._size, self._event_room = half, half - reserve
        path.parent.mkdir(mode=0o700, exist_ok=True)
        unlocked = path.with_suffix(".new")  # until it is locked, an agent would take its worker for dead
        self._file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _reserve(self._file, 2 * half)
            self._map = mmap.mmap(self._file, 2 * half)
            unlocked.rename(path)
        except OSError:
            unlocked.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._newer, self._older = _Half(0), _Half(half)
        self._marks: deque[tuple[int, int]] = deque()
        self._events = 0
        self._batch = 0
        self._taken = 0
        self._given_up = False
        self._begin(1)

    def add(self, event: bytes) -> None:
        """The next event of all."""
        number = self._events = self._events + 1
        half = self._newer
        used = half.used
        if used > self._switch and self._older.last_event <= self._taken:
            self._turn()
            half = self._newer
            used = half.used
        # What `_append` does, which would cost as much again if it were called for every event.
        end = used + _OVERHEAD + len(event)
        if end > self._event_room or self._given_up:
            return
        body = _PACK_BODY(_EVENT, 0, number) + event
        self._map[half.base + used : half.base + end] = _PACK_HEAD(len(body), crc32(body, half.generation)) + body
        half.used = end
        half.last_event = number

    def mark(self, batch: int, first: int, last: int) -> None:
        """Batch `batch` holds the events `first` to `last`; none when `last` is less. Call it before it is sent."""
        self._marks.append((batch, last))
        self._batch = batch
        if not self._append(_Kind.MARK, batch, last, _FIRST.pack(first), self._size):
            self._give_up()

    def acknowledged(self, batch: int) -> None:
        """The agent has written down all batches up to this one."""
        while self._marks and self._marks[0][0] <= batch:
            self._taken = self._marks.popleft()[1]

    def close(self, remove: bool) -> None:
        """`remove`: nothing in it is needed any more. Otherwise an agent will read it."""
        if remove:
            self._path.unlink(missing_ok=True)
        self._given_up = True
        self._map.close()
        os.close(self._file)

    def _turn(self) -> None:
        self._newer, self._older = self._older, self._newer
        self._begin(self._older.generation + 1)

    def _begin(self, generation: int) -> None:
        half = self._newer
        half.generation, half.used, half.last_event = generation, 0, 0
        self._append(_Kind.START, self._batch, generation, b"", self._size)

    def _append(self, kind: _Kind, number: int, index: int, data: bytes, room: int) -> bool:
        half = self._newer
        body = _BODY.pack(kind, number, index) + data
        end = half.used + _HEAD.size + len(body)
        if self._given_up or end > room:
            return False
        seed = 0 if kind is _Kind.START else half.generation
        record = _HEAD.pack(len(body), crc32(body, seed)) + body
        self._map[half.base + half.used : half.base + end] = record
        half.used = end
        return True

    def _give_up(self) -> None:
        """Rather than a journal that would count something twice, none."""
        for half in (self._newer, self._older):
            self._map[half.base : half.base + _HEAD.size] = bytes(_HEAD.size)
        self._given_up = True


def _reserve(file: int, size: int) -> None:
    """A disk that is full says so here, not by a signal when a page is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


# The reading end.


def names_in(folder: Path) -> list[str]:
    """The workers whose journals lie in a folder."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


def path_of(folder: Path, worker: str) -> Path:
    return folder / f"{worker}{SUFFIX}"


def abandoned(path: Path) -> bool:
    """Whether the process that wrote it is gone. Raises OSError."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def read(path: Path, worker: str) -> list[Intake]:
    """The batches that a worker sent, or would have sent next, as far as the journal still holds their events.

    Those that are in the spool already are among them, under the same numbers. Raises OSError; whatever is damaged ends
    its half.
    """
    if not path.stat().st_size:
        return []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        half = len(data) // 2
        generations = sorted((_records(data, base, base + half) for base in (0, half)), key=_generation)
    return list(_batches(worker, [record for records in generations for record in records]))


@dataclass(frozen=True, slots=True)
class _Record:
    kind: _Kind
    number: int
    index: int
    data: bytes


def _generation(records: Sequence[_Record]) -> int:
    return records[0].index if records else 0


def _records(data: mmap.mmap, offset: int, end: int) -> list[_Record]:
    """The whole records of a half, from its START on; none without one."""
    records: list[_Record] = []
    seed = 0
    while offset + _HEAD.size <= end:
        length, checksum = _HEAD.unpack_from(data, offset)
        offset += _HEAD.size
        if not _BODY.size <= length <= end - offset:
            break
        body = data[offset : offset + length]
        offset += length
        kind, number, index = _BODY.unpack_from(body)
        if crc32(body, seed) != checksum or kind not in _KINDS or (kind == _Kind.START) is not (not records):
            break
        records.append(_Record(_Kind(kind), number, index, body[_BODY.size :]))
        seed = index & 0xFFFFFFFF if kind == _Kind.START else seed
    return records


_KINDS = frozenset(_Kind)


def _batches(worker: str, records: Sequence[_Record]) -> Iterator[Intake]:
    """What the marks say; events behind the last one were never sent, and get the numbers after it."""
    events = {record.index: record.data for record in records if record.kind is _Kind.EVENT}
    order = sorted(events)
    number = sent = 0
    for record in records:
        if record.kind is _Kind.EVENT:
            continue
        number = max(number, record.number)
        if record.kind is _Kind.MARK:
            sent = max(sent, record.index)
            first = _FIRST.unpack(record.data)[0] if len(record.data) == _FIRST.size else record.index + 1
            marked = order[bisect_left(order, first) : bisect_right(order, record.index)]
            yield from _intakes(worker, record.number, [events[index] for index in marked])
    yield from _intakes(worker, number + 1, [events[index] for index in order[bisect_right(order, sent) :]])


def _intakes(worker: str, number: int, events: Sequence[bytes]) -> Iterator[Intake]:
    """Events as batches of the size that workers send, numbered from `number`."""
    group: list[bytes] = []
    size = 0
    for event in events:
        if group and (len(group) >= BATCH_EVENTS or size + len(event) > BATCH_BYTES):
            yield Intake(worker, number, len(group), 0, batch_of(group))
            group, size, number = [], 0, number + 1
        group.append(event)
        size += len(event)
    if group:
        yield Intake(worker, number, len(group), 0, batch_of(group))
