"""What many nodes say at once is few transactions, in order; one that cannot be stored harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, text

from control_plane.database import Database
from control_plane.models import ControlPlane, Node
from control_plane.node_rows import NodeRows
from control_plane.roster import Roster

STREAM = "s1"


class Counted(Database):
    """Counts its writing transactions."""

    transactions = 0

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        self.transactions += 1
        async with super().writing() as session:
            yield session


@pytest.fixture
async def counted(database_url: str) -> AsyncIterator[Counted]:
    database = Counted(database_url)
    yield database
    await database.close()


async def seen(database: Database, count: int, state: str = "pending") -> tuple[str, list[str]]:
    """A control plane and its nodes, each of which said hello on stream `s1`."""
    plane, nodes = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in range(count)]
    async with database.writing() as session:
        session.add(ControlPlane(**control_plane(plane)))
        await session.flush()
        session.add_all(Node(control_plane_id=plane, id=node, **_node(state)) for node in nodes)
    return plane, nodes


def control_plane(id: str) -> dict[str, Any]:
    texts = {"cluster_type": "CLUSTER_TYPE_CONTROL_PLANE", "auth_type": "pinned_client_certs", "description": ""}
    given = {"labels": {}, "proxy_urls": [], "cloud_gateway": False, "config_version": 0}
    return {"id": id, "name": id, **texts, **given, "created_at": 0, "updated_at": 0}


def _node(state: str) -> dict[str, Any]:
    texts = {"hostname": "h", "version": "3.15.0", "config_hash": "", "sync_state": state, "stream": STREAM}
    return {**texts, "last_seen": 0, "config_version": 0, "workers": [], "created_at": 0, "updated_at": 0}


async def versions(database: Database, plane: str) -> dict[str, int]:
    async with database.reading() as session:
        query = select(Node.id, Node.config_version).where(Node.control_plane_id == plane)
        return {row.id: row.config_version for row in await session.execute(query)}


class Asked(Database):
    """Asks each transaction that may write, at its end, whether its commit waits for the disk."""

    waits: str | None = None

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        async with super().writing() as session:
            yield session
            self.waits = (await session.execute(text("SHOW synchronous_commit"))).scalar_one()

    @contextlib.asynccontextmanager
    async def single(self) -> AsyncIterator[Any]:
        async with self.writing() as session:
            yield await session.connection()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_nodes_say_waits_for_no_disk_and_everything_else_does(database_url: str) -> None:
    database = Asked(database_url)
    plane, [node] = await seen(database, 1)
    assert database.waits == "on"
    rows = NodeRows(database)
    assert await rows.update(plane, node, STREAM, {"config_version": 7}, also_offline=False)
    assert database.waits == "off"
    assert await versions(database, plane) == {node: 7}
    await seen(database, 1)
    assert database.waits == "on"
    await rows.close()
    await database.close()


async def test_many_nodes_that_speak_at_once_share_transactions(counted: Counted) -> None:
    plane, nodes = await seen(counted, 100)
    rows, counted.transactions = NodeRows(counted), 0
    said = [rows.update(plane, node, STREAM, {"config_version": 7}, also_offline=True) for node in nodes]
    assert await asyncio.gather(*said) == [True] * 100
    assert counted.transactions < 5
    assert set((await versions(counted, plane)).values()) == {7}


async def test_the_last_word_about_a_node_stands(database: Database) -> None:
    plane, [node] = await seen(database, 1)
    rows = NodeRows(database)
    said = [rows.update(plane, node, STREAM, {"config_version": number}, also_offline=True) for number in range(1, 20)]
    await asyncio.gather(*said)
    assert await versions(database, plane) == {node: 19}


async def test_a_word_that_cannot_be_stored_is_its_askers_alone(database: Database) -> None:
    plane, nodes = await seen(database, 9)
    rows = NodeRows(database)
    said = [rows.update(plane, node, STREAM, {"config_version": 7}, also_offline=True) for node in nodes]
    said.insert(4, rows.update(plane, nodes[0], STREAM, {"workers": object()}, also_offline=True))
    answers = await asyncio.gather(*said, return_exceptions=True)
    assert [answer for answer in answers if answer is not True] == [answers[4]]
    assert isinstance(answers[4], Exception)
    assert set((await versions(database, plane)).values()) == {7}


@pytest.mark.parametrize(("state", "also_offline", "expected"), [
    ("pending", True, False),
    ("pending", False, False),
    ("offline", True, True),
    ("offline", False, False),
])  # fmt: skip
async def test_the_row_of_another_stream_is_written_only_when_it_says_offline(
    database: Database, state: str, also_offline: bool, expected: bool
) -> None:
    plane, [node] = await seen(database, 1, state)
    done = await NodeRows(database).update(plane, node, "s2", {"config_version": 7}, also_offline=also_offline)
    assert done is expected
    assert await versions(database, plane) == {node: 7 if expected else 0}


async def test_what_was_said_is_written_though_nobody_waits_for_it(database: Database) -> None:
    plane, [node] = await seen(database, 1)
    rows = NodeRows(database)
    asker = asyncio.create_task(rows.update(plane, node, STREAM, {"config_version": 7}, also_offline=True))
    await asyncio.sleep(0)
    asker.cancel()
    await rows.close()
    assert await versions(database, plane) == {node: 7}


async def test_a_node_is_forgotten_once_it_was_not_heard_of_for_long(database: Database) -> None:
    plane, nodes = await seen(database, 3)
    rows, roster = NodeRows(database), Roster(database)
    assert await rows.update(plane, nodes[0], STREAM, {"config_version": 7}, also_offline=True, seen=True)
    assert await rows.update(plane, nodes[1], STREAM, {"config_version": 7}, also_offline=True)
    await roster.prune()
    assert await versions(database, plane) == {nodes[0]: 7}
    await roster.close()
