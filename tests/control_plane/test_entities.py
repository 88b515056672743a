"""Core entities over HTTP: every kind the registry knows, by one table, and the rules that hold for all."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import update

from control_plane.models import ENTITY_TABLES
from gateway_schema.registry import ENTITY_TYPES
from tests.control_plane.client import Client
from tests.pems import certificate_pem, private_pem


@dataclass(frozen=True)
class Case:
    """A kind: what to write, what to change, how it is found by name, and what must exist before."""

    path: str
    body: dict[str, Any]
    change: dict[str, Any]
    key: str | None = None
    parents: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    """(field, collection, body) of entities that it refers to."""
    hidden: tuple[str, ...] = ()
    """What is kept otherwise than it is written."""
    wrapped: bool = False
    """One that is asked for by itself comes with what belongs to it."""


SOME_ID = "0a000000-0000-4000-8000-0000000000aa"
SITE = ("certificates", {"cert": certificate_pem("site"), "key": private_pem("site")})
CALLER = (("consumer", "consumers", {"username": "c"}),)

CASES = {
    "services": Case("services", {"name": "billing", "host": "billing.test"}, {"port": 8080}, "billing"),
    "routes": Case(
        "routes",
        {"name": "pay", "paths": ["/pay"]},
        {"paths": ["/pay", "/settle"]},
        "pay",
        (("service", "services", {"host": "billing.test"}),),
    ),
    "consumers": Case("consumers", {"username": "bob"}, {"custom_id": "b-1"}, "bob"),
    "keyauth_credentials": Case(
        "key-auths",
        {"key": "the-key"},
        {"key": "other-key"},
        "the-key",
        (("consumer", "consumers", {"username": "c"}),),
    ),
    "plugins": Case(
        "plugins",
        {"name": "key-auth", "instance_name": "door", "config": {"key_names": ["apikey"]}},
        {"config": {"key_names": ["x-key"]}},
        "door",
        (("service", "services", {"host": "billing.test"}),),
    ),
    "certificates": Case(
        "certificates",
        {"cert": certificate_pem("site"), "key": private_pem("site")},
        {"cert_alt": certificate_pem("site", "rsa"), "key_alt": private_pem("site", "rsa")},
    ),
    "ca_certificates": Case(
        "ca_certificates",
        {"cert": certificate_pem("authority", authority=True)},
        {"cert": certificate_pem("second authority", authority=True)},
    ),
    "snis": Case("snis", {"name": "site.test"}, {"name": "*.site.test"}, "site.test", (("certificate", *SITE),)),
    "vaults": Case(
        "vaults", {"prefix": "my-env", "name": "env", "config": {"prefix": "A_"}}, {"description": "x"}, "my-env"
    ),
    "partials": Case(
        "partials",
        {"name": "cache", "type": "redis-ce"},
        {"config": {"host": "redis.test", "cloud_authentication": {"auth_provider": "aws", "aws_cache_name": "c"}}},
        "cache",
    ),
    "key_sets": Case("key-sets", {"name": "signing"}, {"name": "verifying"}, "signing"),
    "keys": Case(
        "keys",
        {"name": "k", "kid": "one", "jwk": '{"kty":"oct","kid":"one","k":"AA"}'},
        {"jwk": '{"kty":"oct","kid":"one","k":"BB"}', "x5t": "dGh1bWI"},
        "k",
        (("set", "key-sets", {"name": "signing"}),),
    ),
    "consumer_groups": Case("consumer_groups", {"name": "gold"}, {"name": "silver"}, "gold", wrapped=True),
    "upstreams": Case("upstreams", {"name": "billing.upstream"}, {"slots": 20}, "billing.upstream"),
    "targets": Case(
        "targets", {"target": "a.test:80"}, {"weight": 0}, "a.test:80", (("upstream", "upstreams", {"name": "u"}),)
    ),
    "basicauth_credentials": Case(
        "basic-auths", {"username": "c", "password": "p"}, {"username": "d"}, "c", CALLER, hidden=("password",)
    ),
    "hmacauth_credentials": Case("hmac-auths", {"username": "c", "secret": "s"}, {"secret": "t"}, "c", CALLER),
    "jwt_secrets": Case("jwts", {"key": "issuer", "secret": "s"}, {"algorithm": "HS512"}, "issuer", CALLER),
    "acls": Case("acls", {"group": "admins"}, {"group": "users"}, None, CALLER),
    "mtls_auth_credentials": Case("mtls-auths", {"subject_name": "c.test"}, {"subject_name": "d.test"}, None, CALLER),
    "filter_chains": Case(
        "filter-chains",
        {"name": "chain", "filters": [{"name": "f", "enabled": True, "config": "x"}]},
        {"enabled": False},
        "chain",
        (("service", "services", {"host": "billing.test"}),),
    ),
}
LINKS = {"consumer_group_consumers"}
"""Kinds that are written through their two ends."""


def test_every_kind_of_the_registry_has_its_case() -> None:
    assert set(CASES) | LINKS == set(ENTITY_TYPES)


async def written(client: Client, case: Case) -> dict[str, Any]:
    body = dict(case.body)
    for field, collection, parent in case.parents:
        body[field] = {"id": (await client.call("POST", collection, parent, 201))["id"]}
    return body


async def one(client: Client, case: Case, key: str) -> Any:
    found = await client.get(f"{case.path}/{key}")
    return found["consumer_group"] if case.wrapped else found


@pytest.mark.parametrize("kind", CASES)
async def test_a_kind_is_created_read_changed_and_deleted(client: Client, kind: str) -> None:
    case = CASES[kind]
    body = await written(client, case)
    created = await client.call("POST", case.path, body, 201)
    shown = {key for key in body if key not in {"config", *case.hidden}}
    assert {key: created[key] for key in shown} == {key: body[key] for key in shown}
    item = f"{case.path}/{created['id']}"
    assert await one(client, case, created["id"]) == created
    if case.key is not None:
        assert await one(client, case, case.key) == created
    merged = await client.call("PATCH", item, case.change)
    assert merged["created_at"] == created["created_at"]
    kept = {name: created[name] for name in case.hidden}
    replaced = await client.call("PUT", item, {**body, **kept, **case.change})
    assert {k: v for k, v in replaced.items() if k != "updated_at"} == {
        k: v for k, v in merged.items() if k != "updated_at"
    }
    assert (await client.get(case.path))["data"] == [replaced]
    await client.call("DELETE", item, expect=204)
    await client.call("DELETE", item, expect=204)
    await client.get(item, expect=404)


@pytest.mark.parametrize("kind", CASES)
async def test_an_entity_shows_every_field_with_null_where_unset_and_whole_seconds(client: Client, kind: str) -> None:
    case = CASES[kind]
    created = await client.call("POST", case.path, await written(client, case), 201)
    assert set(created) == set(ENTITY_TYPES[kind].model.model_fields)
    assert isinstance(created["created_at"], float if kind == "targets" else int)
    assert created["tags"] is None


@pytest.mark.parametrize("kind", CASES)
async def test_put_creates_under_the_id_of_the_path_and_keeps_its_birthday(client: Client, kind: str) -> None:
    case = CASES[kind]
    body, entity_id = await written(client, case), str(uuid.uuid4())
    created = await client.call("PUT", f"{case.path}/{entity_id}", {**body, "created_at": 1_700_000_000})
    assert created["id"] == entity_id
    assert created["created_at"] == 1_700_000_000
    again = await client.call("PUT", f"{case.path}/{entity_id}", {**created, "created_at": 1})
    assert again["created_at"] == 1_700_000_000


@pytest.mark.parametrize("kind", CASES)
async def test_a_taken_id_and_an_unknown_field_are_refused(client: Client, kind: str) -> None:
    case = CASES[kind]
    body = await written(client, case)
    created = await client.call("POST", case.path, body, 201)
    taken = await client.call("POST", case.path, {**body, "id": created["id"]}, 400)
    assert (taken["code"], taken["name"]) == (3, "primary key violation")
    refused = await client.call("POST", case.path, {**body, "tagz": ["a"]}, 400)
    assert refused["code"] == 2
    assert refused["fields"] == {"tagz": "unknown field (did you mean 'tags'?)"}
    assert refused["message"] == "schema violation (tagz: unknown field (did you mean 'tags'?))"


async def test_put_replaces_and_patch_merges(client: Client) -> None:
    service = await client.call("POST", "services", {"name": "s", "host": "a.test", "port": 81, "tags": ["x"]}, 201)
    merged = await client.call("PATCH", f"services/{service['id']}", {"retries": 2, "tags": None})
    assert (merged["port"], merged["retries"], merged["tags"]) == (81, 2, None)
    replaced = await client.call("PUT", f"services/{service['id']}", {"host": "b.test"})
    assert (replaced["name"], replaced["port"], replaced["retries"]) == (None, 80, 5)
    await client.call("PATCH", "services/nobody", {"port": 1}, 404)


async def test_patch_merges_into_a_plugins_configuration_without_its_name(client: Client) -> None:
    plugin = await client.call(
        "POST", "plugins", {"name": "key-auth", "config": {"key_names": ["k"], "key_in_body": True}}, 201
    )
    merged = await client.call("PATCH", f"plugins/{plugin['id']}", {"config": {"realm": "here", "key_in_body": None}})
    assert merged["config"]["key_names"] == ["k"]
    assert merged["config"]["realm"] == "here"
    assert merged["config"]["key_in_body"] is False


async def test_patch_takes_another_parent_by_its_name(client: Client) -> None:
    for name in ("one", "other"):
        await client.call("POST", "services", {"name": name, "host": "a.test"}, 201)
    route = await client.call("POST", "routes", {"paths": ["/x"], "service": {"name": "one"}}, 201)
    moved = await client.call("PATCH", f"routes/{route['id']}", {"service": {"name": "other"}})
    assert moved["service"] == {"id": (await client.get("services/other"))["id"]}
    assert (await client.call("PATCH", f"routes/{route['id']}", {"service": None}))["service"] is None


async def outdated(client: Client) -> str:
    """A route that was stored when its path was allowed; its id."""
    route = await client.call("POST", "routes", {"name": "r", "paths": ["/a"]}, 201)
    await client.plane.snapshots.refresh(client.id)
    await client.plane.history.settled(client.id)  # nobody still reads, who would remember what we forget below
    table = ENTITY_TABLES["routes"]
    async with client.plane.database.writing() as session:
        await session.execute(
            update(table).where(table.c.id == route["id"]).values(written={"name": "r", "paths": ["/a%20b"]})
        )
    client.plane.holdings.forget(client.id)
    return str(route["id"])


async def test_what_broke_no_rule_when_it_was_stored_is_named_with_what_mends_it(client: Client) -> None:
    entity_id = await outdated(client)
    said = (await client.get("routes", expect=500))["message"]
    assert said.startswith(f"route r (id {entity_id}) was stored under the rules of another version")
    assert "paths[0]: non-normalized path, consider use '/a b' instead" in said


@pytest.mark.parametrize("routes", [[], [{"name": "r", "paths": ["/b"]}]])
async def test_a_document_mends_what_breaks_a_rule_by_now(client: Client, routes: list[Any]) -> None:
    await outdated(client)
    await client.apply({"_format_version": "3.0", "routes": routes}, force=True)
    assert [route["paths"] for route in (await client.get("routes"))["data"]] == [route["paths"] for route in routes]


async def test_a_document_that_leaves_what_breaks_a_rule_by_now_changes_nothing(client: Client) -> None:
    entity_id = await outdated(client)
    fault = await client.apply({"_format_version": "3.0", "consumers": [{"username": "c"}]}, mode="apply", expect=500)
    assert f"(id {entity_id}) was stored under the rules of another version" in fault["message"]
    assert (await client.get("consumers"))["data"] == []


async def test_what_mends_what_breaks_a_rule_by_now_can_be_looked_at(client: Client) -> None:
    await outdated(client)
    mended = {"_format_version": "3.0", "routes": [{"name": "r", "paths": ["/b"]}]}
    looked = await client.apply(mended, commit=False)
    assert (looked["plan"]["summary"]["updating"], looked["committed"], looked["hash"]) == (1, False, None)


async def test_a_patch_mends_what_breaks_a_rule_by_now(client: Client) -> None:
    entity_id = await outdated(client)
    assert (await client.call("PATCH", f"routes/{entity_id}", {"paths": ["/b"]}))["paths"] == ["/b"]


async def test_put_by_name_creates_and_then_finds(client: Client) -> None:
    created = await client.call("PUT", "services/named", {"host": "a.test"})
    assert created["name"] == "named"
    assert (await client.call("PUT", "services/named", {"host": "b.test", "name": "named"}))["id"] == created["id"]


async def test_the_url_shorthand_is_expanded_and_not_shown(client: Client) -> None:
    service = await client.call("POST", "services", {"url": "https://a.test/x"}, 201)
    assert (service["protocol"], service["host"], service["port"], service["path"]) == ("https", "a.test", 443, "/x")
    assert "url" not in service


async def test_a_url_says_all_four_parts_the_path_too(client: Client) -> None:
    made = await client.call("POST", "services", {"name": "s", "url": "http://h/old"}, 201)
    assert made["path"] == "/old"
    moved = await client.call("PATCH", "services/s", {"url": "http://h2"})
    assert (moved["host"], moved["path"]) == ("h2", None)
    other = await client.call("POST", "services", {"name": "t", "url": "http://H.Test", "path": "/kept"}, 201)
    assert (other["host"], other["path"]) == ("H.Test", None)
    put = await client.call("PUT", "services/t", {"url": "https://H.Test:9", "port": 1, "host": "other"})
    assert (put["protocol"], put["host"], put["port"], put["path"]) == ("https", "H.Test", 9, None)


async def test_a_url_that_is_null_says_nothing(client: Client) -> None:
    made = await client.call("POST", "services", {"name": "s", "url": None, "host": "a", "path": "/p"}, 201)
    changed = await client.call("PATCH", "services/s", {"url": None, "port": 9})
    assert (made["host"], changed["host"], changed["port"], changed["path"]) == ("a", "a", 9, "/p")


async def test_what_is_hashed_on_decides_the_algorithm_where_it_is_sent_without_one(client: Client) -> None:
    def shown(upstream: dict[str, Any]) -> tuple[str, str]:
        return upstream["algorithm"], upstream["hash_on"]

    async def patched(body: dict[str, Any]) -> tuple[str, str]:
        return shown(await client.call("PATCH", "upstreams/u", body))

    assert shown(await client.call("POST", "upstreams", {"name": "u", "hash_on": "ip"}, 201)) == (
        "consistent-hashing",
        "ip",
    )
    assert await patched({"slots": 20}) == ("consistent-hashing", "ip")
    assert await patched({"algorithm": "round-robin"}) == ("round-robin", "ip")
    assert await patched({"slots": 30}) == ("round-robin", "ip")
    assert await patched({"hash_on": "path"}) == ("consistent-hashing", "path")
    assert await patched({"hash_on": "none"}) == ("round-robin", "none")
    assert await patched({"algorithm": "least-connections"}) == ("least-connections", "none")
    assert await patched({"hash_on": "consumer"}) == ("consistent-hashing", "consumer")
    assert await patched({"hash_on": "ip", "algorithm": "round-robin"}) == ("round-robin", "ip")
    put = await client.call("PUT", "upstreams/u", {"hash_on": "header", "hash_on_header": "x-user"})
    assert shown(put) == ("consistent-hashing", "header")


@pytest.mark.parametrize("collection", ["certificates", "acls", "ca_certificates"])
async def test_put_under_what_is_no_id_is_refused_where_there_is_no_other_key(client: Client, collection: str) -> None:
    fault = await client.call("PUT", f"{collection}/not-a-uuid", {}, 400)
    assert (fault["code"], fault["name"]) == (1, "invalid primary key")


@pytest.mark.parametrize("text", [SOME_ID.replace("-", ""), f"{{{SOME_ID}}}", f"urn:uuid:{SOME_ID}"])
async def test_an_id_has_one_spelling(client: Client, text: str) -> None:
    """Another one would be stored, and never found again."""
    await client.call("POST", "consumers", {"username": "c", "id": text}, 400)
    document = {"_format_version": "3.0", "consumers": [{"username": "c", "id": text}]}
    fault = await client.apply(document, expect=400)
    assert "expected a valid UUID" in str(fault)


async def test_a_plugins_configuration_is_complete_with_nulls(client: Client) -> None:
    plugin = await client.call("POST", "plugins", {"name": "key-auth"}, 201)
    assert plugin["config"]["anonymous"] is None
    assert plugin["config"]["hide_credentials"] is True
    assert plugin["protocols"]
    # What was answered may be sent back: it says the same.
    again = await client.call("PUT", f"plugins/{plugin['id']}", plugin)
    assert {**again, "updated_at": 0} == {**plugin, "updated_at": 0}


async def test_an_unknown_plugin_is_refused_with_the_nearest_name(client: Client) -> None:
    refused = await client.call("POST", "plugins", {"name": "keyauth"}, 400)
    assert "plugin 'keyauth' not enabled; add it to the 'plugins' configuration property" in refused["fields"]["name"]
    assert "did you mean 'key-auth'?" in refused["message"]


async def test_a_scope_that_a_plugin_forbids_must_be_null(client: Client) -> None:
    consumer = await client.call("POST", "consumers", {"username": "bob"}, 201)
    refused = await client.call("POST", "plugins", {"name": "key-auth", "consumer": {"id": consumer["id"]}}, 400)
    assert refused["fields"] == {"consumer": "value must be null"}


async def test_faults_of_a_configuration_carry_their_path(client: Client) -> None:
    body = {"name": "key-auth", "config": {"key_names": ["ok", "not ok"], "hide_credential": True}}
    refused = await client.call("POST", "plugins", body, 400)
    assert {detail["field"] for detail in refused["details"]} == {"config.key_names[1]", "config.hide_credential"}
    assert refused["message"].startswith("2 schema violations (")


async def test_a_unique_value_is_refused_with_409(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    refused = await client.call("POST", "services", {"name": "s", "host": "b.test"}, 409)
    assert (refused["code"], refused["fields"]) == (5, {"name": "s"})
    assert refused["message"] == "UNIQUE violation detected on '{name=\"s\"}'"


async def test_a_plugin_may_exist_once_per_scope(client: Client) -> None:
    service = await client.call("POST", "services", {"host": "a.test"}, 201)
    scope = {"service": {"id": service["id"]}}
    await client.call("POST", "plugins", {"name": "key-auth"}, 201)
    await client.call("POST", "plugins", {"name": "key-auth", **scope}, 201)
    refused = await client.call("POST", "plugins", {"name": "key-auth", **scope}, 409)
    assert refused["fields"] == {"name": "key-auth", "route": None, "consumer": None, "consumer_group": None, **scope}
    assert 'consumer=null,consumer_group=null,name="key-auth",route=null,service={id="' in refused["message"]


async def test_a_taken_key_is_refused_without_being_shown(client: Client) -> None:
    await client.call("POST", "consumers", {"username": "bob"}, 201)
    await client.call("POST", "consumers/bob/key-auth", {"key": "very-secret"}, 201)
    refused = await client.call("POST", "consumers/bob/key-auth", {"key": "very-secret"}, 409)
    assert "very-secret" not in str(refused)


async def test_a_key_that_is_not_given_is_made(client: Client) -> None:
    await client.call("POST", "consumers", {"username": "bob"}, 201)
    first, second = [(await client.call("POST", "consumers/bob/key-auth", {}, 201))["key"] for _ in range(2)]
    assert len(first) == 32
    assert first != second


async def test_a_reference_to_nothing_is_refused(client: Client) -> None:
    missing = str(uuid.uuid4())
    refused = await client.call("POST", "routes", {"paths": ["/"], "service": {"id": missing}}, 400)
    assert (refused["code"], refused["fields"]) == (4, {"service": {"id": missing}})
    assert refused["message"] == (
        f"the foreign key '{{id=\"{missing}\"}}' does not reference an existing 'services' entity."
    )
    unresolved = await client.call("POST", "routes", {"paths": ["/"], "service": {"name": "nobody"}}, 400)
    assert unresolved["code"] == 13
    assert "foreign key unresolved (service.name:" in unresolved["message"]


async def test_a_reference_by_name_is_answered_by_id(client: Client) -> None:
    service = await client.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    route = await client.call("POST", "routes", {"paths": ["/"], "service": {"name": "s"}}, 201)
    assert route["service"] == {"id": service["id"]}


async def test_deleting_a_service_is_refused_while_routes_refer_to_it_and_takes_its_plugins(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    route = await client.call("POST", "services/s/routes", {"paths": ["/"]}, 201)
    await client.call("POST", "services/s/plugins", {"name": "key-auth", "tags": ["t"]}, 201)
    refused = await client.call("DELETE", "services/s", expect=400)
    assert (refused["code"], refused["fields"]) == (4, {"@referenced_by": "routes"})
    await client.call("DELETE", f"routes/{route['id']}", expect=204)
    await client.call("DELETE", "services/s", expect=204)
    assert (await client.get("plugins"))["data"] == []
    assert (await client.get("plugins", {"tags": "t"}))["data"] == []


async def test_deleting_a_consumer_takes_its_credentials_and_plugins(client: Client) -> None:
    await client.call("POST", "consumers", {"username": "bob"}, 201)
    await client.call("POST", "consumers/bob/key-auth", {"key": "k"}, 201)
    body = {"name": "ai-prompt-decorator", "config": {"prompts": {"append": [{"content": "x"}]}}}
    await client.call("POST", "consumers/bob/plugins", body, 201)
    await client.call("DELETE", "consumers/bob", expect=204)
    assert (await client.get("key-auths"))["data"] == (await client.get("plugins"))["data"] == []


TCP = {"protocols": ["tcp"], "sources": [{"port": 9000}]}


async def test_a_plugin_shares_a_protocol_with_its_route(client: Client) -> None:
    stream = await client.call("PUT", "routes/stream", TCP)
    await client.call("PUT", "routes/web", {"paths": ["/"], "protocols": ["https"]})
    refused = await client.call("POST", "routes/stream/plugins", {"name": "key-auth"}, 400)
    assert refused["code"] == 2
    assert refused["fields"] == {"protocols": "must match the associated route's protocols (tcp)"}
    refused = await client.call("POST", "routes/web/plugins", {"name": "key-auth", "protocols": ["http"]}, 400)
    assert "must match the associated route's protocols (https)" in refused["message"]
    plugin = await client.call("POST", "routes/web/plugins", {"name": "key-auth"}, 201)
    await client.call("PATCH", f"plugins/{plugin['id']}", {"protocols": ["http"]}, 400)
    await client.call("PATCH", f"plugins/{plugin['id']}", {"route": {"id": stream["id"]}}, 400)
    await client.call("PATCH", f"plugins/{plugin['id']}", {"protocols": ["http", "https"]})


async def test_a_plugin_shares_a_protocol_with_a_route_of_its_service(client: Client) -> None:
    await client.call("PUT", "services/s", {"host": "s.test"})
    plugin = await client.call("POST", "services/s/plugins", {"name": "key-auth", "protocols": ["http"]}, 201)
    await client.call("PUT", "services/s/routes/stream", TCP)
    refused = await client.call("PUT", f"plugins/{plugin['id']}", plugin, 400)
    said = "must match the protocols of at least one route pointing to this Plugin's service (tcp)"
    assert refused["fields"] == {"protocols": said}
    await client.call("PUT", "services/s/routes/web", {"paths": ["/"]})
    await client.call("PUT", f"plugins/{plugin['id']}", plugin)


async def test_nested_paths_list_find_and_move(client: Client) -> None:
    for name in ("bob", "eve"):
        await client.call("POST", "consumers", {"username": name}, 201)
    key = await client.call("POST", "consumers/bob/key-auth", {"key": "k"}, 201)
    assert (await client.get("consumers/bob/key-auth"))["data"] == [key]
    assert (await client.get("consumers/eve/key-auth"))["data"] == []
    await client.get(f"consumers/eve/key-auth/{key['id']}", expect=404)
    await client.call("DELETE", f"consumers/eve/key-auth/{key['id']}", expect=204)
    moved = await client.call("PUT", f"consumers/eve/key-auth/{key['id']}", {"key": "k", "consumer": {"username": "x"}})
    assert moved["id"] == key["id"]
    assert (await client.get("consumers/eve/key-auth"))["data"] == [moved]
    assert (await client.get("consumers/bob/key-auth"))["data"] == []
    await client.get("consumers/nobody/key-auth", expect=404)


async def test_pages_follow_one_another_and_survive_deletions(client: Client) -> None:
    ids = [(await client.call("POST", "services", {"host": "a.test"}, 201))["id"] for _ in range(7)]
    first = await client.get("services", {"size": "3"})
    assert first["next"].startswith(f"/v2/control-planes/{client.id}/core-entities/services?")
    await client.call("DELETE", f"services/{first['data'][0]['id']}", expect=204)
    second = await client.get("services", {"size": "3", "offset": first["offset"]})
    third = await client.call("GET", second["next"])
    assert "offset" not in third
    assert third["next"] is None
    seen = [entity["id"] for page in (first, second, third) for entity in page["data"]]
    assert seen == sorted(ids)


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ({"size": "0"}, 9, "size must be an integer between 1 and 1000"),
        ({"size": "1001"}, 9, "size must be an integer between 1 and 1000"),
        ({"size": "many"}, 9, "size must be a number"),
        ({"size": "--5"}, 9, "size must be a number"),
        ({"size": "-"}, 9, "size must be a number"),
        ({"size": "²"}, 9, "size must be a number"),
        ({"size": "-5"}, 9, "size must be an integer between 1 and 1000"),
        ({"size": "0000000000010000"}, 9, "size must be an integer between 1 and 1000"),
        ({"size": "00000000000199999999999999999999"}, 9, "size must be an integer between 1 and 1000"),
        ({"size": "9" * 5000}, 9, "size must be an integer between 1 and 1000"),
        ({"offset": "###"}, 7, "'###' is not a valid offset: bad base64 encoding"),
        ({"tags": "a,b/c"}, 11, "invalid option (tags: invalid filter syntax)"),
        ({"tags": "a,b,c,d,e,f"}, 11, "invalid option (tags: cannot query more than 5 tags)"),
        ({"tags": ""}, 11, "invalid option (tags: cannot be null)"),
        ({"tags": "\x00"}, 11, "invalid option (tags: invalid filter syntax)"),
        ({"filter[name][eq]": ""}, 11, "invalid option (filter[name][eq]: cannot be empty)"),
        ({"filter[name]": ""}, 11, "invalid option (filter[name]: cannot be empty)"),
        ({"filter[name][contains]": ""}, 11, "invalid option (filter[name][contains]: cannot be empty)"),
        ({"filter[name][contains]": "\x00"}, 11, "invalid option (filter[name][contains]: invalid filter syntax)"),
    ],
)
async def test_wrong_list_parameters_are_refused(
    client: Client, query: dict[str, str], code: int, message: str
) -> None:
    refused = await client.get("services", query, 400)
    assert (refused["code"], refused["message"]) == (code, message)


@pytest.mark.parametrize("path", ["services", "routes", "consumers", "plugins", "consumers/a/plugins"])
@pytest.mark.parametrize("option", ["filter[name][neq]", "filter[name][xx]", "filter[colour]", "filter", "sort"])
async def test_a_list_that_cannot_be_narrowed_or_sorted_so_says_so(client: Client, path: str, option: str) -> None:
    await client.call("POST", "consumers", {"username": "a"}, 201)
    refused = await client.get(path, {option: "nonsense"}, 400)
    assert (refused["code"], list(refused["options"])) == (11, [option])


@pytest.mark.parametrize("path", ["consumer_groups/g/consumers", "consumers/a/consumer_groups", "partials/p/links"])
async def test_so_do_the_lists_of_members_and_links(client: Client, path: str) -> None:
    assert (await client.get(path, {"filter[name][eq]": "x"}, 400))["code"] == 11
    assert (await client.get(path, {"size": "--5"}, 400))["code"] == 9


async def test_a_size_may_have_zeros_in_front(client: Client) -> None:
    for name in ("a", "b"):
        await client.call("POST", "services", {"name": name, "host": "a.test"}, 201)
    assert len((await client.get("services", {"size": "0001"}))["data"]) == 1


async def test_an_empty_offset_is_none(client: Client) -> None:
    assert (await client.get("services", {"offset": ""}))["data"] == []


async def test_tags_filter_all_of_them_or_any_of_them(client: Client) -> None:
    for name, tags in (("x", ["a", "b"]), ("y", ["a"]), ("z", ["c"]), ("none", [])):
        await client.call("POST", "services", {"name": name, "host": "a.test", "tags": tags}, 201)

    async def names(tags: str) -> set[str]:
        return {entity["name"] for entity in (await client.get("services", {"tags": tags}))["data"]}

    assert await names("a") == {"x", "y"}
    assert await names("a,b") == {"x"}
    assert await names("b/c") == {"x", "z"}
    await client.call("PATCH", "services/x", {"tags": ["c"]})
    assert await names("a") == {"y"}
    assert await names("c") == {"x", "z"}


async def test_lists_filter_by_name_and_custom_id(client: Client) -> None:
    for name in ("billing", "billing-2", "other"):
        await client.call("POST", "services", {"name": name, "host": "a.test"}, 201)
    await client.call("POST", "consumers", {"username": "bob", "custom_id": "7"}, 201)
    assert len((await client.get("services", {"filter[name][contains]": "bill"}))["data"]) == 2
    assert len((await client.get("services", {"filter[name][eq]": "billing"}))["data"]) == 1
    assert [entity["username"] for entity in (await client.get("consumers", {"custom_id": "7"}))["data"]] == ["bob"]
    assert (await client.get("consumers", {"custom_id": "8"}))["data"] == []
    for text in ("", "\x00"):
        assert (await client.get("consumers", {"custom_id": text}, 400))["code"] == 11


@pytest.mark.parametrize("operator", ["eq", "contains"])
async def test_a_filter_by_name_tells_upper_from_lower_case_and_has_no_wildcards(client: Client, operator: str) -> None:
    for name in ("alphaX1", "ALPHA", "a_pha", "ALPHA.2"):
        await client.call("POST", "services", {"name": name, "host": "a.test"}, 201)

    async def found(text: str) -> set[str]:
        listed = await client.get("services", {f"filter[name][{operator}]": text})
        return {entity["name"] for entity in listed["data"]}

    assert await found("ALPHA") == ({"ALPHA"} if operator == "eq" else {"ALPHA", "ALPHA.2"})
    assert await found("a_pha") == {"a_pha"}
    assert await found("%") == set()


async def test_two_control_planes_hold_the_same_ids_and_names_and_delete_alone(client: Client) -> None:
    other = await client.another("second")
    entity_id = str(uuid.uuid4())
    for plane in (client, other):
        await plane.call("PUT", f"services/{entity_id}", {"name": "s", "host": "a.test"})
        await plane.call("POST", "services/s/routes", {"paths": ["/"], "tags": ["t"]}, 201)
        await plane.call("POST", "services/s/plugins", {"name": "key-auth"}, 201)
    await client.call("DELETE", f"/v2/control-planes/{other.id}", expect=204)
    await other.get("services", expect=404)
    assert len((await client.get("routes", {"tags": "t"}))["data"]) == 1


async def test_texts_that_a_database_cannot_hold_are_refused(client: Client) -> None:
    refused = await client.call("POST", "consumers", {"username": "a\x00b"}, 400)
    assert refused["fields"] == {"username": "must not contain NUL characters"}
    refused = await client.call("POST", "consumers", {"username": "é" * 2000}, 400)
    assert refused["fields"] == {"username": "length must be at most 512"}


async def test_tags_go_with_their_entities_and_with_what_a_cascade_takes(client: Client) -> None:
    """Else the same entity could not come back under its id."""
    ids = [str(uuid.uuid4()) for _ in range(3)]

    async def write() -> None:
        await client.call("PUT", f"consumers/{ids[0]}", {"username": "bob", "tags": ["t"]})
        await client.call("PUT", f"consumers/bob/key-auth/{ids[1]}", {"key": "k", "tags": ["t"]})
        body = {"name": "ai-prompt-decorator", "config": {"prompts": {"append": [{"content": "x"}]}}, "tags": ["t"]}
        await client.call("PUT", f"plugins/{ids[2]}", {**body, "consumer": {"id": ids[0]}})

    await write()
    await client.call("DELETE", "consumers/bob", expect=204)
    await write()
    assert [len((await client.get(path, {"tags": "t"}))["data"]) for path in ("consumers", "key-auths", "plugins")] == [
        1,
        1,
        1,
    ]
