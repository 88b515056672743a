"""The atomic apply over HTTP: plan, one transaction, one snapshot; and what a killed process leaves behind."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from control_plane.holdings import Holdings
from gateway_schema.document import hash_of
from tests.control_plane.client import Client, running_client
from tests.pems import certificate_pem, private_pem
from tests.thorough import times

RECIPE: dict[str, Any] = {
    "_format_version": "3.0",
    "services": [
        {
            "name": "llm",
            "url": "http://llm.test/chat",
            "routes": [{"name": "chat", "paths": ["/chat"], "plugins": [{"name": "key-auth"}]}],
            "plugins": [{"name": "ai-prompt-decorator", "config": {"prompts": {"prepend": [{"content": "be brief"}]}}}],
        }
    ],
    "consumers": [{"username": "bob", "keyauth_credentials": [{"key": "key-of-bob-in-the-clear"}]}],
}


_UNKNOWN = "7c1a7b1e-3f44-4a52-9d6b-0f3f0a5b6c01"


def summary(answer: dict[str, Any]) -> tuple[int, int, int]:
    found = answer["plan"]["summary"]
    return found["creating"], found["updating"], found["deleting"]


def services(*names: str) -> dict[str, Any]:
    return {"_format_version": "3.0", "services": [{"name": name, "host": f"{name}.test"} for name in names]}


async def test_a_second_apply_and_an_apply_of_the_dump_change_nothing(client: Client) -> None:
    first = await client.apply(RECIPE)
    assert summary(first) == (6, 0, 0)
    assert first["committed"] is True
    again = await client.apply(RECIPE)
    assert summary(again) == (0, 0, 0)
    assert (again["version"], again["hash"]) == (first["version"], first["hash"])
    dumped = await client.dump()
    assert summary(await client.apply(dumped | {"_konnect": {"control_plane_name": "first"}})) == (0, 0, 0)
    assert dumped["consumers"][0]["keyauth_credentials"][0]["key"] == "key-of-bob-in-the-clear"


async def test_a_dump_of_entities_that_share_an_id_across_kinds_changes_nothing(client: Client) -> None:
    same = str(uuid.uuid4())
    plugin = {"name": "ai-prompt-decorator", "config": {"prompts": {"prepend": [{"content": "be brief"}]}}}
    document = {
        "_format_version": "3.0",
        "services": [{"id": same, "name": "billing", "host": "b.test", "plugins": [plugin]}],
        "routes": [{"id": same, "name": "billing", "paths": ["/b"], "service": {"name": "billing"}}],
        "consumers": [{"id": same, "username": "billing", "keyauth_credentials": [{"key": "key-of-billing"}]}],
    }
    await client.apply(document)
    dumped = await client.dump()
    assert "plugins" not in dumped["consumers"][0]
    assert "keyauth_credentials" not in dumped["services"][0]
    assert summary(await client.apply(dumped)) == (0, 0, 0)


@pytest.mark.parametrize("defaults", [{"route": {"service": {"name": "s"}}}, {"route": {"service": {"id": _UNKNOWN}}}])
async def test_a_reference_among_the_defaults_is_followed_or_refused(client: Client, defaults: dict[str, Any]) -> None:
    document = {
        "_format_version": "3.0",
        "_info": {"defaults": defaults},
        "routes": [{"name": "r", "paths": ["/r"]}],
    }
    refused = await client.apply(document, 400)
    assert "there is no service" in refused["detail"]
    kept = {"id": _UNKNOWN, "name": "s", "host": "h"}
    assert summary(await client.apply({**document, "services": [kept]})) == (2, 0, 0)
    assert (await client.get("routes/r"))["service"] == {"id": _UNKNOWN}


async def test_an_unknown_certificate_among_the_defaults_is_refused(client: Client) -> None:
    document = {
        **services("s"),
        "_info": {"defaults": {"service": {"client_certificate": {"id": _UNKNOWN}, "protocol": "https"}}},
    }
    for commit in (False, True):
        refused = await client.apply(document, 400, commit=commit)
        assert "there is no certificate" in refused["detail"]


async def test_an_upstream_without_an_algorithm_means_round_robin_in_a_file(client: Client) -> None:
    """decK fills in the default, and writes it."""
    hashed = {"hash_on": "header", "hash_on_header": "x-user"}
    document = {"_format_version": "3.0", "upstreams": [{"name": "u", **hashed}]}
    await client.apply(document)
    assert (await client.get("upstreams/u"))["algorithm"] == "round-robin"
    await client.call("PUT", "upstreams/u", {**hashed, "algorithm": "round-robin"})
    assert summary(await client.apply(document)) == (0, 0, 0)
    await client.call("PUT", "upstreams/settled", hashed)
    dumped = await client.dump()
    assert [upstream.get("algorithm", "round-robin") for upstream in dumped["upstreams"]] == [
        "consistent-hashing",
        "round-robin",
    ]
    assert summary(await client.apply(dumped)) == (0, 0, 0)


async def test_the_answer_names_the_snapshot_that_data_planes_get(client: Client) -> None:
    answer = await client.apply(RECIPE)
    snapshot = (await client.plane.snapshots.get(client.id)).snapshot
    assert (snapshot.version, snapshot.hash) == (answer["version"], answer["hash"])
    assert hash_of(snapshot.payload) == answer["hash"]


async def test_without_commit_nothing_is_written(client: Client) -> None:
    answer = await client.apply(RECIPE, commit=False)
    assert summary(answer) == (6, 0, 0)
    assert answer["committed"] is False
    assert (await client.get("services"))["data"] == []
    assert summary(await client.apply(RECIPE)) == (6, 0, 0)


async def test_what_was_applied_is_what_the_api_shows(client: Client) -> None:
    await client.apply(RECIPE)
    (service,) = (await client.get("services"))["data"]
    (route,) = (await client.get("services/llm/routes"))["data"]
    assert route["service"] == {"id": service["id"]}
    assert {plugin["name"] for plugin in (await client.get("plugins"))["data"]} == {"key-auth", "ai-prompt-decorator"}
    await client.call("PATCH", "services/llm", {"retries": 1})
    assert summary(await client.apply(RECIPE)) == (0, 1, 0)
    await client.call("DELETE", "consumers/bob", expect=204)
    assert summary(await client.apply(RECIPE)) == (2, 0, 0)


async def test_renames_swaps_and_take_overs_of_unique_values(client: Client) -> None:
    await client.apply(services("a", "b", "c"))
    found = {entity["name"]: entity["id"] for entity in (await client.get("services"))["data"]}
    swapped = services("b", "a")
    swapped["services"][0]["id"], swapped["services"][1]["id"] = found["a"], found["b"]
    assert summary(await client.apply(swapped)) == (0, 2, 1)
    assert (await client.get("services/b"))["id"] == found["a"]
    taken = services("a")
    taken["services"][0]["id"] = found["c"]
    assert summary(await client.apply(taken)) == (1, 0, 2)
    assert (await client.get("services/a"))["id"] == found["c"]


async def test_a_key_moves_between_consumers_and_plugins_between_scopes(client: Client) -> None:
    def document(owner: str, other: str) -> dict[str, Any]:
        return {
            "_format_version": "3.0",
            "consumers": [{"username": owner, "keyauth_credentials": [{"key": "k"}]}, {"username": other}],
            "services": [{"name": owner, "host": "a.test", "plugins": [{"name": "key-auth", "instance_name": "i"}]}],
        }

    await client.apply(document("bob", "eve"))
    before = (await client.get("key-auths"))["data"][0]
    assert summary(await client.apply(document("eve", "bob"))) == (2, 1, 2)
    after = (await client.get("key-auths"))["data"][0]
    assert after["id"] == before["id"]
    assert after["consumer"] != before["consumer"]


async def test_select_tags_isolate_and_a_reset_takes_only_its_own(client: Client) -> None:
    await client.call("POST", "services", {"name": "untagged", "host": "a.test"}, 201)
    await client.apply(RECIPE, select_tags=["recipe"])
    assert len((await client.get("plugins", {"tags": "recipe"}))["data"]) == 2
    dumped = await client.dump(tags="recipe")
    assert dumped["_info"] == {"select_tags": ["recipe"]}
    assert [service["name"] for service in dumped["services"]] == ["llm"]
    assert summary(await client.apply(dumped)) == (0, 0, 0)
    conflict = await client.apply(services("untagged"), 400, select_tags=["recipe"])
    assert conflict["errors"][0]["path"] == ["services", 0]
    assert "does not carry the tag 'recipe'" in conflict["message"]
    answer = await client.apply({"_format_version": "3.0"}, mode="reset", select_tags=["recipe"])
    assert summary(answer) == (0, 0, 6)
    assert [entity["name"] for entity in (await client.get("services"))["data"]] == ["untagged"]


CHILDREN: list[tuple[str, str, dict[str, Any], str]] = [
    ("consumers/bob", "key-auth", {"key": "a key that is long enough"}, "key-auth …nough for consumer bob"),
    ("consumers/bob", "acls", {"group": "gold"}, "acl-group gold for consumer bob"),
    ("consumers/bob", "jwt", {"key": "issuer"}, "jwt-auth "),
    ("upstreams/up", "targets", {"target": "a.test:80"}, "target a.test:80 for upstream up"),
]


@pytest.mark.parametrize(("parent", "path", "body", "named"), CHILDREN)
async def test_a_dump_by_tags_does_not_leave_out_children_of_parents_without_them(
    client: Client, parent: str, path: str, body: dict[str, Any], named: str
) -> None:
    await client.call("PUT", parent, {})
    await client.call("POST", f"{parent}/{path}", {**body, "tags": ["b"]}, 201)
    refused = await client.get(f"/v2/control-planes/{client.id}/document", {"tags": "b"}, expect=400)
    assert named in refused["message"]
    kind, _, name = parent.partition("/")
    assert f"{kind.removesuffix('s')} {name}, which does not carry the tag 'b'" in refused["message"]
    assert "tag the parent too, or dump without the tag" in refused["message"]
    await client.call("PATCH", parent, {"tags": ["b"]})
    assert summary(await client.apply(await client.dump(tags="b"))) == (0, 0, 0)


async def test_a_dump_by_tags_keeps_what_refers_to_something_without_them(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "s.test"}, 201)
    await client.call("POST", "services/s/routes", {"name": "r", "paths": ["/"], "tags": ["b"]}, 201)
    await client.call("POST", "services/s/plugins", {"name": "key-auth", "tags": ["b"]}, 201)
    dumped = await client.dump(tags="b")
    assert (dumped["routes"][0]["name"], dumped["plugins"][0]["name"]) == ("r", "key-auth")
    assert summary(await client.apply(dumped)) == (0, 0, 0)


async def test_many_that_cannot_be_dumped_are_counted_and_each_is_listed(client: Client) -> None:
    await client.call("PUT", "consumers/bob", {})
    for group in ("a", "b", "c", "d", "e"):
        await client.call("POST", "consumers/bob/acls", {"group": group, "tags": ["x", "y"]}, 201)
    refused = await client.get(f"/v2/control-planes/{client.id}/document", {"tags": "x,y"}, expect=400)
    assert "(and 4 more)" in refused["message"]
    assert {error["entity"] for error in refused["errors"]} == {f"acl-group {g} for consumer bob" for g in "abcde"}


async def test_an_error_anywhere_leaves_nothing_and_says_where(client: Client) -> None:
    document = {
        **services("fine"),
        "consumers": [{"username": "x"}],
        "plugins": [{"name": "key-auth", "config": {"key_namez": ["x"], "realm": 5}}],
    }
    refused = await client.apply(document, 400)
    assert {tuple(error["path"]) for error in refused["errors"]} == {
        ("plugins", 0, "config", "key_namez"),
        ("plugins", 0, "config", "realm"),
    }
    assert all(error["entity"] == "plugin key-auth" for error in refused["errors"])
    assert (await client.get("services"))["data"] == []


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"services": []}, ["_format_version"]),
        ({"_format_version": "1.1"}, ["_format_version"]),
        ({"_format_version": "3.0", "servics": []}, ["servics"]),
        ({"_format_version": "3.0", "_konnect": {"control_plane_name": "other"}}, ["_konnect", "control_plane_name"]),
        ({"_format_version": "3.0", "services": [{"name": "a", "host": "b", "x": 1}]}, ["services", 0, "x"]),
    ],
)
async def test_a_document_that_is_none_is_refused_with_its_place(
    client: Client, document: dict[str, Any], path: list[Any]
) -> None:
    refused = await client.apply(document, 400)
    assert refused["errors"][0]["path"] == path


async def test_a_deeply_nested_document_is_refused(client: Client) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    document = {"_format_version": "3.0", "plugins": [{"name": "datakit", "config": {"nodes": [deep]}}]}
    await client.apply(document, 400)
    await client.call("POST", "plugins", {"name": "key-auth", "config": {"realm": deep}}, 400)


async def test_applies_at_once_are_applied_one_after_another(client: Client) -> None:
    names = [[f"s{number}-{index}" for index in range(3)] for number in range(8)]
    answers = await asyncio.gather(*(client.apply(services(*group), mode="apply") for group in names))
    assert [summary(answer) for answer in answers] == [(3, 0, 0)] * 8
    assert len((await client.get("services"))["data"]) == 24
    versions = [answer["version"] for answer in answers]
    assert max(versions) >= 8


async def test_concurrent_single_writes_lose_nothing_and_break_no_uniqueness(client: Client) -> None:
    async def create(number: int) -> int:
        body = {"name": f"s{number % 10}", "host": "a.test"}
        response = await client.http.post(f"/v2/control-planes/{client.id}/core-entities/services", json=body)
        return response.status_code

    statuses = await asyncio.gather(*(create(number) for number in range(40)))
    assert sorted(statuses) == [201] * 10 + [409] * 30


async def test_random_documents_applied_one_after_another(client: Client) -> None:
    """On real databases.

    Apply, dump, apply changes nothing; a document after another leaves what it leaves alone; what is held equals a
    fresh reading of the tables.
    """
    rng = random.Random(7)
    alone = await client.another("alone")
    for _ in range(times(12, 1000)):
        document = random_document(rng)
        await client.apply(document, force=True)
        assert summary(await client.apply(document, commit=False)) == (0, 0, 0)
        dumped = await client.dump()
        assert summary(await client.apply(dumped, commit=False)) == (0, 0, 0)
        await alone.apply({"_format_version": "3.0"}, mode="reset", force=True)
        await alone.apply(document)
        assert plain(await alone.dump()) == plain(dumped)
        assert await held(client, fresh=False) == await held(client, fresh=True)


def plain(dumped: Any) -> Any:
    """A dump without the order of its lists and without the control plane's name."""
    if isinstance(dumped, dict):
        return {key: plain(value) for key, value in dumped.items() if key != "_konnect"}
    if isinstance(dumped, list):
        return sorted(map(plain, dumped), key=lambda item: json.dumps(item, sort_keys=True))
    return dumped


