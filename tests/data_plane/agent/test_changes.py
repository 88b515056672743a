"""Deltas on a node: from what it runs to what it shall run, byte for byte, or not at all."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.message import DecodeError

from data_plane.agent import changes
from data_plane.agent.store import Store
from gateway_schema.delta import WHOLE_WANTED
from gateway_schema.document import canonical, hash_of
from gateway_schema.wire import config_pb2 as pb
from tests.data_plane.agent.control_plane import ControlPlane, eventually
from tests.data_plane.agent.scripted import Node, restarted


def document(**services: str) -> bytes:
    """Canonical bytes: services by id, each with a host."""
    return canonical("cp", {"services": [{"id": key, "host": host} for key, host in services.items()]})


ONE = document(a="one.test", b="two.test")
TWO = document(b="two.test", c="three.test")
THREE = document(b="two.test", c="other.test", d="four.test")


async def running(control_plane: ControlPlane, payload: bytes = ONE, version: int = 1) -> None:
    assert isinstance(await control_plane.answer_to(control_plane.push(version, payload)), pb.Ack)


def on_disk(node: Node) -> tuple[int, bytes]:
    loaded = Store(node.settings.state_dir).load()
    assert loaded is not None
    return loaded.version, loaded.path.read_bytes()


async def only_file(node: Node) -> Path:
    """The current document, once nothing lies beside it any more."""
    folder = node.settings.state_dir / "snapshots"
    await eventually(lambda: len(list(folder.iterdir())) == 1, "all others are removed")
    (file,) = folder.iterdir()
    return file


async def test_deltas_one_after_another_are_applied_by_all_and_kept_on_disk(
    control_plane: ControlPlane, node: Node
) -> None:
    await running(control_plane)
    for version, former, payload in ((2, ONE, TWO), (3, TWO, THREE), (4, THREE, ONE)):
        ack = await control_plane.answer_to(control_plane.push_delta(version, former, payload))
        assert isinstance(ack, pb.Ack)
        assert (ack.version, ack.hash) == (version, hash_of(payload))
        assert on_disk(node) == (version, payload)
    assert (await only_file(node)).read_bytes() == ONE
    for worker in node.workers:
        assert worker.ran == [(1, ONE), (2, TWO), (3, THREE), (4, ONE)]


async def test_what_a_restart_would_load_is_on_the_disk_before_it_counts(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document and what names it are both synced before the name is given."""
    await running(control_plane)
    synced: set[int] = set()
    given: list[tuple[int, set[int]]] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def rename(source: Path, target: Path) -> None:
        if target.name == "snapshot.json":
            given.append((source.stat().st_ino, set(synced)))
        replace(source, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.replace", rename)
    assert isinstance(await control_plane.answer_to(control_plane.push_delta(2, ONE, TWO)), pb.Ack)
    loaded = Store(node.settings.state_dir).load()
    assert loaded is not None
    [(pointer, before)] = given
    assert {pointer, loaded.path.stat().st_ino} <= before


async def test_a_disk_that_does_not_take_what_all_workers_run_costs_only_the_next_start(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(control_plane)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert isinstance(await control_plane.answer_to(control_plane.push_delta(2, ONE, TWO)), pb.Ack)
    assert node.running() == [2, 2]
    assert on_disk(node) == (1, ONE)
    assert isinstance(await control_plane.answer_to(control_plane.push_delta(3, TWO, THREE)), pb.Ack)
    assert on_disk(node) == (3, THREE)


async def test_a_node_that_restarted_applies_deltas_to_what_is_on_its_disk(
    control_plane: ControlPlane, node: Node
) -> None:
    await running(control_plane)
    again = await restarted(node)
    await eventually(lambda: again.running() == [1, 1], "workers run what was on disk")
    await eventually(lambda: again.sync.connected, "it is connected")
    assert control_plane.hellos[-1].hash == hash_of(ONE)
    assert isinstance(await control_plane.answer_to(control_plane.push_delta(2, ONE, TWO)), pb.Ack)
    assert on_disk(again) == (2, TWO)
    await again.stop()


async def wanted_whole(control_plane: ControlPlane, node: Node, nonce: str, reason: str) -> None:
    """The delta was refused in favour of the whole, and cost nothing: what ran runs on, and the next ones work."""
    nack = await control_plane.answer_to(nonce)
    assert isinstance(nack, pb.Nack)
    assert nack.error.startswith(WHOLE_WANTED)
    assert reason in nack.error
    assert (nack.kept_version, nack.kept_hash, nack.entity_type) == (1, hash_of(ONE), "")
    assert [worker.ran for worker in node.workers] == [[(1, ONE)], [(1, ONE)]]
    assert on_disk(node) == (1, ONE)
    await running(control_plane, TWO, 2)
    assert isinstance(await control_plane.answer_to(control_plane.push_delta(3, TWO, THREE)), pb.Ack)


async def test_a_delta_that_leads_elsewhere_than_it_says_is_refused(control_plane: ControlPlane, node: Node) -> None:
    await running(control_plane)
    nonce = control_plane.push_delta(2, ONE, TWO, hash="f" * 32)
    await wanted_whole(control_plane, node, nonce, f"leads to the hash {hash_of(TWO)}")


async def test_a_delta_from_what_the_node_does_not_run_is_refused(control_plane: ControlPlane, node: Node) -> None:
    await running(control_plane)
    nonce = control_plane.push_delta(2, TWO, THREE)
    await wanted_whole(control_plane, node, nonce, f"starts from {hash_of(TWO)}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"puts": [pb.EntityPut(type="teapots", entity=b'{"id":"x"}')]}, "unknown kind"),
        ({"puts": [pb.EntityPut(type="services", entity=b'{"host":"x"}')]}, "an object with an id"),
        ({"puts": [pb.EntityPut(type="services", entity=b"[]")]}, "an object with an id"),
        ({"puts": [pb.EntityPut(type="services", entity=b"{")]}, "cannot be applied"),
        ({"deletes": [pb.EntityDelete(type="services", id="z")]}, "no entity 'z'"),
        ({"puts": [], "deletes": []}, "leads to the hash"),
    ],
)
async def test_a_delta_that_makes_no_sense_is_refused(
    control_plane: ControlPlane, node: Node, content: dict[str, Any], reason: str
) -> None:
    await running(control_plane)
    await wanted_whole(control_plane, node, control_plane.push_delta(2, ONE, TWO, **content), reason)


async def test_a_delta_beyond_all_measure_is_refused(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_DELTA", 1000)
    await running(control_plane)
    nonce = control_plane.push_delta(2, ONE, document(a="x" * 2000))
    await wanted_whole(control_plane, node, nonce, "larger than 1000 bytes")


async def test_a_document_that_deltas_would_make_too_large_is_refused(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(control_plane)
    monkeypatch.setattr(changes, "MAX_DOCUMENT", len(ONE) + 10)
    nack = await control_plane.answer_to(control_plane.push_delta(2, ONE, document(a="x" * 2000)))
    assert isinstance(nack, pb.Nack)
    assert not nack.error.startswith(WHOLE_WANTED)  # the whole would be as large
    assert "more than" in nack.error
    assert nack.unreadable


async def test_a_node_without_a_configuration_wants_the_whole(control_plane: ControlPlane, node: Node) -> None:
    nack = await control_plane.answer_to(control_plane.push_delta(2, ONE, TWO))
    assert isinstance(nack, pb.Nack)
    assert nack.error.startswith(WHOLE_WANTED)
    assert (nack.kept_version, nack.kept_hash) == (0, "")


async def test_a_node_whose_disk_lost_the_document_wants_the_whole(control_plane: ControlPlane, node: Node) -> None:
    await running(control_plane)
    file = await only_file(node)
    for damage in (lambda: file.write_bytes(b"{"), lambda: file.write_bytes(TWO), file.unlink):
        damage()
        nack = await control_plane.answer_to(control_plane.push_delta(2, ONE, TWO))
        assert isinstance(nack, pb.Nack)
        assert nack.error.startswith(WHOLE_WANTED)
    await running(control_plane, TWO, 2)


async def test_a_document_too_large_to_be_kept_is_read_from_the_disk_again(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_KEPT", 10)
    reads: list[Path] = []
    read = node.store.read
    monkeypatch.setattr(node.store, "read", lambda snapshot: (reads.append(snapshot.path), read(snapshot))[1])
    await running(control_plane)
    for version, former, payload in ((2, ONE, TWO), (3, TWO, THREE)):
        assert isinstance(await control_plane.answer_to(control_plane.push_delta(version, former, payload)), pb.Ack)
    assert len(reads) == 2
    monkeypatch.setattr(changes, "MAX_KEPT", 10_000)
    for version, former, payload in ((4, THREE, ONE), (5, ONE, TWO)):
        assert isinstance(await control_plane.answer_to(control_plane.push_delta(version, former, payload)), pb.Ack)
    assert len(reads) == 3


async def test_a_delta_that_workers_refuse_is_answered_with_the_entity_and_the_next_starts_from_what_stayed(
    control_plane: ControlPlane, node: Node
) -> None:
    await running(control_plane)
    bad = document(a="one.test", b="refused.test")
    nack = await control_plane.answer_to(control_plane.push_delta(2, ONE, bad))
    assert isinstance(nack, pb.Nack)
    assert (nack.entity_type, nack.field, nack.error) == ("plugins", "config.model", "no such model")
    assert (nack.kept_version, nack.kept_hash) == (1, hash_of(ONE))
    assert node.running() == [1, 1]
    assert on_disk(node) == (1, ONE)
    assert isinstance(await control_plane.answer_to(control_plane.push_delta(3, ONE, TWO)), pb.Ack)
    assert on_disk(node) == (3, TWO)


async def test_another_software_version_s_document_is_no_start_for_a_delta(
    control_plane: ControlPlane, node: Node
) -> None:
    await running(control_plane)
    pointer = node.settings.state_dir / "snapshot.json"
    pointer.write_bytes(orjson.dumps({**orjson.loads(pointer.read_bytes()), "software": "3.14.0"}))
    again = await restarted(node)
    await eventually(lambda: again.sync.connected, "it is connected")
    nack = await control_plane.answer_to(control_plane.push_delta(2, ONE, TWO))
    assert isinstance(nack, pb.Nack)
    assert nack.error.startswith(WHOLE_WANTED)
    await again.stop()


async def test_mutated_deltas_kill_nothing(control_plane: ControlPlane, node: Node) -> None:
    """Each is refused, or was not touched where it matters: what runs is ONE or TWO, never anything in between."""
    await running(control_plane)
    chance = random.Random(9)
    puts = [pb.EntityPut(type="services", entity=b'{"host":"three.test","id":"c"}')]
    deletes = [pb.EntityDelete(type="services", id="a")]
    sound = pb.Delta(from_hash=hash_of(ONE), to_version=2, hash=hash_of(TWO), puts=puts, deletes=deletes)
    answers: set[type] = set()
    for number in range(150):
        data = bytearray(sound.SerializeToString())
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            delta = pb.Delta.FromString(bytes(data))
        except DecodeError:  # gRPC itself refuses such a message
            continue
        delta.nonce = f"m{number}"
        control_plane.send(pb.ControlMessage(delta=delta))
        answer = await control_plane.answer_to(delta.nonce)
        answers.add(type(answer))
        if isinstance(answer, pb.Ack):
            await running(control_plane, ONE, 3)
    assert answers == {pb.Ack, pb.Nack}
    for worker in node.workers:
        assert {payload for _, payload in worker.ran} == {ONE, TWO}
    assert isinstance(await control_plane.answer_to(control_plane.push_delta(10, ONE, THREE)), pb.Ack)
    assert on_disk(node) == (10, THREE)
