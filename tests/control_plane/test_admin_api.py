"""Kong's Admin API: the same entities as on Konnect's face, with Kong's paths, bodies and errors."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.control_plane.client import TOKEN, Client
from tests.control_plane.deck.documents import certificate_pair
from tests.control_plane.test_app import add_token

SERVICE = {"name": "s", "host": "example.test"}


class Admin:
    """A client of one control plane's base address that sends its token as Kong's clients do."""

    def __init__(self, client: Client, control_plane: str = "first") -> None:
        self._http = client.http
        self._base = f"/admin/{control_plane}"

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": "", "kong-admin-token": TOKEN, **options.pop("headers", {})}
        return await self._http.request(method, self._base + path, headers=headers, **options)

    async def call(self, method: str, path: str, body: Any = None, expect: int = 200, **options: Any) -> Any:
        if body is not None:
            options["json"] = body
        response = await self.send(method, path, **options)
        assert response.status_code == expect, f"{method} {path}: {response.status_code} {response.text}"
        if response.content:
            assert response.headers["content-type"] == "application/json"
        return response.json() if response.content else None


@pytest.fixture
def admin(client: Client) -> Admin:
    return Admin(client)


# -- where it is and who may come in


@pytest.mark.parametrize("path", ["", "/"])
async def test_the_base_address_tells_the_version(admin: Admin, path: str) -> None:
    response = await admin.send("GET", path)
    shown = response.json()
    assert response.status_code == 200
    assert tuple(int(part) for part in shown["version"].split(".")[:2]) >= (3, 4)
    assert shown["configuration"]["database"] in {"sqlite", "postgres"}
    assert shown["plugins"]["available_on_server"]["key-auth"]["priority"] == 1250


async def test_a_control_plane_is_found_by_id_and_by_name(client: Client) -> None:
    other = await client.another("name with spaces")
    for address in (other.id, "name%20with%20spaces"):
        await Admin(client, address).call("PUT", "/services/s", {"host": "example.test"})
    assert len((await Admin(client, other.id).call("GET", "/services"))["data"]) == 1
    assert (await Admin(client).call("GET", "/services"))["data"] == []
    assert await Admin(client, "nobody").call("GET", "/services", expect=404) == {"message": "Not found"}


async def test_the_token_may_stand_in_either_header(client: Client) -> None:
    for headers in ({"kong-admin-token": TOKEN}, {"authorization": f"Bearer {TOKEN}"}):
        given = {"authorization": "", **headers}
        assert (await client.http.get("/admin/first/services", headers=given)).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"kong-admin-token": "wrong"}, {"authorization": "Bearer wrong"}])
@pytest.mark.parametrize("control_plane", ["first", "nobody"])
async def test_without_a_valid_token_nothing_is_told(client: Client, headers: Any, control_plane: str) -> None:
    response = await client.http.get(f"/admin/{control_plane}/services", headers={"authorization": "", **headers})
    assert (response.status_code, list(response.json())) == (401, ["message"])
    assert response.headers["content-type"] == "application/json"


async def test_a_token_that_may_only_read_reads_validates_and_writes_nothing(client: Client, admin: Admin) -> None:
    await admin.call("POST", "/services", SERVICE, 201)
    reader = await add_token(client, "kpat_reader", ["read"]) | {"kong-admin-token": ""}
    await admin.call("GET", "/services/s", headers=reader)
    await admin.call("POST", "/schemas/services/validate", SERVICE, headers=reader)
    for method in ("PUT", "PATCH", "DELETE"):
        refused = await admin.call(method, "/services/s", SERVICE, 403, headers=reader)
        assert list(refused) == ["message"]


async def test_decks_dump_finds_a_server_that_is_no_ai_gateway(admin: Admin) -> None:
    for path in ("/", "/nowhere"):
        server = (await admin.send("GET", path)).headers["server"]
        assert server.startswith("tandem/")
        assert "ai-gateway" not in server


# -- entities


async def test_what_one_face_writes_the_other_reads(client: Client, admin: Admin) -> None:
    created = await admin.call("POST", "/services", SERVICE, 201)
    assert await client.get("services/s") == created
    await client.call("PUT", f"services/{created['id']}", {**SERVICE, "port": 81})
    assert (await admin.call("GET", "/services/s"))["port"] == 81


async def test_put_by_name_makes_and_replaces(admin: Admin) -> None:
    made = await admin.call("PUT", "/services/s", {"host": "one.test", "retries": 1})
    again = await admin.call("PUT", "/services/s", {"host": "two.test"})
    assert (again["id"], again["created_at"]) == (made["id"], made["created_at"])
    assert (again["name"], again["host"], again["retries"]) == ("s", "two.test", 5)


async def test_patch_merges_and_null_clears(admin: Admin) -> None:
    await admin.call("POST", "/services", {**SERVICE, "path": "/a", "tags": ["t"], "retries": 1}, 201)
    merged = await admin.call("PATCH", "/services/s", {"path": None, "port": 8080})
    assert (merged["path"], merged["port"], merged["retries"], merged["tags"]) == (None, 8080, 1, ["t"])
    assert await admin.call("PATCH", "/services/none", {"port": 1}, 404) == {"message": "Not found"}


async def test_delete_answers_204_also_when_there_is_nothing(admin: Admin) -> None:
    await admin.call("POST", "/services", SERVICE, 201)
    for _ in range(2):
        await admin.call("DELETE", "/services/s", expect=204)
    await admin.call("DELETE", f"/services/{uuid.uuid4()}", expect=204)


async def test_children_are_reached_through_their_parents(admin: Admin) -> None:
    service = await admin.call("POST", "/services", SERVICE, 201)
    route = await admin.call("POST", "/services/s/routes", {"name": "r", "paths": ["/r"]}, 201)
    assert route["service"] == {"id": service["id"]}
    await admin.call("PUT", "/services/s/routes/r2", {"paths": ["/r2"]})
    plugin = await admin.call("POST", "/routes/r/plugins", {"name": "key-auth"}, 201)
    assert plugin["route"] == {"id": route["id"]}
    listed = await admin.call("GET", f"/services/{service['id']}/routes")
    assert {row["name"] for row in listed["data"]} == {"r", "r2"}
    await admin.call("GET", "/services/none/routes", expect=404)
    await admin.call("POST", "/services", {"name": "other", "host": "o.test"}, 201)
    await admin.call("GET", "/services/other/routes/r", expect=404)


async def test_a_parent_is_reached_through_its_child(admin: Admin) -> None:
    await admin.call("POST", "/services", SERVICE, 201)
    await admin.call("POST", "/services/s/routes", {"name": "r", "paths": ["/r"]}, 201)
    assert (await admin.call("GET", "/routes/r/service"))["name"] == "s"
    assert (await admin.call("PATCH", "/routes/r/service", {"port": 99}))["port"] == 99
    await admin.call("POST", "/routes", {"name": "alone", "paths": ["/alone"]}, 201)
    await admin.call("GET", "/routes/alone/service", expect=404)
    await admin.call("GET", "/routes/none/service", expect=404)


async def test_references_may_be_written_by_name(admin: Admin) -> None:
    service = await admin.call("POST", "/services", SERVICE, 201)
    route = await admin.call("POST", "/routes", {"name": "r", "paths": ["/r"], "service": {"name": "s"}}, 201)
    assert route["service"] == {"id": service["id"]}


async def test_the_last_page_has_no_offset(admin: Admin) -> None:
    for number in range(5):
        await admin.call("PUT", f"/services/s{number}", {"host": "x.test"})
    names: list[str] = []
    page = await admin.call("GET", "/services?size=2")
    while True:
        names += [row["name"] for row in page["data"]]
        assert (page.get("offset") is None) == (page["next"] is None)
        if page["next"] is None:
            break
        assert page["next"].startswith("/admin/first/services?")
        page = await admin.call("GET", f"/services?size=2&offset={page['offset']}")
    assert sorted(names) == [f"s{number}" for number in range(5)]
    assert "offset" not in page


# -- errors


async def test_errors_have_kongs_shape_and_nothing_else(admin: Admin) -> None:
    refused = await admin.call("POST", "/services", {"name": "s", "port": "x"}, 400)
    assert refused == {
        "code": 2,
        "name": "schema violation",
        "message": "2 schema violations (host: required field missing; port: expected an integer)",
        "fields": {"host": "required field missing", "port": "expected an integer"},
    }
    made = await admin.call("POST", "/services", SERVICE, 201)
    taken = await admin.call("POST", "/services", SERVICE, 409)
    assert (taken["code"], taken["fields"]) == (5, {"name": "s"})
    assert taken["message"] == "UNIQUE violation detected on '{name=\"s\"}'"
    again = await admin.call("POST", "/services", {"host": "x.test", "id": made["id"]}, 400)
    assert again["code"] == 3
    missing = {"paths": ["/"], "service": {"id": str(uuid.uuid4())}}
    assert (await admin.call("POST", "/routes", missing, 400))["code"] == 4
    unresolved = {"paths": ["/"], "service": {"name": "none"}}
    assert (await admin.call("POST", "/routes", unresolved, 400))["code"] == 13
    await admin.call("POST", "/services/s/routes", {"paths": ["/"]}, 201)
    held = await admin.call("DELETE", "/services/s", expect=400)
    assert (held["code"], held["fields"]) == (4, {"@referenced_by": "routes"})
    for answered in (again, taken, held):
        assert set(answered) == {"code", "name", "message", "fields"}


@pytest.mark.parametrize(
    ("query", "code"), [("size=0", 9), ("size=x", 9), ("offset=!", 7), ("tags=a,b/c", 11), ("tags=", 11)]
)
async def test_bad_queries_are_refused_with_kongs_codes(admin: Admin, query: str, code: int) -> None:
    assert (await admin.call("GET", f"/services?{query}", expect=400))["code"] == code


async def test_paths_and_methods_that_do_not_exist(admin: Admin) -> None:
    assert await admin.call("GET", "/nowhere", expect=404) == {"message": "Not found"}
    assert await admin.call("GET", "/workspaces?size=1000", expect=404) == {"message": "Not found"}
    assert await admin.call("GET", "/services/none", expect=404) == {"message": "Not found"}
    assert await admin.call("DELETE", "/services", expect=405) == {"message": "Method not allowed"}
    allowed = await admin.send("OPTIONS", "/services")
    assert (allowed.status_code, allowed.headers["allow"]) == (204, "GET, HEAD, POST")


async def test_targets_are_listed_under_their_upstream_only(admin: Admin) -> None:
    await admin.call("GET", "/targets", expect=404)


async def test_broken_bodies_are_refused(admin: Admin) -> None:
    broken = await admin.send("POST", "/services", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert list(broken.json()) == ["message"]
    assert broken.json()["message"].startswith("Cannot parse JSON body: ")
    other = await admin.send("POST", "/services", content=b"<a/>", headers={"content-type": "text/xml"})
    assert (other.status_code, list(other.json())) == (415, ["message"])
    large = await admin.send("POST", "/services", content=b"x", headers={"content-length": "999999999"})
    assert (large.status_code, list(large.json())) == (413, ["message"])


# -- forms


@pytest.mark.parametrize(("text", "number"), [("5.0", 5), ("1e1", 10), ("7", 7)])
async def test_a_whole_number_in_a_form_is_an_integer_however_it_is_written(
    admin: Admin, text: str, number: int
) -> None:
    form = {"name": "s", "host": "h.test", "retries": text}
    made = (await admin.send("POST", "/services", data=form)).json()
    assert repr(made["retries"]) == repr(number)


@pytest.mark.parametrize("text", ["5.5", "five", "1e99", "١"])
async def test_another_number_in_a_form_is_refused_where_an_integer_belongs(admin: Admin, text: str) -> None:
    refused = await admin.send("POST", "/services", data={"name": "s", "host": "h.test", "retries": text})
    assert (refused.status_code, refused.json()["fields"]) == (400, {"retries": "expected an integer"})


async def test_a_form_means_what_the_same_json_means(admin: Admin) -> None:
    form = {"name": "s", "url": "https://example.test/p", "retries": "3", "enabled": "false", "tags[]": ["a", "b"]}
    made = (await admin.send("POST", "/services", data=form)).json()
    assert (made["protocol"], made["port"], made["path"], made["retries"]) == ("https", 443, "/p", 3)
    assert (made["enabled"], made["tags"]) == (False, ["a", "b"])
    form = {"name": "r", "paths[1]": "/one", "paths[2]": "/two", "headers.x-a[]": "1", "service.name": "s"}
    route = (await admin.send("POST", "/routes", data=form)).json()
    assert (route["paths"], route["headers"]) == (["/one", "/two"], {"x-a": ["1"]})
    assert route["service"] == {"id": made["id"]}
    one = (await admin.send("PATCH", "/routes/r", data={"hosts": "a.test", "https_redirect_status_code": "301"})).json()
    assert (one["hosts"], one["https_redirect_status_code"]) == (["a.test"], 301)
    assert (await admin.send("PATCH", "/routes/r", data={"hosts": ""})).json()["hosts"] is None


async def test_a_plugins_configuration_may_come_as_a_form(admin: Admin) -> None:
    form = {"name": "key-auth", "config.key_names[]": ["a", "b"], "config.key_in_body": "true"}
    made = (await admin.send("POST", "/plugins", data=form)).json()
    assert (made["config"]["key_names"], made["config"]["key_in_body"]) == (["a", "b"], True)
    patched = await admin.send("PATCH", f"/plugins/{made['id']}", data={"config.key_in_query": "false"})
    assert patched.json()["config"] == {**made["config"], "key_in_query": False}


async def test_a_form_may_come_in_parts(admin: Admin) -> None:
    parts = {"name": (None, "s"), "host": (None, "example.test"), "port": (None, "81")}
    made = await admin.send("POST", "/services", files=parts)
    assert (made.status_code, made.json()["port"]) == (201, 81)


async def test_a_value_that_does_not_fit_is_refused_in_the_schemas_words(admin: Admin) -> None:
    refused = await admin.send("POST", "/services", data={"name": "s", "host": "h", "port": "eighty", "what": "1"})
    assert refused.status_code == 400
    assert refused.json()["fields"]["port"] == "expected an integer"
    assert refused.json()["fields"]["what"].startswith("unknown field")


_KEYS = st.lists(st.sampled_from(["name", "config", "tags", "paths", "", "1", "2"]), min_size=1, max_size=4)
_FORMS = st.lists(st.tuples(_KEYS, st.sampled_from(["", "x", "1", "true", "\x00", "ä"])), max_size=6)


@given(_FORMS, st.sampled_from(["services", "routes", "plugins", "consumers"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_form_is_a_fault_of_ours(admin: Admin, form: list[tuple[list[str], str]], collection: str) -> None:
    pairs = [(parts[0] + "".join(f"[{part}]" for part in parts[1:]), value) for parts, value in form]
    body = urlencode(pairs)
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answered = await admin.send("POST", f"/{collection}", content=body, headers=headers)
    assert answered.status_code in {201, 400, 409}, answered.text


# -- the gateway itself


async def test_status_endpoints_and_plugins(admin: Admin) -> None:
    assert (await admin.call("GET", "/status"))["database"] == {"reachable": True}
    paths = (await admin.call("GET", "/endpoints"))["data"]
    assert {"/", "/services", "/services/{parent}/routes/{key}", "/routes/{key}/service", "/endpoints"} <= set(paths)
    assert "key-auth" in (await admin.call("GET", "/plugins/enabled"))["enabled_plugins"]
    await admin.call("POST", "/plugins", {"name": "key-auth"}, 201)
    assert (await admin.call("GET", "/"))["plugins"]["enabled_in_cluster"] == ["key-auth"]


async def test_tags_lead_to_what_carries_them_in_pages(client: Client, admin: Admin) -> None:
    other = await client.another("second")
    await other.call("PUT", "services/elsewhere", {"host": "x.test", "tags": ["a"]})
    service = await admin.call("POST", "/services", {**SERVICE, "tags": ["a", "b"]}, 201)
    route = await admin.call("POST", "/routes", {"paths": ["/"], "tags": ["a"]}, 201)
    first = await admin.call("GET", "/tags?size=2")
    rest = await admin.call("GET", f"/tags?size=2&offset={first['offset']}")
    found = [(row["tag"], row["entity_name"], row["entity_id"]) for row in first["data"] + rest["data"]]
    expected = [("a", "routes", route["id"]), ("a", "services", service["id"]), ("b", "services", service["id"])]
    assert found == expected
    assert rest["next"] is None
    assert "offset" not in rest
    one = await admin.call("GET", "/tags/b")
    assert one == {"data": [{"tag": "b", "entity_name": "services", "entity_id": service["id"]}], "next": None}
    assert (await admin.call("GET", "/tags?offset=x", expect=400))["code"] == 7


async def test_schemas_and_validation(admin: Admin) -> None:
    assert [*(await admin.call("GET", "/schemas/services"))["fields"][0]] == ["id"]
    fields = {name for field in (await admin.call("GET", "/schemas/plugins/key-auth"))["fields"] for name in field}
    assert "config" in fields
    valid = {"paths": ["/"], "service": {"id": str(uuid.uuid4()), "name": "not there"}}
    assert await admin.call("POST", "/schemas/routes/validate", valid) == {"message": "schema validation successful"}
    assert (await admin.call("POST", "/schemas/routes/validate", {"paths": [""]}, 400))["code"] == 2
    plugin = (await admin.send("POST", "/schemas/plugins/validate", data={"name": "key-auth"})).json()
    assert plugin == {"message": "schema validation successful"}
    assert await admin.call("GET", "/schemas/what", expect=404) == {"message": "No entity named 'what'"}
    assert await admin.call("GET", "/schemas/plugins/what", expect=404) == {"message": "No plugin named 'what'"}


# -- certificates and the names that they are for


async def test_a_certificate_shows_and_takes_the_names_of_its_snis(client: Client, admin: Admin) -> None:
    cert, key = certificate_pair()
    body = {"cert": cert, "key": key}
    made = await admin.call("POST", "/certificates", {**body, "snis": ["b.test", "a.test"]}, 201)
    assert made["snis"] == ["a.test", "b.test"]
    path = f"/certificates/{made['id']}"
    snis = (await admin.call("GET", f"{path}/snis"))["data"]
    assert {(sni["name"], sni["certificate"]["id"]) for sni in snis} == {("a.test", made["id"]), ("b.test", made["id"])}
    kept = {sni["name"]: sni["id"] for sni in snis}["b.test"]
    assert (await admin.call("PUT", path, body))["snis"] == ["a.test", "b.test"]
    assert (await admin.call("PATCH", path, {"snis": ["b.test", "c.test"]}))["snis"] == ["b.test", "c.test"]
    assert (await admin.call("GET", "/snis/b.test"))["id"] == kept
    await admin.call("GET", "/snis/a.test", expect=404)
    assert [row["snis"] for row in (await admin.call("GET", "/certificates"))["data"]] == [["b.test", "c.test"]]
    assert (await admin.call("PUT", path, {**body, "snis": None}))["snis"] == []
    assert (await admin.send("PATCH", path, data={"snis": "d.test"})).json()["snis"] == ["d.test"]
    assert "snis" not in await client.get(f"certificates/{made['id']}")


async def test_names_that_another_certificate_has_are_refused_and_nothing_is_written(admin: Admin) -> None:
    cert, key = certificate_pair()
    first = await admin.call("POST", "/certificates", {"cert": cert, "key": key, "snis": ["a.test"]}, 201)
    for snis, message in (
        (["b.test", "a.test"], f"a.test already associated with existing certificate '{first['id']}'"),
        (["b.test", "b.test"], "b.test is duplicated"),
        (["10.0.0.1"], "must not be an IP"),
        ("b.test", "expected a set"),
        ([1], "expected a set of strings"),
    ):
        refused = await admin.call("POST", "/certificates", {"cert": cert, "key": key, "snis": snis}, 400)
        assert (refused["code"], refused["fields"]) == (2, {"snis": message})
    assert [row["id"] for row in (await admin.call("GET", "/certificates"))["data"]] == [first["id"]]
    assert [row["name"] for row in (await admin.call("GET", "/snis"))["data"]] == ["a.test"]


# -- consumer groups


async def test_a_group_shows_who_is_in_it(admin: Admin) -> None:
    group = await admin.call("PUT", "/consumer_groups/gold", {"tags": ["metal"]})
    consumer = await admin.call("POST", "/consumers", {"username": "alice", "custom_id": "a-1", "tags": ["t"]}, 201)
    for _ in range(2):
        added = await admin.call("POST", "/consumer_groups/gold/consumers", {"consumer": consumer["id"]}, 201)
        assert added == {"consumer_group": group, "consumers": [consumer]}
    assert await admin.call("GET", "/consumer_groups/gold") == {"consumer_group": group, "consumers": [consumer]}
    assert await admin.call("GET", "/consumer_groups/gold?list_consumers=false") == {"consumer_group": group}
    assert (await admin.call("GET", "/consumers/alice/consumer_groups"))["data"] == [group]
    assert await admin.call("GET", "/consumer_groups/gold/consumers/alice") == consumer
    for _ in range(2):
        await admin.call("DELETE", f"/consumer_groups/{group['id']}/consumers/{consumer['id']}", expect=204)
    assert (await admin.call("GET", "/consumer_groups/gold"))["consumers"] == []
    await admin.call("GET", "/consumer_groups/gold/consumers/alice", expect=404)


async def test_a_consumer_joins_groups_from_its_own_side(admin: Admin) -> None:
    await admin.call("POST", "/consumers", {"username": "alice"}, 201)
    for name in ("gold", "silver"):
        await admin.call("POST", "/consumer_groups", {"name": name}, 201)
        joined = await admin.send("POST", "/consumers/alice/consumer_groups", data={"group": name})
        assert (joined.status_code, [row["name"] for row in joined.json()["consumer_groups"]]) == (201, [name])
    page = await admin.call("GET", "/consumers/alice/consumer_groups?size=1")
    rest = await admin.call("GET", f"/consumers/alice/consumer_groups?size=1&offset={page['offset']}")
    assert {row["name"] for row in page["data"] + rest["data"]} == {"gold", "silver"}
    assert rest["next"] is None
    await admin.call("DELETE", "/consumers/alice/consumer_groups", expect=204)
    assert (await admin.call("GET", "/consumers/alice/consumer_groups"))["data"] == []


async def test_memberships_that_cannot_be(admin: Admin) -> None:
    await admin.call("POST", "/consumer_groups", {"name": "gold"}, 201)
    path = "/consumer_groups/gold/consumers"
    missing = await admin.call("POST", path, {}, 400)
    assert (missing["code"], missing["fields"]) == (2, {"consumer": "required field missing"})
    await admin.call("POST", path, {"consumer": "nobody"}, 404)
    await admin.call("POST", "/consumer_groups/none/consumers", {"consumer": "nobody"}, 404)
    await admin.call("DELETE", "/consumer_groups/none/consumers/nobody", expect=204)
    await admin.call("GET", "/consumer_group_consumers", expect=404)


# -- others with ways of their own


async def test_a_target_is_found_by_its_text(admin: Admin) -> None:
    await admin.call("POST", "/upstreams", {"name": "pool.test"}, 201)
    made = await admin.call("POST", "/upstreams/pool.test/targets", {"target": "10.0.0.1:80"}, 201)
    assert (await admin.call("GET", "/upstreams/pool.test/targets/10.0.0.1:80"))["id"] == made["id"]
    patched = await admin.call("PATCH", "/upstreams/pool.test/targets/10.0.0.1:80", {"weight": 0})
    assert patched["weight"] == 0
    for path in ("targets", "targets/all"):
        assert len((await admin.call("GET", f"/upstreams/pool.test/{path}"))["data"]) == 1
    await admin.call("DELETE", "/upstreams/pool.test/targets/10.0.0.1:80", expect=204)
    assert (await admin.call("GET", "/upstreams/pool.test/targets"))["data"] == []


async def test_a_route_with_an_expression_shows_what_its_reader_fills_in(client: Client, admin: Admin) -> None:
    body = {"name": "r", "expression": 'http.path == "/a"', "priority": 3}
    made = await admin.call("POST", "/routes", body, 201)
    assert (made["path_handling"], made["regex_priority"], made["priority"]) == ("v0", 0, 3)
    again = {key: value for key, value in made.items() if value is not None}
    assert (await admin.call("PUT", f"/routes/{made['id']}", again))["expression"] == body["expression"]
    [listed] = (await client.get("routes"))["data"]
    assert listed["path_handling"] is None


@pytest.mark.parametrize(
    ("nested", "flat", "body"),
    [
        ("key-auth", "key-auths", {"key": "k-1"}),
        ("basic-auth", "basic-auths", {"username": "u", "password": "p"}),
        ("hmac-auth", "hmac-auths", {"username": "u"}),
        ("jwt", "jwts", {}),
        ("acls", "acls", {"group": "g"}),
    ],
)
async def test_credentials_are_written_below_consumers_and_listed_flat(
    admin: Admin, nested: str, flat: str, body: dict[str, str]
) -> None:
    consumer = await admin.call("POST", "/consumers", {"username": "alice"}, 201)
    made = await admin.call("POST", f"/consumers/alice/{nested}", body, 201)
    assert made["consumer"] == {"id": consumer["id"]}
    for path in (f"/{flat}", f"/consumers/{consumer['id']}/{nested}"):
        assert [row["id"] for row in (await admin.call("GET", path))["data"]] == [made["id"]]
    assert (await admin.call("GET", f"/{flat}/{made['id']}/consumer"))["username"] == "alice"
    path = f"/consumers/{consumer['id']}/{nested}/{made['id']}"
    again = {**made, "consumer": {"id": consumer["id"], "username": "alice"}}
    assert (await admin.call("PUT", path, again))["id"] == made["id"]
    await admin.call("DELETE", path, expect=204)
    assert (await admin.call("GET", f"/{flat}"))["data"] == []
