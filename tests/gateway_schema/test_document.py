from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_schema.document import Document, canonical, hash_of, read_declaration
from gateway_schema.dump import Homeless, write_declaration
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, parse

RECIPE: dict[str, Any] = {
    "_format_version": "3.0",
    "_info": {"select_tags": ["team-a"]},
    "consumers": [{"username": "alice", "keyauth_credentials": [{"key": "k1"}]}],
    "services": [
        {
            "name": "chat",
            "url": "https://example.com/base",
            "routes": [{"name": "chat", "paths": ["/chat"], "plugins": [{"name": "key-auth"}]}],
            "plugins": [{"name": "datakit", "config": {"nodes": []}}],
        }
    ],
    "plugins": [{"name": "key-auth", "consumer": "alice", "route": {"name": "chat"}}],
}


def faults(data: Any, tags: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(SchemaViolation) as caught:
        read_declaration(data, tags)
    return [str(violation) for violation in caught.value.violations]


def test_nesting_becomes_references_and_positions_are_kept() -> None:
    items = read_declaration(RECIPE).items
    by_kind = {(item.type.kind, item.path): item for item in items}
    nested = by_kind["plugin", ("services", 0, "routes", 0, "plugins", 0)]
    assert nested.references["route"] is by_kind["route", ("services", 0, "routes", 0)]
    assert by_kind["plugin", ("plugins", 0)].references == {"consumer": "alice", "route": "chat"}


def test_select_tags_reach_every_entity() -> None:
    assert all(item.body["tags"] == ["team-a"] for item in read_declaration(RECIPE).items)


def test_the_url_shorthand_is_spelled_out() -> None:
    service = next(item for item in read_declaration(RECIPE).items if item.type.kind == "service")
    assert {key: service.body[key] for key in ("protocol", "host", "port", "path")} == {
        "protocol": "https",
        "host": "example.com",
        "port": 443,
        "path": "/base",
    }
    assert "url" not in service.body


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_format_version": None}, "_format_version: required field missing"),
        ({"_format_version": 3.0}, '_format_version: expected a string: quote it, _format_version: "3.0"'),
        ({"_format_version": "2.1"}, '_format_version: unsupported version "2.1"'),
        ({"servces": []}, "servces: unknown field (did you mean 'services'?)"),
        ({"licenses": []}, "licenses: this kind of entity is not supported yet"),
        ({"services": {}}, "services: expected an array"),
        ({"services": ["a"]}, "services[0]: expected a record"),
        ({"services": [{"name": "a", "route": []}]}, "services[0].route: unknown field (did you mean 'routes'?)"),
        ({"services": [{"plugins": [{"service": "b"}]}]}, "services[0].plugins[0].service: stands inside its service"),
        ({"plugins": [{"name": "a", "service": 3}]}, "plugins[0].service: expected a reference"),
        ({"plugins": [{"name": "a", "_config": "x"}]}, "plugins[0]._config: no entry 'x' in _plugin_configs"),
        ({"_info": {"select_tag": []}}, "_info.select_tag: unknown field (did you mean 'select_tags'?)"),
        ({"_info": {"defaults": {"service": {1: 2}}}}, "_info.defaults.service: expected a record with names as keys"),
        ({"_info": {"defaults": {"service": []}}}, "_info.defaults.service: expected a record"),
        ({"_info": {"defaults": {"plugin": {}}}}, "_info.defaults.plugin: unknown field"),
        ({"_comment": "x"}, "_comment: unknown field"),
    ],
)
def test_a_fault_of_nesting_is_named_by_its_path(change: dict[str, Any], expected: str) -> None:
    found = faults({**RECIPE, **change})
    assert any(fault.startswith(expected) for fault in found), found


@pytest.mark.parametrize("url", ["not a url", "example.com", "http://", "http://x.test:99999", ""])
def test_a_url_without_a_host_is_one_fault_that_says_what_a_url_is(url: str) -> None:
    (item,) = read_declaration({"_format_version": "3.0", "services": [{"name": "s", "url": url}]}).items
    with pytest.raises(SchemaViolation) as caught:
        parse(item.type.model, item.body)
    (violation,) = caught.value.violations
    assert violation.path == ("host",)
    assert "http://service.test:8080/path" in str(violation)


