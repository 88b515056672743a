"""Snapshots that are kept: who made them, what changed, the way back; on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError

from control_plane import history
from control_plane.history import History
from control_plane.models import AUDIT_LOG, SNAPSHOTS
from tests.control_plane.callers import caller
from tests.control_plane.client import Client, running_client

PATIENCE_SECONDS = 20
EMPTY = {"_format_version": "3.0"}
SECRET = "key-of-bob-in-the-clear"


def services(*names: str, **more: Any) -> dict[str, Any]:
    return {**EMPTY, "services": [{"name": name, "host": f"{name}.test", **more} for name in names]}


def consumer(key: str) -> dict[str, Any]:
    return {**EMPTY, "consumers": [{"username": "bob", "keyauth_credentials": [{"key": key}]}]}


def summary(answer: dict[str, Any]) -> tuple[int, int, int]:
    found = answer["plan"]["summary"]
    return found["creating"], found["updating"], found["deleting"]


async def snapshots(client: Client, **query: str) -> list[dict[str, Any]]:
    return list((await client.get(f"/v2/control-planes/{client.id}/snapshots", query))["data"])


async def rollback(client: Client, version: int, expect: int = 200, **body: Any) -> Any:
    path = f"/v2/control-planes/{client.id}/snapshots/{version}/rollback"
    return await client.call("POST", path, {"commit": True, **body}, expect)


async def names(client: Client) -> list[str]:
    return sorted(entity["name"] for entity in (await client.get("services"))["data"])


async def adoptions(client: Client) -> list[Any]:
    async with client.plane.database.reading() as session:
        found = select(AUDIT_LOG.c.details).where(AUDIT_LOG.c.action == "adopt").order_by(AUDIT_LOG.c.id)
        return list((await session.execute(found)).scalars())


async def entities(client: Client, kind: str = "services") -> list[Any]:
    found = (await client.get(kind))["data"]
    return [{key: value for key, value in entity.items() if key != "updated_at"} for entity in found]


@contextlib.contextmanager
def away(client: Client, at: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """The database goes away whenever an entry is written to it, at the statement or at its commit. Set once it did."""
    for pause in ("QUIET_SECONDS", "BREATH_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(history, pause, 0.0)
    refused, entering = asyncio.Event(), False

    def refuse() -> None:
        refused.set()
        raise OperationalError(at, {}, ConnectionRefusedError())

    def execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal entering
        entering = " snapshots " in statement
        if "INTO snapshots " in statement and at == "statement":
            refuse()

    def commit(_connection: Any) -> None:
        if entering and at == "commit":
            refuse()

    engine = client.plane.database.engine.sync_engine
    listeners = {"before_cursor_execute": execute, "commit": commit}
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield refused
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


def waiting(client: Client) -> asyncio.Task[None]:
    """What enters the control plane's state as soon as it can."""
    task = client.plane.history._flurries[client.id].task
    assert task is not None
    return task


async def test_every_apply_is_kept_with_author_time_and_what_changed(client: Client) -> None:
    first = await client.apply(services("a", "b"))
    second = await client.apply(services("b", "c", port=81))
    newest, oldest = await snapshots(client)
    assert (newest["version"], newest["hash"]) == (second["version"], second["hash"])
    assert (oldest["version"], oldest["hash"]) == (first["version"], first["hash"])
    assert newest["summary"] == {"creating": 1, "updating": 1, "deleting": 1, "total": 3}
    assert newest["action"] == "sync"
    assert newest["author"] == "TANDEM_ADMIN_TOKEN"
    assert newest["created_at"].endswith("Z")
    one = await client.get(f"/v2/control-planes/{client.id}/snapshots/{newest['version']}")
    assert one["entities"] == {"services": 2}


async def test_what_changes_nothing_is_no_entry(client: Client) -> None:
    await client.apply(services("a"))
    await client.apply(services("a"))
    await client.apply(services("b"), commit=False)
    assert len(await snapshots(client)) == 1


async def test_a_diff_shows_what_changed_and_no_secrets(client: Client) -> None:
    first = await client.apply(consumer(SECRET))
    second = await client.apply(consumer("another-key-in-the-clear"), force=True)
    base = f"/v2/control-planes/{client.id}/snapshots"
    shown = await client.get(f"{base}/{second['version']}/diff")
    assert (shown["from"], shown["to"]) == (first["version"], second["version"])
    assert summary(shown) == (1, 0, 1)
    assert shown["plan"]["changes"]["creating"][0]["name"].endswith("for consumer bob")
    whole = await client.get(f"{base}/{second['version']}/diff", {"against": "0"})
    assert summary(whole) == (2, 0, 0)
    assert "in-the-clear" not in str(shown) + str(whole)
    await client.get(f"{base}/4711/diff", expect=404)


