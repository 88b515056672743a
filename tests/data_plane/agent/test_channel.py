"""Both ends of the socket between agent and worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_plane.agent import fleet as fleet_module
from data_plane.agent import framing
from data_plane.agent.fleet import Fleet, socket_path
from data_plane.agent.framing import FrameError, Kind
from data_plane.agent.intake import Counts, EventIntake
from data_plane.agent.journal import names_in
from data_plane.agent.spool import SpoolError
from data_plane.agent.spool_state import Intake
from data_plane.agent.store import Snapshot, Store
from gateway_schema.document import hash_of
from gateway_schema.wire import analytics_pb2 as pb
from tests.data_plane.agent.control_plane import PATIENCE, eventually
from tests.data_plane.agent.events import event, totals
from tests.data_plane.agent.spools import close_all, opened
from tests.data_plane.agent.test_spool import LIMIT, drained, ids
from tests.data_plane.agent.workers import FakeWorker


class Ends:
    """An agent's end over a real spool, and any number of workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder)
        self.workers: list[FakeWorker] = []
        self.expected = 1
        self.open_agent()

    def open_agent(self) -> None:
        self.spool = opened(self.folder / "spool", LIMIT)
        self.counts = Counts()
        self.take = EventIntake(self.spool, self.counts, lambda: None).take
        self.fleet = Fleet(self.folder / "channel.sock", self.expected, lambda intake: self.take(intake))

    async def connect(self, *, limit: int = 20_000) -> FakeWorker:
        worker = FakeWorker(self.folder / "channel.sock", len(self.workers), limit=limit)
        self.workers.append(worker)
        await self.fleet.until(lambda: len(self.fleet.links) == len(self.workers), PATIENCE)
        return worker

    async def replace_agent(self) -> None:
        """The agent dies and another one starts on what it left."""
        await self.fleet.close()
        self.open_agent()
        await self.fleet.open()

    def snapshot(self, version: int, document: bytes) -> Snapshot:
        return self.store.stage(version, hash_of(document), [document])

    async def close(self) -> None:
        for worker in self.workers:
            await worker.stop()
        await self.fleet.close()
        close_all()


@pytest.fixture
async def ends(state_dir: Path) -> AsyncIterator[Ends]:
    made = Ends(state_dir)
    await made.fleet.open()
    yield made
    await made.close()


def report(worker: FakeWorker, first: int, count: int) -> None:
    for number in range(first, first + count):
        worker.channel.report(event(number).SerializeToString())


# Events.


async def test_events_are_in_the_spool_once_they_are_flushed(ends: Ends) -> None:
    worker = await ends.connect()
    report(worker, 0, 1234)
    assert await worker.channel.flush(PATIENCE)
    assert ids(drained(ends.spool)) == dict.fromkeys(range(1234), 1)
    assert ends.counts.requests == {200: 1234}


async def test_a_worker_that_delivered_everything_leaves_no_journal(ends: Ends) -> None:
    journals = ends.folder / "journals"
    worker = FakeWorker(ends.folder / "channel.sock", journals=journals)
    await ends.fleet.until(lambda: bool(ends.fleet.links), PATIENCE)
    report(worker, 0, 10)
    assert len(names_in(journals)) == 1
    assert await worker.channel.flush(PATIENCE)
    await worker.stop()
    assert names_in(journals) == []
    assert ids(drained(ends.spool)) == dict.fromkeys(range(10), 1)


async def test_flushing_without_an_agent_gives_up_in_time(state_dir: Path) -> None:
    worker = FakeWorker(state_dir / "channel.sock")
    report(worker, 0, 1)
    assert not await worker.channel.flush(0.01)
    await worker.stop()


async def test_a_worker_keeps_its_events_for_the_next_agent_and_none_counts_twice(ends: Ends) -> None:
    worker = await ends.connect()
    first = 0
    for _ in range(4):
        report(worker, first, 700)
        await asyncio.sleep(0)
        await ends.replace_agent()
        report(worker, first + 700, 300)
        first += 1000
    assert await worker.channel.flush(PATIENCE)
    assert ids(drained(ends.spool)) == dict.fromkeys(range(4000), 1)


async def test_events_written_down_but_not_acknowledged_are_taken_once(ends: Ends) -> None:
    """The agent dies between writing and answering."""
    taken = asyncio.Event()
    take = ends.take

    def die_after(intake: Intake) -> None:
        take(intake)
        taken.set()
        raise FrameError("the agent dies here")

    ends.take = die_after
    worker = await ends.connect()
    report(worker, 0, 5)
    await taken.wait()
    await ends.replace_agent()
    assert await worker.channel.flush(PATIENCE)
    assert ids(drained(ends.spool)) == dict.fromkeys(range(5), 1)


