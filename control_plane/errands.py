"""Where work is done: in a thread or here (`aside`), and to its end even when whoever asked for it is gone (`Errands`).

A node that disconnects cancels the handler of its stream. A transaction that is cancelled halfway would be rolled back,
but its connection might be lost to the pool with it; and what it wrote was true. So such work runs in tasks of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_LITTLE = 5_000
"""Microseconds for which the loop may stand still."""


async def aside(effort: int, work: Callable[..., T], *given: Any) -> T:
    """Do it in a thread, unless there is so little to do that the way there and back would take longer.

    `effort`: microseconds, roughly.
    """
    return work(*given) if effort <= _LITTLE else await asyncio.to_thread(work, *given)


class Errands:
    """Tasks that outlive their askers. `close` waits for them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it and wait for it; a cancellation ends only the waiting."""
        task = asyncio.create_task(work, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def close(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen by the asker, or by nobody because there is none any more
