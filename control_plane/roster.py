"""The nodes table: what each data plane node last said of itself, and whether it runs what it should.

`sync_state` is `in_sync` (every worker runs the current snapshot), `pending` (it was sent, or will be), `rejected` (the
node refused it, or cannot take it) or `offline` (no stream). The row of a node that is not heard of for 14 days goes.

Replicas share the table, and a node may move from one to another before the first has noticed that it left. So a row
belongs to the stream that said hello last: what an older one still has to say, its end above all, changes nothing.
Times are the database's, whose clock is the one that replicas share.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sqlalchemy import delete

from control_plane.clock import DatabaseTime
from control_plane.database import Database
from control_plane.errands import Errands
from control_plane.models import Node
from control_plane.node_rows import NodeRows
from control_plane.texts import clean
from gateway_schema.wire import config_pb2

SyncState = Literal["in_sync", "pending", "rejected", "offline"]

FORGET_AFTER_SECONDS = 14 * 24 * 3600
_MAX_WORKERS = 1024
_MAX_INT = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class NodeId:
    control_plane_id: str
    node_id: str
    stream: str = field(default="", compare=False)
    """Which of the node's streams it is; empty for one that is refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """When a node said something. Clocks: monotonic, and Unix milliseconds."""

    at: float = field(default_factory=time.monotonic)
    at_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


class Watcher(Protocol):
    """Who wants to know what nodes say. A row can be read before its writer learns that it is written: so every word
    is told when it is said, and again once it is written, or has come to nothing."""

    def arrived(self, who: NodeId) -> None: ...
    def said(self, who: NodeId, moment: Moment) -> None: ...
    def heard(self, who: NodeId, moment: Moment, values: Mapping[str, Any] | None) -> None: ...


@dataclass(slots=True)
class _Word:
    written: bool = False


class Roster:
    """Writes what the streams learn. Every method writes within one transaction, alone or with what others say at the
    time, and a stream's end does not interrupt it."""

    def __init__(self, database: Database, watcher: Watcher | None = None) -> None:
        self._database = database
        self._watcher = watcher
        self._errands = Errands("write node")
        self._rows = NodeRows(database)

    async def arrived(
        self, who: NodeId, hello: config_pb2.Hello, state: SyncState, error: dict[str, Any] | None
    ) -> None:
        """A node said hello: its row is made, or brought up to date."""
        await self._errands.run(self._arrive(who, hello, state, error))

    async def record(self, who: NodeId, state: SyncState, **values: Any) -> bool:
        """The node was heard of; `values` are columns.

        Returns False when this stream has no row to speak of any more: a newer stream of the node has it, or it was
        deleted, which only a new hello undoes.
        """
        # A row that says offline is anyone's: replicas may have heard two hellos in another order than they were said.
        columns = {"sync_state": state, "stream": who.stream, **values}
        return await self._errands.run(self._update(who, columns, also_offline=True, seen=True))

    async def left(self, who: NodeId) -> None:
        """The node's stream ended; when it was last seen stays as it was."""
        await self._errands.run(self._update(who, {"sync_state": "offline"}, also_offline=False, seen=False))

    async def prune(self) -> None:
        async with self._database.writing() as session:
            await session.execute(
                delete(Node).where(Node.last_seen < DatabaseTime() - FORGET_AFTER_SECONDS),
                execution_options={"synchronize_session": False},
            )

    async def close(self) -> None:
        await self._errands.close()
        await self._rows.close()

    async def _arrive(
        self, who: NodeId, hello: config_pb2.Hello, state: SyncState, error: dict[str, Any] | None
    ) -> None:
        now = DatabaseTime()
        values: dict[str, Any] = {
            "hostname": clean(hello.hostname, 256),
            "version": clean(hello.version, 64),
            "last_seen": now,
            "config_version": min(hello.config_version, _MAX_INT),
            "config_hash": clean(hello.hash, 32),
            "sync_state": state,
            "last_error": error,
            "workers": worker_rows(hello.workers),
            "stream": who.stream,
            "updated_at": now,
        }
        with self._told(who, values) as word:
            async with self._database.writing() as session:
                node = await session.get(Node, (who.control_plane_id, who.node_id))
                if node is None:
                    node = Node(control_plane_id=who.control_plane_id, id=who.node_id, created_at=now)
                    session.add(node)
                for name, value in values.items():
                    setattr(node, name, value)
            if self._watcher is not None:
                self._watcher.arrived(who)
            word.written = True

    async def _update(self, who: NodeId, values: dict[str, Any], *, also_offline: bool, seen: bool) -> bool:
        place = (who.control_plane_id, who.node_id, who.stream)
        with self._told(who, values) as word:
            word.written = await self._rows.update(*place, values, also_offline=also_offline, seen=seen)
        return word.written

    @contextlib.contextmanager
    def _told(self, who: NodeId, values: Mapping[str, Any]) -> Iterator[_Word]:
        """The watcher learns of a word before anyone can read it, and what became of it."""
        word, moment = _Word(), Moment()
        if self._watcher is not None:
            self._watcher.said(who, moment)
        try:
            yield word
        finally:
            if self._watcher is not None:
                self._watcher.heard(who, moment, values if word.written else None)


def worker_rows(workers: Iterable[config_pb2.Worker]) -> list[dict[str, Any]]:
    """Workers as the API shows them."""
    return [
        {
            "index": worker.index,
            "pid": worker.pid,
            "version": min(worker.version, _MAX_INT),
            "hash": clean(worker.hash, 32),
            "state": clean(worker.state, 32),
        }
        for worker, _ in zip(workers, range(_MAX_WORKERS), strict=False)
    ]
