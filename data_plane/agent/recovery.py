"""What workers that are gone left in their journals, brought into the spool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from pathlib import Path

from data_plane.agent import journal
from data_plane.agent.spool import SpoolError
from data_plane.agent.spool_state import Intake
from data_plane.logs import facts

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds until a journal is looked at again that a dying process still holds, or that the spool had no room for."""


class Recovery:
    """`take` writes a batch down, once per (worker, number), or raises SpoolError; `alive` names connected workers."""

    def __init__(self, folder: Path, take: Callable[[Intake], None], alive: Callable[[], Set[str]]) -> None:
        self._folder = folder
        self._take = take
        self._alive = alive
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """A worker came or went."""
        self._bell.set()

    async def run(self) -> None:
        """For ever: ends by cancellation only."""
        while True:
            self._bell.clear()
            done = await self.sweep()
            try:
                async with asyncio.timeout(None if done else PAUSE):
                    await self._bell.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> bool:
        """Take up every journal whose worker is gone; False when some must be looked at again."""
        results = [await self._take_up(worker) for worker in self._left()]
        return all(results)

    def _left(self) -> list[str]:
        alive = self._alive()
        return [worker for worker in journal.names_in(self._folder) if worker not in alive]

    async def _take_up(self, worker: str) -> bool:
        path = journal.path_of(self._folder, worker)
        try:
            if not journal.abandoned(path):
                return False
            batches = await asyncio.to_thread(journal.read, path, worker)
            for batch in batches:
                self._take(batch)
                await asyncio.sleep(0)  # the stream's heartbeat must not wait for all of them
            path.unlink()
        except FileNotFoundError:
            return True  # its worker removed it in this moment: there was nothing in it
        except (OSError, SpoolError) as error:
            log.error("a worker's journal cannot be taken up: %s", facts(worker=worker, reason=error))
            return False
        if batches:
            log.info("took up a journal: %s", facts(worker=worker, events=sum(batch.count for batch in batches)))
        return True
