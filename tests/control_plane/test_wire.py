"""Both gRPC services over real mTLS, with scripted nodes: who is served, what they get, what is recorded of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import uuid
from typing import Any

import grpc
import orjson
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import IntegrityError

from control_plane.discovery import version_problem
from control_plane.models import ANALYTICS_EPOCHS, DataPlaneCertificate
from gateway_schema.document import hash_of
from gateway_schema.wire import analytics_pb2, config_pb2
from tests.control_plane.administration import Admin
from tests.control_plane.scripted_node import PATIENCE, ScriptedNode, ScriptedReporter, channel, key_pair


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait for a line of the gate, which has a thread of its own."""
    async with asyncio.timeout(PATIENCE):
        while words not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_node_gets_the_snapshot_and_counts_as_in_sync_once_it_acknowledges(admin: Admin) -> None:
    await admin.change("orders")
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        welcome = await node.hello()
        assert welcome.welcome.control_plane_name == "first"
        received = await node.snapshot()
        assert hash_of(received.payload) == received.hash
        assert [service["name"] for service in orjson.loads(received.payload)["entities"]["services"]] == ["orders"]
        assert (await admin.until(node.id, "pending"))["last_error"] is None
        await node.ack(received)
        row = await admin.until(node.id, "in_sync")
        assert (row["config_hash"], row["config_version"]) == (received.hash, received.version)
        assert row["workers"] == [
            {"index": 0, "pid": 7, "version": received.version, "hash": received.hash, "state": "ready"}
        ]
        expected = (await admin.http.get(f"{admin.path}/expected-config-hash")).json()
        assert expected["expected_hash"] == received.hash
    assert (await admin.until(node.id, "offline"))["config_hash"] == received.hash


async def test_a_node_that_has_the_snapshot_is_sent_only_the_next_one(admin: Admin) -> None:
    await admin.change("one")
    async with channel(admin.plane, admin.pair) as opened:
        first = ScriptedNode(opened)
        await first.hello()
        known = await first.snapshot()
        await first.ack(known)
        again = ScriptedNode(opened)
        await again.hello(known=known)
        assert (await admin.node(again.id))["sync_state"] == "in_sync"
        await admin.change("two")
        assert (await again.snapshot()).version > known.version


async def test_a_worker_that_starts_anew_makes_its_node_pending_until_it_is_ready(admin: Admin) -> None:
    await admin.change("one")
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        received = await node.snapshot()
        await node.ack(received)
        await admin.until(node.id, "in_sync")
        await node.status(received, config_pb2.Worker(index=0, pid=8, state="starting"))
        assert (await admin.until(node.id, "pending"))["workers"][0]["state"] == "starting"
        await node.status(received, config_pb2.Worker(index=0, pid=8, state="ready", hash=received.hash))
        await admin.until(node.id, "in_sync")


async def test_a_refused_snapshot_is_recorded_with_its_entity_and_field_and_not_sent_again(admin: Admin) -> None:
    await admin.change("good")
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        received = await node.snapshot()
        await node.nack(
            received,
            error="no such model",
            entity_type="plugins",
            entity_id="1",
            entity_name="ai-proxy-advanced",
            field="config.targets[0]",
            kept_hash="0" * 32,
        )
        row = await admin.until(node.id, "rejected")
        assert row["last_error"]["message"] == "no such model"
        assert row["last_error"]["entity_name"] == "ai-proxy-advanced"
        assert row["last_error"]["field"] == "config.targets[0]"
        await admin.change("better")
        better = await node.snapshot()
        assert better.hash != received.hash
        await node.ack(better)
        assert (await admin.until(node.id, "in_sync"))["last_error"] is None


async def test_an_answer_with_a_stale_nonce_changes_nothing(admin: Admin) -> None:
    await admin.change("one")
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        received = await node.snapshot()
        await node.ack(received, nonce="of-another-time")
        await node.status(received)  # the control plane has read the ack when it has read what follows
        await admin.until(node.id, "in_sync")
        assert (await admin.node(node.id))["workers"] == []


