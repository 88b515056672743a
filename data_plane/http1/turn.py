"""What waits for the end of the present turn of the event loop, to be done for many connections in a row.

Theory. One turn of a busy loop finds a dozen sockets ready. To serve each from its first step to its last is the worst
order: the steps of one request are a few thousand different instructions, after which the processor has forgotten the
first of them when the next request comes. So rides only gather while the sockets are read; when all have been, each
step is taken for all of them before the next step (in networking: vector packet processing), which takes half the time.
Writes wait for the same moment: a write to a socket whose reader sleeps on another core wakes it, and that costs the
writer more than the write, on a virtual machine some 10 µs. In a row they wake it once.

Nothing waits for longer than the turn, and no more than `_MOST` of a kind wait for each other. One request alone pays a
few microseconds for this.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from data_plane.http1.express import Ride, Steps

log = logging.getLogger(__name__)

_MOST: Final = 32
"""Rides, and writes, that wait at the most: it bounds the time until the first of them is done with."""
_OVER: Final = object()
"""What steps that are over give; others give None."""


class Writes(Protocol):
    def flush(self) -> None:
        """Write what waits."""


class Turn:
    """One per event loop: `turn_of`."""

    __slots__ = ("_is_called", "_loop", "_rides", "_writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        """Not what asyncio says is running: up to Python 3.11 each such question is a system call."""
        self._is_called = False
        self._rides: list[Ride] = []
        self._writes: list[Writes] = []

    def take(self, ride: Ride) -> None:
        """Let it board, or arrive: it has begun then."""
        self._rides.append(ride)
        if not self._is_called:
            self._call()
        elif len(self._rides) >= _MOST:
            self._do()

    def write(self, transport: Writes) -> None:
        self._writes.append(transport)
        if not self._is_called:
            self._call()
        elif len(self._writes) >= _MOST:
            self._write()

    def _call(self) -> None:
        loop = self._loop()
        if loop is not None:
            self._is_called = True
            loop.call_soon(self._end)

    def _end(self) -> None:
        try:
            self._do()
        finally:
            self._is_called = False

    def _do(self) -> None:
        """Answers first: they free connections."""
        if self._rides:
            rides, self._rides = self._rides, []
            boarding = [ride for ride in rides if ride.is_on and ride.behind is None]
            self._arrive([ride for ride in rides if ride.is_on and ride.behind is not None])
            self._board(boarding)
        self._write()

    def _arrive(self, rides: list[Ride]) -> None:
        in_step([ride.line.arrive(ride) for ride in rides])
        for ride in rides:
            if ride.behind is not None:
                _guarded(ride.behind.landed, ride)

    def _board(self, rides: list[Ride]) -> None:
        in_step([ride.line.board(ride) for ride in rides])
        for ride in rides:
            if ride.behind is None:
                _guarded(ride.platform.derail, ride)

    def _write(self) -> None:
        writes, self._writes = self._writes, []
        for transport in writes:
            try:
                transport.flush()
            except Exception:
                log.exception("a connection could not be written to")


def _guarded(do: Callable[[Ride], None], ride: Ride) -> None:
    """No ride's fault is another's."""
    try:
        do(ride)
    except Exception:
        log.exception("a ride could not be ended")


def in_step(going: list[Steps]) -> None:
    """Take the first step of each, then the second of each, and so on. One that raises is over, and logged."""
    while going:
        try:
            going = [steps for steps in going if next(steps, _OVER) is None]
        except Exception:
            log.exception("a ride broke")  # Those in front of it are a step ahead now, which harms nobody.


def turn_of(loop: asyncio.AbstractEventLoop) -> Turn:
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = Turn(loop)
    return turn


_turns: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turn]] = weakref.WeakKeyDictionary()
