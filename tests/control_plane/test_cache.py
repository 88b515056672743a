"""The snapshot cache: one build for many wishes, nothing for no change, the newest for whoever waits."""

from __future__ import annotations

import asyncio
import random

import orjson
import pytest
import zstandard

from control_plane.cache import CHUNK_BYTES, HISTORY, SnapshotCache
from control_plane.snapshot import Snapshot
from gateway_schema.delta import Catalogue
from gateway_schema.document import hash_of


def entity(name: str, content: str = "") -> bytes:
    return orjson.dumps({"content": content, "id": name})


def snapshot_of(control_plane_id: str, version: int, content: str, **others: bytes) -> Snapshot:
    """One route with that content, and other services by id."""
    rows = {"routes": {"r": entity("r", content)}, "services": dict(sorted(others.items()))}
    catalogue = Catalogue(control_plane_id, rows)
    payload = catalogue.payload()
    return Snapshot(control_plane_id, version, hash_of(payload), payload, catalogue, frozenset({"key-auth"}))


class Store:
    """A database that counts how often it is read."""

    def __init__(self) -> None:
        self.content = "first"
        self.version = 1
        self.builds = 0
        self.reading = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def write(self, content: str) -> None:
        self.content, self.version = content, self.version + 1

    async def load(self, control_plane_id: str) -> Snapshot:
        self.builds += 1
        self.reading.set()
        content, version = self.content, self.version
        await self.gate.wait()
        return snapshot_of(control_plane_id, version, content)


async def test_wishes_that_come_while_a_build_runs_share_the_next_one() -> None:
    """The running build may have read before their commits, so it does not count for them."""
    store = Store()
    cache = SnapshotCache(store.load)
    store.gate.clear()
    early = asyncio.ensure_future(cache.refresh("cp"))
    await store.reading.wait()
    store.write("second")
    late = [asyncio.ensure_future(cache.refresh("cp")) for _ in range(50)]
    await asyncio.sleep(0)
    store.gate.set()
    assert (await early).version == 1
    assert {snapshot.version for snapshot in await asyncio.gather(*late)} == {2}
    assert store.builds == 2
    await cache.close()


async def test_a_flurry_of_touches_is_built_together_and_wakes_watchers_once() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    before = await cache.get("cp")
    waiting = asyncio.ensure_future(cache.watch("cp", before.snapshot.hash))
    for number in range(30):
        store.write(f"change {number}")
        cache.touch("cp")
    assert (await asyncio.wait_for(waiting, 20)).snapshot.version == 31
    assert store.builds == 2
    await cache.close()


async def test_an_equal_hash_keeps_the_older_version() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    first = await cache.refresh("cp")
    store.write("first")
    assert await cache.refresh("cp") is first
    assert len(cache.history("cp")) == 1


async def test_history_is_short() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    for number in range(HISTORY + 5):
        store.write(str(number))
        await cache.refresh("cp")
    kept = cache.history("cp")
    assert len(kept) == HISTORY
    assert kept[-1].snapshot.version == HISTORY + 6


async def test_a_large_snapshot_goes_in_parts_that_make_up_the_whole() -> None:
    store = Store()
    store.content = random.Random(1).randbytes(2_000_000).hex()
    parcel = await SnapshotCache(store.load).get("cp")
    assert len(parcel.parts) > 1
    assert all(len(part) <= CHUNK_BYTES for part in parcel.parts)
    assert zstandard.ZstdDecompressor().decompress(b"".join(parcel.parts)) == parcel.snapshot.payload
    assert parcel.plugins == {"key-auth"}


async def test_a_build_that_fails_tells_who_asked_and_spoils_nothing() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    first = await cache.refresh("cp")

    async def broken(_: str) -> Snapshot:
        raise ConnectionError("no database")

    failing = SnapshotCache(broken)
    with pytest.raises(ConnectionError):
        await failing.refresh("cp")
    assert (await cache.get("cp")).snapshot is first