async def test_events_beyond_the_limit_are_folded_and_counts_stay_exact(state_dir: Path) -> None:
    worker = FakeWorker(state_dir / "channel.sock", limit=100)
    some = [event(number, minute=number // 300, tokens=3) for number in range(1000)]
    for each in some:
        worker.channel.report(each.SerializeToString())
    ends = Ends(state_dir)
    ends.workers.append(worker)
    await ends.fleet.open()
    assert await worker.channel.flush(PATIENCE)
    batches = drained(ends.spool)
    assert totals(batches) == totals([pb.Batch(events=some)])
    assert len(ids(batches)) == 100
    assert worker.channel.dropped == 0
    await ends.close()


async def test_a_full_disk_costs_nothing_but_time(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "SPOOL_PAUSE", 0.0)
    take, refusals = ends.take, iter(range(3))

    def refuse_thrice(intake: Intake) -> None:
        if next(refusals, None) is not None:
            raise SpoolError("the disk is full")
        take(intake)

    ends.take = refuse_thrice
    worker = await ends.connect()
    report(worker, 0, 2000)
    assert await worker.channel.flush(PATIENCE)
    assert ids(drained(ends.spool)) == dict.fromkeys(range(2000), 1)


async def test_events_that_cannot_be_read_are_counted_as_dropped(ends: Ends) -> None:
    worker = await ends.connect()
    worker.channel.report(b"\xff\xff\xff")
    assert await worker.channel.flush(PATIENCE)
    assert ends.spool.dropped == 1
    assert ends.counts.dropped == 1


# Snapshots.


async def test_all_workers_run_a_snapshot_before_it_counts_as_applied(ends: Ends) -> None:
    first, second = await ends.connect(), await ends.connect()
    second.hold = asyncio.Event()
    applying = asyncio.create_task(ends.fleet.apply(ends.snapshot(1, b"one"), PATIENCE))
    await ends.fleet.until(lambda: any(link.version == 1 for link in ends.fleet.links), PATIENCE)
    assert not applying.done()
    second.hold.set()
    assert await applying is None
    assert first.ran == second.ran == [(1, b"one")]
    assert [(link.version, link.state) for link in ends.fleet.links] == [(1, "ready"), (1, "ready")]


async def test_a_refusal_by_one_worker_returns_all_to_the_former_snapshot(ends: Ends) -> None:
    first, second = await ends.connect(), await ends.connect()
    assert await ends.fleet.apply(ends.snapshot(1, b"one"), PATIENCE) is None

    second.refuses = b"two"
    refusal = await ends.fleet.apply(ends.snapshot(2, b"two"), PATIENCE)
    assert refusal is not None
    assert (refusal.entity_type, refusal.entity_id, refusal.entity_name) == ("plugins", "p-1", "ai")
    assert (refusal.field, refusal.error) == ("config.model", "no such model")
    assert [version for version, _ in first.ran] in ([1, 2, 1], [1])
    assert [(link.version, link.state) for link in ends.fleet.links] == [(1, "ready"), (1, "ready")]
    third = await ends.connect()
    await eventually(lambda: third.ran == [(1, b"one")], "newcomers get what all run")


async def test_a_fault_while_building_is_a_refusal_that_tells_no_values(ends: Ends) -> None:
    await ends.connect()
    refusal = await ends.fleet.apply(ends.snapshot(1, b"broken"), PATIENCE)
    assert refusal is not None
    assert "KeyError" in refusal.error
    assert "secret-value" not in refusal.error


async def test_a_worker_that_connects_late_is_waited_for(ends: Ends) -> None:
    applying = asyncio.create_task(ends.fleet.apply(ends.snapshot(1, b"one"), PATIENCE))
    await asyncio.sleep(0)
    assert not applying.done()
    worker = await ends.connect()
    assert await applying is None
    assert worker.ran == [(1, b"one")]


async def test_workers_that_never_answer_are_a_refusal(ends: Ends) -> None:
    worker = await ends.connect()
    worker.hold = asyncio.Event()
    refusal = await ends.fleet.apply(ends.snapshot(1, b"one"), 0.05)
    assert refusal is not None
    assert "0.05 seconds" in refusal.error
    worker.hold.set()


async def both_run_one(ends: Ends) -> tuple[FakeWorker, FakeWorker]:
    first, second = await ends.connect(), await ends.connect()
    assert await ends.fleet.apply(ends.snapshot(1, b"one"), PATIENCE) is None
    return first, second


async def test_a_worker_that_takes_a_snapshot_after_it_was_withdrawn_is_called_back(ends: Ends) -> None:
    first, second = await both_run_one(ends)
    second.hold = asyncio.Event()
    assert await ends.fleet.apply(ends.snapshot(2, b"two"), 0.05) is not None
    second.hold.set()
    await eventually(lambda: second.ran == [(1, b"one"), (2, b"two"), (1, b"one")], "it is back")
    assert [version for version, _ in first.ran] == [1, 2, 1]
    assert await ends.fleet.until(lambda: [link.version for link in ends.fleet.links] == [1, 1], PATIENCE)
    assert await ends.fleet.apply(ends.snapshot(3, b"three"), PATIENCE) is None


async def test_a_worker_that_takes_a_withdrawn_snapshot_where_there_was_none_before_is_replaced(ends: Ends) -> None:
    worker = await ends.connect()
    worker.hold = asyncio.Event()
    assert await ends.fleet.apply(ends.snapshot(1, b"one"), 0.05) is not None
    worker.hold.set()
    async with asyncio.timeout(PATIENCE):
        await worker.drained.wait()


async def test_a_worker_that_finds_a_withdrawn_snapshot_gone_runs_on_without_a_traceback(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    _, second = await both_run_one(ends)
    second.stopped = asyncio.Event()
    two = ends.snapshot(2, b"two")
    assert await ends.fleet.apply(two, 0.05) is not None
    ends.store.discard(two)
    second.stopped.set()
    assert await ends.fleet.until(lambda: not any(link.busy for link in ends.fleet.links), PATIENCE)
    assert second.ran == [(1, b"one")]
    assert [record for record in caplog.records if record.exc_info] == []
    assert await ends.fleet.apply(ends.snapshot(2, b"two"), PATIENCE) is None
    assert second.ran == [(1, b"one"), (2, b"two")]


async def test_while_one_worker_owes_an_answer_the_others_are_left_in_peace(ends: Ends) -> None:
    first, second = await both_run_one(ends)
    second.hold = asyncio.Event()
    two = ends.snapshot(2, b"two")
    for _ in range(3):
        assert await ends.fleet.apply(two, 0.05) is not None
    assert [version for version, _ in first.ran] == [1, 2, 1]
    applying = asyncio.create_task(ends.fleet.apply(two, PATIENCE))
    second.hold.set()
    assert await applying is None
    assert [link.version for link in ends.fleet.links] == [2, 2]


@pytest.mark.parametrize(
    ("document", "named", "unreadable"),
    [(b"refused", True, False), (b"no document", False, True), (b"broken", False, False)],
)
async def test_a_refusal_says_whether_the_snapshot_is_at_fault(
    ends: Ends, document: bytes, named: bool, unreadable: bool
) -> None:
    await ends.connect()
    refusal = await ends.fleet.apply(ends.snapshot(1, document), PATIENCE)
    assert refusal is not None
    assert (bool(refusal.entity_type), refusal.unreadable) == (named, unreadable)


async def test_a_snapshot_over_which_workers_die_is_refused(ends: Ends) -> None:
    applying = asyncio.create_task(ends.fleet.apply(ends.snapshot(1, b"deadly"), PATIENCE))
    for _ in range(2):
        reader, writer = await asyncio.open_unix_connection(str(ends.folder / "channel.sock"))
        writer.write(hello())
        assert await framing.read_frame(reader) is not None
        writer.close()
    refusal = await applying
    assert refusal is not None
    assert "died" in refusal.error


async def test_a_worker_that_runs_a_snapshot_already_is_not_asked_to_build_it_again(ends: Ends) -> None:
    worker = await ends.connect()
    snapshot = ends.snapshot(1, b"one")
    assert await ends.fleet.apply(snapshot, PATIENCE) is None
    await ends.replace_agent()
    assert await ends.fleet.apply(snapshot, PATIENCE) is None
    assert worker.ran == [(1, b"one")]


async def test_only_a_worker_that_runs_what_was_before_is_shown_the_changes(ends: Ends) -> None:
    current = await ends.connect()
    assert await ends.fleet.apply(ends.snapshot(1, b"one"), PATIENCE) is None
    next_one = ends.store.stage(2, hash_of(b"two"), [b"two"], hash_of(b"one"), b"a delta")
    assert await ends.fleet.apply(next_one, PATIENCE) is None
    late = await ends.connect()
    await eventually(lambda: late.ran, "the late one runs it")
    assert (current.ways, late.ways) == ([None, next_one.changes], [None])
    assert next_one.changes.read_bytes() == b"a delta"
    ends.store.sync(next_one)
    ends.store.commit(next_one)
    ends.store.tidy(next_one)
    assert not next_one.changes.exists()


async def test_a_worker_told_to_drain_hears_it_once(ends: Ends) -> None:
    worker = await ends.connect()
    (link,) = ends.fleet.links
    link.drain()
    link.drain()
    async with asyncio.timeout(PATIENCE):
        await worker.drained.wait()


async def test_a_worker_whose_node_was_removed_drains_by_itself(tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path / "removed" / "channel.sock")
    async with asyncio.timeout(PATIENCE):
        await worker.drained.wait()
    await worker.stop()


async def test_the_socket_is_for_its_owner_only(ends: Ends) -> None:
    assert (ends.folder / "channel.sock").stat().st_mode & 0o777 == 0o600


def test_a_state_directory_with_a_long_name_gets_a_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    path = socket_path(deep)
    try:
        assert len(os.fsencode(path)) <= 100
        assert path == socket_path(deep)
        assert path != socket_path(tmp_path / ("y" * 120))
        assert path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        for each in (path, socket_path(tmp_path / ("y" * 120))):
            each.parent.rmdir()


# Whatever may come over the wire.


def hello(worker: str = "a" * 32) -> bytes:
    return framing.encode_json(Kind.HELLO, worker=worker, index=0, pid=1, version=0, hash="", state="starting")


def frames() -> Iterator[bytes]:
    yield hello()
    yield framing.encode_json(Kind.APPLIED, offer=1)
    yield framing.encode_json(Kind.REFUSED, offer=1, error="x", field="y")
    yield framing.encode_events(1, 1, 0, framing.batch_of([event(1).SerializeToString()]))


mutations = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations, st.lists(st.sampled_from(list(frames())), max_size=4), st.binary(max_size=40), st.booleans())
async def test_no_frame_of_a_worker_ends_the_agent(
    changes: list[tuple[int, int]], rest: list[bytes], tail: bytes, greets: bool
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="node-") as name:
        ends = Ends(Path(name))
        await ends.fleet.open()
        reader, writer = await asyncio.open_unix_connection(f"{name}/channel.sock")
        data = bytearray(b"".join(rest) + tail)
        for at, value in changes:
            if at < len(data):
                data[at] = value
        writer.write(hello() * greets + bytes(data))
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            await reader.read()
        writer.close()
        worker = await ends.connect()
        report(worker, 77, 1)
        assert await worker.channel.flush(PATIENCE)
        assert ids(drained(ends.spool))[77] == 1
        await ends.close()


@pytest.mark.parametrize(
    "wrong", [{"index": 2**40}, {"pid": -1}, {"version": "1"}, {"worker": "A" * 32}, {"worker": "a"}, {"index": True}]
)
async def test_a_worker_that_introduces_itself_wrongly_is_not_one(ends: Ends, wrong: dict[str, object]) -> None:
    values = {"worker": "a" * 32, "index": 0, "pid": 1, "version": 0, "hash": "", "state": "starting", **wrong}
    reader, writer = await asyncio.open_unix_connection(str(ends.folder / "channel.sock"))
    writer.write(framing.encode_json(Kind.HELLO, **values))
    async with asyncio.timeout(PATIENCE):
        assert await reader.read() == b""
    assert ends.fleet.links == []
    writer.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
async def test_bytes_are_read_as_frames_or_refused(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with contextlib.suppress(FrameError):
        while (frame := await framing.read_frame(reader)) is not None:
            kind, payload = frame
            assert struct.pack(">I", len(payload) + 1) + bytes((kind,)) + payload in data


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        struct.pack(">IB", 1, 99),
        framing.encode(Kind.ACK, b"not json"),
        framing.encode(Kind.ACK, b"[]"),
        framing.encode_json(Kind.ACK, number="1"),
        framing.encode_json(Kind.SNAPSHOT, offer=1),
        framing.encode_json(Kind.HELLO),
    ],
)
async def test_no_frame_of_an_agent_ends_a_worker(state_dir: Path, nonsense: bytes) -> None:
    connections: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    closing: list[asyncio.StreamWriter] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.put_nowait(writer)
        closing.append(writer)
        writer.write(nonsense)

    server = await asyncio.start_unix_server(accept, str(state_dir / "channel.sock"))
    worker = FakeWorker(state_dir / "channel.sock")
    async with asyncio.timeout(PATIENCE):
        await connections.get()
        await connections.get()  # it came back
    assert not worker.task.done()
    await worker.stop()
    server.close()
    for writer in closing:
        writer.close()
        await writer.wait_closed()
