"""Two control planes on one PostgreSQL: what is done through one holds for the nodes of both.

Whatever reads the database now and then is made to sleep here, unless a test is about it: what arrives was announced.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, text, update

from control_plane import replicas as room
from control_plane import wire
from control_plane.app import create_app
from control_plane.batches import BatchWriter, Changes
from control_plane.errors import KeyMissing, StartError
from control_plane.holdings import HoldingsCache
from control_plane.models import Keyring, Node
from control_plane.pins import read_certificate
from control_plane.plane import ControlPlane
from control_plane.rotation import rotate_key
from control_plane.settings import Settings
from control_plane.snapshot import build
from tests.control_plane.scripted_node import PATIENCE, KeyPair, Received, ScriptedNode, channel, key_pair

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

TOKEN = "kpat_test"
KEY = Fernet.generate_key().decode()
NEVER = 3600.0


class Replica:
    """One control plane process, as its clients see it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(plane)),
            base_url="http://control-plane",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )

    async def call(self, method: str, path: str, body: Any = None, expect: int = 200) -> Any:
        response = await self.http.request(method, path, json=body)
        assert response.status_code == expect, response.text
        return response.json() if response.content else None


@contextlib.asynccontextmanager
async def running(database_url: str, state_dir: Path, key: str = KEY) -> AsyncIterator[Replica]:
    settings = Settings(state_dir, database_url, grpc_port=0, admin_token=TOKEN, encryption_key=key)
    async with ControlPlane(settings).running() as plane:
        replica = Replica(plane)
        yield replica
        await replica.http.aclose()