def read(body: dict[str, Any], **info: Any) -> dict[str, Any]:
    """A service as a file with this `_info` says it."""
    (item,) = read_declaration({"_format_version": "3.0", "_info": info, "services": [body]}).items
    return item.body


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"url": "http://h.test/x", "path": "/y"}, ("http", "h.test", 80, "/y")),
        ({"url": "https://h.test", "port": 9}, ("https", "h.test", 9, None)),
        ({"url": "https://h.test/x", "protocol": "http", "host": "o.test"}, ("http", "o.test", 443, "/x")),
        ({"url": "https://H.Test:8443/A%20b"}, ("https", "H.Test", 8443, "/A%20b")),
        ({"url": "http://u:p@H.Test/"}, ("http", "H.Test", 80, "/")),
        ({"url": "http://[2001:DB8::1]:9/"}, ("http", "[2001:DB8::1]", 9, "/")),
        ({"url": "http://h.test/x", "path": None, "host": None}, ("http", "h.test", 80, "/x")),
        ({"url": None, "host": "a"}, (None, "a", None, None)),
    ],
)
def test_a_url_in_a_file_says_what_is_not_written_beside_it(written: dict[str, Any], expected: tuple[Any, ...]) -> None:
    body = read({"name": "s", **written})
    assert tuple(body.get(key) for key in ("protocol", "host", "port", "path")) == expected
    assert "url" not in body


def test_a_url_counts_before_the_defaults_of_a_file() -> None:
    defaults = {"service": {"path": "/dflt", "port": 9, "protocol": "https"}}
    assert read({"name": "s", "url": "http://x"}, defaults=defaults) == {
        "name": "s",
        "protocol": "http",
        "host": "x",
        "port": 80,
        "path": "/dflt",
    }
    assert read({"name": "s", "url": "http://x/own"}, defaults=defaults)["path"] == "/own"


def test_a_url_that_cannot_be_read_is_a_fault_beside_a_host_too() -> None:
    body = read({"name": "s", "url": "not a url", "host": "h.test"})
    with pytest.raises(SchemaViolation) as caught:
        parse(ENTITY_TYPES["services"].model, body)
    assert [violation.path for violation in caught.value.violations] == [("host",)]


def test_defaults_of_a_file_fill_records_and_maps_and_what_is_empty() -> None:
    data = {
        "_format_version": "3.0",
        "_info": {
            "defaults": {
                "upstream": {"healthchecks": {"threshold": 5, "active": {"concurrency": 3, "timeout": 2}}},
                "route": {"headers": {"x-a": ["one"]}, "methods": ["GET"], "hosts": ["h"]},
            }
        },
        "upstreams": [{"name": "u", "healthchecks": {"active": {"timeout": 9}}}, {"name": "v"}],
        "routes": [{"name": "r", "headers": {"x-b": ["two"]}, "methods": [], "hosts": ["own"]}],
    }
    first, second, route = [
        item.body for item in sorted(read_declaration(data).items, key=lambda item: item.type.level)
    ]
    assert first["healthchecks"] == {"threshold": 5, "active": {"concurrency": 3, "timeout": 9}}
    assert second["healthchecks"] == {"threshold": 5, "active": {"concurrency": 3, "timeout": 2}}
    assert route["headers"] == {"x-a": ["one"], "x-b": ["two"]}
    assert (route["methods"], route["hosts"]) == (["GET"], ["own"])


def test_tags_of_the_defaults_are_for_what_has_none_and_gets_none() -> None:
    defaults = {"service": {"tags": ["dd"]}}
    assert read({"name": "s"}, defaults=defaults)["tags"] == ["dd"]
    assert read({"name": "s", "tags": []}, defaults=defaults)["tags"] == ["dd"]
    assert read({"name": "s", "tags": ["own"]}, defaults=defaults)["tags"] == ["own"]
    assert read({"name": "s"}, defaults=defaults, select_tags=["sel"])["tags"] == ["sel"]
    assert read({"name": "s", "tags": ["own"]}, defaults=defaults, select_tags=["sel"])["tags"] == ["own", "sel"]


def test_a_foreign_key_among_the_defaults_is_a_reference_where_none_is_written() -> None:
    data = {
        "_format_version": "3.0",
        "_info": {"defaults": {"route": {"service": {"name": "s"}}, "service": {"client_certificate": {"id": "c"}}}},
        "services": [
            {"name": "s", "host": "h", "client_certificate": "own"},
            {"name": "t", "host": "h", "routes": [{"name": "inside", "paths": ["/"]}]},
        ],
        "routes": [{"name": "bare", "paths": ["/"]}, {"name": "own", "paths": ["/"], "service": {"id": "x"}}],
    }
    items = {item.label: item for item in read_declaration(data).items}
    assert {name: item.references for name, item in items.items()} == {
        "s": {"client_certificate": "own"},
        "t": {"client_certificate": "c"},
        "inside": {"service": items["t"]},
        "bare": {"service": "s"},
        "own": {"service": "x"},
    }
    assert not any("service" in item.body or "client_certificate" in item.body for item in items.values())


