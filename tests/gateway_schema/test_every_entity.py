"""What each kind of entity may hold, in Kong's words where it may not; and what it holds when little was written."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway_schema.entities import Entity
from gateway_schema.expressions import ExpressionError, check_expression
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, parse
from tests.pems import certificate_pem, private_pem, public_pem

ID = {"id": "10000000-0000-4000-8000-000000000001"}
CALLER = {"consumer": ID}


def faults(kind: str, body: dict[str, Any]) -> list[str]:
    try:
        parse(ENTITY_TYPES[kind].model, body)
    except SchemaViolation as error:
        return [str(violation) for violation in error.violations]
    return []


def checked(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return parse(ENTITY_TYPES[kind].model, body).model_dump(mode="json")


CONDITIONAL = "failed conditional validation given value of field '{}'"

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("services", {"host": "a", "protocol": "grpc", "path": "/x"}, CONDITIONAL.format("protocol")),
    ("services", {"host": "a", "protocol": "grpc", "path": "/x"}, "path: value must be null"),
    ("services", {"host": "a", "tls_sans": {"dnsnames": ["a"]}}, "tls_sans: value must be null"),
    ("services", {"host": "a", "port": 70_000}, "port: value should be between 0 and 65535"),
    (
        "routes",
        {"expression": 'http.path == "/a"', "paths": ["/a"]},
        "Router Expression failed validation: cannot set 'paths' when 'expression' is set",
    ),
    ("routes", {"paths": ["/a"], "priority": 1}, "Router Expression failed validation: cannot set 'priority' without"),
    ("routes", {"expression": "http.path =="}, "expression: Router Expression failed validation: expected a value"),
    ("routes", {"expression": 'http.path == "/a"', "priority": 2**46}, "priority: value should be between 0 and"),
    ("routes", {"protocols": ["grpc"], "paths": ["/a"], "strip_path": True}, "strip_path: cannot set 'strip_path'"),
    ("routes", {"protocols": ["grpc"], "hosts": ["a"], "methods": ["GET"]}, "methods: cannot set 'methods' when"),
    (
        "routes",
        {"protocols": ["https"]},
        "must set one of 'methods', 'hosts', 'headers', 'paths', 'snis' when 'protocols' is 'https'",
    ),
    ("routes", {"protocols": ["tls_passthrough"]}, "must set one of 'snis' when 'protocols' is 'tls_passthrough'"),
    ("routes", {"protocols": ["tcp"], "sources": [{}]}, "sources[0]: at least one of these fields must be non-empty"),
    ("routes", {"protocols": ["tcp"], "sources": [{"ip": "x"}]}, "sources[0].ip: invalid ip or cidr range: 'x'"),
    ("routes", {"paths": ["/x/./y"]}, "paths[0]: non-normalized path, consider use '/x/y' instead"),
    ("routes", {"paths": ["/ok", "/a/../b"]}, "paths[1]: non-normalized path, consider use '/b' instead"),
    ("routes", {"paths": ["/a/.."]}, "paths[0]: non-normalized path, consider use '/' instead"),
    ("routes", {"paths": ["/a/%2e%2E/b"]}, "paths[0]: non-normalized path, consider use '/b' instead"),
    ("routes", {"paths": ["/%61/%2f"]}, "paths[0]: non-normalized path, consider use '/a/%2F' instead"),
    ("routes", {"paths": ["/caf%C3%A9/a%20b"]}, "paths[0]: non-normalized path, consider use '/café/a b' instead"),
    ("routes", {"paths": ["/a%ff%61"]}, "paths[0]: non-normalized path, consider use '/a%FFa' instead"),
    ("routes", {"paths": ["/a//b"]}, "paths[0]: must not have empty segments"),
    ("routes", {"paths": ["/a%zz"]}, "paths[0]: invalid path: '/a%zz'"),
    ("routes", {"paths": ["/a?b"]}, "paths[0]: invalid path: '/a?b'"),
    ("routes", {"paths": ["/a\n"]}, "paths[0]: invalid path: '/a\n'"),
    (
        "routes",
        {"paths": ["/x"], "protocols": ["http"], "snis": ["a"]},
        "snis: 'snis' can only be set when 'protocols' is 'grpcs', 'https', 'tls', 'tls_passthrough', or 'wss'",
    ),
    ("routes", {"protocols": ["tcp"], "snis": ["a"]}, "snis: 'snis' can only be set when 'protocols' is"),
    ("routes", {"protocols": ["https"], "snis": ["a", "not a host"]}, "snis[1]: invalid value: not a host"),
    ("routes", {"protocols": ["https"], "snis": ["*.*"]}, "snis[0]: invalid value: *.*"),
    ("routes", {"protocols": ["https"], "snis": ["10.0.0.1"]}, "snis[0]: must not be an IP"),
    ("routes", {"protocols": ["https"], "snis": ["a.b:443"]}, "snis[0]: must not have a port"),
    ("routes", {"hosts": ["a.b:99999"]}, "hosts[0]: invalid value: a.b:99999 (a port is at most 65535)"),
    ("routes", {"headers": {"": ["a"]}}, "headers: no header name provided"),
    ("routes", {"headers": {"x y": ["a"]}}, "headers: bad header name 'x y', allowed characters are A-Z, a-z, 0-9"),
    ("routes", {"headers": {"HOST": ["a"]}}, "headers: must not contain 'host' (use 'hosts')"),
    ("consumer_groups", {}, "name: required field missing"),
    ("basicauth_credentials", {**CALLER, "username": "u"}, "password: required field missing"),
    ("hmacauth_credentials", CALLER, "username: required field missing"),
    ("jwt_secrets", {**CALLER, "algorithm": "RS256"}, "rsa_public_key: required field missing"),
    ("jwt_secrets", {**CALLER, "algorithm": "RS256", "rsa_public_key": "x"}, "rsa_public_key: invalid key"),
    ("jwt_secrets", {**CALLER, "algorithm": "HS1"}, "algorithm: expected one of: HS256"),
    ("acls", CALLER, "group: required field missing"),
    ("mtls_auth_credentials", CALLER, "subject_name: required field missing"),
    ("upstreams", {"name": "10.0.0.1"}, "name: Invalid name ('10.0.0.1'); no ip addresses allowed"),
    ("upstreams", {"name": "a:80"}, "name: Invalid name ('a:80'); no port allowed"),
    ("upstreams", {"name": "a", "hash_on": "header"}, "hash_on_header: required field missing"),
    ("upstreams", {"name": "a", "hash_on": "cookie", "hash_on_cookie": "c", "hash_fallback": "ip"}, "hash_fallback:"),
    ("upstreams", {"name": "a", "hash_on": "ip", "hash_fallback": "ip"}, "hash_fallback: expected one of: none, cons"),
    (
        "upstreams",
        {
            "name": "a",
            "hash_on": "header",
            "hash_on_header": "x",
            "hash_fallback": "header",
            "hash_fallback_header": "x",
        },
        "values of these fields must be distinct: 'hash_on_header', 'hash_fallback_header'",
    ),
    ("upstreams", {"name": "a", "hash_on_header": "x y"}, "hash_on_header: bad header name 'x y', allowed characters"),
    ("upstreams", {"name": "a", "hash_fallback_header": "x:y"}, "hash_fallback_header: bad header name 'x:y', allowed"),
    ("upstreams", {"name": "a", "hash_on_cookie": "a b;c"}, "hash_on_cookie: bad cookie name 'a b;c', allowed are"),
    ("upstreams", {"name": "a", "sticky_sessions_cookie": "a="}, "sticky_sessions_cookie: bad cookie name 'a='"),
    *(
        ("upstreams", {"name": "a", field: value}, f"{field}: {said}")
        for field in ("hash_on_cookie_path", "sticky_sessions_cookie_path")
        for value, said in (
            ("", "length must be at least 1"),
            ("x", "should start with: /"),
            ("//", "must not have em"),
        )
    ),
    *(
        ("upstreams", {"name": "a", "healthchecks": {"active": active}}, f"healthchecks.active.{said}")
        for active, said in (
            ({"http_path": ""}, "http_path: length must be at least 1"),
            ({"http_path": "x"}, "http_path: should start with: /"),
            ({"https_sni": "a b"}, "https_sni: invalid value: a b"),
            ({"https_sni": "a.test:443"}, "https_sni: must not have a port"),
            ({"https_sni": "::1"}, "https_sni: must not be an IP"),
        )
    ),
    ("upstreams", {"name": "a", "slots": 9}, "slots: value should be between 10 and 65536"),
    (
        "upstreams",
        {"name": "a", "healthchecks": {"active": {"healthy": {"successes": 256}}}},
        "healthchecks.active.healthy.successes: value should be between 0 and 255",
    ),
    ("targets", {"upstream": ID, "target": "a b"}, "target: Invalid target; not a valid hostname or ip address"),
    ("targets", {"upstream": ID, "target": "fe80::1%eth0"}, "target: Invalid target; not a valid hostname or ip addr"),
    ("targets", {"upstream": ID, "target": "[fe80::1%eth0]:80"}, "target: Invalid target; not a valid hostname or ip"),
    ("services", {"host": "fe80::1%eth0"}, "host: invalid value: fe80::1%eth0"),
    ("services", {"host": "[fe80::1%eth0]"}, "host: invalid value: [fe80::1%eth0]"),
    *(
        ("routes", {"protocols": ["tcp"], "sources": [{"ip": ip}]}, f"sources[0].ip: invalid ip or cidr range: '{ip}'")
        for ip in ("fe80::1%eth0", "fe80::1%eth0/64", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255", "10.0.0.0/", "::/129")
    ),
    ("targets", {"upstream": ID, "target": "a:99999"}, "target: Invalid target; not a valid port"),
    ("targets", {"upstream": ID, "target": "a", "weight": 65_536}, "weight: value should be between 0 and 65535"),
    ("certificates", {"cert": "x", "key": "y"}, "cert: invalid certificate"),
    ("certificates", {"cert": certificate_pem("a"), "key": private_pem("b")}, "certificate does not match key"),
    (
        "certificates",
        {"cert": certificate_pem("a"), "key": private_pem("a"), "cert_alt": certificate_pem("a", "rsa")},
        "all or none of these fields must be set: 'cert_alt', 'key_alt'",
    ),
    ("snis", {"name": "10.0.0.1", "certificate": ID}, "name: must not be an IP"),
    ("snis", {"name": "a:443", "certificate": ID}, "name: must not have a port"),
    ("snis", {"name": "a.*.b", "certificate": ID}, "name: wildcard must be leftmost or rightmost character"),
    ("ca_certificates", {"cert": certificate_pem("a")}, "cert: certificate does not appear to be a CA"),
    ("ca_certificates", {"cert": 2 * certificate_pem("c", authority=True)}, "cert: please submit only one"),
    ("vaults", {"prefix": "env", "name": "env"}, "prefix: must not be one of: env, aws"),
    ("vaults", {"prefix": "-x", "name": "env"}, "prefix: invalid value: -x"),
    ("keys", {"kid": "k"}, "exactly one of these fields must be non-empty: 'jwk', 'pem'"),
    ("keys", {"kid": "k", "jwk": '{"kty":"oct","kid":"other"}'}, "kid in jwk.kid must be equal to keys.kid"),
    ("keys", {"kid": "k", "jwk": "{"}, "jwk: could not json decode jwk string"),
    ("keys", {"kid": "k", "pem": {}}, "pem: at least one of these fields must be non-empty"),
    (
        "keys",
        {"kid": "k", "pem": {"public_key": public_pem("a"), "private_key": private_pem("b")}},
        "pem: public key does not match private key",
    ),
    ("partials", {"type": "redis"}, "type: expected one of: redis-ce, redis-ee, vectordb, embeddings, model"),
    ("filter_chains", {"filters": []}, "filters: length must be at least 1"),
    (
        "filter_chains",
        {"filters": [{"name": "f"}]},
        "exactly one of these fields must be non-empty: 'service', 'route'",
    ),
    ("services", {"host": "h\n"}, "host: invalid value: h"),
    ("services", {"host": "h?x#y@z"}, "host: invalid value: h?x#y@z (a host name or an IP address)"),
    ("services", {"host": "[::1"}, "host: invalid value"),
    ("services", {"host": "h", "name": "abc\n"}, "name: invalid value"),
    ("services", {"host": "h", "path": "/p\n"}, "path: invalid path"),
    ("services", {"host": "h", "tags": ["t\n"]}, "tags: invalid tag"),
    ("routes", {"methods": ["GET\n"]}, "methods[0]: invalid value"),
    ("routes", {"hosts": ["a.test\n"]}, "hosts[0]: invalid value"),
    ("routes", {"paths": ["/a\n"]}, "paths[0]: invalid path"),
    ("routes", {"paths": ["/a"], "regex_priority": 2**63}, "regex_priority: value should be between"),
    ("consumer_groups", {"name": "gold\n"}, "name: invalid value"),
    ("consumers", {"username": "", "custom_id": "c"}, "username: length must be at least 1"),
    ("keyauth_credentials", {**CALLER, "key": ""}, "key: length must be at least 1"),
    ("jwt_secrets", {**CALLER, "key": ""}, "key: length must be at least 1"),
    ("hmacauth_credentials", {**CALLER, "username": "u", "secret": ""}, "secret: length must be at least 1"),
    ("upstreams", {"name": "u\n"}, "name: Invalid name"),
    ("upstreams", {"name": "u", "host_header": "h\n"}, "host_header: invalid value"),
    ("upstreams", {"name": "u", "algorithm": ["x"]}, "algorithm: expected"),
    ("vaults", {"prefix": "aa\n", "name": "env"}, "prefix: invalid value"),
    ("snis", {"name": "a.test\n", "certificate": ID}, "name: invalid value"),
    ("plugins", {"name": "p", "condition": ""}, "condition: length must be at least 1"),
    ("plugins", {"name": "p", "protocols": []}, "protocols: length must be at least 1"),
    ("plugins", {"name": "p", "partials": [{"path": "x"}]}, "partials[0]: at least one of these fields must be non-e"),
]


@pytest.mark.parametrize(("kind", "body", "expected"), REFUSED)
def test_a_fault_is_said_in_kongs_words(kind: str, body: dict[str, Any], expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults(kind, body)), faults(kind, body)


@pytest.mark.parametrize("host", ["a.test", "a_b", "a.test.", "10.0.0.1", "::1", "[::1]"])
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert checked("services", {"host": host})["host"] == host


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("a.test", "a.test"),
        ("a.test:80", "a.test:80"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "[0000:0000:0000:0000:0000:0000:0000:0001]:8000"),
        ("[::1]:80", "[0000:0000:0000:0000:0000:0000:0000:0001]:80"),
        ("2001:DB8::9", "[2001:0db8:0000:0000:0000:0000:0000:0009]:8000"),
        ("[::1]:", "[::1]:"),
        ("[a.test]:80", "[a.test]:80"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
    ],
)
def test_a_target_is_kept_as_deck_writes_it(written: str, kept: str) -> None:
    """What is none stays, to be refused as it was written."""
    expand = ENTITY_TYPES["targets"].model.expand
    assert expand({"target": written})["target"] == kept == expand({"target": kept})["target"]


def test_whole_numbers_of_seconds_are_shown_without_a_fraction() -> None:
    active = {"timeout": 1.0, "healthy": {"interval": 5.0}, "unhealthy": {"interval": 2.5}}
    shown = checked("upstreams", {"name": "u", "healthchecks": {"active": active, "threshold": 50.0}})["healthchecks"]
    numbers = [shown["active"]["timeout"], shown["active"]["healthy"]["interval"], shown["threshold"]]
    assert [repr(number) for number in numbers] == ["1", "5", "50"]
    assert shown["active"]["unhealthy"]["interval"] == 2.5


@pytest.mark.parametrize(
    "fields",
    [
        {"paths": ["/", "/a/b.c/", "/a%2Fb", "/.well-known/x", "/café/a b", "/a%FF", "~/a%2e/(?<x>[^/]+)"]},
        {"hosts": ["a.b:65535", "*.a", "a.*:80"]},
        {"protocols": ["https"], "snis": ["a.b", "*.a", "a.*", "a.b."]},
        {"protocols": ["tls"], "snis": ["a"]},
        {"headers": {"x-a_1": ["b"]}},
        {"protocols": ["tcp"], "sources": [{"ip": "10.0.0.1/8", "port": 1}, {"ip": "fe80::/10", "port": 2}]},
    ],
)
def test_what_a_route_may_match_by_is_kept_as_it_was_written(fields: dict[str, Any]) -> None:
    assert {name: checked("routes", fields)[name] for name in fields} == fields


def test_an_upstream_is_shown_with_its_whole_health_checks() -> None:
    shown = checked("upstreams", {"name": "u"})
    assert shown["healthchecks"]["active"]["unhealthy"] == {
        "interval": 0,
        "http_statuses": [429, 404, 500, 501, 502, 503, 504, 505],
        "tcp_failures": 0,
        "timeouts": 0,
        "http_failures": 0,
    }
    assert len(shown["healthchecks"]["passive"]["healthy"]["http_statuses"]) == 19
    assert shown["healthchecks"]["threshold"] == 0


@pytest.mark.parametrize(
    ("written", "algorithm", "hash_on"),
    [
        ({}, "round-robin", "none"),
        ({"hash_on": "ip"}, "round-robin", "ip"),
        ({"algorithm": "latency", "hash_on": "ip"}, "latency", "none"),
        ({"algorithm": "least-connections", "hash_on": "ip"}, "least-connections", "none"),
        ({"algorithm": "least-connections"}, "least-connections", "none"),
    ],
)
def test_some_algorithms_hash_on_nothing(written: dict[str, Any], algorithm: str, hash_on: str) -> None:
    shown = checked("upstreams", {"name": "u", **written})
    assert (shown["algorithm"], shown["hash_on"]) == (algorithm, hash_on)
    assert checked("upstreams", shown) == shown


def test_what_an_upstream_may_hash_on_is_kept_as_it_was_written() -> None:
    fields = {"hash_on_header": "X-User_1", "hash_on_cookie": "__Host-id.1", "hash_on_cookie_path": "/a/b%20c"}
    active = {"http_path": "/health", "https_sni": "a_b.test."}
    shown = checked("upstreams", {"name": "u", **fields, "healthchecks": {"active": active}})
    assert {name: shown[name] for name in fields} == fields
    assert {name: shown["healthchecks"]["active"][name] for name in active} == active


def test_the_condition_of_a_plugin_is_not_in_the_language_of_routes() -> None:
    """It is CEL."""
    condition = "default(size(request.headers['x-a']) > 1, false)"
    assert checked("plugins", {"name": "p", "condition": condition})["condition"] == condition


def test_a_route_with_an_expression_has_no_fields_of_traditional_ones() -> None:
    shown = checked("routes", {"expression": 'http.path == "/a"'})
    assert (shown["priority"], shown["regex_priority"], shown["path_handling"]) == (0, None, None)
    assert checked("routes", shown) == shown
    assert checked("routes", {"paths": ["/a"]})["priority"] is None


def test_paths_of_grpc_are_not_cut() -> None:
    assert checked("routes", {"protocols": ["grpc"], "paths": ["/a"]})["strip_path"] is False


def admit(kind: str, written: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    model: type[Entity] = ENTITY_TYPES[kind].model
    return model.admit(written, before)


def test_a_password_is_kept_as_kong_keeps_it() -> None:
    digest = hashlib.sha1(f"secret{ID['id']}".encode(), usedforsecurity=False).hexdigest()
    written = {**CALLER, "username": "u", "password": "secret"}
    kept = admit("basicauth_credentials", written)
    assert kept["password"] == digest
    assert admit("basicauth_credentials", kept, kept) == kept
    assert admit("basicauth_credentials", {**kept, "skip_hash": True}) == kept


def test_an_expired_authority_is_not_taken_in_but_one_that_is_kept_stays() -> None:
    body = {"cert": certificate_pem("old", authority=True, expired=True)}
    with pytest.raises(SchemaViolation, match="certificate expired"):
        admit("ca_certificates", body)
    assert admit("ca_certificates", body, body) == body
    assert faults("ca_certificates", body) == []


@pytest.mark.parametrize(
    "text",
    [
        'http.path == "/a"',
        'http.path ^= "/a" && (http.method == "GET" || http.method == "POST")',
        '!(lower(http.headers.x_kind) == "b") && net.port in 80',
        "net.src.ip not in 10.0.0.0/8",
        r'any(http.headers.x) ~ r#"^\d+$"#',
        'http.path.segments.0 contains "a\\"b"',
        "net.src.ip in fe80::/10",
    ],
)
def test_a_well_formed_expression_is_taken(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a field, found the end at character 1"),
        ('http.path == "/a', "a text that is not closed at character 14"),
        ('(http.path == "/a"', "expected ')', found the end"),
        ("http.path /a", "an unexpected '/' at character 11"),
        ('http.path "/a"', "expected an operator"),
        ('http.path == "/a" http.method', "expected '&&', '||' or the end, found 'http.method' at character 19"),
        ("(" * 100, "nested deeper"),
    ],
)
def test_a_broken_expression_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        check_expression(text)
    assert said in str(refused.value)
