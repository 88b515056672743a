"""A node and a scripted control plane: the configuration's way, over real gRPC with mutual TLS."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_plane.agent import changes
from data_plane.agent.changes import Assembly
from data_plane.agent.link import Backoff, open_channel
from data_plane.agent.store import Snapshot, Store
from data_plane.settings import SettingsError
from gateway_schema.document import hash_of
from gateway_schema.wire import config_pb2 as pb
from tests.data_plane.agent.control_plane import ControlPlane, eventually, make_identity
from tests.data_plane.agent.scripted import Node, restarted

pytestmark = pytest.mark.usefixtures("impatient")


async def test_a_node_introduces_itself(control_plane: ControlPlane, node: Node) -> None:
    (hello,) = control_plane.hellos
    assert hello.node_id == node.store.node_id()
    assert hello.hash == ""
    assert hello.version.count(".") == 2
    assert "ai-proxy-advanced" in hello.plugins


@pytest.mark.parametrize("parts", [1, 3])
async def test_a_snapshot_is_acknowledged_when_every_worker_runs_it(
    control_plane: ControlPlane, node: Node, parts: int
) -> None:
    node.workers[1].hold = asyncio.Event()
    nonce = control_plane.push(7, b"seven", parts=parts)
    await eventually(lambda: node.workers[0].ran, "one worker runs it")
    assert not control_plane.acks
    node.workers[1].hold.set()
    ack = await control_plane.answer_to(nonce)
    assert isinstance(ack, pb.Ack)
    assert (ack.version, ack.hash) == (7, hash_of(b"seven"))
    assert [worker.version for worker in ack.workers] == [7, 7]
    assert [worker.ran for worker in node.workers] == [[(7, b"seven")], [(7, b"seven")]]


async def test_a_refused_snapshot_is_answered_with_entity_and_field_and_the_former_one_stays(
    control_plane: ControlPlane, node: Node
) -> None:
    await control_plane.answer_to(control_plane.push(1, b"one"))
    nack = await control_plane.answer_to(control_plane.push(2, b"refused"))
    assert isinstance(nack, pb.Nack)
    assert (nack.version, nack.kept_version, nack.kept_hash) == (2, 1, hash_of(b"one"))
    assert (nack.entity_type, nack.entity_id, nack.entity_name) == ("plugins", "p-1", "ai")
    assert (nack.field, nack.error) == ("config.model", "no such model")
    assert node.running() == [1, 1]
    loaded = Store(node.settings.state_dir).load()
    assert loaded is not None
    assert loaded.version == 1
    ack = await control_plane.answer_to(control_plane.push(3, b"three"))
    assert isinstance(ack, pb.Ack)


async def test_a_first_snapshot_that_is_refused_leaves_the_node_empty(control_plane: ControlPlane, node: Node) -> None:
    nack = await control_plane.answer_to(control_plane.push(1, b"refused"))
    assert isinstance(nack, pb.Nack)
    assert (nack.kept_version, nack.kept_hash) == (0, "")
    assert Store(node.settings.state_dir).load() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hash": "f" * 32}, "damaged"),
        ({"data": b"no zstd"}, "decompressed"),
        ({"data": zstandard.compress(b"one" * 1000)[:-4]}, "cut off"),
    ],
)
async def test_a_damaged_snapshot_is_refused_and_never_reaches_a_worker(
    control_plane: ControlPlane, node: Node, changes: dict[str, Any], reason: str
) -> None:
    nack = await control_plane.answer_to(control_plane.push(1, b"one", **changes))
    assert isinstance(nack, pb.Nack)
    assert reason in nack.error
    assert nack.unreadable
    assert [worker.ran for worker in node.workers] == [[], []]


async def test_a_snapshot_that_would_unpack_beyond_all_measure_is_refused(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_DOCUMENT", 1_000_000)
    nack = await control_plane.answer_to(control_plane.push(1, bytes(5_000_000)))
    assert isinstance(nack, pb.Nack)
    assert "more than" in nack.error
    assert nack.unreadable


def about_the_node(nack: pb.Ack | pb.Nack, reason: str) -> None:
    assert isinstance(nack, pb.Nack)
    assert reason in nack.error
    assert (nack.entity_type, nack.unreadable) == ("", False)
    assert (nack.kept_version, nack.kept_hash) == (1, hash_of(b"one"))


async def test_a_snapshot_that_a_stopped_worker_missed_is_taken_when_it_comes_again(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await control_plane.answer_to(control_plane.push(1, b"one"))
    late = node.workers[0]
    late.stopped = asyncio.Event()
    with monkeypatch.context() as patch:
        patch.setattr(changes, "APPLY_TIMEOUT", 0.05)
        about_the_node(await control_plane.answer_to(control_plane.push(2, b"two")), "not all workers answered")
    late.stopped.set()
    assert isinstance(await control_plane.answer_to(control_plane.push(2, b"two")), pb.Ack)
    assert node.running() == [2, 2]
    # In between it may have had the time to follow what it missed: there, and back again with the others.
    assert (late.ran[0], late.ran[-1]) == ((1, b"one"), (2, b"two"))
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_snapshot_that_a_full_disk_did_not_take_is_taken_when_it_comes_again(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control_plane.answer_to(control_plane.push(1, b"one"))

    def full(*_: object) -> Snapshot:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(node.store, "stage", full)
        about_the_node(await control_plane.answer_to(control_plane.push(2, b"two")), "No space left on device")
    assert isinstance(await control_plane.answer_to(control_plane.push(2, b"two")), pb.Ack)
    assert node.running() == [2, 2]


async def test_of_snapshots_that_arrive_meanwhile_only_the_newest_is_applied(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.workers[0].hold = asyncio.Event()
    control_plane.push(1, b"one")
    await eventually(lambda: node.fleet.wanted is not None, "the first is under way")
    arrived: list[str] = []
    submit = node.applier.submit
    monkeypatch.setattr(node.applier, "submit", lambda it, tell: (arrived.append(it.nonce), submit(it, tell)))
    stale = control_plane.push(2, b"two")
    newest = control_plane.push(3, b"three")
    await eventually(lambda: arrived == [stale, newest], "both have arrived")
    node.workers[0].hold.set()
    await control_plane.answer_to(newest)
    assert [version for version, _ in node.workers[0].ran] == [1, 3]
    assert stale not in {ack.nonce for ack in control_plane.acks} | {nack.nonce for nack in control_plane.nacks}


async def test_the_same_snapshot_again_is_acknowledged_without_work(control_plane: ControlPlane, node: Node) -> None:
    for _ in range(2):
        assert isinstance(await control_plane.answer_to(control_plane.push(1, b"one")), pb.Ack)
    assert node.workers[0].ran == [(1, b"one")]


async def test_heartbeats_tell_each_worker_s_version(control_plane: ControlPlane, node: Node) -> None:
    await control_plane.answer_to(control_plane.push(4, b"four"))
    control_plane.heartbeat = 1
    node.sync.restart()
    await eventually(
        lambda: any([w.version for w in status.workers] == [4, 4] for status in control_plane.statuses), "a status"
    )


async def test_changes_are_told_at_once_but_not_those_that_the_answer_told(
    control_plane: ControlPlane, node: Node
) -> None:
    asked = node.asked
    answer = await control_plane.answer_to(control_plane.push(4, b"four"))
    assert [worker.version for worker in answer.workers] == [4, 4]
    said = len(control_plane.statuses)
    await eventually(lambda: node.asked >= asked + 2, "it has answered, and looked whether there is more to tell")
    await node.workers[1].stop()
    await eventually(lambda: control_plane.statuses[said:], "a status")
    assert len(control_plane.statuses[said].workers) == 1


async def test_a_node_restarted_without_control_plane_serves_what_is_on_disk(
    control_plane: ControlPlane, node: Node
) -> None:
    await control_plane.answer_to(control_plane.push(5, b"five"))
    await control_plane.stop()
    again = await restarted(node)
    await eventually(lambda: again.running() == [5, 5], "workers run what was on disk")
    control_plane.hellos.clear()
    await control_plane.start()
    await eventually(lambda: control_plane.hellos, "the node comes back")
    assert control_plane.hellos[0].hash == hash_of(b"five")
    await again.stop()


async def test_a_damaged_snapshot_on_disk_is_set_aside_and_asked_for_anew(
    control_plane: ControlPlane, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await control_plane.answer_to(control_plane.push(5, b"five"))
    (file,) = (node.settings.state_dir / "snapshots").iterdir()
    file.write_bytes(b"fixe")
    control_plane.hellos.clear()
    again = await restarted(node)
    await eventually(lambda: control_plane.hellos, "the node comes back")
    assert control_plane.hellos[0].hash == ""
    assert "damaged" in caplog.text
    assert again.running() == [0] * len(again.fleet.links)
    assert list(node.settings.state_dir.glob("*.damaged"))
    await again.stop()


async def test_a_snapshot_on_disk_that_workers_refuse_is_set_aside_and_asked_for_anew(
    control_plane: ControlPlane, node: Node
) -> None:
    await control_plane.answer_to(control_plane.push(5, b"five"))
    control_plane.hellos.clear()
    again = await restarted(node, refuses=b"five")
    await eventually(lambda: control_plane.hellos and control_plane.hellos[-1].hash == "", "it asks anew")
    assert Store(node.settings.state_dir).load() is None
    await again.stop()


async def test_another_software_version_asks_for_the_snapshot_anew_while_it_serves_the_old_one(
    control_plane: ControlPlane, node: Node
) -> None:
    await control_plane.answer_to(control_plane.push(5, b"five"))
    pointer = node.settings.state_dir / "snapshot.json"
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "software": "3.14.0"}))
    control_plane.hellos.clear()
    again = await restarted(node)
    await eventually(lambda: control_plane.hellos, "the node comes back")
    assert control_plane.hellos[0].hash == ""
    await eventually(lambda: again.running() == [5, 5], "it serves meanwhile")
    await control_plane.connected()
    assert isinstance(await control_plane.answer_to(control_plane.push(5, b"five")), pb.Ack)
    assert again.applier.current is not None
    assert again.applier.current.current
    await again.stop()


async def test_the_death_of_the_control_plane_is_one_warning(
    control_plane: ControlPlane, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await control_plane.answer_to(control_plane.push(1, b"one"))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        await control_plane.stop()
        attempts = 0

        def counted(self: Backoff) -> float:
            nonlocal attempts
            attempts += 1
            return 0.01

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Backoff, "next", counted)
            await eventually(lambda: attempts > 5, "many attempts")
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
        assert node.running() == [1, 1]
        await control_plane.start()
        await control_plane.connected()
    await eventually(lambda: node.sync.connected, "it is back")


async def test_applying_goes_on_when_the_stream_breaks(control_plane: ControlPlane, node: Node) -> None:
    node.workers[0].hold = asyncio.Event()
    control_plane.push(1, b"one")
    await eventually(lambda: node.fleet.wanted is not None, "it is under way")
    control_plane.end_streams()
    await eventually(lambda: len(control_plane.hellos) == 2, "the node is back")
    node.workers[0].hold.set()
    await eventually(lambda: node.running() == [1, 1], "all run it")
    await eventually(lambda: Store(node.settings.state_dir).load() is not None, "it is on disk")


async def test_a_refused_node_says_why_and_keeps_serving(
    control_plane: ControlPlane, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await control_plane.answer_to(control_plane.push(1, b"one"))
    control_plane.refusal = pb.Refusal(code="kong_version_incompatible", message="too new")
    control_plane.end_streams()
    await eventually(lambda: "too new" in caplog.text, "the reason is in the log")
    assert node.running() == [1, 1]


async def test_a_control_plane_that_says_nothing_is_given_up(
    control_plane: ControlPlane, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_plane.agent.sync.WELCOME_TIMEOUT", 0.05)

    async def silent(self: ControlPlane, messages: Any, context: Any) -> None:
        self.hellos.append((await anext(aiter(messages))).hello)
        await asyncio.Event().wait()

    monkeypatch.setattr(ControlPlane, "Stream", silent)
    plane = ControlPlane(state_dir)
    await plane.start()
    node = Node(plane.settings(state_dir), workers=1)
    await node.start()
    await eventually(lambda: len(plane.hellos) >= 2, "the node tries again")
    await node.stop()
    await plane.stop()


async def test_an_unknown_authority_is_never_talked_to(
    control_plane: ControlPlane, state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = make_identity(state_dir, "stranger")
    node = Node(control_plane.settings(state_dir, control_plane_ca=stranger.certificate), workers=1)
    await node.start()
    await eventually(lambda: "no control plane" in caplog.text, "the connection fails")
    assert not control_plane.hellos
    await node.stop()


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ({"certificate": None}, "--certificate "),
        ({"certificate_key": Path("/nowhere/key")}, "--certificate-key"),
        ({"control_plane_ca": Path("/nowhere/ca")}, "--control-plane-ca"),
    ],
)
def test_a_missing_certificate_is_named_by_its_flag(tmp_path: Path, missing: dict[str, Any], named: str) -> None:
    settings = ControlPlane(tmp_path).settings(tmp_path, **missing)
    with pytest.raises(SettingsError, match=named):
        open_channel(settings)


def test_a_key_of_another_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    other = make_identity(tmp_path, "other")
    settings = ControlPlane(tmp_path).settings(tmp_path, certificate_key=other.key)
    with pytest.raises(SettingsError, match="--certificate"):
        open_channel(settings)


# Parts.


def part(nonce: str, number: int, parts: int, chunk: bytes) -> pb.Snapshot:
    return pb.Snapshot(version=1, hash="h", nonce=nonce, part=number, parts=parts, chunk=chunk)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_only_parts_of_one_nonce_in_order_make_a_snapshot(some: list[tuple[str, int, int]]) -> None:
    assembly = Assembly()
    arrivals = [assembly.add(part(nonce, number, parts, f"{nonce}{number}".encode())) for nonce, number, parts in some]
    for position, arrival in enumerate(arrivals):
        if arrival is not None:
            nonce, _, parts = some[position]
            assert arrival.nonce == nonce
            assert arrival.data == b"".join(f"{nonce}{number}".encode() for number in range(parts))


def test_parts_of_a_stale_nonce_are_ignored() -> None:
    assembly = Assembly()
    assert assembly.add(part("old", 0, 2, b"x")) is None
    assert assembly.add(part("new", 0, 2, b"1")) is None
    assert assembly.add(part("old", 1, 2, b"y")) is None
    arrival = assembly.add(part("new", 1, 2, b"2"))
    assert arrival is not None
    assert arrival.data == b"12"


def test_pauses_grow_and_differ() -> None:
    pytest.MonkeyPatch().undo()
    backoff = _real_backoff()
    first = [backoff() for _ in range(1)]
    assert 0.2 <= first[0] <= 2.0
    later = [backoff() for _ in range(20)][5:]
    assert all(5.0 <= pause <= 10.0 for pause in later)
    assert len(set(later)) > 1


_NEXT = Backoff.next


def _real_backoff() -> Any:
    backoff = Backoff()
    return lambda: _NEXT(backoff)


def test_a_snapshot_is_not_current_unless_it_was_committed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    staged = store.stage(3, hash_of(b"three"), [b"three"])
    store.sync(staged)
    assert store.load() is None
    store.commit(staged)
    assert store.load() == Snapshot(3, hash_of(b"three"), staged.path, True)