async def held(client: Client, fresh: bool) -> dict[str, Any]:
    if fresh:
        client.plane.holdings.forget(client.id)
    async with client.plane.database.reading() as session:
        holdings: Holdings = await client.plane.holdings.load(session, client.id)
    return {f"{row.type.name} {row.id}": row.entity() for row in holdings.all()}


def random_document(rng: random.Random) -> dict[str, Any]:
    pool = [f"r{number}" for number in range(8)]
    keys = [f"key-{number}" for number in range(8)]
    rng.shuffle(pool)
    rng.shuffle(keys)

    def plugins() -> list[dict[str, Any]]:
        return [{"name": "key-auth", "config": {"realm": rng.choice("xy")}}] if rng.random() < 0.5 else []

    return {
        "_format_version": "3.0",
        "services": [
            {
                "name": f"s{number}",
                "host": "a.test",
                "port": rng.choice([80, 81]),
                "tags": rng.sample(["a", "b", "c"], rng.randint(0, 2)),
                "routes": [
                    {"name": pool.pop(), "paths": ["/x"], "plugins": plugins()} for _ in range(rng.randint(0, 2))
                ],
                "plugins": plugins(),
            }
            for number in rng.sample(range(4), rng.randint(0, 4))
        ],
        "consumers": [
            {"username": f"c{number}", "keyauth_credentials": [{"key": keys.pop()} for _ in range(rng.randint(0, 2))]}
            for number in rng.sample(range(4), rng.randint(0, 4))
        ],
        "plugins": plugins(),
        **random_rest(rng),
    }


