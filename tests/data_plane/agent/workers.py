"""A worker without traffic: the real channel, and snapshots that it takes or refuses by what they say."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from data_plane.agent.channel import WorkerChannel
from data_plane.errors import ConfigError


class FakeWorker:
    """Runs what it is given, unless the document holds the word that it refuses."""

    refuses = b"refused"

    def __init__(self, path: Path, index: int = 0, *, limit: int = 20_000, journals: Path | None = None) -> None:
        self.ran: list[tuple[int, bytes]] = []
        self.ways: list[Path | None] = []
        """For each that it ran, the file with the changes that lead there."""
        self.drained = asyncio.Event()
        self.hold: asyncio.Event | None = None
        """Awaited before anything is run, the document being read already."""
        self.stopped: asyncio.Event | None = None
        """Awaited before anything is done."""
        self.channel = WorkerChannel(
            path, index, os.getpid(), self._apply, self.drained.set, limit=limit, journals=journals
        )
        self.task = asyncio.create_task(self.channel.run())

    async def _apply(self, version: int, hash_: str, path: Path, changes: Path | None) -> None:
        if self.stopped is not None:
            await self.stopped.wait()
        document = await asyncio.to_thread(path.read_bytes)
        if self.hold is not None:
            await self.hold.wait()
        if self.refuses in document:
            raise ConfigError(
                "no such model", entity_type="plugins", entity_id="p-1", entity_name="ai", field="config.model"
            )
        if b"no document" in document:
            raise ConfigError("not a document")
        if b"broken" in document:
            raise KeyError("secret-value")
        self.ran.append((version, document))
        self.ways.append(changes)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.channel.close()
