"""The part of an agent that configuration runs through, with workers that do what a test says."""

from __future__ import annotations

import asyncio
from typing import Any

from data_plane.agent.changes import Applier
from data_plane.agent.fleet import Fleet
from data_plane.agent.link import open_channel
from data_plane.agent.store import Store
from data_plane.agent.sync import Sync
from data_plane.settings import Settings
from gateway_schema.wire import config_pb2 as pb
from tests.data_plane.agent.workers import FakeWorker


class Node:
    """The part of an agent that configuration runs through, and its workers."""

    def __init__(self, settings: Settings, workers: int = 2) -> None:
        self.settings = settings
        self.store = Store(settings.state_dir)
        self.fleet = Fleet(settings.state_dir / "channel.sock", workers, lambda intake: None, self._changed)
        self.applier = Applier(self.store, self.fleet, self.store.load(), lambda: self.sync.restart())
        self.channel: Any = open_channel(settings)
        self.sync = Sync(self.channel, self.store.node_id(), self.applier, self._status)
        self.expected = workers
        self.workers: list[FakeWorker] = []
        self.asked = 0
        """How often it was asked for its status."""
        self._tasks: list[asyncio.Task[None]] = []

    def _changed(self) -> None:
        self.sync.worker_changed()

    def _status(self) -> pb.Status:
        self.asked += 1
        current = self.applier.current
        workers = [
            pb.Worker(index=link.index, version=link.version, hash=link.hash, state=link.state)
            for link in self.fleet.links
        ]
        version, hash_ = (current.version, current.hash) if current else (0, "")
        return pb.Status(config_version=version, hash=hash_, workers=workers)

    async def start(self, *, refuses: bytes = b"refused") -> None:
        await self.fleet.open()
        for index in range(self.expected):
            self.workers.append(FakeWorker(self.settings.state_dir / "channel.sock", index))
            self.workers[-1].refuses = refuses
        self._tasks = [asyncio.create_task(self.applier.run()), asyncio.create_task(self.sync.run())]

    async def stop(self) -> None:
        for worker in self.workers:
            await worker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.channel.close()
        await self.fleet.close()

    def running(self) -> list[int]:
        return [link.version for link in self.fleet.links]


async def restarted(node: Node, **how: Any) -> Node:
    await node.stop()
    again = Node(node.settings)
    await again.start(**how)
    return again
