"""Segment files of the spool: records that are appended, and read until the first one that is not whole.

A record is `length (4) · CRC-32 (4) · kind (1) · payload`, big-endian; length and CRC cover the payload and the kind.
A process that dies while it writes leaves a torn record at the end of its last segment: the CRC tells, and what
precedes it stands. The first record of a segment is a CHECKPOINT: the spool's whole state at that moment, so that
segments before it are data only and may be removed or rewritten without anything else noticing.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_HEADER = struct.Struct(">IIB")
_SUFFIX = ".log"
_MAX_RECORD = 64 * 1024 * 1024


class Kind(IntEnum):
    CHECKPOINT = 1
    INTAKE = 2
    """A worker's batch: events nobody was sent yet."""
    SEAL = 3
    """What a sequence number stands for."""
    ACK = 4
    """The control plane has stored all up to a sequence number."""
    FOLDED = 5
    """Deltas that took the place of events; only in segments that were rewritten."""


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    payload: bytes
    end: int
    """Offset behind it, in its segment."""


def pack(kind: Kind, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), zlib.crc32(payload, kind), kind) + payload


def scan(path: Path, offset: int = 0) -> Iterator[Record]:
    """The whole records from an offset on; ends, without a word, at the file's end or at the first damaged one."""
    with open(path, "rb") as file:
        file.seek(offset)
        while len(head := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum, kind = _HEADER.unpack(head)
            if length > _MAX_RECORD or kind not in _KINDS:
                return
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload, kind) != checksum:
                return
            offset += _HEADER.size + length
            yield Record(Kind(kind), payload, offset)


def first_record(path: Path) -> Record | None:
    return next(scan(path), None)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}{_SUFFIX}"


def numbers_in(folder: Path) -> list[int]:
    """The segments of a folder, oldest first."""
    names = (path.stem for path in folder.glob(f"*{_SUFFIX}"))
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii())


class SegmentWriter:
    """The segment that is being appended to. Every write goes to the kernel at once: a killed process loses none."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.size = 0

    def append(self, kind: Kind, payload: bytes) -> int:
        """Write one record and return the offset behind it. Raises OSError; nothing of the record is left then."""
        data = memoryview(pack(kind, payload))
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self.size + written)
        except OSError:
            # A disk that is full may have taken a part. What is left of it would end the segment for every reader.
            os.ftruncate(self._file, self.size)
            raise
        self.size += written
        return self.size

    def duplicate(self) -> int:
        """Another descriptor of the file, for a thread that flushes it to disk; whoever asks closes it."""
        return os.dup(self._file)

    def close(self, *, flush: bool = True) -> None:
        try:
            if flush:
                os.fdatasync(self._file)
        finally:
            os.close(self._file)


def sync_folder(folder: Path) -> None:
    """Make names that were created, renamed or removed outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
