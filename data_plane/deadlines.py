"""Many deadlines, nearly none of them met.

`asyncio.timeout` sets and cancels a timer of the loop's for each block, which for a call to ourselves costs more than
routing it. Here one timer stands for all blocks of its kind: it is set for the earliest deadline there was when it was
set, looks at what is still under way when it fires, and is set again.
"""

from __future__ import annotations

import asyncio
from math import inf
from types import TracebackType


class Deadlines:
    """`with deadlines.within(seconds): await …` raises TimeoutError when that takes longer, like `asyncio.timeout`."""

    def __init__(self) -> None:
        self.running: dict[_Block, None] = {}
        self._armed_for = inf
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def within(self, seconds: float) -> _Block:
        return _Block(self, seconds)

    def under_way(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[object]]:
        """The loop and the task that are running. Which loop that is is asked only where it is not the last one: up to
        Python 3.11 the answer costs a system call."""
        loop = self._loop
        task = None if loop is None else asyncio.current_task(loop)
        if loop is None or task is None:
            loop = asyncio.get_running_loop()
            task = asyncio.current_task(loop)
            assert task is not None, "a deadline outside of a task"
            self._loop, self._armed_for, self.running = loop, inf, {}
        return loop, task

    def begin(self, block: _Block, due: float) -> None:
        self.running[block] = None
        if due < self._armed_for:
            self._arm(due)

    def _arm(self, moment: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = moment
        self._timer = self._loop.call_at(moment, self._fire)

    def _fire(self) -> None:
        assert self._loop is not None
        self._timer, self._armed_for = None, inf
        now = self._loop.time()
        for block in [block for block in self.running if block.due <= now]:
            del self.running[block]
            block.expire()
        if self.running:
            self._arm(min(block.due for block in self.running))


class _Block:
    __slots__ = ("_cancelling", "_deadlines", "_expired", "_seconds", "_task", "due")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> None:
        loop, task = self._deadlines.under_way()
        self._task: asyncio.Task[object] = task
        self._cancelling = task.cancelling()
        self.due: float = loop.time() + self._seconds
        self._deadlines.begin(self, self.due)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._expired:
            # The timer stays; it finds nothing to do.
            self._deadlines.running.pop(self, None)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            # Whoever else cancelled the task meant all of it, and not this block.
            raise TimeoutError from error

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
