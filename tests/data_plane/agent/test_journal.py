"""What a worker that was killed together with its agent leaves behind, and what the next agent makes of it."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from data_plane.agent.framing import BATCH_BYTES, BATCH_EVENTS
from data_plane.agent.intake import Counts, EventIntake
from data_plane.agent.journal import Journal, abandoned, names_in, path_of, read
from data_plane.agent.recovery import Recovery
from data_plane.agent.spool import SpoolError
from data_plane.agent.spool_state import Intake
from gateway_schema.wire import analytics_pb2 as pb
from tests.data_plane.agent.events import event, worker_name
from tests.data_plane.agent.spools import opened
from tests.data_plane.agent.test_spool import LIMIT, drained, ids
from tests.data_plane.agent.workers import FakeWorker

WORKER = worker_name(7)


def numbers_in_batch(intake: Intake) -> list[int]:
    return [int.from_bytes(each.request_id, "big") for each in pb.Batch.FromString(intake.body).events]


def serialised(number: int, padding: int = 0) -> bytes:
    return event(number, padding=padding).SerializeToString()


class Life(RuleBasedStateMachine):
    """A worker and its agent, up to any moment: what the spool has and what the journal gives back are all there was.

    Where the journal is too small, something may be missing; nothing may ever be there twice.
    """

    half, complete = 64 * 1024, True

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = path_of(Path(self.folder.name), WORKER)
        self.journal = Journal(self.path, self.half, switch=400, reserve=300)
        self.events = 0
        self.gone = 0
        self.waiting: deque[int] = deque()
        self.sent: deque[tuple[int, list[int]]] = deque()
        self.last = self.spooled = self.acknowledged = 0
        self.taken: Counter[int] = Counter()

    @rule(count=st.integers(1, 5), padding=st.sampled_from([0, 0, 0, 90]))
    def events_come(self, count: int, padding: int) -> None:
        for _ in range(count):
            self.events += 1
            self.waiting.append(self.events)
            self.journal.add(serialised(self.events, padding))

    @rule(count=st.integers(0, 6))
    def a_batch_is_sent(self, count: int) -> None:
        batch = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        self.last += 1
        self.journal.mark(self.last, self.gone + 1, self.gone + len(batch))
        self.gone += len(batch)
        self.sent.append((self.last, batch))

    @precondition(lambda self: self.spooled < self.last)
    @rule()
    def the_spool_takes_one(self) -> None:
        self.spooled += 1
        self.taken.update(next(batch for number, batch in self.sent if number == self.spooled))

    @precondition(lambda self: self.acknowledged < self.spooled)
    @rule()
    def it_is_acknowledged(self) -> None:
        self.acknowledged = self.spooled
        self.journal.acknowledged(self.spooled)
        while self.sent and self.sent[0][0] <= self.spooled:
            self.sent.popleft()

    def teardown(self) -> None:
        self.journal.close(remove=False)
        known = self.spooled
        for intake in read(self.path, WORKER):
            if intake.number > known:
                known = intake.number
                self.taken.update(numbers_in_batch(intake))
        everything = Counter(range(1, self.events + 1))
        assert self.taken <= everything
        if self.complete:
            assert self.taken == everything
        self.folder.cleanup()


class CrampedLife(Life):
    half, complete = 1500, False


TestLife = Life.TestCase
TestCrampedLife = CrampedLife.TestCase
TestLife.settings = TestCrampedLife.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=20), cut=st.integers(0, 4096))
def test_a_damaged_journal_gives_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    path = path_of(tmp_path_factory.mktemp("journals"), WORKER)
    journal = Journal(path, 2048, switch=400, reserve=300)
    for number in range(1, 13):
        journal.add(serialised(number))
        if number % 3 == 0:
            journal.mark(number // 3, number - 2, number)
    journal.close(remove=False)
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place] = value
    path.write_bytes(bytes(data[:cut]))
    found = Counter(number for intake in read(path, WORKER) for number in numbers_in_batch(intake))
    assert found <= Counter(range(1, 13))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=4096))
def test_what_is_no_journal_holds_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = path_of(tmp_path_factory.mktemp("journals"), WORKER)
    path.write_bytes(data)
    assert read(path, WORKER) == []


def test_a_backlog_comes_back_in_batches_of_the_usual_size(tmp_path: Path) -> None:
    path = path_of(tmp_path, WORKER)
    journal = Journal(path)
    for number in range(1, 1302):
        journal.add(serialised(number, padding=500))
    journal.close(remove=False)
    batches = read(path, WORKER)
    assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
    assert all(batch.count <= BATCH_EVENTS and len(batch.body) <= BATCH_BYTES * 1.05 for batch in batches)
    assert [number for batch in batches for number in numbers_in_batch(batch)] == list(range(1, 1302))


async def test_a_killed_process_leaves_its_last_event(tmp_path: Path) -> None:
    """As real as it gets: SIGKILL right behind the copy."""
    path = path_of(tmp_path, WORKER)
    script = (
        "import os, signal, sys; from pathlib import Path; from data_plane.agent.journal import Journal;"
        "j = Journal(Path(sys.argv[1])); j.add(bytes.fromhex(sys.argv[2])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(path), serialised(5).hex())
    assert await process.wait() == -signal.SIGKILL
    assert abandoned(path)
    (batch,) = read(path, WORKER)
    assert numbers_in_batch(batch) == [5]


class Node:
    """A spool, a worker that no agent answers, and what takes up journals."""

    def __init__(self, folder: Path) -> None:
        self.journals = folder / "journals"
        self.spool = opened(folder / "spool", LIMIT)
        self.alive: set[str] = set()
        self.take = EventIntake(self.spool, Counts(), lambda: None).take
        self.recovery = Recovery(self.journals, lambda intake: self.take(intake), lambda: self.alive)
        self.worker = FakeWorker(folder / "channel.sock", journals=self.journals)

    def report(self, count: int) -> None:
        for number in range(count):
            self.worker.channel.report(serialised(number))


@pytest.fixture
async def node(state_dir: Path) -> Node:
    return Node(state_dir)


async def test_a_dead_worker_s_events_come_into_the_spool_once(node: Node) -> None:
    node.report(700)
    await node.worker.stop()
    assert await node.recovery.sweep()
    assert names_in(node.journals) == []
    assert await node.recovery.sweep()
    assert ids(drained(node.spool)) == dict.fromkeys(range(700), 1)


async def test_a_journal_that_is_in_use_is_left_alone(node: Node) -> None:
    node.report(3)
    assert not await node.recovery.sweep(), "its worker lives: look again"
    node.alive.update(names_in(node.journals))
    assert await node.recovery.sweep()
    assert drained(node.spool) == []
    await node.worker.stop()


async def test_a_spool_without_room_costs_time_and_no_event(node: Node) -> None:
    node.report(900)
    await node.worker.stop()
    take, calls = node.take, 0

    def fail_the_second_time(intake: Intake) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise SpoolError("no space left on device")
        take(intake)

    node.take = fail_the_second_time
    assert not await node.recovery.sweep()
    assert await node.recovery.sweep()
    assert ids(drained(node.spool)) == dict.fromkeys(range(900), 1)


async def test_the_next_look_comes_when_a_worker_goes(node: Node) -> None:
    node.report(3)
    node.alive.update(names_in(node.journals))
    running = asyncio.create_task(node.recovery.run())
    await asyncio.sleep(0)
    await node.worker.stop()
    node.alive.clear()
    node.recovery.ring()
    async with asyncio.timeout(10):
        while names_in(node.journals):  # noqa: ASYNC110 (a file)
            await asyncio.sleep(0.01)
    running.cancel()
    assert ids(drained(node.spool)) == dict.fromkeys(range(3), 1)


async def test_without_room_for_a_journal_a_worker_serves_on(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    worker = FakeWorker(state_dir / "channel.sock", journals=state_dir / "journals")
    worker.channel.report(serialised(1))
    await worker.stop()
    assert "no journal" in caplog.text
    assert list((state_dir / "journals").iterdir()) == []