@pytest.mark.parametrize("tag", ["a,b", "c/d", ""])
def test_a_select_tag_that_no_entity_may_carry_is_refused_at_once(tag: str) -> None:
    empty = {"_format_version": "3.0"}
    assert f"_info.select_tags: invalid tag '{tag}'" in faults(empty, (tag,))[0]
    assert f"_info.select_tags: invalid tag '{tag}'" in faults({**empty, "_info": {"select_tags": [tag]}})[0]


def test_a_workspace_is_refused_with_what_to_write_instead() -> None:
    assert "_konnect.control_plane_name" in faults({"_format_version": "3.0", "_workspace": "prod"})[0]
    assert read_declaration({"_format_version": "3.0", "_workspace": "default"}).items == []


def test_select_tags_of_file_and_command_must_agree() -> None:
    assert "they must be the same" in faults(RECIPE, ("team-b",))[0]


def test_shared_plugin_configuration_is_merged_under_the_plugin_s_own() -> None:
    data = {
        "_format_version": "3.0",
        "_plugin_configs": {"strict": {"realm": "a", "key_names": ["x"]}},
        "plugins": [{"name": "key-auth", "_config": "strict", "config": {"realm": "b"}}],
    }
    assert read_declaration(data).items[0].body["config"] == {"realm": "b", "key_names": ["x"]}


def resolved(data: Any) -> dict[str, list[dict[str, Any]]]:
    """What a control plane would hold: ids made, references resolved."""
    ids: dict[int, str] = {}
    items = read_declaration(data).items
    names: dict[tuple[str, str], str] = {}
    for item in items:
        ids[id(item)] = str(uuid.uuid4())
        names[item.type.name, item.label] = ids[id(item)]
    entities: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        body = dict(item.body, id=ids[id(item)])
        for name, reference in item.references.items():
            target = item.type.parents[name].type
            body[name] = {"id": names[target, reference] if isinstance(reference, str) else ids[id(reference)]}
        entities.setdefault(item.type.name, []).append(body)
    return entities


def test_writing_and_reading_again_gives_the_same_entities() -> None:
    written = write_declaration(resolved(RECIPE), select_tags=["team-a"])
    again = write_declaration(resolved(written), select_tags=["team-a"])
    assert again == written
    assert written["services"][0]["routes"][0]["plugins"] == [{"name": "key-auth", "tags": ["team-a"]}]
    assert written["plugins"] == [{"name": "key-auth", "consumer": "alice", "route": "chat", "tags": ["team-a"]}]


def test_what_stands_only_inside_its_parent_is_not_left_out_where_that_is_missing() -> None:
    held = resolved({"_format_version": "3.0", "consumers": [{"username": "bob", "acls": [{"group": "a"}]}]})
    with pytest.raises(Homeless) as refused:
        write_declaration({"acls": held["acls"]})
    assert refused.value.entities == (("acls", held["acls"][0]["id"]),)


def test_what_can_stand_alone_refers_to_a_missing_parent_by_id() -> None:
    held = resolved(RECIPE)
    written = write_declaration({"routes": held["routes"], "plugins": held["plugins"]})
    assert written["routes"][0]["service"] == {"id": held["services"][0]["id"]}
    assert len(written["routes"][0]["plugins"]) + len(written["plugins"]) == len(held["plugins"])