async def test_a_rollback_brings_back_ids_secrets_and_unique_names(client: Client) -> None:
    document = {**services("a", "b"), "consumers": consumer(SECRET)["consumers"]}
    first = await client.apply(document)
    before = await entities(client), await entities(client, "key-auths"), await entities(client, "consumers")
    ids = {entity["name"]: entity["id"] for entity in before[0]}
    swapped = services("b", "a")
    swapped["services"][0]["id"], swapped["services"][1]["id"] = ids["a"], ids["b"]
    await client.apply(swapped)
    shown = await rollback(client, first["version"], commit=False)
    assert summary(shown) == (2, 2, 0)
    assert (await client.get(f"services/{ids['a']}"))["name"] == "b"
    done = await rollback(client, first["version"])
    assert done["version"] > first["version"] + 1
    assert (await entities(client), await entities(client, "key-auths"), await entities(client, "consumers")) == before
    assert (await snapshots(client))[0]["action"] == f"rollback to {first['version']}"
    assert summary(await client.apply(document)) == (0, 0, 0)


async def test_a_rollback_of_a_rollback_is_the_state_before(client: Client) -> None:
    await client.apply(services("a"))
    second = await client.apply(services("b"))
    await rollback(client, second["version"] - 1)
    await rollback(client, second["version"])
    assert [entity["name"] for entity in await entities(client)] == ["b"]
    assert [entry["version"] for entry in await snapshots(client)] == [4, 3, 2, 1]


async def test_a_rollback_restores_owners_and_stops_before_what_several_sets_own(client: Client) -> None:
    await client.apply(services("a"), select_tags=["team-a"])
    await client.apply(services("b"), select_tags=["team-b"])
    start = (await snapshots(client))[0]["version"]
    await client.apply(services("a", port=81), select_tags=["team-a"])
    assert summary(await rollback(client, start, commit=False)) == (0, 1, 0)
    await client.apply(services("b", port=81), select_tags=["team-b"])
    refused = await rollback(client, start, 400)
    assert {tuple(error["owner"]) for error in refused["errors"]} == {("team-a",), ("team-b",)}
    assert summary(await rollback(client, start, commit=False, select_tags=["team-a"])) == (0, 1, 0)
    assert summary(await rollback(client, start, adopt=True)) == (0, 2, 0)
    await client.apply(services("a"), 400, select_tags=["team-b"])
    kept = [{"from": [team], "to": [team]} for team in ("team-a", "team-b")]
    assert sorted(await adoptions(client), key=str) == kept


async def test_a_rollback_stops_before_it_brings_back_what_others_gave_up(client: Client) -> None:
    await client.apply(services("b"), select_tags=["b"])
    start = (await client.apply(services("a"), select_tags=["a"]))["version"]
    await client.apply(EMPTY, select_tags=["b"])
    assert summary(await rollback(client, start, commit=False)) == (1, 0, 0)
    await client.apply(services("a", port=81), select_tags=["a"])
    refused = await rollback(client, start, 400)
    assert {error["entity"]: error["owner"] for error in refused["errors"]} == {"service a": ["a"], "service b": ["b"]}
    (given_up,) = [error for error in refused["errors"] if error["entity"] == "service b"]
    assert "was owned by the tag 'b'" in given_up["message"]
    assert await names(client) == ["a"]


async def test_with_select_tags_only_what_is_theirs_goes_back(client: Client) -> None:
    await client.apply(services("a1"), select_tags=["a"])
    start = (await client.apply(services("b1"), select_tags=["b"]))["version"]
    await client.apply(EMPTY, select_tags=["b"])
    latest = await client.apply(services("untagged"), mode="apply")
    nothing = await rollback(client, start, select_tags=["a"])
    assert (summary(nothing), nothing["version"]) == ((0, 0, 0), latest["version"])
    await client.apply(services("a2"), select_tags=["a"])
    await client.call("POST", "services", {"name": "single", "host": "x.test", "tags": ["a"]}, 201)
    assert summary(await rollback(client, start, select_tags=["a"])) == (1, 0, 2)
    assert await names(client) == ["a1", "untagged"]
    await client.apply(services("a1", port=81), 400, select_tags=["b"])
    assert summary(await client.apply(services("a1"), select_tags=["a"])) == (0, 0, 0)


