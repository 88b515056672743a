from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from data_plane.agent.segments import numbers_in, path_of
from data_plane.agent.spool import Spool, SpoolError
from data_plane.agent.spool_files import SegmentRow
from gateway_schema.wire import analytics_pb2 as pb
from tests.data_plane.agent.events import event, intake, totals, worker_name
from tests.data_plane.agent.spools import close_all, opened

LIMIT = 64 * 1024 * 1024


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """These tests are about processes that die; what only a loss of power could show costs much time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(f"os.{name}", lambda descriptor: None)
        yield


def ids(batches: list[pb.Batch]) -> Counter[int]:
    return Counter(int.from_bytes(each.request_id, "big") for batch in batches for each in batch.events)


def drained(spool: Spool) -> list[pb.Batch]:
    """Everything that is not acknowledged, as the control plane would get it."""
    batches = [pb.Batch.FromString(sealed.payload) for sealed in spool.unacknowledged()]
    while (sealed := spool.seal()) is not None:
        batches.append(pb.Batch.FromString(sealed.payload))
    return batches


def fill(spool: Spool, count: int, *, per_batch: int = 10, padding: int = 0, first: int = 1, minutes: int = 1) -> None:
    for number in range(count):
        each = [
            event((first + number) * 1000 + n, minute=number % minutes, tokens=7, padding=padding)
            for n in range(per_batch)
        ]
        spool.take_in(intake(worker_name(1), first + number, each))


def test_sequences_count_from_one_without_holes_and_carry_what_came_in(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 150)
    batches = drained(spool)
    assert [batch.sequence for batch in batches] == [1, 2, 3]
    assert [len(batch.events) for batch in batches] == [500, 500, 500]
    assert len(ids(batches)) == 1500


def test_a_batch_is_bounded_in_bytes(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 100, padding=1000)
    assert all(batch.ByteSize() < 300_000 for batch in drained(spool))


def test_a_batch_that_a_worker_sends_again_counts_once(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    first = intake(worker_name(1), 1, [event(1)])
    assert spool.take_in(first)
    assert not spool.take_in(first)
    reopened = opened(tmp_path, LIMIT)
    assert not reopened.take_in(first)
    assert reopened.take_in(intake(worker_name(2), 1, [event(2)]))
    assert ids(drained(reopened)) == {1: 1, 2: 1}


def test_a_sealed_batch_is_the_same_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 3)
    sealed = spool.seal()
    fill(spool, 3, first=4)
    reopened = opened(tmp_path, LIMIT)
    assert reopened.epoch == spool.epoch
    assert reopened.unacknowledged() == [sealed]
    following = reopened.seal()
    assert following is not None
    assert following.sequence == 2
    assert ids([pb.Batch.FromString(following.payload)]).keys() == {n * 1000 + k for n in (4, 5, 6) for k in range(10)}


def test_acknowledged_segments_are_removed(tmp_path: Path) -> None:
    spool = opened(tmp_path, 1024 * 1024)
    fill(spool, 60, padding=500)
    before = spool.size
    while (sealed := spool.seal()) is not None:
        spool.acknowledge(sealed.sequence)
    assert spool.size < before / 4
    assert spool.waiting_batches == 0
    assert spool.size == sum(path_of(tmp_path, n).stat().st_size for n in numbers_in(tmp_path))


def test_an_acknowledgement_that_repeats_an_older_one_changes_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 100)
    spool.seal()
    second = spool.seal()
    spool.acknowledge(1)
    spool.acknowledge(1)
    assert spool.unacknowledged() == [second]


def test_the_control_plane_s_word_at_hello_counts_as_acknowledgement(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 100)
    spool.seal()
    second = spool.seal()
    epoch = spool.epoch
    spool.resume(1)
    assert spool.unacknowledged() == [second]
    assert spool.epoch == epoch


def test_a_control_plane_that_forgot_gets_a_new_epoch_with_all_that_is_left(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 150)
    for _ in range(3):
        spool.seal()
    spool.acknowledge(2)
    epoch = spool.epoch
    spool.resume(0)
    assert spool.epoch != epoch
    reopened = opened(tmp_path, LIMIT)
    assert reopened.epoch == spool.epoch
    (batch,) = drained(reopened)
    assert batch.sequence == 1
    assert len(batch.events) == 500


def test_numbers_that_were_used_before_a_loss_of_power_are_not_used_again(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 1)
    spool.resume(7)
    (batch,) = drained(opened(tmp_path, LIMIT))
    assert batch.sequence == 8
    assert spool.last_sequence == 7


def test_dropped_events_of_workers_add_up_and_travel_with_batches(tmp_path: Path) -> None:
    spool = opened(tmp_path, LIMIT)
    spool.take_in(intake(worker_name(1), 1, [event(1)], dropped=3))
    spool.take_in(intake(worker_name(2), 1, [event(2)], dropped=4))
    reopened = opened(tmp_path, LIMIT)
    assert reopened.dropped == 7
    assert [batch.dropped_events for batch in drained(reopened)] == [7]


# Folding.


def test_a_full_spool_folds_what_was_never_sent_and_counts_stay_exact(tmp_path: Path) -> None:
    limit = 512 * 1024
    spool, unlimited = opened(tmp_path / "a", limit), opened(tmp_path / "b", LIMIT)
    sent = spool.seal()
    for target in (spool, unlimited):
        fill(target, 10)
    sent = spool.seal()
    for target in (spool, unlimited):
        fill(target, 1000, padding=200, first=11, minutes=5)
    assert spool.size <= limit
    assert sent is not None
    assert spool.unacknowledged()[0] == sent
    batches, whole = drained(spool), drained(unlimited)
    assert any(batch.deltas for batch in batches)
    assert batches[-1].dropped_events == 0
    assert totals(batches) == totals(whole)
    assert max(ids(batches).values()) == 1


def test_folding_survives_reopening_at_any_time(tmp_path: Path) -> None:
    limit = 256 * 1024
    spool = opened(tmp_path / "a", limit)
    unlimited = opened(tmp_path / "b", LIMIT)
    for first in range(1, 400, 20):
        for target in (spool, unlimited):
            fill(target, 20, padding=300, first=first, minutes=50)
        spool = opened(tmp_path / "a", limit)
    assert totals(drained(spool)) == totals(drained(unlimited))


def test_what_cannot_be_folded_any_further_is_dropped_and_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path, 64 * 1024)
    generator = random.Random(1)
    for number in range(1, 1200):
        each = event(number, minute=number * 61)
        each.service_id = f"{generator.getrandbits(64)}"
        spool.take_in(intake(worker_name(1), number, [each]))
    batches = drained(spool)
    delivered = sum(len(b.events) + sum(d.requests for d in b.deltas) for b in batches)
    assert 0 < delivered < 1199
    assert batches[-1].dropped_events == 1199 - delivered
    assert spool.size <= 2 * 64 * 1024


def test_a_crash_between_merging_segments_and_removing_them_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each moment at which a rewritten segment has just taken its place is a crash, tried on a copy."""
    folder, limit = tmp_path / "spool", 64 * 1024
    spool = opened(folder, limit)
    crashes: list[Path] = []
    real = __import__("os").replace

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        crashes.append(tmp_path / f"crash-{len(crashes)}")
        shutil.copytree(folder, crashes[-1])

    monkeypatch.setattr("os.replace", replace)
    merges = 0
    for number in range(1, 1500):
        before = len(list(folder.glob("*.log")))
        some = [event(4 * number + n, minute=number) for n in range(4)]
        spool.take_in(intake(worker_name(1), number, some))
        merges += len(list(folder.glob("*.log"))) < before
        for crashed in crashes:
            reopened = opened(crashed, LIMIT)
            batches = drained(reopened)
            delivered = sum(len(b.events) + sum(d.requests for d in b.deltas) for b in batches)
            assert delivered == 4 * number
            assert reopened.dropped == 0
            shutil.rmtree(crashed)
        crashes.clear()
    assert merges