class Pair:
    """Two replicas, one control plane resource, one registered certificate."""

    def __init__(self, first: Replica, second: Replica) -> None:
        self.first = first
        self.second = second
        self.id = ""
        self.keys = key_pair()

    @property
    def path(self) -> str:
        return f"/v2/control-planes/{self.id}"

    async def prepare(self) -> None:
        self.id = (await self.first.call("POST", "/v2/control-planes", {"name": "shared"}, 201))["id"]
        await self.register(self.first, self.keys)
        await self.accepted(self.second, self.keys)

    async def register(self, replica: Replica, keys: KeyPair) -> str:
        created = await replica.call("POST", f"{self.path}/dp-client-certificates", {"cert": keys.cert}, 201)
        return str(created["item"]["id"])

    async def accepted(self, replica: Replica, keys: KeyPair) -> None:
        fingerprint = read_certificate(keys.cert)[2]
        await until(lambda: replica.plane.pins.of(fingerprint) is not None)

    async def write(self, replica: Replica, name: str) -> None:
        body = {"name": name, "host": f"{name}.internal"}
        await replica.call("POST", f"{self.path}/core-entities/services", body, 201)

    async def state(self, replica: Replica, node: ScriptedNode) -> str:
        return str((await replica.call("GET", f"{self.path}/nodes/{node.id}"))["item"]["sync_state"])

    async def shows(self, replica: Replica, node: ScriptedNode, state: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.state(replica, node) != state:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def services(received: Received) -> set[str]:
    return {service["name"] for service in orjson.loads(received.payload)["entities"]["services"]}


async def take(node: ScriptedNode) -> Received:
    """Receive a snapshot and say so."""
    received = await node.snapshot()
    await node.ack(received)
    return received


async def take_until(node: ScriptedNode, name: str) -> Received:
    """Several writes may come in one snapshot or in several."""
    while name not in services(received := await take(node)):
        pass
    return received


@pytest.fixture(autouse=True)
def nothing_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(wire, "PINS_SECONDS", NEVER)


@pytest.fixture
async def pair(database_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    async with running(database_url, tmp_path / "a") as first, running(database_url, tmp_path / "b") as second:
        pair = Pair(first, second)
        await pair.prepare()
        yield pair


class Line:
    """Stands before `asyncpg.connect`: while it is cut, nobody connects to listen."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.attempts = 0

    async def connect(self, **options: Any) -> Any:
        self.attempts += 1
        await self.open.wait()
        return await asyncpg.connect(**options)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()

    class Driver:
        connect = staticmethod(line.connect)
        PostgresError = asyncpg.PostgresError
        InterfaceError = asyncpg.InterfaceError

    monkeypatch.setattr(room, "asyncpg", Driver)
    return line


async def hang_up(pair: Pair, line: Line) -> None:
    """End the connections that listen; those that take their place wait for `line.open`."""
    line.open.clear()
    before = line.attempts
    async with pair.first.plane.database.writing() as session:
        killed = await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = :name AND datname = current_database()"
            ),
            {"name": room.CHANNEL},
        )
        assert len(killed.all()) == 2
    await until(lambda: line.attempts == before + 2)


# -- configurations


async def test_a_write_through_either_reaches_the_nodes_of_both(pair: Pair) -> None:
    async with channel(pair.first.plane, pair.keys) as a, channel(pair.second.plane, pair.keys) as b:
        at_first, at_second = ScriptedNode(a), ScriptedNode(b)
        for node in (at_first, at_second):
            await node.hello()
            await take(node)
        await pair.write(pair.first, "written-to-first")
        here, there = await take(at_first), await take(at_second)
        assert services(here) == services(there) == {"written-to-first"}
        assert (here.version, here.hash) == (there.version, there.hash)
        await pair.write(pair.second, "written-to-second")
        assert services(await take(at_first)) == services(await take(at_second))
        for replica in (pair.first, pair.second):
            for node in (at_first, at_second):
                await pair.shows(replica, node, "in_sync")


async def test_an_apply_through_one_reaches_a_node_of_the_other(pair: Pair) -> None:
    async with channel(pair.second.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        document = {"_format_version": "3.0", "services": [{"name": "applied", "url": "http://applied.internal"}]}
        answer = await pair.first.call("POST", f"{pair.path}/apply", {"document": document, "commit": True})
        received = await take(node)
        assert (received.version, received.hash) == (answer["version"], answer["hash"])


async def test_what_is_written_through_both_at_once_is_in_the_snapshots_of_both(pair: Pair) -> None:
    """To the byte what the database holds, though each remembers what it wrote itself."""
    for replica in (pair.first, pair.second):
        await replica.plane.snapshots.get(pair.id)
    for number in range(10):
        await asyncio.gather(
            pair.write(pair.first, f"first-{number}"),
            pair.write(pair.second, f"second-{number}"),
            pair.write(pair.first, f"third-{number}"),
        )
        await pair.second.call("PATCH", f"{pair.path}/core-entities/services/first-{number}", {"port": 1000 + number})
    async with pair.first.plane.database.reading() as session:
        held = build(await HoldingsCache(pair.first.plane.cipher).load(session, pair.id))
    for replica in (pair.first, pair.second):
        snapshots = replica.plane.snapshots
        await until(lambda snapshots=snapshots: snapshots.covered(pair.id) == held.version)
        made = (await snapshots.get(pair.id)).snapshot
        assert (made.hash, made.payload) == (held.hash, held.payload)


async def write_nothing(pair: Pair, *, fail: bool) -> int:
    """Returns the version that this makes."""
    async with pair.first.plane.database.writing() as session:
        version = await BatchWriter(session, pair.id, pair.first.plane.cipher).write(Changes())
        if fail:
            raise RuntimeError("midway")
    return version


async def test_a_write_that_is_rolled_back_is_not_announced(pair: Pair) -> None:
    heard: list[str] = []
    listening = await asyncpg.connect(**pair.first.plane.database.connect_options("test"))
    try:
        await listening.add_listener(room.CHANNEL, lambda *words: heard.append(words[3]))
        with pytest.raises(RuntimeError, match="midway"):
            await write_nothing(pair, fail=True)
        version = await write_nothing(pair, fail=False)
        await until(lambda: bool(heard))
        assert [word.split()[:2] for word in heard] == [[pair.id, str(version)]]
    finally:
        await listening.close()


async def test_what_changed_while_nobody_could_listen_arrives_with_the_next_connection(
    line: Line, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async with channel(pair.second.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await hang_up(pair, line)
        await pair.write(pair.first, "meanwhile")
        new = key_pair()
        await pair.register(pair.first, new)
        line.open.set()
        await take_until(node, "meanwhile")
        await pair.accepted(pair.second, new)
        await pair.write(pair.first, "afterwards")
        await take_until(node, "afterwards")
    assert "making another" in caplog.text


async def test_without_any_announcement_the_versions_are_compared(
    line: Line, pair: Pair, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.open.clear()
    monkeypatch.setattr(room, "POLL_SECONDS", 0.02)
    async with running(database_url, tmp_path / "c") as deaf, channel(deaf.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await pair.write(pair.first, "unheard")
        await take_until(node, "unheard")


async def test_a_database_that_refuses_listeners_is_asked_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = 0

    class Driver:
        PostgresError = asyncpg.PostgresError
        InterfaceError = asyncpg.InterfaceError

        @staticmethod
        async def connect(**options: Any) -> Any:
            nonlocal refused
            if refused < 3:
                refused += 1
                raise asyncpg.TooManyConnectionsError("sorry, too many clients already")
            return await asyncpg.connect(**options)

    monkeypatch.setattr(room, "asyncpg", Driver)
    async with running(database_url, tmp_path / "c") as late, channel(late.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await pair.write(pair.first, "heard-at-last")
        await take_until(node, "heard-at-last")
    assert refused == 3
    assert "too many clients" in caplog.text


async def test_words_of_strangers_do_no_harm(pair: Pair) -> None:
    words = [
        "",
        "a",
        "a b c d",
        "certificates",
        "\u00e4 -1 \u00fc",
        f"{pair.id} x y",
        f"{pair.id} 9 z",
        f"{pair.id} -4 z",
    ]
    async with channel(pair.second.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        for word in words:
            async with pair.first.plane.database.writing() as session:
                await session.execute(text("SELECT pg_notify(:name, :word)"), {"name": room.CHANNEL, "word": word})
        await pair.write(pair.first, "real")
        assert services(await take(node)) == {"real"}


async def test_a_control_plane_that_is_deleted_through_one_is_gone_from_both(pair: Pair) -> None:
    async with channel(pair.second.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await pair.first.call("DELETE", pair.path, expect=204)
        await node.ended()
    await until(lambda: pair.id not in pair.second.plane.snapshots.served())


async def test_the_history_counts_from_the_entry_before_whichever_replica_made_it(pair: Pair) -> None:
    await pair.write(pair.first, "single")
    await pair.first.plane.history.close()
    listed = [{"name": f"applied-{number}", "url": "http://applied.internal"} for number in range(3)]
    document = {"_format_version": "3.0", "services": listed}
    await pair.second.call("POST", f"{pair.path}/apply", {"document": document, "commit": True})
    await pair.second.plane.history.settled(pair.id)
    await pair.write(pair.first, "another")
    await pair.first.plane.history.close()
    kept = (await pair.first.call("GET", f"{pair.path}/snapshots"))["data"]
    counts = [tuple(entry["summary"][name] for name in ("creating", "updating", "deleting")) for entry in kept]
    assert counts == [(1, 0, 0), (3, 0, 1), (1, 0, 0)]


# -- certificates


async def test_a_certificate_that_is_registered_through_one_opens_the_other(pair: Pair) -> None:
    new = key_pair()
    await pair.register(pair.first, new)
    await pair.accepted(pair.second, new)
    async with channel(pair.second.plane, new) as opened:
        assert (await ScriptedNode(opened).hello()).welcome.control_plane_name == "shared"


async def test_a_certificate_that_is_revoked_through_one_ends_its_streams_on_the_other(pair: Pair) -> None:
    new = key_pair()
    certificate_id = await pair.register(pair.first, new)
    await pair.accepted(pair.second, new)
    async with channel(pair.second.plane, new) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await pair.first.call("DELETE", f"{pair.path}/dp-client-certificates/{certificate_id}", expect=204)
        await node.ended()


# -- nodes that move


async def test_a_node_that_is_forgotten_through_the_other_one_says_hello_again(pair: Pair) -> None:
    async with channel(pair.first.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        received = await take(node)
        await pair.shows(pair.second, node, "in_sync")
        await pair.second.call("DELETE", f"{pair.path}/nodes/{node.id}", expect=204)
        await node.status(received)
        await node.ended()


async def test_a_node_that_leaves_is_offline_for_both(pair: Pair) -> None:
    async with channel(pair.first.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await pair.shows(pair.second, node, "in_sync")
    await pair.shows(pair.second, node, "offline")
    await pair.shows(pair.first, node, "offline")


async def test_a_node_that_moved_is_not_taken_offline_by_the_replica_that_it_left(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path / "b") as second, contextlib.AsyncExitStack() as old:
        first = await old.enter_async_context(running(database_url, tmp_path / "a"))
        pair = Pair(first, second)
        await pair.prepare()
        before = ScriptedNode(await old.enter_async_context(channel(first.plane, pair.keys)))
        await before.hello()
        known = await take(before)
        await pair.shows(second, before, "in_sync")
        async with channel(second.plane, pair.keys) as opened:
            node = ScriptedNode(opened, before.id)
            await node.hello(known=known)
            await node.status(known)
            await old.aclose()  # the first replica has written the end of each of its streams when it has closed
            assert await pair.state(second, node) == "in_sync"


async def test_what_is_said_on_a_stream_that_was_left_ends_it_and_changes_nothing(pair: Pair) -> None:
    async with channel(pair.first.plane, pair.keys) as a, channel(pair.second.plane, pair.keys) as b:
        before = ScriptedNode(a)
        await before.hello()
        known = await take(before)
        await pair.shows(pair.first, before, "in_sync")
        node = ScriptedNode(b, before.id)
        await node.hello(known=known)
        await pair.write(pair.second, "later")
        newer = await take(node)
        await pair.shows(pair.second, node, "in_sync")
        await before.status(known)
        await before.ended()
        row = (await pair.first.call("GET", f"{pair.path}/nodes/{node.id}"))["item"]
        assert row["config_hash"] == newer.hash


async def test_a_node_is_not_sent_back_in_time_by_a_replica_that_has_not_heard_yet(line: Line, pair: Pair) -> None:
    async with channel(pair.first.plane, pair.keys) as a, channel(pair.second.plane, pair.keys) as b:
        other = ScriptedNode(b)
        await other.hello()
        await take(other)
        await hang_up(pair, line)
        node = ScriptedNode(a)
        await node.hello()
        await pair.write(pair.first, "newer")
        known = await take_until(node, "newer")
        moved = ScriptedNode(b, node.id)
        await moved.hello(known=known)
        await pair.write(pair.second, "newest")
        assert services(await moved.snapshot()) == {"newer", "newest"}
        line.open.set()


async def test_a_node_is_not_called_in_sync_with_what_was_current_before(pair: Pair) -> None:
    async with channel(pair.first.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await pair.shows(pair.second, node, "in_sync")
        await pair.write(pair.second, "another")
        await pair.second.plane.snapshots.refresh(pair.id)
        assert await pair.state(pair.second, node) == "pending"


# -- clocks that are apart


@contextlib.contextmanager
def clock_off_by(seconds: float) -> Iterator[None]:
    """What happens inside happens on a machine whose clock is so wrong."""
    right = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: right() + seconds)
        yield


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_a_connected_node_is_waited_for_whatever_the_clock_of_who_asks_says(pair: Pair, seconds: float) -> None:
    async with channel(pair.first.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        await node.hello()
        await take(node)
        await pair.shows(pair.first, node, "in_sync")
        await pair.write(pair.second, "later")
        await node.snapshot()  # and no answer
        with clock_off_by(seconds):
            version = (await pair.second.call("GET", f"{pair.path}/expected-config-version"))["expected_config_version"]
            receipts = await pair.second.call("GET", f"{pair.path}/snapshots/{version}/receipts")
            assert [shown["connected"] for shown in receipts["items"]] == [True]
            assert not receipts["complete"]
            assert await pair.state(pair.second, node) == "pending"


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_a_node_that_fell_silent_is_offline_whatever_the_clocks_say(pair: Pair, seconds: float) -> None:
    async with channel(pair.first.plane, pair.keys) as opened:
        node = ScriptedNode(opened)
        with clock_off_by(seconds):
            await node.hello()
            await take(node)
            await pair.shows(pair.first, node, "in_sync")
        async with pair.second.plane.database.writing() as session:
            await session.execute(update(Node).values(last_seen=Node.last_seen - 600))
        for clock in (-7200, 0, 7200):
            with clock_off_by(clock):
                assert await pair.state(pair.second, node) == "offline"
                listed = (await pair.second.call("GET", f"{pair.path}/nodes"))["items"]
                assert [shown["sync_state"] for shown in listed] == ["offline"]


# -- what replicas share


async def test_replicas_have_one_authority_and_the_database_keeps_it_encrypted(pair: Pair) -> None:
    mine, theirs = (replica.plane.settings.state_dir for replica in (pair.first, pair.second))
    assert (mine / "ca.pem").read_bytes() == (theirs / "ca.pem").read_bytes()
    assert (mine / "server.key").read_bytes() != (theirs / "server.key").read_bytes()
    assert (theirs / "ca.key").stat().st_mode & 0o777 == 0o600
    async with pair.first.plane.database.reading() as session:
        kept = (await session.execute(select(Keyring.value))).scalars().all()
    assert not any("BEGIN" in value for value in kept)


async def test_a_replica_that_had_an_authority_of_its_own_takes_the_shared_one(
    pair: Pair, database_url: str, tmp_path: Path
) -> None:
    async with running(f"sqlite:///{tmp_path / 'alone.db'}", tmp_path / "c"):
        own = (tmp_path / "c" / "ca.pem").read_bytes()
    async with running(database_url, tmp_path / "c") as third, channel(third.plane, pair.keys) as opened:
        assert (await ScriptedNode(opened).hello()).WhichOneof("message") == "welcome"
    shared = (tmp_path / "c" / "ca.pem").read_bytes()
    assert shared != own
    assert shared == (pair.first.plane.settings.state_dir / "ca.pem").read_bytes()


async def test_a_replica_with_another_encryption_key_does_not_start(
    pair: Pair, database_url: str, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match="TANDEM_ENCRYPTION_KEY"):
        async with running(database_url, tmp_path / "c", Fernet.generate_key().decode()):
            pass


async def test_replicas_that_start_at_once_on_an_empty_database_agree(database_url: str, tmp_path: Path) -> None:
    async def erase() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        finally:
            await connection.close()

    await erase()
    names = [tmp_path / name for name in "abc"]
    async with contextlib.AsyncExitStack() as stack:
        starts: list[Awaitable[Replica]] = [
            stack.enter_async_context(running(database_url, directory)) for directory in names
        ]
        started = await asyncio.gather(*starts)
        assert len({(name / "ca.pem").read_bytes() for name in names}) == 1
        first, second, _ = started
        pair = Pair(first, second)
        await pair.prepare()


# -- a new encryption key


SECOND_KEY = Fernet.generate_key().decode()


async def write_secret(pair: Pair, replica: Replica, name: str) -> None:
    """A consumer with a key, which is encrypted under the replica's first key."""
    await replica.call("POST", f"{pair.path}/core-entities/consumers", {"username": name}, 201)
    path = f"{pair.path}/core-entities/consumers/{name}/key-auth"
    await replica.call("POST", path, {"key": f"sk-{name}"}, 201)


async def assert_all_is_read(pair: Pair, written: set[str]) -> None:
    """Both replicas show every secret, and build a snapshot that holds it."""
    for replica in (pair.first, pair.second):
        listed = await replica.call("GET", f"{pair.path}/core-entities/key-auths")
        assert {item["key"] for item in listed["data"]} == written
        snapshot = await replica.plane.snapshots.refresh(pair.id)
        held = orjson.loads(snapshot.payload)["entities"]["keyauth_credentials"]
        assert {item["key"] for item in held} == written


async def test_a_new_key_goes_round_while_both_replicas_write_and_read(database_url: str, tmp_path: Path) -> None:
    old, new = KEY, SECOND_KEY
    written: set[str] = set()

    async def check() -> None:
        for replica in (pair.first, pair.second):
            name = f"c{len(written)}"
            await write_secret(pair, replica, name)
            written.add(f"sk-{name}")
        await assert_all_is_read(pair, written)

    async with contextlib.AsyncExitStack() as a, contextlib.AsyncExitStack() as b:

        async def restart(stack: contextlib.AsyncExitStack, name: str, keys: str) -> Replica:
            await stack.aclose()
            return await stack.enter_async_context(running(database_url, tmp_path / name, keys))

        async def roll(keys: str) -> None:
            pair.first = await restart(a, "a", keys)
            await check()
            pair.second = await restart(b, "b", keys)
            await check()

        pair = Pair(await restart(a, "a", old), await restart(b, "b", old))
        await pair.prepare()
        await check()
        await roll(f"{old},{new}")
        await roll(f"{new},{old}")
        settings = Settings(tmp_path / "a", database_url, grpc_port=0, encryption_key=f"{new},{old}")
        await rotate_key(settings, say=lambda _: None)
        await check()
        await roll(new)


async def test_a_secret_whose_key_is_missing_is_answered_by_what_mends_it_and_said_once(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = f"{SECOND_KEY},{KEY}"
    async with running(database_url, tmp_path / "b") as second, running(database_url, tmp_path / "a", keys) as first:
        pair = Pair(first, second)
        await pair.prepare()
        await second.plane.snapshots.get(pair.id)
        await write_secret(pair, first, "c")
        places = ("/core-entities/key-auths", "/core-entities/consumers/c/key-auth", "/document")
        for place in (*(f"{pair.path}{place}" for place in places), "/admin/shared/key-auths"):
            refused = await second.call("GET", place, expect=503)
            assert "TANDEM_ENCRYPTION_KEY" in refused["message"]
        told = f"no snapshot could be built for control plane {pair.id}"
        await until(lambda: told in caplog.text)
        for name in ("d", "e", "f"):
            await pair.write(first, name)
            second.plane.snapshots.touch(pair.id)
            with pytest.raises(KeyMissing):
                await second.plane.snapshots.refresh(pair.id)
        assert [told in record.getMessage() for record in caplog.records].count(True) == 1
    assert "Traceback" not in caplog.text
