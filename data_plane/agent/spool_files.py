"""The segments of a spool as a row of files: which there are, reading along them, folding them where they stand."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from data_plane.agent.fold import MINUTE, Fold
from data_plane.agent.framing import batch_of
from data_plane.agent.segments import Kind, Record, SegmentWriter, numbers_in, path_of, scan
from data_plane.agent.spool_state import Intake, Position
from gateway_schema.wire import analytics_pb2 as pb

_COUNT = struct.Struct(">I")
CHUNK_BYTES = 128 * 1024
"""Of folded deltas in one record: a record is the least that a batch can hold."""
COARSEST = 4


@dataclass(slots=True)
class Piece:
    """One record's data, and where a reader stands behind it."""

    count: int
    body: bytes
    end: Position
    consumed: int
    dropped: int


class SegmentRow:
    """`sizes` and `levels` (0: as it came, 1…COARSEST: folded) by segment number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[int, int] = {}
        self.levels: dict[int, int] = {}

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def path(self, number: int) -> Path:
        return path_of(self.folder, number)

    def load(self) -> None:
        """Take stock of the files. A merged segment beside those it took in (a crash came between) stands for them."""
        self.sizes = {number: self.path(number).stat().st_size for number in numbers_in(self.folder)}
        for number in sorted(self.sizes):
            head = self._head(number)
            self.levels[number] = int(head.get("folded", 0))
            for absorbed in [n for n in self.sizes if int(head.get("first", number)) <= n < number]:
                self.remove(absorbed)

    def remove(self, number: int) -> None:
        self.sizes.pop(number, None)
        self.levels.pop(number, None)
        self.path(number).unlink(missing_ok=True)

    def _head(self, number: int) -> dict[str, Any]:
        """The checkpoint that a segment begins with; empty when it is damaged."""
        record = next(scan(self.path(number)), None)
        if record is None or record.kind is not Kind.CHECKPOINT:
            return {}
        head = orjson.loads(record.payload)
        return head if isinstance(head, dict) else {}

    # Reading.

    def read(self, start: Position, consumed: int = 0, dropped: int = 0) -> Iterator[Piece]:
        """The data from a position on, through all segments.

        A checkpoint on the way tells how many events came in before it: what the reader did not see of them was
        damaged or removed, and counts as dropped.
        """
        for number in sorted(n for n in self.sizes if n >= start.segment):
            offset = start.offset if number == start.segment else 0
            for record in scan(self.path(number), offset):
                if record.kind is Kind.CHECKPOINT:
                    came_in = int(orjson.loads(record.payload)["events_in"])
                    dropped += max(0, came_in - consumed)
                    consumed = max(came_in, consumed)
                elif (data := data_of(record)) is not None:
                    consumed += data[0]
                    yield Piece(*data, Position(number, record.end), consumed, dropped)

    # Folding.

    def fold(self, group: list[int], level: int) -> None:
        """Put the folded content of neighbouring closed segments in the place of the last; whole or not at all.

        Raises OSError. The result ends with the checkpoint of the segment behind it, so that it, too, could be the
        last one that a recovery finds.
        """
        fold = _fold_of(level)
        for number in group:
            for record in scan(self.path(number)):
                _add(fold, record)
        head = self._head(group[0])
        head |= {"folded": level, "first": head.get("first", group[0])}
        behind = self._head(min(number for number in self.sizes if number > group[-1]))
        temporary = self.folder / "fold.tmp"
        size = _write(temporary, head, fold, behind)
        os.replace(temporary, self.path(group[-1]))
        self.sizes[group[-1]] = size
        self.levels[group[-1]] = level
        for number in group[:-1]:
            self.remove(number)

    def foldable(self, candidates: list[int], most_bytes: int) -> list[int]:
        """What of these to fold next: the oldest one that is as it came, else the oldest neighbours of one level."""
        raw = [number for number in candidates if self.levels.get(number, 0) == 0]
        if raw:
            return raw[:1]
        open_ones = [number for number in candidates if self.levels[number] < COARSEST]
        group: list[int] = []
        size = 0
        for number in candidates[candidates.index(open_ones[0]) :] if open_ones else ():
            size += self.sizes[number]
            if group and (self.levels[number] != self.levels[group[0]] or size > most_bytes):
                break
            group.append(number)
        return group


def data_of(record: Record) -> tuple[int, bytes] | None:
    """(events behind it, fields of an analytics.Batch) of a record that holds data."""
    if record.kind is Kind.INTAKE:
        intake = Intake.unpack(record.payload)
        return intake.count, intake.body
    if record.kind is Kind.FOLDED:
        (count,) = _COUNT.unpack_from(record.payload)
        return count, record.payload[_COUNT.size :]
    return None


def _fold_of(level: int) -> Fold:
    """Minutes first; then quarters of an hour, hours, and at last hours without consumers."""
    step = {1: MINUTE, 2: 15 * MINUTE}.get(level, 60 * MINUTE)
    return Fold(step=step, consumers=level < COARSEST)


def _add(fold: Fold, record: Record) -> None:
    data = data_of(record)
    if data is None:
        return
    try:
        batch = pb.Batch.FromString(data[1])
    except DecodeError:
        return  # the next checkpoint shows a reader that these events are missing, and they count as dropped
    fold.merge_batch(batch)


def _write(path: Path, head: dict[str, Any], fold: Fold, behind: dict[str, Any]) -> int:
    writer = SegmentWriter(path)
    try:
        writer.append(Kind.CHECKPOINT, orjson.dumps(head))
        for count, body in _chunks(fold):
            writer.append(Kind.FOLDED, _COUNT.pack(count) + body)
        writer.append(Kind.CHECKPOINT, orjson.dumps(behind))
    finally:
        writer.close()
    return writer.size


def _chunks(fold: Fold) -> Iterator[tuple[int, bytes]]:
    waiting: list[bytes] = []
    count = size = 0
    for delta in fold.deltas():
        data = delta.SerializeToString()
        if waiting and size + len(data) > CHUNK_BYTES:
            yield count, batch_of(deltas=waiting)
            waiting, count, size = [], 0, 0
        waiting.append(data)
        count += delta.requests
        size += len(data)
    if waiting:
        yield count, batch_of(deltas=waiting)