async def test_a_busy_node_skips_what_lies_between_and_delays_no_other(admin: Admin) -> None:
    await admin.change("start")
    async with channel(admin.plane, admin.pair) as first, channel(admin.plane, admin.pair) as second:
        slow, quick = ScriptedNode(first), ScriptedNode(second)
        await slow.hello()
        await quick.hello()
        held = await slow.snapshot()
        await quick.ack(await quick.snapshot())
        for name in ("a", "b", "c"):
            await admin.change(name)
            newest = await quick.snapshot()
            await quick.ack(newest)
        await slow.ack(held)
        assert (await slow.snapshot()).hash == newest.hash


async def test_equal_configurations_wake_nobody(admin: Admin) -> None:
    await admin.change("one")
    control_plane_id = admin.path.rsplit("/", 1)[1]
    before = await admin.plane.snapshots.refresh(control_plane_id)
    waiting = asyncio.ensure_future(admin.plane.snapshots.watch(control_plane_id, before.hash))
    assert await admin.plane.snapshots.refresh(control_plane_id) is before
    assert not waiting.done()
    await admin.change("two")
    assert (await waiting).snapshot.hash != before.hash


async def test_the_newer_stream_of_a_node_wins(admin: Admin) -> None:
    await admin.change("one")
    async with channel(admin.plane, admin.pair) as opened:
        older = ScriptedNode(opened)
        await older.hello()
        newer = ScriptedNode(opened, older.id)
        await newer.hello()
        assert await older.ended() is grpc.StatusCode.OK
        await newer.ack(await newer.snapshot())
        await admin.until(newer.id, "in_sync")


async def test_a_configuration_with_a_plugin_that_the_node_lacks_is_withheld(admin: Admin) -> None:
    await admin.change("one")
    plugin = await admin.http.post(f"{admin.path}/core-entities/plugins", json={"name": "key-auth"})
    assert plugin.status_code == 201, plugin.text
    await admin.plane.snapshots.refresh(admin.path.rsplit("/", 1)[1])
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello(plugins=["datakit"])
        row = await admin.until(node.id, "rejected")
        assert "key-auth" in row["last_error"]["message"]
        assert row["compatibility_status"]["state"] == "COMPATIBILITY_STATE_INCOMPATIBLE"
        assert row["compatibility_status"]["issues"][0]["code"] == "plugin_set_incompatible"
        deleted = await admin.http.delete(f"{admin.path}/core-entities/plugins/{plugin.json()['id']}")
        assert deleted.status_code == 204
        await node.ack(await node.snapshot())
        assert (await admin.until(node.id, "in_sync"))["last_error"] is None


async def test_a_node_of_a_newer_version_is_refused_and_shown(admin: Admin) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        assert (await node.hello(version="4.0.0")).refusal.code == "kong_version_incompatible"
        assert await node.ended() is grpc.StatusCode.OK
    outdated = (await admin.http.get(f"{admin.path}/nodes/eol")).json()["items"]
    assert [item["node_id"] for item in outdated] == [node.id]


@pytest.mark.parametrize(
    ("node", "ours", "served"),
    [
        ("3.15.0", "3.15.0", True),
        ("3.15.9", "3.15.0", True),
        ("3.14.2-rc.1", "3.15.0", True),
        ("3.16.0", "3.15.0", False),
        ("2.15.0", "3.15.0", False),
        ("4.0.0", "3.15.0", False),
        ("new", "3.15.0", False),
        ("", "3.15.0", False),
    ],
)
def test_versions_are_served_up_to_our_minor_of_the_same_major(node: str, ours: str, served: bool) -> None:
    assert (version_problem(node, ours) is None) is served


@pytest.mark.parametrize(
    "first", [config_pb2.NodeMessage(), config_pb2.NodeMessage(hello=config_pb2.Hello(node_id="x"))]
)
async def test_a_stream_that_does_not_begin_with_a_hello_is_refused(
    admin: Admin, first: config_pb2.NodeMessage
) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.send(first)
        assert (await node.receive()).refusal.code == "invalid_hello"


# -- certificates