async def test_with_select_tags_what_carries_them_and_others_own_is_adopted_or_stops_it(client: Client) -> None:
    start = (await client.apply(services("taken", "gone", tags=["b"]), select_tags=["a"]))["version"]
    await client.apply(services("taken", tags=["a"], port=81), select_tags=["b"], adopt=True)
    await client.apply(services("new", tags=["a"]), mode="apply", select_tags=["b"])
    refused = await rollback(client, start, 400, select_tags=["a"])
    assert {error["entity"]: error["owner"] for error in refused["errors"]} == {
        "service new": ["b"],
        "service taken": ["b"],
    }
    assert await names(client) == ["new", "taken"]
    shown = await rollback(client, start, select_tags=["a"], adopt=True)
    assert {item["name"]: item["owner"] for item in shown["plan"]["adopting"]} == {"new": ["b"], "taken": ["b"]}
    assert await names(client) == ["gone", "taken"]
    assert sorted(await adoptions(client), key=str)[-2:] == [
        {"from": ["b"], "to": ["a"]},
        {"from": ["b"], "to": []},
    ]
    await client.apply(services("taken", port=82), 400, select_tags=["b"])


async def test_with_select_tags_what_is_nobodys_by_now_stays_unless_it_is_adopted(client: Client) -> None:
    start = (await client.apply(services("s"), select_tags=["a"]))["version"]
    await client.apply(services("s", port=81), adopt=True)
    refused = await rollback(client, start, 400, select_tags=["a"])
    assert "does not carry the tag 'a' any more" in refused["message"]
    assert summary(await rollback(client, start, select_tags=["a"], adopt=True)) == (0, 1, 0)
    await client.apply(services("s", port=82), 400, select_tags=["b"])


async def test_a_part_that_does_not_fit_to_the_rest_of_today_is_refused_by_entity_and_field(client: Client) -> None:
    await client.apply(services("shared"), mode="apply")
    route = {"name": "r", "paths": ["/"], "service": {"name": "shared"}}
    document = {**services("mine"), "routes": [route]}
    start = (await client.apply(document, select_tags=["a"]))["version"]
    await client.apply(
        {**EMPTY, "upstreams": [{"name": "u"}], "services": services("fresh")["services"]}, select_tags=["a"]
    )
    await client.call("DELETE", "services/shared", expect=204)
    await client.call("PUT", "services/mine", {"host": "x.test"})
    await client.call("PUT", "services/fresh/routes/child", {"paths": ["/c"]})
    refused = await rollback(client, start, 400, select_tags=["a"])
    told = {(error["entity"], error["field"]): error["message"] for error in refused["errors"]}
    assert set(told) == {("route r", "service"), ("service mine", "name"), ("service fresh", "")}
    assert "there is no service 'shared' with the id" in told["route r", "service"]
    assert "is taken by service 'mine'" in told["service mine", "name"]
    assert "route child refers to it" in told["service fresh", ""]
    assert await names(client) == ["fresh", "mine"]


async def test_what_joins_two_others_comes_and_goes_with_them(client: Client) -> None:
    await client.apply({**EMPTY, "consumer_groups": [{"name": "gold"}]}, mode="apply")
    await client.apply({**EMPTY, "consumers": [{"username": "bob"}]}, select_tags=["a"])
    await client.call("POST", "consumer_groups/gold/consumers", {"consumer": "bob"}, 201)
    start = (await client.apply(services("first"), mode="apply"))["version"]
    await client.apply({**EMPTY, "consumers": [{"username": "eve"}]}, select_tags=["a"])
    await client.call("POST", "consumer_groups/gold/consumers", {"consumer": "eve"}, 201)
    assert summary(await rollback(client, start, select_tags=["a"])) == (2, 0, 2)
    members = (await client.get("consumer_groups/gold"))["consumers"]
    assert [member["username"] for member in members] == ["bob"]


async def test_what_has_no_name_comes_back_and_a_dump_of_it_applies_to_nothing(client: Client) -> None:
    """A file must say who is meant; the API need not."""
    made = await client.call("POST", "routes", {"paths": ["/"]}, 201)
    start = (await client.apply(services("s"), mode="apply"))["version"]
    await client.apply(EMPTY)
    assert summary(await rollback(client, start)) == (2, 0, 0)
    assert (await client.get(f"routes/{made['id']}"))["paths"] == ["/"]
    assert summary(await client.apply(await client.dump())) == (0, 0, 0)


async def test_an_alarming_rollback_asks_for_force(client: Client) -> None:
    first = await client.apply(services("a"))
    await client.apply(services("a", *[f"s{number}" for number in range(12)]))
    refused = await rollback(client, first["version"], 409)
    assert "force" in refused["message"]
    assert summary(await rollback(client, first["version"], force=True)) == (0, 0, 12)