def random_rest(rng: random.Random) -> dict[str, Any]:
    """Kinds of which only the id is unique, or something of more than one field."""
    names = [f"{name}.test" for name in "abcdef"]
    rng.shuffle(names)
    return {
        "certificates": [
            {
                "id": f"20000000-0000-4000-8000-00000000000{number}",
                "cert": certificate_pem(f"site-{number}"),
                "key": private_pem(f"site-{number}"),
                "snis": [{"name": names.pop()} for _ in range(rng.randint(0, 2))],
            }
            for number in rng.sample(range(3), rng.randint(0, 3))
        ],
        "upstreams": [
            {"name": f"u{number}", "targets": [{"target": target} for target in rng.sample(["a", "b:1", "::1"], 2)]}
            for number in rng.sample(range(3), rng.randint(0, 3))
        ],
        "vaults": [
            {"prefix": f"v-{number}", "name": "env", **rng.choice([{}, {"config": {"prefix": "X_", "ttl": None}}])}
            for number in rng.sample(range(3), rng.randint(0, 3))
        ],
        "consumer_groups": [{"name": f"g{number}"} for number in rng.sample(range(3), rng.randint(0, 3))],
    }


# -- a killed process

_VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sqlalchemy import event
from tests.control_plane.client import running_client
from tests.control_plane.test_apply import services

