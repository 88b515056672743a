"""The snapshot cache: one build for many wishes, nothing for no change, the newest for whoever waits."""

from __future__ import annotations

import asyncio
import random

import orjson
import pytest
import zstandard

from control_plane import cache as caching
from control_plane.cache import CHUNK_BYTES, Parcel, SnapshotCache
from control_plane.errors import NotFound
from control_plane.snapshot import Snapshot
from gateway_schema.delta import Catalogue, Section
from gateway_schema.document import hash_of


def entity(name: str, content: str = "") -> bytes:
    return orjson.dumps({"content": content, "id": name})


def snapshot_of(control_plane_id: str, version: int, content: str, **others: bytes) -> Snapshot:
    """One route with that content, and other services by id."""
    rows = {"routes": Section({"r": entity("r", content)}), "services": Section(sorted(others.items()))}
    catalogue = Catalogue(control_plane_id, rows)
    return Snapshot(control_plane_id, version, hash_of(catalogue.payload()), catalogue, frozenset({"key-auth"}))


class Store:
    """A database that counts how often it is read."""

    def __init__(self) -> None:
        self.content = "first"
        self.version = 1
        self.others: dict[str, bytes] = {}
        self.builds = 0
        self.reading = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def write(self, content: str) -> None:
        self.content, self.version = content, self.version + 1

    async def load(self, control_plane_id: str, version: int | None) -> Snapshot:
        self.builds += 1
        self.reading.set()
        content, version = self.content, self.version
        await self.gate.wait()
        return snapshot_of(control_plane_id, version, content, **self.others)


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


async def test_a_change_that_comes_into_silence_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "QUIET_SECONDS", 3600.0)
    monkeypatch.setattr(caching, "PATIENCE_SECONDS", 3600.0)
    store = Store()
    cache = SnapshotCache(store.load)
    known = (await cache.get("cp")).snapshot.hash
    store.write("second")
    cache.touch("cp")
    assert (await asyncio.wait_for(cache.watch("cp", known), 20)).snapshot.version == 2
    await cache.close()


async def test_what_follows_the_first_change_closely_is_built_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often there is a pause between two of them, as long as it is shorter than quiet."""
    monkeypatch.setattr(caching, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(caching, "PATIENCE_SECONDS", 3600.0)
    store = Store()
    cache = SnapshotCache(store.load)
    known = (await cache.get("cp")).snapshot.hash
    for number in range(200):
        store.write(f"change {number}")
        cache.touch("cp")
        await asyncio.sleep(0)
    while store.version != cache.covered("cp"):
        known = (await asyncio.wait_for(cache.watch("cp", known), 20)).snapshot.hash
    assert store.builds == 3  # what was there before, the first, and all others
    await cache.close()


async def test_a_change_in_the_same_tick_of_the_clock_as_the_one_before_is_built_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process's loop counts whole milliseconds."""
    store = Store()
    cache = SnapshotCache(store.load)
    known = (await cache.get("cp")).snapshot.hash
    loop = asyncio.get_running_loop()
    clock, stopped = loop.time, [loop.time()]
    monkeypatch.setattr(loop, "time", lambda: stopped[0] if stopped else clock())
    store.gate.clear()
    store.reading.clear()
    store.write("second")
    cache.touch("cp")
    await store.reading.wait()
    store.write("third")
    cache.touch("cp")
    stopped.clear()
    store.gate.set()
    while known != snapshot_of("cp", 3, "third").hash:
        known = (await asyncio.wait_for(cache.watch("cp", known), 20)).snapshot.hash
    assert cache.covered("cp") == store.version == 3
    await cache.close()


async def test_a_flurry_without_end_is_built_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "QUIET_SECONDS", 3600.0)
    monkeypatch.setattr(caching, "PATIENCE_SECONDS", 0.0)
    store = Store()
    cache = SnapshotCache(store.load)
    known = (await cache.get("cp")).snapshot.hash
    for number in range(3):
        store.write(f"change {number}")
        cache.touch("cp")
        parcel = await asyncio.wait_for(cache.watch("cp", known), 20)
        assert parcel.snapshot.version == store.version
        known = parcel.snapshot.hash
    await cache.close()


async def test_a_version_is_named_to_the_build_only_when_all_know_theirs() -> None:
    """Else it must look for itself what was committed."""
    store = Store()
    asked: list[int | None] = []

    async def load(control_plane_id: str, version: int | None) -> Snapshot:
        asked.append(version)
        return await store.load(control_plane_id, version)

    cache = SnapshotCache(load)
    await cache.refresh("cp", 7)
    store.gate.clear()
    store.reading.clear()
    running = asyncio.ensure_future(cache.refresh("cp", 8))
    await store.reading.wait()
    late = [asyncio.ensure_future(cache.refresh("cp", version)) for version in (10, None, 9)]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(running, *late)
    await asyncio.gather(*(cache.refresh("cp", version) for version in (12, 11)))
    assert asked == [7, 8, None, 12]
    await cache.refresh("cp", 5)  # a database that was set back: what was wished for before is over
    assert asked[-1] == 5
    store.version = 20
    await cache.refresh("cp")
    await cache.refresh("cp", 19)  # it is in the current snapshot
    assert asked[-1] is None
    await cache.close()