async def test_a_state_that_single_writes_made_is_kept_before_an_apply_replaces_it(client: Client) -> None:
    await client.call("POST", "services", {"name": "single", "host": "x.test"}, 201)
    await client.apply(services("a"))
    newest, older = await snapshots(client)
    assert (newest["action"], older["action"]) == ("sync", "changes")
    await rollback(client, older["version"])
    assert [entity["name"] for entity in await entities(client)] == ["single"]


async def test_a_flurry_of_single_writes_is_one_entry_with_its_authors(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await client.call("POST", "services", {"name": f"s{number}", "host": "x.test"}, 201)
    await client.plane.history.close()
    (entry,) = await snapshots(client)
    assert entry["summary"]["creating"] == 5
    assert entry["author"] == "TANDEM_ADMIN_TOKEN"
    monkeypatch.setattr(history, "QUIET_SECONDS", 0.0)
    await client.call("POST", "services", {"name": "late", "host": "x.test"}, 201)
    await waiting(client)
    assert (await snapshots(client))[0]["summary"]["creating"] == 1


async def test_an_entry_names_who_wrote_since_the_one_before_it_and_nobody_else(client: Client) -> None:
    async with caller(client, "read", "write", name="bob") as bob, caller(client, "read", "write", name="eve") as eve:
        await bob.call("POST", "services", {"name": "before", "host": "x.test"}, 201)
        await client.apply(services("s"), mode="apply")
        await eve.call("POST", "services", {"name": "after", "host": "x.test"}, 201)
        await client.call("PATCH", f"/v2/control-planes/{client.id}", {"description": "no entity"})
        await client.plane.history.close()
        assert [entry["author"] for entry in await snapshots(client)] == ["eve", "TANDEM_ADMIN_TOKEN", "bob"]


async def test_what_is_written_while_an_entry_is_made_stands_in_the_next(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = client.plane.history._pack
    began, go_on = threading.Event(), threading.Event()

    def held_up(*given: Any) -> Any:
        began.set()
        go_on.wait(20)
        return pack(*given)

    async with caller(client, "read", "write", name="bob") as bob, caller(client, "read", "write", name="eve") as eve:
        await bob.call("POST", "services", {"name": "first", "host": "x.test"}, 201)
        monkeypatch.setattr(client.plane.history, "_pack", held_up)
        entering = asyncio.create_task(client.plane.history.close())
        await asyncio.to_thread(began.wait, 20)
        await eve.call("POST", "services", {"name": "second", "host": "x.test"}, 201)
        go_on.set()
        await entering
        await client.plane.history.close()
        assert [entry["author"] for entry in await snapshots(client)] == ["eve", "bob"]


async def test_the_history_survives_a_restart_and_so_does_the_way_back(tmp_path: Path, database_url: str) -> None:
    async with running_client(tmp_path / "state", database_url) as client:
        await client.apply(services("a"))
        await client.apply(services("b"))
    async with running_client(tmp_path / "state", database_url, client.id) as again:
        await again.apply(services("c"))
        assert [entry["summary"]["total"] for entry in await snapshots(again)] == [2, 2, 1]
        await rollback(again, (await snapshots(again))[-1]["version"])
        assert [entity["name"] for entity in await entities(again)] == ["a"]


async def test_only_so_many_are_kept_and_only_so_long(client: Client) -> None:
    plane = client.plane
    await plane.history.close()
    plane.history = History(plane.database, plane.cipher, plane.holdings.load, keep=3, keep_days=30)
    for number in range(5):
        await client.apply(services(f"s{number}"))
    assert [entry["version"] for entry in await snapshots(client)] == [5, 4, 3]
    async with plane.database.writing() as session:  # what is read was settled before
        await session.execute(update(SNAPSHOTS).values(created_ms=0))
    await client.apply(services("last"))
    assert [entry["version"] for entry in await snapshots(client)] == [6]


async def test_pages_and_unknown_versions(client: Client) -> None:
    for number in range(3):
        await client.apply(services(f"s{number}"))
    base = f"/v2/control-planes/{client.id}/snapshots"
    page = await client.get(base, {"size": "2"})
    assert ([entry["version"] for entry in page["data"]], page["next"]) == ([3, 2], 2)
    page = await client.get(base, {"size": "2", "before": "2"})
    assert ([entry["version"] for entry in page["data"]], page["next"]) == ([1], None)
    await client.get(f"{base}/99", expect=404)
    await rollback(client, 99, 404)
    await client.get(f"{base}/{1 << 70}", expect=400)


async def test_kept_snapshots_hold_no_secret_in_clear(client: Client) -> None:
    await client.apply(consumer(SECRET))
    await client.plane.history.settled(client.id)
    async with client.plane.database.reading() as session:
        (payload,) = (await session.execute(select(SNAPSHOTS.c.payload))).scalars()
    assert SECRET.encode() not in payload
    assert payload.startswith(b"fernet:")


async def test_a_deleted_control_plane_takes_its_history_along(client: Client) -> None:
    other = await client.another("other")
    await other.apply(services("a"))
    await client.plane.history.settled(other.id)
    await client.call("DELETE", f"/v2/control-planes/{other.id}", expect=204)
    async with client.plane.database.reading() as session:
        assert (await session.execute(select(SNAPSHOTS.c.version))).first() is None


async def test_an_apply_is_entered_though_nobody_asks_for_it(client: Client) -> None:
    version = (await client.apply(services("a")))["version"]
    kept = select(SNAPSHOTS.c.version).where(SNAPSHOTS.c.control_plane_id == client.id)
    async with asyncio.timeout(20):
        while True:
            async with client.plane.database.reading() as session:
                if list((await session.execute(kept)).scalars()) == [version]:
                    return


async def test_who_asks_does_not_wait_for_the_moment_that_entries_are_put_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BREATH_SECONDS", 3600.0)
    versions = [(await client.apply(services(*names)))["version"] for names in ("a", "ab", "abc")]
    async with asyncio.timeout(20):
        assert [entry["version"] for entry in await snapshots(client)] == versions[::-1]


@pytest.mark.parametrize("at", ["statement", "commit"])
async def test_the_last_change_before_the_database_goes_away_is_entered_when_it_is_back(
    client: Client, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with away(client, at, monkeypatch) as refused:
            await client.call("POST", "services", {"name": "last", "host": "x.test"}, 201)
            await refused.wait()
            assert await snapshots(client) == []
        await waiting(client)
    (entry,) = await snapshots(client)
    assert (entry["summary"]["creating"], entry["author"]) == (1, "TANDEM_ADMIN_TOKEN")
    await client.apply(services("another"))
    await rollback(client, entry["version"])
    assert await names(client) == ["last"]


@pytest.mark.parametrize("at", ["statement", "commit"])
async def test_a_plan_is_entered_as_what_it_was_when_the_database_is_back(
    client: Client, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with away(client, at, monkeypatch) as refused:
            last = await client.apply(services("a", "b"))
            await refused.wait()
            assert await snapshots(client) == []
        await waiting(client)
    (entry,) = await snapshots(client)
    assert (entry["version"], entry["hash"], entry["action"]) == (last["version"], last["hash"], "sync")


async def test_what_is_committed_while_entries_wait_for_the_database_comes_after_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with away(client, "statement", monkeypatch) as refused:
            first = await client.apply(services("a"))
            await refused.wait()
            second = await client.apply(services("a", "b"))
            assert await snapshots(client) == []
        third = await client.apply(services("a", "b", "c"))
        entries = await snapshots(client)
    assert [entry["version"] for entry in entries] == [made["version"] for made in (third, second, first)]
    assert [entry["summary"]["creating"] for entry in entries] == [1, 1, 1]
    assert [entry["action"] for entry in entries][:2] == ["sync", "sync"]


async def test_waiting_for_the_database_ends_with_the_control_plane_and_with_the_process(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = await client.another("doomed")
    async with asyncio.timeout(PATIENCE_SECONDS):
        with away(client, "statement", monkeypatch):
            for each in (doomed, client):
                await each.apply(services("a"))
                await each.plane.history.settled(each.id)
            tasks = [waiting(doomed), waiting(client)]
            await client.call("DELETE", f"/v2/control-planes/{doomed.id}", expect=204)
            await asyncio.wait(tasks[:1])
            await client.plane.history.close()
            await asyncio.wait(tasks)
    assert await snapshots(client) == []


async def test_what_fails_for_another_reason_is_logged_and_not_tried_again(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no such thing")

    monkeypatch.setattr(history, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(client.plane.history, "_pack", broken)
    await client.call("POST", "services", {"name": "s", "host": "x.test"}, 201)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting(client)
    assert caplog.text.count("no history could be written") == 1


async def test_a_control_plane_that_was_deleted_before_its_entry_was_made_is_no_fault(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "BREATH_SECONDS", 3600.0)
    doomed = await client.another("doomed")
    await doomed.apply(services("a"))
    await client.call("DELETE", f"/v2/control-planes/{doomed.id}", expect=204)
    await client.plane.history.settled(doomed.id)
    assert "no history could be written" not in caplog.text