def test_an_id_that_several_kinds_have_means_another_entity_in_each() -> None:
    """Ids are unique among their kind only; those derived from names are the same for a service and its route."""
    same = str(uuid.uuid4())
    to_it = {"id": same}
    entities: dict[str, list[dict[str, Any]]] = {
        "consumers": [{"id": same, "username": "owner"}],
        "consumer_groups": [{"id": same, "name": "group"}],
        "services": [{"id": same, "name": "behind", "host": "b.test"}],
        "routes": [{"id": same, "name": "before", "paths": ["/b"], "service": to_it}],
        "partials": [{"id": same, "name": "part", "type": "redis-ce"}],
        "keyauth_credentials": [{"id": str(uuid.uuid4()), "key": "k", "consumer": to_it}],
        "basicauth_credentials": [{"id": str(uuid.uuid4()), "username": "u", "password": "p", "consumer": to_it}],
        "consumer_group_consumers": [{"id": str(uuid.uuid4()), "consumer": to_it, "consumer_group": to_it}],
        "plugins": [
            {"id": str(uuid.uuid4()), "name": "key-auth", "service": to_it},
            {"id": str(uuid.uuid4()), "name": "datakit", "consumer": to_it, "route": to_it},
            {"id": str(uuid.uuid4()), "name": "ai-proxy", "partials": [{"id": same, "path": "config"}]},
        ],
    }
    written = write_declaration(entities)
    assert written["services"] == [
        {
            "name": "behind",
            "host": "b.test",
            "routes": [{"name": "before", "paths": ["/b"]}],
            "plugins": [{"name": "key-auth"}],
        }
    ]
    (consumer,) = written["consumers"]
    assert (consumer["id"], consumer["keyauth_credentials"]) == (same, [{"key": "k"}])
    assert "plugins" not in consumer
    links = [*written["consumer_groups"][0].get("consumers", []), *consumer.get("groups", [])]
    assert links in ([{"username": "owner"}], [{"name": "group"}])
    assert {plugin["name"]: plugin for plugin in written["plugins"]} == {
        "ai-proxy": {"name": "ai-proxy", "partials": [{"name": "part", "path": "config"}]},
        "datakit": {"name": "datakit", "consumer": "owner", "route": "before"},
    }


def test_a_digest_is_written_with_the_id_that_it_was_made_with() -> None:
    credential = {"username": "u", "password": "p"}
    consumers = [{"username": "alice", "basicauth_credentials": [credential]}, {"username": "bob"}]
    held = resolved({"_format_version": "3.0", "consumers": consumers})
    written = write_declaration(held, select_tags=["a"])
    assert written["_info"] == {"select_tags": ["a"], "skip_hash_for_basic_auth": True}
    alice, bob = written["consumers"]
    assert alice["id"] == held["basicauth_credentials"][0]["consumer"]["id"]
    assert "id" not in bob


def test_a_filter_chain_is_written_with_its_defaults() -> None:
    """decK has no other way to know them."""
    off = {"name": "off", "enabled": False, "filters": [{"name": "g", "enabled": False}]}
    chains = [{"name": "on", "filters": [{"name": "f", "config": {"a": None}}]}]
    data = {
        "_format_version": "3.0",
        "services": [
            {"name": "s", "host": "h", "filter_chains": chains, "routes": [{"name": "r", "filter_chains": [off]}]}
        ],
    }
    (service,) = write_declaration(resolved(data))["services"]
    assert service["filter_chains"] == [
        {"name": "on", "enabled": True, "filters": [{"name": "f", "enabled": True, "config": {"a": None}}]}
    ]
    assert service["routes"][0]["filter_chains"] == [off]


names = st.text(alphabet="abcdefgh-._~é", min_size=1, max_size=12)


@given(st.lists(st.tuples(names, st.lists(names, max_size=3, unique=True)), max_size=5, unique_by=lambda pair: pair[0]))
def test_any_document_survives_writing_and_reading(services: list[tuple[str, list[str]]]) -> None:
    data = {
        "_format_version": "3.0",
        "services": [
            {"name": name, "host": "h", "routes": [{"name": f"{name}.{r}", "paths": ["/"]} for r in routes]}
            for name, routes in services
        ],
    }
    written = write_declaration(resolved(data))
    assert write_declaration(resolved(written)) == written
    assert sum(len(s.get("routes", [])) for s in written.get("services", [])) == sum(len(r) for _, r in services)


def test_equal_configurations_have_equal_hashes_whatever_their_order() -> None:
    a = {"id": str(uuid.uuid4()), "host": "a", "name": "a"}
    b = {"name": "b", "host": "b", "id": str(uuid.uuid4())}
    one = canonical("cp", {"services": [a, b]})
    other = canonical("cp", {"services": [dict(reversed(b.items())), a]})
    assert hash_of(one) == hash_of(other)
    assert len(hash_of(one)) == 32
    assert hash_of(b"") == "0" * 32


def test_a_document_reads_its_own_canonical_bytes() -> None:
    service = {"id": str(uuid.uuid4()), "host": "a"}
    document = Document.load(canonical("cp", {"services": [service]}))
    assert [s.host for s in document.of("services")] == ["a"]
    assert document.of("routes") == ()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_document_are_refused_as_such(data: bytes) -> None:
    with pytest.raises(SchemaViolation):
        Document.load(data)