def test_a_folded_segment_that_is_the_last_one_left_still_knows_everything(tmp_path: Path) -> None:
    """A loss of power may take the segments behind it; who sends them again is told apart from who need not."""
    folder, limit = tmp_path / "spool", 256 * 1024
    spool, whole = opened(folder, limit), opened(tmp_path / "whole", LIMIT)
    fill(spool, 1)
    sealed = spool.seal()
    fill(spool, 200, padding=300, first=2)
    row = SegmentRow(folder)
    row.load()
    folded = max(number for number, level in row.levels.items() if level)
    for number in [number for number in row.sizes if number > folded]:
        row.remove(number)
    reopened = opened(folder, LIMIT)
    assert reopened.unacknowledged() == [sealed]
    for target in (reopened, whole):
        fill(target, 201)
        fill(target, 201, padding=300)
    assert totals(drained(reopened)) == totals(drained(whole))


# Crashes.


def restored(origin: Path, copy: Path, cut_at: int) -> Path:
    """The spool's folder as a crash would have left it after `cut_at` bytes of the last segment."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(origin, copy)
    last = path_of(copy, numbers_in(copy)[-1])
    last.write_bytes(last.read_bytes()[:cut_at])
    return copy


def test_a_crash_at_any_byte_loses_nothing_that_was_written_and_doubles_nothing(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    spool = opened(origin, LIMIT)
    active = path_of(origin, numbers_in(origin)[-1])
    acknowledged_at: list[tuple[int, int]] = []
    for number in range(1, 7):
        spool.take_in(intake(worker_name(1), number, [event(number)]))
        acknowledged_at.append((active.stat().st_size, number))
    size = active.stat().st_size
    for cut in range(size + 1):
        recovered = opened(restored(origin, tmp_path / "copy", cut), LIMIT)
        promised = max((number for end, number in acknowledged_at if end <= cut), default=0)
        # The worker sends again whatever was not acknowledged to it.
        for number in range(promised + 1, 7):
            recovered.take_in(intake(worker_name(1), number, [event(number)]))
        assert ids(drained(recovered)) == dict.fromkeys(range(1, 7), 1), cut


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=60), st.floats(0, 1))
def test_garbage_over_the_end_is_cut_off(tmp_path: Path, garbage: bytes, where: float) -> None:
    folder = tmp_path / "spool"
    shutil.rmtree(folder, ignore_errors=True)
    spool = opened(folder, LIMIT)
    fill(spool, 5)
    path = path_of(folder, numbers_in(folder)[-1])
    whole = path.read_bytes()
    at = int(where * len(whole))
    path.write_bytes(whole[:at] + garbage)
    recovered = opened(folder, LIMIT)
    counted = ids(drained(recovered))
    assert set(counted.values()) <= {1}
    assert set(counted) <= {n * 1000 + k for n in range(1, 6) for k in range(10)}
    assert recovered.take_in(intake(worker_name(9), 1, [event(1)]))


def test_damage_in_the_middle_is_counted_as_dropped_to_the_event(tmp_path: Path) -> None:
    spool = opened(tmp_path, 1024 * 1024)
    fill(spool, 60, padding=500)
    numbers = numbers_in(tmp_path)
    assert len(numbers) > 3
    victim = path_of(tmp_path, numbers[1])
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(bytes(data))
    batches = drained(opened(tmp_path, 1024 * 1024))
    assert 0 < batches[-1].dropped_events < 600
    assert sum(len(batch.events) for batch in batches) + batches[-1].dropped_events == 600


def test_a_folder_of_nonsense_is_an_empty_spool(tmp_path: Path) -> None:
    (tmp_path / "000000000003.log").write_bytes(b"nonsense" * 100)
    (tmp_path / "fold.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("hello")
    spool = opened(tmp_path, LIMIT)
    assert spool.seal() is None
    fill(spool, 1)
    assert len(ids(drained(spool))) == 10


def test_a_full_disk_refuses_and_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path, LIMIT)
    fill(spool, 2)
    real = __import__("os").pwrite

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) > 20:
            return int(real(descriptor, data[:20], offset))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", half)
        with pytest.raises(SpoolError, match="No space left"):
            fill(spool, 1, first=3)
    fill(spool, 1, first=3)
    assert len(ids(drained(opened(tmp_path, LIMIT)))) == 30


class SpoolLife(RuleBasedStateMachine):
    """A worker, a spool that is killed now and then, and a control plane that stores each sequence once."""

    @initialize(limit=st.sampled_from([200 * 1024, LIMIT]))
    def begin(self, limit: int) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp(prefix="spool-"))
        self.limit = limit
        self.spool = opened(self.folder, limit)
        self.numbers: dict[int, int] = {}
        self.reported = Counter[str]()
        self.stored: dict[int, pb.Batch] = {}
        self.sent: dict[int, bytes] = {}
        self.count = 0

    @rule(worker=st.integers(0, 2), size=st.integers(1, 60), padding=st.sampled_from([0, 400]), again=st.booleans())
    def report(self, worker: int, size: int, padding: int, again: bool) -> None:
        number = self.numbers[worker] = self.numbers.get(worker, 0) + 1
        some = [event(self.count + n, minute=self.count // 50, tokens=n, padding=padding) for n in range(size)]
        self.count += size
        self.reported += totals([pb.Batch(events=some)])
        for _ in range(1 + again):
            self.spool.take_in(intake(worker_name(worker), number, some))

    @rule()
    def send(self) -> None:
        """At most four batches are under way, as a reporter sees to it."""
        sealed = self.spool.seal() if len(self.spool.unacknowledged()) < 4 else None
        if sealed is not None:
            self._arrive(sealed.sequence, sealed.payload)

    @rule()
    def resend(self) -> None:
        for sealed in self.spool.unacknowledged():
            self._arrive(sealed.sequence, sealed.payload)

    def _arrive(self, sequence: int, payload: bytes) -> None:
        assert self.sent.setdefault(sequence, payload) == payload, "one number, two contents"
        self.stored.setdefault(sequence, pb.Batch.FromString(payload))

    @precondition(lambda self: self.stored)
    @rule()
    def acknowledge(self) -> None:
        self.spool.acknowledge(max(self.stored))

    @rule(known=st.booleans())
    def kill(self, known: bool) -> None:
        self.spool = opened(self.folder, self.limit)
        if known:
            self.spool.resume(max(self.stored, default=0))

    @invariant()
    def numbers_have_no_holes(self) -> None:
        assert sorted(self.stored) == list(range(1, len(self.stored) + 1))

    def teardown(self) -> None:
        if not hasattr(self, "spool"):
            return
        self.resend()
        while (sealed := self.spool.seal()) is not None:
            self._arrive(sealed.sequence, sealed.payload)
        delivered = totals(self.stored.values())
        if self.spool.dropped or self.spool.unsent_events:
            # What is under way may leave too little room for anything else; what then goes is counted to the event.
            lost = self.spool.dropped + self.spool.unsent_events
            assert delivered["requests 200"] + lost == self.reported["requests 200"]
            assert self.limit < LIMIT
        else:
            assert delivered == self.reported
        shutil.rmtree(self.folder)
        close_all()


TestSpoolLife = SpoolLife.TestCase
TestSpoolLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
