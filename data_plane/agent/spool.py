"""The analytics spool: what workers reported, on disk until the control plane has stored it.

An append-only log in segment files (`segments`). Three positions run through it: `taken` (everything before it was
acknowledged), `cursor` (everything before it belongs to a batch with a sequence number), and the end.

    take_in(intake)        appends a worker's batch, once per (worker, number)       → the worker may forget it
    seal()                 gives the next sequence number to the data at the cursor  → it may be sent
    acknowledge(sequence)  moves `taken` and removes segments that lie before it

A SEAL record is on disk before its batch is sent, so a sequence number means the same events for ever, also for an
agent that comes after a crash. Sequence numbers have no holes: they are given when a batch is made. What was lost
inside is never guessed: every CHECKPOINT knows how many events had come in by then, so that a reader who passes from
one segment to the next sees what is missing between them, damaged or removed, and counts it as dropped.

When the spool outgrows its limit, segments that lie wholly behind the cursor, never sent, are folded where they stand,
the oldest first; those that were sent stay as they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_plane.agent.framing import BATCH_BYTES, BATCH_EVENTS
from data_plane.agent.segments import Kind, SegmentWriter, numbers_in, sync_folder
from data_plane.agent.spool_files import Piece, SegmentRow
from data_plane.agent.spool_state import Intake, Position, Seal, State, pack_acknowledgement, replay
from data_plane.logs import facts
from gateway_schema.wire import analytics_pb2 as pb

log = logging.getLogger(__name__)


class SpoolError(Exception):
    """The spool cannot take anything in: the disk is full or broken. The worker keeps its batch and tries again."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A batch to send: the serialised `analytics.Batch`, complete."""

    sequence: int
    payload: bytes


