"""Rows of the nodes table, written in rounds: what many nodes say at about the same time is one transaction.

Fifty nodes that answer a change within a moment would else queue for the writer of the database, a commit each. While
a round is written, the next one gathers; a single node that speaks into silence does not wait.

PostgreSQL need not have them on its disk before they count: after a crash, what is lost of them is said again with the
next heartbeat. (SQLite is set so for everything.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Table, Update, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.clock import DatabaseTime
from control_plane.database import Database
from control_plane.models import Node

_NODES: Table = Node.__table__  # type: ignore[assignment]
_LAZILY = select(func.set_config("synchronous_commit", "off", True)).scalar_subquery() == "off"
_MOST = 200
"""Rows in one round: the control plane's other writers get their turn in between."""


@dataclass(frozen=True, slots=True)
class _Word:
    """What is to be written of one node, and who wants to know whether it was."""

    control_plane_id: str
    node_id: str
    stream: str
    also_offline: bool
    seen: bool
    values: Mapping[str, Any]
    written: asyncio.Future[bool]

    @property
    def key(self) -> tuple[str, str]:
        return self.control_plane_id, self.node_id


class NodeRows:
    """Words about one node are written in the order in which they were said. `close` waits for the last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Word] = []
        self._rounds: asyncio.Task[None] | None = None

    async def update(
        self,
        control_plane_id: str,
        node_id: str,
        stream: str,
        values: Mapping[str, Any],
        *,
        also_offline: bool,
        seen: bool = False,
    ) -> bool:
        """Set columns of a node's row if the row is this stream's; `also_offline`: or if it says offline.

        `seen`: the node was heard of, now by the database's clock. Returns whether there was such a row. A
        cancellation ends only the waiting.
        """
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Word(control_plane_id, node_id, stream, also_offline, seen, values, written))
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._write_rounds(), name="write nodes")
        return await asyncio.shield(written)

    async def close(self) -> None:
        if self._rounds is not None:
            await asyncio.wait([self._rounds])

    async def _write_rounds(self) -> None:
        try:
            while self._waiting:
                words, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                # One order for all replicas, so that two of them never wait for each other's rows.
                words.sort(key=lambda word: word.key)
                if not await self._written(words) and len(words) > 1:
                    for word in words:
                        await self._written([word])
                for word in words:
                    if word.written.done() and not word.written.cancelled():
                        word.written.exception()  # seen by the asker, or by nobody because there is none any more
        finally:
            self._rounds = None

    async def _written(self, words: Sequence[_Word]) -> bool:
        """One transaction. When it fails, a single word's asker hears why; of several, one may be to blame."""
        lazily = not self._database.is_sqlite
        try:
            if lazily and len(words) == 1:
                async with self._database.single() as connection:
                    found = [await _executed(connection, words[0], lazily)]
            else:
                async with self._database.writing() as session:
                    connection = await session.connection()
                    found = [await _executed(connection, word, lazily) for word in words]
        except Exception as error:
            if len(words) == 1:
                words[0].written.set_exception(error)
            return False
        for word, was_there in zip(words, found, strict=True):
            word.written.set_result(was_there)
        return True


async def _executed(connection: AsyncConnection, word: _Word, lazily: bool) -> bool:
    given = {
        "b_control_plane_id": word.control_plane_id,
        "b_id": word.node_id,
        "b_stream": word.stream,
        **{f"v_{name}": value for name, value in word.values.items()},
    }
    statement = _statement(tuple(word.values), word.also_offline, word.seen, lazily)
    return (await connection.execute(statement, given)).first() is not None


@cache
def _statement(names: tuple[str, ...], also_offline: bool, seen: bool, lazily: bool) -> Update:
    """Made once for each set of columns: putting a statement together takes longer than running it.

    `lazily`: the transaction that it is in will not wait for the disk. Said in the statement itself, as a condition
    that holds: before it, that would be one more, and a transaction to say it in.
    """
    nodes = _NODES.c
    its = nodes.stream == bindparam("b_stream")
    times = {"last_seen": DatabaseTime(), "updated_at": DatabaseTime()} if seen else {}
    return (
        update(_NODES)
        .where(nodes.control_plane_id == bindparam("b_control_plane_id"), nodes.id == bindparam("b_id"))
        .where((its | (nodes.sync_state == "offline")) if also_offline else its)
        .where(*([_LAZILY] if lazily else []))
        .values({name: bindparam(f"v_{name}", type_=nodes[name].type) for name in names} | times)
        .returning(nodes.id)
    )
