"""What workers report, checked and counted on its way into the spool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from google.protobuf.message import DecodeError

from data_plane.agent.framing import FrameError
from data_plane.agent.spool import Spool
from data_plane.agent.spool_state import Intake
from gateway_schema.wire import analytics_pb2 as pb

_MOST = 10**9
"""No worker counts further between two batches; what does is damaged."""


_STATUS_OF = attrgetter("status")


class Counts:
    """Since this agent started: requests by status, for `/status` and `/metrics`."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.dropped = 0

    @property
    def total(self) -> int:
        return sum(self.requests.values())


class EventIntake:
    """`take` is what a Fleet calls; `arrived` is called when there is something new to send."""

    def __init__(self, spool: Spool, counts: Counts, arrived: Callable[[], None]) -> None:
        self._spool = spool
        self._counts = counts
        self._arrived = arrived

    def take(self, intake: Intake) -> None:
        """Raises SpoolError, and FrameError for numbers that cannot be."""
        if not 0 < intake.number < 2**62 or intake.count > _MOST or intake.dropped > _MOST:
            raise FrameError("an EVENTS frame has impossible numbers")
        batch = _parsed(intake.body)
        if batch is None:
            # What cannot be read can never be stored: it counts as lost, here, rather than stopping all that follows.
            intake = replace(intake, count=0, dropped=intake.dropped + intake.count, body=b"")
            batch = pb.Batch()
        else:
            intake = replace(intake, count=len(batch.events) + sum(delta.requests for delta in batch.deltas))
        if self._spool.take_in(intake):
            self._count(batch, intake.dropped)
            self._arrived()

    def _count(self, batch: pb.Batch, dropped: int) -> None:
        requests = self._counts.requests
        requests.update(map(_STATUS_OF, batch.events))
        for delta in batch.deltas:
            requests[delta.status] += delta.requests
        self._counts.dropped += dropped


def _parsed(body: bytes) -> pb.Batch | None:
    """The batch, or None when it is none, or says what only the spool may say."""
    try:
        batch = pb.Batch.FromString(body)
    except DecodeError:
        return None
    if batch.sequence or batch.dropped_events or any(delta.requests > _MOST for delta in batch.deltas):
        return None
    return batch