class Spool:
    """Opening it recovers what a former agent left; raises OSError. One process at a time may hold it open."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._limit = limit
        self._segment_bytes = max(16 * 1024, min(1024 * 1024, limit // 16))
        self._state = State()
        self._cramped = False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._row = SegmentRow(folder)
        self._open(self._recover() + 1)

    @property
    def epoch(self) -> str:
        """Names the numbering of batches; 32 hex digits."""
        return self._state.epoch

    @property
    def dropped(self) -> int:
        """Events lost since the epoch began."""
        return self._state.dropped

    @property
    def last_sequence(self) -> int:
        return self._state.next_sequence - 1

    @property
    def unsent_events(self) -> int:
        return self._state.events_in - self._state.consumed

    @property
    def unsent_bytes(self) -> int:
        """About: records of other kinds are among them."""
        cursor = self._state.cursor
        return sum(size for number, size in self._row.sizes.items() if number >= cursor.segment) - cursor.offset

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._row.size

    @property
    def waiting_batches(self) -> int:
        """Batches that the control plane has not acknowledged, those that are still to be made included."""
        return len(self._state.seals) + -(-self.unsent_events // BATCH_EVENTS)

    # In.

    def take_in(self, intake: Intake) -> bool:
        """Write down a worker's batch; False when it was written down before. Raises SpoolError."""
        if intake.number <= self._state.workers.get(intake.worker, 0):
            return False
        self._append(Kind.INTAKE, intake.pack())
        self._state.take_in(intake)
        self._after_append()
        return True

    def _append(self, kind: Kind, payload: bytes) -> None:
        try:
            self._writer.append(kind, payload)
        except OSError as error:
            raise SpoolError(f"cannot write to {self._row.folder}: {error.strerror}") from None
        self._row.sizes[self._active] = self._writer.size

    def _after_append(self) -> None:
        try:
            if self._writer.size >= self._segment_bytes:
                self._rotate()
            self._make_room()
            self._cramped = False
        except OSError as error:
            # What was to be written is written; the next batch will try again to make room.
            if not self._cramped:
                log.warning("the spool cannot make room: %s", facts(reason=error.strerror))
            self._cramped = True

    # Out.

    def seal(self) -> Sealed | None:
        """Make the next batch of what was never sent; None when there is nothing. Raises SpoolError."""
        pieces = self._next_pieces()
        if not pieces:
            return None
        last = pieces[-1]
        seal = Seal(self._state.next_sequence, last.end, last.consumed, last.dropped)
        self._append(Kind.SEAL, seal.pack())
        self._state.seal(seal)
        self._after_append()
        return _sealed(seal, pieces)

    def _next_pieces(self) -> list[Piece]:
        state = self._state
        pieces: list[Piece] = []
        events = size = 0
        for piece in self._row.read(state.cursor, state.consumed, state.dropped):
            events += piece.count
            size += len(piece.body)
            if pieces and (events > BATCH_EVENTS or size > BATCH_BYTES):
                break
            pieces.append(piece)
        return pieces

    def unacknowledged(self) -> list[Sealed]:
        """The batches that may have been sent, oldest first, exactly as they were made."""
        return [_sealed(seal, self._pieces_between(start, seal.end)) for start, seal in self._state.spans()]

    def _pieces_between(self, start: Position, end: Position) -> list[Piece]:
        pieces = []
        for piece in self._row.read(start):
            if piece.end > end:
                break
            pieces.append(piece)
        return pieces

    def acknowledge(self, sequence: int) -> None:
        """The control plane has stored all batches up to this one."""
        if not self._state.acknowledge(sequence):
            return
        # Not written down, the acknowledgement costs no more than asking the control plane again after a restart.
        with suppress(SpoolError):
            self._append(Kind.ACK, pack_acknowledgement(self._state.acknowledged))
            self._after_append()
        self._remove_taken()

    def resume(self, last_durable: int) -> None:
        """Agree with a control plane that says which batch of this epoch it stored last. Raises SpoolError."""
        state = self._state
        if state.acknowledged <= last_durable < state.next_sequence:
            self.acknowledge(last_durable)
            return
        if last_durable < state.acknowledged:
            log.warning("the control plane forgot batches: %s", facts(stored=last_durable, known=state.acknowledged))
            state.begin_epoch()
        else:
            # Only a loss of power can have taken seals that were sent; their numbers must not be given again.
            log.warning("the spool lost its end: %s", facts(stored=last_durable, last=self.last_sequence))
            state.acknowledge(last_durable)
            state.next_sequence, state.acknowledged = last_durable + 1, last_durable
        try:
            self._rotate()
        except OSError as error:
            raise SpoolError(f"cannot write to {self._row.folder}: {error.strerror}") from None

    def begin_anew(self) -> None:
        """Number what is not acknowledged under a new epoch, for the present one is somebody else's too.

        Raises SpoolError.
        """
        self._state.begin_epoch()
        try:
            self._rotate()
        except OSError as error:
            raise SpoolError(f"cannot write to {self._row.folder}: {error.strerror}") from None

    async def flush(self) -> None:
        """Put what was written on the disk itself, so that it outlasts a loss of power. Raises OSError."""
        descriptor = self._writer.duplicate()
        try:
            await asyncio.to_thread(os.fdatasync, descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        self._writer.close()

    # Segments.

    def _recover(self) -> int:
        """Take over what is there; the number of the last segment that ever was."""
        folder = self._row.folder
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        numbers = numbers_in(folder)
        for number in reversed(numbers):
            path = self._row.path(number)
            state, end = replay(path)
            if state is not None:
                self._state = state
                _cut(path, end)
                break
            if path.stat().st_size:
                log.warning("a segment of the spool is damaged and left out: %s", facts(file=path.name))
            path.unlink()
        self._row.load()
        self._remove_taken()
        return numbers[-1] if numbers else 0

    def _open(self, number: int) -> None:
        if not self._state.cursor.segment:
            self._state.cursor = self._state.taken = Position(number, 0)
        writer = SegmentWriter(self._row.path(number))
        try:
            writer.append(Kind.CHECKPOINT, self._state.encode())
            sync_folder(self._row.folder)
        except OSError:
            writer.close(flush=False)
            self._row.path(number).unlink(missing_ok=True)
            raise
        self._active, self._writer = number, writer
        self._row.sizes[number] = writer.size

    def _rotate(self) -> None:
        """Begin a new segment. Raises OSError; unless the new one was made, the old one goes on."""
        former = self._writer
        self._open(self._active + 1)
        former.close()
        self._remove_taken()

    def _remove_taken(self) -> None:
        for number in [n for n in self._row.sizes if n < self._state.taken.segment]:
            self._row.remove(number)

    def _make_room(self) -> None:
        """Fold never-sent segments until the spool fits; when nothing can be folded any more, drop the oldest."""
        while self._row.size > self._limit:
            candidates = self._never_sent()
            if not candidates:
                return  # all that is left is under way or being written, and bounded by that
            group = self._row.foldable(candidates, 8 * self._segment_bytes)
            if group:
                self._row.fold(group, self._row.levels.get(group[0], 0) + 1)
            else:
                log.warning("the spool is full of folded events: the oldest are dropped")
                self._row.remove(candidates[0])

    def _never_sent(self) -> list[int]:
        """Closed segments that lie wholly behind the cursor, oldest first."""
        cursor = self._state.cursor
        first = cursor.segment if cursor.offset == 0 else cursor.segment + 1
        return [number for number in sorted(self._row.sizes) if first <= number < self._active]


def _cut(path: Path, end: int) -> None:
    torn = path.stat().st_size - end
    if torn > 0:
        log.info("cutting a torn end off the spool: %s", facts(file=path.name, bytes=torn))
        os.truncate(path, end)


def _sealed(seal: Seal, pieces: list[Piece]) -> Sealed:
    """Fields of a protobuf message may follow one another in any number: what workers sent is the batch's body."""
    head = pb.Batch(sequence=seal.sequence, dropped_events=seal.dropped).SerializeToString()
    return Sealed(seal.sequence, head + b"".join(piece.body for piece in pieces))
