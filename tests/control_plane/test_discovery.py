"""How a change reaches a node: as a delta from what it runs, or whole. Scripted nodes over the real wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from control_plane.discovery import Pace
from gateway_schema.delta import WHOLE_WANTED
from gateway_schema.document import hash_of
from gateway_schema.wire import config_pb2
from tests.control_plane.administration import Admin
from tests.control_plane.scripted_node import Received, ScriptedNode, channel

USELESS = f"{WHOLE_WANTED}: for some reason"


@pytest.fixture
async def opened(admin: Admin) -> AsyncIterator[Any]:
    """A channel to a control plane with enough in it that a change is small beside it."""
    for number in range(3):
        await admin.change(f"other-{number}")
    async with channel(admin.plane, admin.pair) as opened:
        yield opened


async def in_sync(admin: Admin, opened: Any) -> tuple[ScriptedNode, Received]:
    node = ScriptedNode(opened)
    await node.hello()
    received = await node.snapshot()
    await node.ack(received)
    await admin.until(node.id, "in_sync")
    return node, received


async def take_delta(node: ScriptedNode) -> tuple[Received, config_pb2.Delta]:
    received = await node.snapshot()
    assert received.delta is not None
    return received, received.delta


def put_names(delta: config_pb2.Delta) -> list[str]:
    return [orjson.loads(put.entity)["name"] for put in delta.puts]


def services(received: Received) -> dict[str, Any]:
    return {service["name"]: service for service in orjson.loads(received.payload)["entities"]["services"]}


async def said(words: str, caplog: pytest.LogCaptureFixture) -> None:
    """Wait until the log says it: nothing else tells that the time for an answer is over."""
    async with asyncio.timeout(20):
        while words not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_creation_an_update_and_a_deletion_each_come_as_a_delta(admin: Admin, opened: Any) -> None:
    node, first = await in_sync(admin, opened)
    assert first.delta is None
    await admin.change("new")
    created, delta = await take_delta(node)
    assert (delta.from_version, delta.from_hash) == (first.version, first.hash)
    assert ([put.type for put in delta.puts], put_names(delta), len(delta.deletes)) == (["services"], ["new"], 0)
    await node.ack(created)

    service_id = services(created)["new"]["id"]
    changed = await admin.http.patch(f"{admin.path}/core-entities/services/{service_id}", json={"port": 81})
    assert changed.status_code == 200
    updated, delta = await take_delta(node)
    assert (put_names(delta), len(delta.deletes)) == (["new"], 0)
    assert services(updated)["new"]["port"] == 81
    await node.ack(updated)

    gone = await admin.http.delete(f"{admin.path}/core-entities/services/{service_id}")
    assert gone.status_code == 204
    deleted, delta = await take_delta(node)
    assert [(each.type, each.id) for each in delta.deletes] == [("services", service_id)]
    assert not delta.puts
    assert deleted.hash == first.hash
    assert deleted.payload == first.payload
    await node.ack(deleted)
    await admin.until(node.id, "in_sync")


async def test_the_result_is_byte_for_byte_what_a_new_node_gets_whole(admin: Admin, opened: Any) -> None:
    node, _ = await in_sync(admin, opened)
    await admin.change("new")
    by_delta, _ = await take_delta(node)
    whole = ScriptedNode(opened)
    await whole.hello()
    received = await whole.snapshot()
    assert received.delta is None
    assert received.payload == by_delta.payload
    assert hash_of(received.payload) == by_delta.hash


async def test_a_delta_of_no_use_is_followed_by_the_whole_and_is_no_rejection(admin: Admin, opened: Any) -> None:
    node, first = await in_sync(admin, opened)
    await admin.change("new")
    received, _ = await take_delta(node)
    await node.nack(received, error=USELESS, kept_hash=first.hash)
    whole = await node.snapshot()
    assert whole.delta is None
    assert (whole.version, whole.hash) == (received.version, received.hash)
    assert (await admin.until(node.id, "pending"))["last_error"] is None
    await node.ack(whole)
    assert (await admin.until(node.id, "in_sync"))["last_error"] is None
    await admin.change("newer")
    _, delta = await take_delta(node)
    assert delta.from_hash == whole.hash


async def test_a_node_that_wants_the_whole_after_a_newer_change_gets_the_newest(admin: Admin, opened: Any) -> None:
    node, first = await in_sync(admin, opened)
    await admin.change("new")
    received, _ = await take_delta(node)
    await admin.change("newest")
    await node.nack(received, error=USELESS, kept_hash=first.hash)
    whole = await node.snapshot()
    assert whole.delta is None
    assert {"new", "newest"} <= services(whole).keys()
    await node.ack(whole)
    await admin.until(node.id, "in_sync")


async def test_a_wish_for_the_whole_that_comes_late_is_heard(
    admin: Admin, opened: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert admin.plane.wire is not None
    monkeypatch.setattr(admin.plane.wire._config_sync, "_pace", Pace(answer=0.05))
    node, first = await in_sync(admin, opened)
    await admin.change("new")
    received, _ = await take_delta(node)
    await said("has not answered", caplog)
    await node.nack(received, error=USELESS, kept_hash=first.hash)
    whole = await node.snapshot()
    assert (whole.delta, whole.hash) == (None, received.hash)


async def test_a_delta_with_an_entity_that_is_refused_is_a_rejection_and_is_not_sent_again(
    admin: Admin, opened: Any
) -> None:
    node, first = await in_sync(admin, opened)
    await admin.change("bad")
    received, _ = await take_delta(node)
    await node.nack(
        received,
        error="cannot be served",
        entity_type="services",
        entity_name="bad",
        field="host",
        kept_hash=first.hash,
    )
    row = await admin.until(node.id, "rejected")
    assert (row["last_error"]["message"], row["last_error"]["entity_name"]) == ("cannot be served", "bad")
    await admin.change("good")
    after, delta = await take_delta(node)
    assert delta.from_hash == first.hash
    assert sorted(put_names(delta)) == ["bad", "good"]
    await node.ack(after)
    assert (await admin.until(node.id, "in_sync"))["last_error"] is None


FULL = "the node cannot store the snapshot: No space left on device"


@dataclass(frozen=True)
class Counting(Pace):
    """Pauses of no length; keeps after how many refusals each was."""

    pauses: list[int] = field(default_factory=list)

    def pause(self, refusals: int) -> float:
        self.pauses.append(refusals)
        return 0.0


def use(admin: Admin, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert admin.plane.wire is not None
    monkeypatch.setattr(admin.plane.wire._config_sync, "_pace", pace)


async def test_a_refusal_that_is_about_the_node_counts_until_the_same_snapshot_sent_again_is_taken(
    admin: Admin, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(admin, pace := Counting(), monkeypatch)
    node, first = await in_sync(admin, opened)
    await admin.change("new")
    received, _ = await take_delta(node)
    for _ in range(3):
        await node.nack(received, error=FULL, kept_version=first.version, kept_hash=first.hash)
        again = await node.snapshot()
        assert (again.version, again.hash) == (received.version, received.hash)
        assert again.nonce != received.nonce
        row = await admin.node(node.id)
        assert (row["sync_state"], row["last_error"]["message"]) == ("rejected", FULL)
        assert (row["config_version"], row["last_error"]["version"]) == (first.version, received.version)
        received = again
    await node.ack(received)
    assert (await admin.until(node.id, "in_sync"))["last_error"] is None
    assert pace.pauses == [1, 2, 3]
    await admin.change("newer")
    received, _ = await take_delta(node)
    await node.nack(received, error=FULL, kept_hash=received.delta.from_hash if received.delta else "")
    await node.snapshot()
    assert pace.pauses == [1, 2, 3, 1]


async def test_a_refusal_about_the_node_that_comes_late_is_followed_by_the_snapshot_too(
    admin: Admin, opened: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(admin, Counting(answer=0.05), monkeypatch)
    node, first = await in_sync(admin, opened)
    await admin.change("new")
    received, _ = await take_delta(node)
    await said("has not answered", caplog)
    await node.nack(received, error="not all workers answered within 25 seconds", kept_hash=first.hash)
    assert (await node.snapshot()).hash == received.hash


async def test_a_change_does_not_wait_for_the_pause_after_a_refusal(
    admin: Admin, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(admin, Pace(again=(3600.0, 3600.0)), monkeypatch)
    node, first = await in_sync(admin, opened)
    await admin.change("new")
    received, _ = await take_delta(node)
    await node.nack(received, error=FULL, kept_hash=first.hash)
    await admin.until(node.id, "rejected")
    await admin.change("newer")
    after, delta = await take_delta(node)
    assert sorted(put_names(delta)) == ["new", "newer"]
    assert (await admin.until(node.id, "pending"))["last_error"]["version"] == received.version
    await node.ack(after)
    await admin.until(node.id, "in_sync")


@pytest.mark.parametrize("fault", [{"entity_type": "services"}, {"unreadable": True}])
async def test_a_refusal_that_is_about_the_snapshot_is_not_followed_by_the_same(
    admin: Admin, opened: Any, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    use(admin, pace := Counting(), monkeypatch)
    node, first = await in_sync(admin, opened)
    await admin.change("bad")
    received, _ = await take_delta(node)
    await node.nack(received, error="no", kept_hash=first.hash, **fault)
    await admin.until(node.id, "rejected")
    await admin.change("good")
    assert (await node.snapshot()).hash != received.hash
    assert pace.pauses == []


def test_pauses_grow_to_a_limit_and_differ() -> None:
    pace = Pace(again=(2.0, 60.0))
    for refusals, longest in ((1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (7, 60), (10_000, 60)):
        pauses = {pace.pause(refusals) for _ in range(50)}
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


async def test_the_words_of_a_wish_in_answer_to_the_whole_are_a_rejection(admin: Admin, opened: Any) -> None:
    """Otherwise such a node would be sent the same again and again, without a pause."""
    node = ScriptedNode(opened)
    await node.hello()
    await node.nack(await node.snapshot(), error=USELESS)
    await admin.until(node.id, "rejected")


async def test_a_node_that_runs_what_nobody_knows_gets_the_whole(admin: Admin, opened: Any) -> None:
    node = ScriptedNode(opened)
    await node.hello(known=Received(1, "f" * 32, "", b""))
    received = await node.snapshot()
    assert received.delta is None
    await node.ack(received)
    await admin.until(node.id, "in_sync")


async def test_a_node_that_comes_back_with_an_older_version_gets_one_delta(admin: Admin, opened: Any) -> None:
    node, first = await in_sync(admin, opened)
    for name in ("a", "b", "c"):
        await admin.change(name)
    again = ScriptedNode(opened, node.id)
    await again.hello(known=first)
    received, delta = await take_delta(again)
    assert (delta.from_version, delta.from_hash) == (first.version, first.hash)
    assert sorted(put_names(delta)) == ["a", "b", "c"]
    await again.ack(received)
    await admin.until(node.id, "in_sync")


async def test_a_busy_node_gets_one_delta_over_all_that_it_skipped_and_delays_no_other(
    admin: Admin, opened: Any
) -> None:
    slow, first = await in_sync(admin, opened)
    quick, _ = await in_sync(admin, opened)
    await admin.change("held")
    held, _ = await take_delta(slow)
    await quick.ack(await quick.snapshot())
    for name in ("a", "b", "c"):
        await admin.change(name)
        newest, delta = await take_delta(quick)
        assert put_names(delta) == [name]
        await quick.ack(newest)
    await slow.ack(held)
    received, delta = await take_delta(slow)
    assert (delta.from_hash, received.hash) == (held.hash, newest.hash)
    assert sorted(put_names(delta)) == ["a", "b", "c"]
    assert first.hash != held.hash


async def test_a_change_of_nearly_everything_goes_whole(admin: Admin, opened: Any) -> None:
    node, first = await in_sync(admin, opened)
    document = {
        "_format_version": "3.0",
        "services": [{"name": f"n{number}", "host": "n.test", "tags": ["all"]} for number in range(20)],
    }
    applied = await admin.http.post(f"{admin.path}/apply", json={"document": document, "commit": True})
    assert applied.status_code == 200, applied.text
    received = await node.snapshot()
    assert received.delta is None
    assert received.hash != first.hash


async def test_a_node_that_can_do_nothing_with_deltas_stays_in_sync_all_the_same(admin: Admin, opened: Any) -> None:
    """As the first version of this software: it refused every delta. After a few it is spared them."""
    node, current = await in_sync(admin, opened)
    ways = []
    for number in range(6):
        await admin.change(f"change-{number}")
        received = await node.snapshot()
        ways.append(received.delta is not None)
        if received.delta is not None:
            await node.nack(received, error="full snapshot wanted", kept_hash=current.hash)
            received = await node.snapshot()
            assert received.delta is None
        await node.ack(received)
        current = received
        await admin.until(node.id, "in_sync")
    assert ways == [True] * 3 + [False] * 3


async def test_a_rejected_change_that_is_taken_back_is_not_sent(admin: Admin, opened: Any) -> None:
    node, first = await in_sync(admin, opened)
    await admin.change("bad")
    received, _ = await take_delta(node)
    await node.nack(received, error="cannot be served", entity_type="services", kept_hash=first.hash)
    await admin.until(node.id, "rejected")
    service_id = services(received)["bad"]["id"]
    assert (await admin.http.delete(f"{admin.path}/core-entities/services/{service_id}")).status_code == 204
    assert (await admin.until(node.id, "in_sync"))["last_error"] is None
    await admin.change("good")
    _, delta = await take_delta(node)
    assert put_names(delta) == ["good"]


async def test_what_is_withheld_from_a_node_that_wants_the_whole_is_withheld_once(
    admin: Admin, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node = ScriptedNode(opened)
    await node.hello(plugins=["datakit"])
    first = await node.snapshot()
    await node.ack(first)
    await admin.change("new")
    received, _ = await take_delta(node)
    plugin = await admin.http.post(f"{admin.path}/core-entities/plugins", json={"name": "key-auth"})
    assert plugin.status_code == 201, plugin.text
    await admin.plane.snapshots.refresh(admin.path.rsplit("/", 1)[1])
    await node.nack(received, error=USELESS, kept_hash=first.hash)
    await admin.until(node.id, "rejected")
    deleted = await admin.http.delete(f"{admin.path}/core-entities/plugins/{plugin.json()['id']}")
    assert deleted.status_code == 204
    assert (await node.snapshot()).delta is None
    assert caplog.text.count("configuration withheld") == 1


async def test_a_delta_that_brings_a_plugin_which_the_node_lacks_is_withheld(admin: Admin, opened: Any) -> None:
    node = ScriptedNode(opened)
    await node.hello(plugins=["datakit"])
    first = await node.snapshot()
    await node.ack(first)
    plugin = await admin.http.post(f"{admin.path}/core-entities/plugins", json={"name": "key-auth"})
    assert plugin.status_code == 201, plugin.text
    row = await admin.until(node.id, "rejected")
    assert row["last_error"]["code"] == "plugin_set_incompatible"
    deleted = await admin.http.delete(f"{admin.path}/core-entities/plugins/{plugin.json()['id']}")
    assert deleted.status_code == 204
    await admin.until(node.id, "in_sync")
