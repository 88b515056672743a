"""What a spool knows beside its data: positions, seals, what came from whom. Values only; written down as records."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_plane.agent.segments import Kind, Record, scan

_INTAKE = struct.Struct(">16sQIQ")
_SEAL = struct.Struct(">QQQQQ")
_ACK = struct.Struct(">Q")
_KNOWN_WORKERS = 128
"""Workers whose last batch number is remembered: far more than can be alive at one time."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Seal:
    """What a sequence number stands for: the data between the end of the seal before it and `end`."""

    sequence: int
    end: Position
    consumed: int
    """Events that had come in before `end`, since the spool was made."""
    dropped: int
    """Events that were lost by then, since the epoch began."""

    def pack(self) -> bytes:
        return _SEAL.pack(self.sequence, self.end.segment, self.end.offset, self.consumed, self.dropped)

    @classmethod
    def unpack(cls, payload: bytes) -> Seal:
        sequence, segment, offset, consumed, dropped = _SEAL.unpack(payload)
        return cls(sequence, Position(segment, offset), consumed, dropped)


@dataclass(frozen=True, slots=True)
class Intake:
    """A worker's batch as it came: `count` events stand behind `body`, `dropped` were lost before it."""

    worker: str
    number: int
    count: int
    dropped: int
    body: bytes

    def pack(self) -> bytes:
        return _INTAKE.pack(bytes.fromhex(self.worker), self.number, self.count, self.dropped) + self.body

    @classmethod
    def unpack(cls, payload: bytes) -> Intake:
        worker, number, count, dropped = _INTAKE.unpack_from(payload)
        return cls(worker.hex(), number, count, dropped, payload[_INTAKE.size :])


def pack_acknowledgement(sequence: int) -> bytes:
    return _ACK.pack(sequence)


@dataclass(slots=True)
class State:
    """`taken` ≤ `cursor` ≤ the end: acknowledged before `taken`, sealed before `cursor`."""

    epoch: str = field(default_factory=lambda: os.urandom(16).hex())
    next_sequence: int = 1
    acknowledged: int = 0
    events_in: int = 0
    """Events that ever came in, since the spool was made; `consumed` and `taken_consumed` count in the same way."""
    consumed: int = 0
    taken_consumed: int = 0
    dropped: int = 0
    taken: Position = Position(0, 0)
    cursor: Position = Position(0, 0)
    seals: list[Seal] = field(default_factory=list)
    workers: dict[str, int] = field(default_factory=dict)
    """The last batch number of each worker, the least recent worker first."""

    def apply(self, record: Record) -> State:
        """The state after a record: this one, changed, or the one that a checkpoint holds. Raises ValueError."""
        if record.kind is Kind.CHECKPOINT:
            return State.decode(record.payload)
        try:
            if record.kind is Kind.INTAKE:
                self.take_in(Intake.unpack(record.payload))
            elif record.kind is Kind.SEAL:
                self.seal(Seal.unpack(record.payload))
            elif record.kind is Kind.ACK:
                self.acknowledge(_ACK.unpack(record.payload)[0])
        except struct.error as error:
            raise ValueError(str(error)) from None
        return self

    def take_in(self, intake: Intake) -> None:
        self.workers.pop(intake.worker, None)
        self.workers[intake.worker] = intake.number
        while len(self.workers) > _KNOWN_WORKERS:
            del self.workers[next(iter(self.workers))]
        self.events_in += intake.count
        self.dropped += intake.dropped

    def seal(self, seal: Seal) -> None:
        self.seals.append(seal)
        self.next_sequence = seal.sequence + 1
        self.cursor, self.consumed, self.dropped = seal.end, seal.consumed, seal.dropped

    def acknowledge(self, sequence: int) -> bool:
        """Whether that was news."""
        news = False
        while self.seals and self.seals[0].sequence <= sequence:
            seal = self.seals.pop(0)
            self.taken, self.taken_consumed, self.acknowledged = seal.end, seal.consumed, seal.sequence
            news = True
        return news

    def begin_epoch(self) -> None:
        """Number anew from 1 whatever was never acknowledged."""
        self.epoch = os.urandom(16).hex()
        self.next_sequence, self.acknowledged, self.dropped = 1, 0, 0
        self.cursor, self.consumed = self.taken, self.taken_consumed
        self.seals.clear()

    def spans(self) -> Iterator[tuple[Position, Seal]]:
        """Each unacknowledged seal, with where its data begins."""
        start = self.taken
        for seal in self.seals:
            yield start, seal
            start = seal.end

    def encode(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def decode(cls, payload: bytes) -> State:
        """Raises ValueError when these bytes hold no state."""
        try:
            return cls.from_dict(orjson.loads(payload))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a checkpoint: {error}") from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> State:
        return cls(
            epoch=str(values["epoch"]),
            **{name: int(values[name]) for name in _NUMBERS},
            taken=Position(**values["taken"]),
            cursor=Position(**values["cursor"]),
            seals=[Seal(**{**seal, "end": Position(**seal["end"])}) for seal in values["seals"]],
            workers={str(worker): int(number) for worker, number in values["workers"].items()},
        )


_NUMBERS = ("next_sequence", "acknowledged", "events_in", "consumed", "taken_consumed", "dropped")


def replay(path: Path) -> tuple[State | None, int]:
    """The state at a segment's end and the offset behind its last whole record; None when it begins with no state."""
    state: State | None = None
    end = 0
    for record in scan(path):
        if state is None and record.kind is not Kind.CHECKPOINT:
            return None, 0
        try:
            state = (state or State()).apply(record)
        except ValueError:
            break
        end = record.end
    return state, end