async def main():
    state, url, statements = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    async with running_client(state, url) as client:
        await client.apply(services("old-1", "old-2"))
        seen = 0
        def count(*_):
            nonlocal seen
            seen += 1
            if seen > statements:
                os.kill(os.getpid(), signal.SIGKILL)
        engine = client.plane.database.engine.sync_engine
        if statements < 0:
            event.listen(engine, "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        else:
            event.listen(engine, "before_cursor_execute", count)
        await client.apply(services("new-1", "new-2", "new-3"))
asyncio.run(main())
"""


KILLED_AT = [3, 8, 10, 12, 1000, -1]
"""After so many statements; -1: when the commit is asked for. The last two bounds are known, in between is either."""


@pytest.mark.parametrize("statements", KILLED_AT)
async def test_a_process_killed_in_the_middle_of_an_apply_leaves_the_old_or_the_new(
    tmp_path: Path, statements: int
) -> None:
    root = str(Path(__file__).parents[2])
    database = tmp_path / "control-plane.db"
    arguments = [root, str(tmp_path / "state"), f"sqlite:///{database}", str(statements)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _VICTIM, *arguments, cwd=root)
    status = await asyncio.wait_for(process.wait(), 60)
    assert (status == 0) is (statements == 1000)
    with sqlite3.connect(database) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM services")}
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    old, new = {"old-1", "old-2"}, {"new-1", "new-2", "new-3"}
    expected = [new] if statements == 1000 else [old] if statements in {-1, 3} else [old, new]
    assert names in expected


async def test_processes_killed_at_random_instants_leave_the_old_or_the_new(tmp_path: Path, database_url: str) -> None:
    root = str(Path(__file__).parents[2])
    count = times(4, 500)
    arguments = [str(tmp_path / "lives"), database_url, str(count), "11"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.control_plane.killed", *arguments),
        cwd=root,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    counts = json.loads(output)
    print(counts)
    assert counts.pop("killed") == count
    assert sum(counts.values()) == count + 1


async def test_secrets_are_encrypted_in_the_database_file(tmp_path: Path) -> None:
    database = tmp_path / "control-plane.db"
    async with running_client(tmp_path / "state", f"sqlite:///{database}") as client:
        await client.apply(RECIPE)
        await client.call("POST", "consumers/bob/key-auth", {"key": "another-key-in-the-clear"}, 201)
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()) if path.is_file())  # noqa: ASYNC240
    assert b"llm.test" in content
    assert b"in-the-clear" not in content
    assert database.stat().st_mode & 0o777 == 0o600


async def test_entities_survive_a_restart_and_secrets_come_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'control-plane.db'}"
    async with running_client(tmp_path / "state", url) as client:
        first = await client.apply(RECIPE)
    async with running_client(tmp_path / "state", url, client.id) as again:
        assert (await again.get("key-auths/key-of-bob-in-the-clear"))["key"] == "key-of-bob-in-the-clear"
        assert (await again.apply(RECIPE))["hash"] == first["hash"]