async def test_an_equal_hash_keeps_the_older_version() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    first = await cache.refresh("cp")
    store.write("first")
    assert await cache.refresh("cp") is first
    assert (await cache.get("cp")).snapshot is first


async def test_a_large_snapshot_goes_in_parts_that_make_up_the_whole() -> None:
    store = Store()
    store.content = random.Random(1).randbytes(2_000_000).hex()
    parcel = await SnapshotCache(store.load).get("cp")
    packed, again = await asyncio.gather(parcel.parts(), parcel.parts())
    assert packed is again  # once, for all streams
    assert len(packed) > 1
    assert all(len(part) <= CHUNK_BYTES for part in packed)
    assert zstandard.ZstdDecompressor().decompress(b"".join(packed)) == parcel.snapshot.payload


async def test_of_what_was_deleted_while_it_was_asked_for_nothing_stays() -> None:
    store = Store()
    store.gate.clear()

    async def load(control_plane_id: str, version: int | None) -> Snapshot:
        await store.load(control_plane_id, version)
        raise NotFound

    cache = SnapshotCache(load)
    late = asyncio.ensure_future(cache.get("cp"))
    await store.reading.wait()
    cache.forget("cp")
    cache.touch("cp")
    store.gate.set()
    with pytest.raises(NotFound):
        await late
    await cache.close()
    assert cache.served() == {}


async def test_a_build_that_fails_tells_who_asked_and_spoils_nothing() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    first = await cache.refresh("cp")

    async def broken(_: str, _version: int | None) -> Snapshot:
        raise ConnectionError("no database")

    failing = SnapshotCache(broken)
    with pytest.raises(ConnectionError):
        await failing.refresh("cp")
    assert (await cache.get("cp")).snapshot is first


# -- deltas


OTHERS = {f"s{number}": entity(f"s{number}", "a service of some length") for number in range(20)}


def parcels(*contents: str) -> list[Parcel]:
    """Successive parcels, each with another content of the one route among many services."""
    first, *later = [snapshot_of("cp", number, content, **OTHERS) for number, content in enumerate(contents, 1)]
    made = [Parcel(first)]
    for snapshot in later:
        made.append(made[-1].next(snapshot))
    return made


def test_there_is_a_way_from_each_former_snapshot_over_all_that_lie_between() -> None:
    made = parcels("one", "two", "three", "four")
    for former in made[:-1]:
        way = made[-1].way_from(former.snapshot.hash)
        assert way is not None
        assert (way.version, way.hash) == (former.snapshot.version, former.snapshot.hash)
        assert way.delta.puts == (("routes", "r", entity("r", "four")),)
        assert former.snapshot.catalogue.after(way.delta).payload() == made[-1].snapshot.payload


def test_a_way_is_made_once_and_shared() -> None:
    one, two = parcels("one", "two")
    assert two.way_from(one.snapshot.hash) is two.way_from(one.snapshot.hash)


def test_there_is_no_way_from_the_snapshot_itself_or_from_an_unknown_one() -> None:
    made = parcels("one", "two")
    assert made[-1].way_from(made[-1].snapshot.hash) is None
    assert made[-1].way_from("f" * 32) is None
    assert made[-1].way_from("") is None


def test_of_two_former_snapshots_with_equal_content_the_newer_is_the_start() -> None:
    made = parcels("one", "two", "one", "three")
    way = made[-1].way_from(made[0].snapshot.hash)
    assert way is not None
    assert way.version == 3


def test_a_change_that_is_hardly_smaller_than_the_whole_goes_whole() -> None:
    one = Parcel(snapshot_of("cp", 1, "one"))
    two = one.next(snapshot_of("cp", 2, "two" * 1000, **OTHERS))
    assert two.way_from(one.snapshot.hash) is None
    three = two.next(snapshot_of("cp", 3, "three", **OTHERS))
    assert three.way_from(two.snapshot.hash) is not None


def test_a_change_beyond_the_limit_goes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "MAX_DELTA_BYTES", 100)
    one, two, three = parcels("one", "two" * 20, "three")
    assert two.way_from(one.snapshot.hash) is None
    assert three.way_from(one.snapshot.hash) is not None


@pytest.mark.parametrize(("limit", "value"), [("MAX_STEPS", 3), ("MAX_STEP_BYTES", 200)])
def test_what_is_kept_of_former_snapshots_is_bounded(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, limit, value)
    made = parcels(*(f"content {number}" for number in range(10)))
    known = [made[-1].way_from(former.snapshot.hash) is not None for former in made[:-1]]
    assert known == [False] * 6 + [True] * 3


async def test_a_cache_finds_the_way_from_what_it_had_before() -> None:
    store = Store()
    cache = SnapshotCache(store.load)
    known = (await cache.get("cp")).snapshot
    for content in ("second", "third"):
        store.write(content)
        await cache.refresh("cp")
    way = (await cache.get("cp")).way_from(known.hash)
    assert way is None  # the one route is the whole document
    store.others = OTHERS
    await cache.refresh("cp")
    known = (await cache.get("cp")).snapshot
    store.write("fourth")
    await cache.refresh("cp")
    way = (await cache.get("cp")).way_from(known.hash)
    assert way is not None
    assert way.delta.puts == (("routes", "r", entity("r", "fourth")),)
