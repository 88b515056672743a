"""Receipts: per node and worker, who runs a version, who refused it and why, who is silent, and how long it took."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import update

from control_plane import receipts
from control_plane.app import create_app
from control_plane.discovery import Pace
from control_plane.models import Node
from control_plane.node_rows import NodeRows
from control_plane.receipts import Propagation, Receipts, runs_on_all
from gateway_schema.wire import config_pb2
from tests.control_plane.client import Client
from tests.control_plane.scripted_node import PATIENCE, KeyPair, Received, ScriptedNode, channel, key_pair

EMPTY = {"_format_version": "3.0"}


def services(*names: str) -> dict[str, Any]:
    return {**EMPTY, "services": [{"name": name, "host": f"{name}.test"} for name in names]}


def to(group: str) -> dict[str, Any]:
    """One credential, whatever its group the same one: of a kind that does not say when it was changed, so that what is
    taken back is to the letter what was there."""
    acl = {"id": "3b0c7a4e-9d52-4d0e-8c57-0f8a2f3f6a11", "group": group}
    return {**EMPTY, "consumers": [{"username": "c", "acls": [acl]}]}


@asynccontextmanager
async def nodes(client: Client, count: int) -> AsyncIterator[list[ScriptedNode]]:
    """Connected nodes that run the current configuration."""
    pair: KeyPair = key_pair()
    body = {"cert": pair.cert, "title": "t"}
    await client.call("POST", f"/v2/control-planes/{client.id}/dp-client-certificates", body, 201)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(channel(client.plane, pair))
        found = [ScriptedNode(opened) for _ in range(count)]
        for node in found:
            await node.hello()
            await node.ack(await node.snapshot())
        current = (await client.plane.snapshots.get(client.id)).snapshot
        while not (await ask(client, current.version, 1))["complete"]:
            pass
        yield found


async def ask(client: Client, version: int, wait: float = 0, expect: int = 200) -> Any:
    path = f"/v2/control-planes/{client.id}/snapshots/{version}/receipts"
    return await asyncio.wait_for(client.get(path, {"wait": str(wait)}, expect), PATIENCE)


def states(answer: dict[str, Any]) -> list[str]:
    return sorted(item["state"] for item in answer["items"])


async def test_the_wait_ends_with_the_last_answer_and_names_every_worker(client: Client) -> None:
    async with nodes(client, 2) as (one, two):
        version = (await client.apply(services("a")))["version"]
        waiting = asyncio.create_task(ask(client, version, 15))
        await one.ack(await one.snapshot())
        received = await two.snapshot()
        assert states(await ask(client, version)) in (["applied", "behind"], ["behind", "behind"])
        assert not waiting.done()
        await two.ack(received)
        answer = await waiting
    assert answer["complete"] is True
    assert answer["summary"] == {"connected": 2, "applied": 2, "refused": 0, "silent": 0, "behind": 0}
    assert {item["node_id"] for item in answer["items"]} == {one.id, two.id}
    for item in answer["items"]:
        assert (item["version"], item["hash"], item["error"]) == (version, received.hash, None)
        assert item["workers"] == [
            {"index": 0, "pid": 7, "version": version, "hash": received.hash, "state": "applied"}
        ]
        assert item["milliseconds"] > 0
        assert abs(item["at_ms"] - answer["made_at_ms"] - item["milliseconds"]) < 100


async def test_a_row_that_is_read_before_its_writer_knows_has_its_time_already(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        write, go_on = NodeRows.update, asyncio.Event()

        async def write_and_learn_of_it_later(*args: Any, **values: Any) -> bool:
            done = await write(*args, **values)
            await go_on.wait()
            return done

        monkeypatch.setattr(NodeRows, "update", write_and_learn_of_it_later)
        await node.ack(await node.snapshot())
        early = (await ask(client, version, 15))["items"]
        learned = client.plane.receipts.changed(client.id)
        go_on.set()
        await asyncio.wait_for(learned.wait(), PATIENCE)
        late = (await ask(client, version))["items"]
    assert early[0]["milliseconds"] > 0
    assert late == early


async def test_a_refusal_is_an_answer_that_names_entity_and_field(client: Client) -> None:
    async with nodes(client, 2) as (one, two):
        version = (await client.apply(services("a")))["version"]
        waiting = asyncio.create_task(ask(client, version, 15))
        await one.ack(await one.snapshot())
        fault = {"entity_type": "services", "entity_name": "a", "field": "host", "error": "no such host"}
        await two.nack(await two.snapshot(), **fault)
        answer = await waiting
    assert states(answer) == ["applied", "refused"]
    (refused,) = [item for item in answer["items"] if item["state"] == "refused"]
    assert refused["node_id"] == two.id
    assert (refused["error"]["entity_name"], refused["error"]["field"]) == ("a", "host")
    assert refused["error"]["message"] == "no such host"
    assert refused["milliseconds"] > 0


async def test_a_refusal_that_passes_is_shown_until_the_snapshot_sent_again_is_taken(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.plane.wire is not None
    monkeypatch.setattr(client.plane.wire._config_sync, "_pace", Pace(again=(0.0, 0.0)))
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        await node.nack(await node.snapshot(), error="No space left on device")
        again = await node.snapshot()
        (item,) = (await ask(client, version))["items"]
        assert (item["state"], item["error"]["message"]) == ("refused", "No space left on device")
        await node.ack(again)
        applied = await until(client, version, lambda item: item["state"] == "applied")
    assert applied["error"] is None
    assert applied["milliseconds"] > item["milliseconds"] > 0


async def test_a_refusal_of_an_earlier_version_is_none_of_this_one(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        first = (await client.apply(services("a")))["version"]
        await node.nack(await node.snapshot(), error="no")
        assert states(await ask(client, first, 15)) == ["refused"]
        second = (await client.apply(services("b")))["version"]
        waiting = asyncio.create_task(ask(client, second, 15))
        await node.ack(await node.snapshot())
        assert states(await waiting) == ["applied"]
        assert states(await ask(client, first)) == ["applied"]  # it runs a later one: overtaken, not lost


async def test_a_version_that_was_taken_back_is_applied_by_who_runs_what_came_after(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        kept = (await client.apply(to("a")))["version"]
        received = await node.snapshot()
        passed = (await client.apply(to("b")))["version"]
        assert (await ask(client, passed))["complete"] is False
        last = (await client.apply(to("a")))["version"]
        waiting = asyncio.create_task(ask(client, passed, 15))
        await node.ack(received)  # what it runs from now on is the content of the last one, under an older number
        answer = await waiting
        assert (answer["complete"], states(answer)) == (True, ["applied"])
        for version in (kept, last):
            assert states(await ask(client, version, 15)) == ["applied"]


async def test_a_version_that_was_taken_back_before_anyone_saw_it_is_applied(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        await client.apply(to("a"))
        await node.ack(await node.snapshot())
        client.plane.snapshots.touch = lambda *_: None  # type: ignore[method-assign]
        passed = (await client.apply(to("b")))["version"]
        await client.apply(to("a"))
        await client.plane.snapshots.refresh(client.id)
        answer = await ask(client, passed, 15)
    assert (answer["complete"], states(answer)) == (True, ["applied"])


async def test_who_does_not_answer_is_behind_and_later_silent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        await node.snapshot()
        answer = await ask(client, version, 0.05)
        assert (answer["complete"], states(answer)) == (False, ["behind"])
        monkeypatch.setattr(receipts, "SILENT_SECONDS", 0.0)
        answer = await ask(client, version)
        assert states(answer) == ["silent"]
        assert answer["items"][0]["workers"][0]["state"] == "silent"


async def test_a_node_of_which_one_worker_lags_has_not_applied(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        received = await node.snapshot()
        ready = config_pb2.Worker(index=0, pid=7, version=version, hash=received.hash, state="ready")
        lagging = config_pb2.Worker(index=1, pid=8, version=version - 1, hash="0" * 32, state="ready")
        waiting = asyncio.create_task(ask(client, version, 15))
        await node.status(received, ready, lagging)
        seen = await until(client, version, lambda item: len(item["workers"]) == 2)
        assert [worker["state"] for worker in seen["workers"]] == ["applied", "behind"]
        assert not waiting.done()
        await node.status(received, ready, ready)
        assert states(await waiting) == ["applied"]


async def until(client: Client, version: int, holds: Any) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        changed = client.plane.receipts.changed(client.id)
        (item,) = (await ask(client, version))["items"]
        if holds(item):
            return item
        await asyncio.wait_for(changed.wait(), PATIENCE)
    raise TimeoutError


async def test_nobody_connected_is_complete_at_once_and_offline_nodes_are_not_waited_for(client: Client) -> None:
    version = (await client.apply(services("a")))["version"]
    answer = await ask(client, version, 15)
    assert (answer["complete"], answer["items"], answer["summary"]["connected"]) == (True, [], 0)
    async with nodes(client, 1):
        pass
    await until(client, version, lambda item: not item["connected"])
    version = (await client.apply(services("b")))["version"]
    answer = await ask(client, version, 15)
    assert answer["complete"] is True
    assert [(item["connected"], item["state"]) for item in answer["items"]] == [(False, "behind")]


async def test_a_node_of_another_replica_is_seen_through_the_table(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        answer = await client.apply(services("a"))
        received: Received = await node.snapshot()
        waiting = asyncio.create_task(ask(client, answer["version"], 15))
        worker = {"index": 0, "pid": 7, "version": received.version, "hash": received.hash, "state": "ready"}
        async with client.plane.database.writing() as session:
            await session.execute(update(Node).values(workers=[worker], config_version=received.version))
        assert (await waiting)["items"][0]["milliseconds"] is None


async def test_versions_that_are_not_known_and_bad_waits_are_refused(client: Client) -> None:
    await ask(client, 4711, expect=404)
    await client.apply(services("a"))
    await ask(client, 1, 301, expect=400)
    await ask(client, 1, -1, expect=400)


async def test_propagation_is_counted_per_node_and_shown_to_prometheus(client: Client) -> None:
    async with nodes(client, 2) as connected:
        for name in ("a", "b"):
            version = (await client.apply(services(name)))["version"]
            for node in connected:
                await node.ack(await node.snapshot())
            await ask(client, version, 15)
        async with asyncio.timeout(PATIENCE):
            while True:
                changed = client.plane.receipts.changed(client.id)
                shown = await client.get(f"/v2/control-planes/{client.id}/propagation")
                if shown["count"] >= 4:
                    break
                await changed.wait()
    assert shown["count"] == 4
    assert 0 < shown["p50_ms"] <= shown["p99_ms"]
    assert shown["buckets"][-1] == {"le_ms": None, "count": 4}
    text = (await client.http.get("/metrics")).text
    assert f'tandem_config_propagation_seconds_count{{control_plane="{client.id}"}} 4' in text
    assert re.search(r'_bucket\{control_plane="[^"]+",le="0.001"\} \d+', text)
    assert re.search(r'_bucket\{control_plane="[^"]+",le="\+Inf"\} 4', text)


def test_the_histogram_counts_what_it_was_given() -> None:
    propagation = Propagation()
    for milliseconds in (0.5, 1.0, 3.0, 70_000.0):
        propagation.add(milliseconds)
    assert dict(propagation.cumulative())[1] == 2
    assert dict(propagation.cumulative())[5] == 3
    assert dict(propagation.cumulative())[30_000] == 3
    assert dict(propagation.cumulative())[None] == 4
    assert propagation.shown()["max_ms"] == 70_000.0


def test_a_node_without_workers_runs_nothing() -> None:
    assert not runs_on_all([], 1, ("h",))
    assert runs_on_all([{"hash": "other", "version": 2}], 1, ("h",))


async def test_a_committed_version_is_waited_for_before_its_snapshot_is_made(client: Client) -> None:
    """Single writes make theirs a moment later, and so does a replica that only heard of the commit."""
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        await node.ack(await node.snapshot())
        await client.call("PATCH", "services/a", {"retries": 3})
        asking = asyncio.create_task(ask(client, version + 1, 15))
        await node.ack(await node.snapshot())
        answer = await asking
    assert (answer["version"], answer["complete"], states(answer)) == (version + 1, True, ["applied"])


async def test_the_wait_on_a_control_plane_that_is_deleted_finds_none(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        await node.snapshot()
        waiting = asyncio.create_task(ask(client, version, 15, expect=404))
        await wanted(client)
        await client.call("DELETE", f"/v2/control-planes/{client.id}", expect=204)
        await waiting


async def wanted(client: Client) -> None:
    """Returns once somebody waits for receipts."""
    async with asyncio.timeout(PATIENCE):
        while not client.plane.receipts._track(client.id).waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_version_that_nobody_committed_is_not_waited_for(client: Client) -> None:
    version = (await client.apply(services("a")))["version"]
    await ask(client, version + 1, 15, expect=404)


async def test_the_wait_ends_when_its_client_is_gone(client: Client) -> None:
    async with nodes(client, 1) as (node,):
        version = (await client.apply(services("a")))["version"]
        await node.snapshot()
        left, sent = asyncio.Event(), []
        asked = {"type": "http.request", "body": b"", "more_body": False}

        async def receive() -> dict[str, Any]:
            if asked:
                message = dict(asked)
                asked.clear()
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/v2/control-planes/{client.id}/snapshots/{version}/receipts",
            "query_string": b"wait=300",
            "headers": [(b"authorization", client.http.headers["authorization"].encode())],
        }
        waiting = asyncio.create_task(create_app(client.plane)(scope, receive, send))
        assert not (await ask(client, version))["complete"]
        assert not waiting.done()
        left.set()
        await asyncio.wait_for(waiting, PATIENCE)
        assert sent == []


def test_who_waits_is_counted_for_as_long() -> None:
    known = Receipts()
    with known.waiting("cp") as many:
        with known.waiting("cp"), known.waiting("another"):
            assert many() == 2
        assert many() == 1
    assert many() == 0
