"""A deadline that is moved often and met seldom.

Each request moves its connection's deadline several times. A timer per move would cost more than parsing the head, so
one lazy timer stands per connection: moving the deadline later only notes the new moment, and the timer, when it fires
early, arms itself again for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf


class Watchdog:
    """Calls `expired` once when a deadline passes; it must then be set anew."""

    __slots__ = ("_armed_for", "_due", "_expired", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._due = inf
        self._armed_for = inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> float:
        """Expire in `seconds` from now, which is returned (on the loop's clock)."""
        now = self._loop.time()
        due = self._due = now + seconds
        if due < self._armed_for:
            self._arm(due)
        return now

    def clear(self) -> None:
        """No deadline for now. The timer stays; it finds nothing to do."""
        self._due = inf

    def close(self) -> None:
        """For good: whoever would have been called is let go too (`request_reader.RequestReader.close` says why)."""
        self._due = inf
        self._expired = _nobody
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._armed_for = inf

    def _arm(self, moment: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = moment
        self._handle = self._loop.call_at(moment, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._armed_for = inf
        if self._due == inf:
            return
        if self._due > self._loop.time():
            self._arm(self._due)
            return
        self._due = inf
        self._expired()


def _nobody() -> None:
    pass