async def test_an_unknown_certificate_is_refused_and_the_log_says_so(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    for pair, words in ((key_pair(), "unknown client certificate"), (None, "no client certificate")):
        caplog.clear()
        async with channel(admin.plane, pair) as opened:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ScriptedNode(opened).hello()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await logged(caplog, words)


async def test_an_expired_certificate_is_refused_by_name(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    expired = key_pair(valid_days=-1)
    await admin.register(expired)
    async with channel(admin.plane, expired) as opened:
        refusal = await ScriptedNode(opened).receive()
        assert refusal.refusal.code == "expired_certificate"
        reporter = ScriptedReporter(opened, str(uuid.uuid4()))
        assert await reporter.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "(t) of control plane first expired at" in caplog.text


async def test_a_revoked_certificate_ends_its_streams_and_is_refused_by_name(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await node.snapshot()
        revoked = await admin.http.delete(f"{admin.path}/dp-client-certificates/{admin.certificate_id}")
        assert revoked.status_code == 204
        assert await node.ended() is not grpc.StatusCode.OK
    await admin.until(node.id, "offline")
    async with channel(admin.plane, admin.pair) as opened:
        refusal = await ScriptedNode(opened).receive()
        assert refusal.refusal.code == "revoked_certificate"
    assert "(t) of control plane first was revoked" in caplog.text
    await admin.register(admin.pair)
    async with channel(admin.plane, admin.pair) as opened:
        assert (await ScriptedNode(opened).hello()).HasField("welcome")


async def test_a_certificate_belongs_to_one_control_plane(admin: Admin) -> None:
    other = (await admin.http.post("/v2/control-planes", json={"name": "second"})).json()["id"]
    path = f"/v2/control-planes/{other}/dp-client-certificates"
    assert (await admin.http.post(path, json={"cert": admin.pair.cert})).status_code == 409
    mine = key_pair()
    assert (await admin.http.post(path, json={"cert": mine.cert})).status_code == 201
    async with channel(admin.plane, mine) as opened:
        assert (await ScriptedNode(opened).hello()).welcome.control_plane_name == "second"


async def test_a_certificate_that_moved_to_another_control_plane_takes_its_node_along(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """Another replica may delete and register it before this one has read either."""
    other = (await admin.http.post("/v2/control-planes", json={"name": "other"})).json()["id"]
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        reporter = ScriptedReporter(opened, node.id)
        await reporter.hello()
        async with admin.plane.database.writing() as session:
            await session.execute(update(DataPlaneCertificate).values(control_plane_id=other))
        with caplog.at_level(logging.WARNING):
            await admin.plane.pins.refresh()
            await asyncio.gather(node.ended(), reporter.code())
        assert "its client certificate was registered with another control plane" in caplog.text
    async with channel(admin.plane, admin.pair) as opened:
        again = ScriptedNode(opened, node.id)
        assert (await again.hello()).welcome.control_plane_name == "other"


async def test_a_certificate_that_expires_ends_the_reports_of_its_node(admin: Admin) -> None:
    brief = key_pair(valid_days=4 / 86_400)
    await admin.register(brief)
    async with channel(admin.plane, brief) as opened:
        reporter = ScriptedReporter(opened, str(uuid.uuid4()))
        await reporter.hello()

        async def report_on() -> None:
            for sequence in itertools.count(1):
                await reporter.report(analytics_pb2.Batch(sequence=sequence))

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(report_on(), PATIENCE)
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "expired" in str(ended.value.details())


async def test_certificates_are_kept_by_the_api(admin: Admin) -> None:
    path = f"{admin.path}/dp-client-certificates"
    assert await admin.register(admin.pair) == admin.certificate_id
    listed = (await admin.http.get(path)).json()
    assert listed["page"] == {"total_count": 1}
    assert listed["items"][0]["cert"] == admin.pair.cert
    assert (await admin.http.post(path, json={"cert": "not PEM"})).status_code == 400
    assert (await admin.http.post(path, json={})).json()["invalid_parameters"][0]["field"] == "cert"
    renewed = key_pair()
    put = await admin.http.put(f"{path}/{admin.certificate_id}", json={"cert": renewed.cert})
    assert put.json()["item"]["cert"] == renewed.cert
    async with channel(admin.plane, admin.pair) as opened:
        assert (await ScriptedNode(opened).receive()).refusal.code == "revoked_certificate"
    for missing in ("nothing", str(uuid.uuid4())):
        assert (await admin.http.get(f"{path}/{missing}")).status_code == 404


async def test_nodes_are_listed_in_pages_and_can_be_forgotten(admin: Admin) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        nodes = [ScriptedNode(opened) for _ in range(3)]
        for node in nodes:
            await node.hello()
        seen, address = [], f"{admin.path}/nodes?page[size]=2"
        while address:
            page = (await admin.http.get(address)).json()
            assert page["page"]["total_count"] == 3
            seen += [item["id"] for item in page["items"]]
            address = page["page"].get("next", "")
        assert seen == sorted(node.id for node in nodes)
    assert (await admin.http.delete(f"{admin.path}/nodes/{seen[0]}")).status_code == 204
    assert (await admin.http.get(f"{admin.path}/nodes/{seen[0]}")).status_code == 404


async def test_a_node_that_is_forgotten_while_it_is_connected_says_hello_again(admin: Admin) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        assert (await admin.http.delete(f"{admin.path}/nodes/{node.id}")).status_code == 204
        await node.ended()
        await ScriptedNode(opened, node.id).hello()
        assert (await admin.node(node.id))["sync_state"] == "pending"


# -- strange texts and bytes

FORGED = "n\r\n2026-01-01 ERROR control_plane: forged\x1b[2J\x85\u2028\0"


async def test_no_text_of_a_node_makes_a_line_of_the_log_or_acts_on_a_terminal(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await admin.http.post(f"{admin.path}/core-entities/plugins", json={"name": "key-auth"})
    assert plugin.status_code == 201, plugin.text
    await admin.plane.snapshots.refresh(admin.path.rsplit("/", 1)[1])
    fault = dict.fromkeys(("error", "entity_type", "entity_id", "entity_name", "field", "kept_hash"), FORGED)
    async with channel(admin.plane, admin.pair) as opened:
        withheld, refused, refusing = (ScriptedNode(opened) for _ in range(3))
        await withheld.hello(hostname=FORGED, plugins=[FORGED])
        await admin.until(withheld.id, "rejected")
        await refused.hello(hostname=FORGED, version=FORGED)
        assert await refused.ended() is grpc.StatusCode.OK
        await refusing.hello(hostname=FORGED)
        await refusing.nack(await refusing.snapshot(), **fault)
        await admin.until(refusing.id, "rejected")
        rows = [await admin.node(node.id) for node in (withheld, refused, refusing)]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("forged" in line for line in lines) == 3
    assert all(line.isprintable() for line in lines)
    assert sum(text.count("forged") for text in texts_in(rows)) == 3 + 2 + 6
    assert all(text.isprintable() for text in texts_in(rows))


def texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in within for text in texts_in(one)]


@pytest.mark.parametrize(
    "name", [field.name for field in analytics_pb2.ReportHello.DESCRIPTOR.fields if field.type == field.TYPE_STRING]
)
async def test_a_hello_of_telemetry_with_strange_texts_is_refused_or_served(admin: Admin, name: str) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        reporter = ScriptedReporter(opened, **{"node_id": str(uuid.uuid4()), name: FORGED})
        if name == "version":
            assert await reporter.hello() == 0
            assert await reporter.report(analytics_pb2.Batch(sequence=1)) == 1
            async with admin.plane.database.reading() as session:
                assert (await session.execute(select(ANALYTICS_EPOCHS.c.node_version))).scalar_one().isprintable()
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await reporter.hello()
            assert await reporter.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_mutated_messages_kill_nothing(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "grpc")  # it tells of each message that is none
    await admin.change("one")
    hello = config_pb2.NodeMessage(hello=config_pb2.Hello(node_id=str(uuid.uuid4()), version="3.15.0", hostname="h"))
    batch = analytics_pb2.ReportMessage(batch=analytics_pb2.Batch(sequence=1))
    chance = random.Random(20)
    for number in range(60):
        path, message = (
            ("/tandem.config.v1.ConfigSync/Stream", hello)
            if number % 2
            else ("/tandem.analytics.v1.Telemetry/Report", batch)
        )
        data = bytearray(message.SerializeToString() + chance.randbytes(8))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        async with channel(admin.plane, admin.pair) as opened:
            call = opened.stream_stream(path)()
            await call.write(bytes(data))
            await call.done_writing()
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for _ in call:  # One that is sound all the same is sent a snapshot, and its end lies behind.
                        pass
    async with channel(admin.plane, admin.pair) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await node.ack(await node.snapshot())
        await admin.until(node.id, "in_sync")


async def test_bytes_that_are_no_tls_are_refused_with_a_line(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    assert admin.plane.wire is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.plane.wire.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        async with asyncio.timeout(PATIENCE):
            while await reader.read(1000):
                pass
    except ConnectionError:
        pass  # a reset is as good an end as a close
    writer.close()
    await logged(caplog, "TLS handshake failed")


# -- telemetry over the wire


async def test_a_batch_is_acknowledged_when_it_is_stored_and_counts_once(admin: Admin) -> None:
    event = analytics_pb2.RequestEvent(
        status=200, finished_us=1_700_000_000_000_000, source="upstream", outcome="complete"
    )
    node_id = str(uuid.uuid4())
    async with channel(admin.plane, admin.pair) as opened:
        reporter = ScriptedReporter(opened, node_id)
        assert await reporter.hello() == 0
        batch = analytics_pb2.Batch(sequence=1, events=[event, event])
        assert await reporter.report(batch) == 1
        assert await reporter.report(batch) == 1
    async with channel(admin.plane, admin.pair) as opened:
        reporter = ScriptedReporter(opened, node_id)
        assert await reporter.hello() == 1
        assert await reporter.report(batch) == 1
    span = {"type": "absolute", "start": "2023-11-14T00:00:00Z", "end": "2023-11-15T00:00:00Z"}
    answer = await admin.http.post("/v2/metrics", json={"time_range": span})
    assert answer.json()["data"][0]["event"] == {"request_count": 2}


async def test_a_node_is_not_told_what_of_ours_failed(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any) -> None:
        raise IntegrityError("INSERT INTO secrets", {}, ValueError("value of a column"))

    engine = admin.plane.database.engine.sync_engine
    async with channel(admin.plane, admin.pair) as opened:
        reporter = ScriptedReporter(opened, str(uuid.uuid4()))
        await reporter.hello()
        event.listen(engine, "before_cursor_execute", refuse)
        try:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await reporter.report(analytics_pb2.Batch(sequence=1))
            node = ScriptedNode(opened)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await node.hello()
        finally:
            event.remove(engine, "before_cursor_execute", refuse)
        for raised in (ended.value, refused.value):
            assert raised.code() is grpc.StatusCode.INTERNAL
            assert raised.details() == "the control plane failed: its log says why"
        assert "INSERT INTO secrets" in caplog.text
        again = ScriptedReporter(opened, str(uuid.uuid4()))
        await again.hello()
        assert await again.report(analytics_pb2.Batch(sequence=1)) == 1


async def test_a_second_node_with_the_same_spool_takes_its_place_and_the_first_hears_it(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    node_id = str(uuid.uuid4())
    async with channel(admin.plane, admin.pair) as one, channel(admin.plane, admin.pair) as other:
        first = ScriptedReporter(one, node_id)
        await first.hello()
        assert await first.report(analytics_pb2.Batch(sequence=1)) == 1
        second = ScriptedReporter(other, node_id)
        assert await second.hello() == 1
        assert await first.code() is grpc.StatusCode.ABORTED
        assert "two nodes" not in caplog.text  # the first may have been dead
        assert await second.report(analytics_pb2.Batch(sequence=2)) == 2
        apart = ScriptedReporter(one, node_id, epoch="f" * 32)
        assert await apart.hello() == 0
        assert await second.report(analytics_pb2.Batch(sequence=3)) == 3
        assert await apart.report(analytics_pb2.Batch(sequence=1)) == 1
    assert f"two nodes report under the id {node_id}, from 127.0.0.1:" in caplog.text


async def test_a_report_without_a_hello_or_a_sequence_ends(admin: Admin) -> None:
    async with channel(admin.plane, admin.pair) as opened:
        reporter = ScriptedReporter(opened, "not-a-uuid")
        with pytest.raises(grpc.aio.AioRpcError):
            await reporter.hello()
        assert await reporter.code() is grpc.StatusCode.INVALID_ARGUMENT
        reporter = ScriptedReporter(opened, str(uuid.uuid4()))
        await reporter.hello()
        with pytest.raises(grpc.aio.AioRpcError):
            await reporter.report(analytics_pb2.Batch(sequence=0))
        assert await reporter.code() is grpc.StatusCode.INVALID_ARGUMENT
