from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.chain import run
from data_plane.errors import ConfigError, GatewayError
from data_plane.exchange import Exchange
from data_plane.messages import Head, Headers, Response
from data_plane.plugins.key_auth import KeyAuth
from gateway_schema.entities import KeyAuthCredential
from gateway_schema.plugins.key_auth import KeyAuthConfig
from gateway_schema.violations import parse
from tests.data_plane.builders import entity_id, exchange, proceed, supplies

CONSUMERS = {"alice": ["alice-key"], "guest": []}


def plugin(consumers: dict[str, list[str]] | None = None, **config: Any) -> KeyAuth:
    return KeyAuth(parse(KeyAuthConfig, config), supplies(consumers=consumers or CONSUMERS))


async def ask(handler: KeyAuth, subject: Exchange) -> Response:
    """As the chain would: errors become answers."""

    class Chain:
        first = staticmethod(lambda given: handler.handle(given, proceed))

    return await run(Chain(), subject)  # type: ignore[arg-type]


def message(response: Response) -> str:
    assert isinstance(response.body, bytes)
    text: str = orjson.loads(response.body)["message"]
    return text


async def test_a_key_in_a_header_names_its_consumer_and_is_hidden() -> None:
    subject = exchange(headers={"ApiKey": "alice-key", "Other": "x"})
    response = await ask(plugin(), subject)
    assert response.status == 200
    assert subject.consumer is not None
    assert subject.consumer.username == "alice"
    headers = subject.request.headers
    assert headers.get("apikey") is None
    assert headers.get("other") == "x"
    assert headers.get("X-Consumer-ID") == entity_id("alice")
    assert headers.get("X-Consumer-Username") == "alice"
    assert headers.get("X-Consumer-Custom-ID") is None
    assert headers.get("X-Credential-Identifier") == entity_id("alice-key")
    assert headers.get("X-Anonymous-Consumer") is None


async def test_claims_of_the_client_are_cleared_however_they_are_spelt() -> None:
    subject = exchange(
        headers={
            "apikey": "alice-key",
            "x-consumer-id": "root",
            "X_Consumer_Username": "root",
            "X-Consumer-Custom-Id": "root",
            "X-Anonymous-Consumer": "true",
        }
    )
    await ask(plugin(), subject)
    assert all(value != "root" for _, value in subject.request.headers)
    assert subject.request.headers.get("X-Anonymous-Consumer") is None


@pytest.mark.parametrize(
    ("headers", "target", "text"),
    [
        ({}, "/", "No API key found in request"),
        ({"apikey": ""}, "/", "No API key found in request"),
        ({"apikey": "wrong"}, "/", "Unauthorized"),
        ({"apikey": "ALICE-KEY"}, "/", "Unauthorized"),
        ({}, "/?apikey=wrong", "Unauthorized"),
        ({}, "/?apikey=alice-key&apikey=alice-key", "Duplicate API key found"),
    ],
)
async def test_refusals(headers: dict[str, str], target: str, text: str) -> None:
    subject = exchange(target=target, headers=headers)
    response = await ask(plugin(), subject)
    assert (response.status, message(response)) == (401, text)
    assert response.headers.get("WWW-Authenticate") == "Key"
    assert subject.consumer is None


async def test_a_header_that_comes_twice_is_refused() -> None:
    subject = exchange()
    subject.request.headers = Headers([("apikey", "alice-key"), ("Apikey", "other")])
    assert message(await ask(plugin(), subject)) == "Duplicate API key found"


async def test_the_challenge_names_the_realm() -> None:
    response = await ask(plugin(realm='the "house"'), exchange())
    assert response.headers.get("WWW-Authenticate") == 'Key realm="the \\"house\\""'


async def test_a_key_in_the_query_is_found_and_hidden_with_the_rest_kept() -> None:
    subject = exchange(target="/p?a=1&apikey=alice-key&b=%20c&empty", headers={"apikey": ""})
    response = await ask(plugin(), subject)
    assert response.status == 200
    assert subject.request.target == "/p?a=1&b=%20c&empty"
    assert "apikey" not in subject.request.headers


async def test_an_escaped_name_in_the_query_is_found_and_hidden() -> None:
    subject = exchange(target="/?%61pikey=alice%2Dkey")
    assert (await ask(plugin(), subject)).status == 200
    assert subject.request.target == "/"


async def test_the_copy_in_the_query_is_hidden_too_when_the_header_counted() -> None:
    subject = exchange(target="/?apikey=other&x=1", headers={"apikey": "alice-key"})
    await ask(plugin(), subject)
    assert subject.request.target == "/?x=1"


async def test_names_are_tried_in_order_header_before_query() -> None:
    handler = plugin(consumers={"alice": ["one"], "bob": ["two"]}, key_names=["first", "second"])
    subject = exchange(target="/?first=two", headers={"second": "one"})
    await ask(handler, subject)
    assert subject.consumer is not None
    assert subject.consumer.username == "bob"


async def test_places_can_be_switched_off() -> None:
    handler = plugin(key_in_header=False, key_in_query=False)
    subject = exchange(target="/?apikey=alice-key", headers={"apikey": "alice-key"})
    assert message(await ask(handler, subject)) == "No API key found in request"


async def test_without_hiding_the_key_goes_on() -> None:
    subject = exchange(target="/?apikey=alice-key")
    await ask(plugin(hide_credentials=False), subject)
    assert subject.request.target == "/?apikey=alice-key"


class TestBody:
    async def test_json(self) -> None:
        subject = exchange(
            headers={"Content-Type": "application/json; charset=utf-8"}, body=b'{"apikey":"alice-key","x":[1]}'
        )
        assert (await ask(plugin(key_in_body=True), subject)).status == 200
        assert orjson.loads(await subject.body_bytes()) == {"x": [1]}
        assert subject.request.headers.get("Content-Length") == str(len(b'{"x":[1]}'))

    async def test_form(self) -> None:
        subject = exchange(
            headers={"Content-Type": "application/x-www-form-urlencoded"}, body=b"a=%C3%A9&apikey=alice-key&b=2+3"
        )
        assert (await ask(plugin(key_in_body=True), subject)).status == 200
        assert await subject.body_bytes() == b"a=%C3%A9&b=2+3"

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("application/json", b"{not json"),
            ("application/json", b'["apikey"]'),
            ("application/json", b'{"apikey": 7}'),
            ("application/octet-stream", b"\xff\x00apikey=alice-key"),
            ("", b"apikey=alice-key"),
        ],
    )
    async def test_what_cannot_be_read_holds_no_key(self, content_type: str, body: bytes) -> None:
        subject = exchange(headers={"Content-Type": content_type}, body=body)
        assert message(await ask(plugin(key_in_body=True), subject)) == "No API key found in request"
        assert await subject.body_bytes() == body

    async def test_is_not_looked_at_unless_asked_for(self) -> None:
        subject = exchange(headers={"Content-Type": "application/json"}, body=b'{"apikey":"alice-key"}')
        assert (await ask(plugin(), subject)).status == 401

    async def test_a_repeated_field_is_refused(self) -> None:
        subject = exchange(headers={"Content-Type": "application/json"}, body=b'{"apikey":["a","b"]}')
        assert message(await ask(plugin(key_in_body=True), subject)) == "Duplicate API key found"


class TestAnonymous:
    @pytest.mark.parametrize("who", ["guest", entity_id("guest")])
    async def test_stands_in_when_no_key_is_valid(self, who: str) -> None:
        subject = exchange(headers={"apikey": "wrong", "X-Credential-Identifier": "forged"})
        assert (await ask(plugin(anonymous=who), subject)).status == 200
        headers = subject.request.headers
        assert headers.get("X-Consumer-Username") == "guest"
        assert headers.get("X-Anonymous-Consumer") == "true"
        assert headers.get("X-Credential-Identifier") is None
        assert headers.get("apikey") is None
        assert subject.credential is None

    async def test_that_does_not_exist_is_an_error(self) -> None:
        response = await ask(plugin(anonymous="ghost"), exchange())
        assert response.status == 500
        assert message(response) == "anonymous consumer ghost is configured but doesn't exist"

    async def test_leaves_an_earlier_authentication_alone(self) -> None:
        subject = exchange(headers={"apikey": "alice-key"})
        reference = {"id": entity_id("bob")}
        subject.credential = parse(KeyAuthCredential, {"consumer": reference, "key": "x"})
        assert (await ask(plugin(anonymous="guest"), subject)).status == 200
        assert subject.consumer is None


async def test_preflight_requests_pass_when_so_configured() -> None:
    assert (await ask(plugin(run_on_preflight=False), exchange("OPTIONS"))).status == 200
    assert (await ask(plugin(), exchange("OPTIONS"))).status == 401


async def test_an_expired_credential_is_unknown() -> None:
    given = supplies(consumers={"alice": []})
    alice = given.consumers["alice"]
    reference = {"id": str(alice.id)}
    now = int(time.time())
    keys = {}
    for key, created_at in (("fresh", now), ("stale", now - 100)):
        credential = parse(KeyAuthCredential, {"consumer": reference, "key": key, "ttl": 60, "created_at": created_at})
        keys[key] = (alice, credential)
    given.consumers_by_key = keys
    handler = KeyAuth(parse(KeyAuthConfig, {}), given)
    assert (await ask(handler, exchange(headers={"apikey": "fresh"}))).status == 200
    assert message(await ask(handler, exchange(headers={"apikey": "stale"}))) == "Unauthorized"


def test_kong_identity_is_refused_at_build_time() -> None:
    with pytest.raises(ConfigError, match="not available") as caught:
        plugin(principals={"enabled": True})
    assert caught.value.field == "config.principals.enabled"


# Heads that come again.

FIELDS = st.sampled_from(
    [
        ("apikey", "alice-key"),
        ("ApiKey", "bob-key"),
        ("apikey", "wrong"),
        ("apikey", ""),
        ("other-key", "bob-key"),
        ("X-Consumer-ID", "root"),
        ("x_consumer_username", "root"),
        ("X-Anonymous-Consumer", "true"),
        ("Content-Type", "application/json"),
        ("Host", "a"),
    ]
)
TARGETS = st.sampled_from(["/", "/?apikey=alice-key&x=1", "/?other-key=wrong", "/a?b"])
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "key_names": st.sampled_from([["apikey"], ["other-key", "apikey"], ["Content-Length"]]),
        "hide_credentials": st.booleans(),
        "key_in_body": st.booleans(),
        "key_in_query": st.booleans(),
        "anonymous": st.just("guest"),
    },
)
BODIES = st.lists(st.sampled_from([b'{"apikey":"bob-key"}', b"{}", b"12345"]), min_size=2, max_size=4)
PEOPLE = {"alice": ["alice-key", "20"], "bob": ["bob-key"], "guest": []}


async def admitted(handler: KeyAuth, subject: Exchange) -> Any:
    """All that there is to see of an exchange behind key-auth."""
    response = await ask(handler, subject)
    answer = (response.status, message(response) if response.status != 200 else "")
    body = await subject.body_bytes()
    return (answer, subject.request.headers.raw, subject.request.target, body, subject.consumer, subject.credential)


def arrival(head: Head, target: str, body: bytes, *, is_known: bool) -> Exchange:
    subject = exchange(target=target, body=body)
    length = str(len(body))
    subject.request.headers = head.headers(length) if is_known else Headers(head.headers(length).raw)
    return subject


@given(st.lists(FIELDS, max_size=5), st.lists(TARGETS, min_size=1, max_size=2), CONFIGS, BODIES)
async def test_a_head_that_comes_again_is_let_in_as_if_it_were_new(
    fields: list[tuple[str, str]], targets: list[str], config: dict[str, Any], bodies: list[bytes]
) -> None:
    handler = plugin(PEOPLE, **config)
    head = Head([*fields, ("Content-Length", "0")])
    before = head.fields.copy()
    for body in bodies:
        for target in targets:
            known = await admitted(handler, arrival(head, target, body, is_known=True))
            assert known == await admitted(handler, arrival(head, target, body, is_known=False))
    assert head.fields == before


async def test_what_comes_behind_finds_the_same_head_again_and_cannot_change_it() -> None:
    handler = plugin()
    head = Head([("apikey", "alice-key"), ("Content-Length", "1")])
    origins, fields = set(), []
    for _ in range(3):
        subject = arrival(head, "/", b"12", is_known=True)
        await ask(handler, subject)
        headers = subject.request.headers
        assert headers.get("Content-Length") == "2"
        origins.add(headers.origin)
        fields.append(headers.raw.copy())
        headers.add("X-Later", "1")
        headers.set("X-Consumer-ID", "changed")
    assert len(origins) == 1
    assert None not in origins
    assert fields == [fields[0]] * 3


async def test_two_plugins_do_not_share_what_they_concluded() -> None:
    head = Head([("apikey", "alice-key")])
    assert (await ask(plugin(), arrival(head, "/", b"", is_known=True))).status == 200
    assert (await ask(plugin({"bob": ["bob-key"]}), arrival(head, "/", b"", is_known=True))).status == 401


def of_a_mortal_key() -> KeyAuth:
    """Alice's key lives from 1000 to 1060."""
    supplied = supplies(consumers=CONSUMERS)
    alice, credential = supplied.consumers_by_key["alice-key"]
    mortal = credential.model_copy(update={"created_at": 1000, "ttl": 60})
    supplied.consumers_by_key = {"alice-key": (alice, mortal)}
    return KeyAuth(parse(KeyAuthConfig, {}), supplied)


async def test_a_known_head_is_let_in_no_longer_than_its_credential_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = of_a_mortal_key()
    head = Head([("apikey", "alice-key")])
    seen = []
    for now in (1001, 1059, 1060, 1061):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        seen.append((await ask(handler, arrival(head, "/", b"", is_known=True))).status)
    assert seen == [200, 200, 401, 401]


async def test_a_known_head_is_not_let_in_once_its_key_has_another_owner() -> None:
    supplied = supplies(consumers=PEOPLE)
    handler = KeyAuth(parse(KeyAuthConfig, {}), supplied)
    head = Head([("apikey", "alice-key")])
    by_key: dict[str, Any] = supplied.consumers_by_key  # type: ignore[assignment]
    names = []
    for owner in ("alice-key", "bob-key"):
        by_key["alice-key"] = by_key[owner]
        subject = arrival(head, "/", b"", is_known=True)
        await ask(handler, subject)
        assert subject.consumer is not None
        names.append(subject.consumer.username)
    assert names == ["alice", "bob"]
    del by_key["alice-key"]
    assert (await ask(handler, arrival(head, "/", b"", is_known=True))).status == 401


async def test_an_exchange_that_began_in_time_stays_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be looked at again when its answer is there already."""
    handler = of_a_mortal_key()
    head = Head([("apikey", "alice-key")])
    monkeypatch.setattr(time, "time", lambda: 1061)
    for is_known in (False, True, True):
        for began, status in ((1059.9, 200), (1060, 401)):
            subject = arrival(head, "/", b"", is_known=is_known)
            subject.started_at = began
            assert (await ask(handler, subject)).status == status


@pytest.mark.parametrize("config", [{}, {"hide_credentials": False}, {"anonymous": "alice"}, {"key_in_query": False}])
@pytest.mark.parametrize("headers", [{"apikey": "alice-key"}, {"apikey": "x"}, {}, {"X-Consumer-Username": "root"}])
async def test_the_prelude_does_what_handling_does(config: dict[str, Any], headers: dict[str, str]) -> None:
    handler = plugin(**config)
    seen: list[tuple[Any, ...]] = []
    for is_prelude in (False, True):
        subject = exchange(target="/?x=1&apikey=alice-key", headers=headers)
        try:
            done = handler.prelude(subject) if is_prelude else (await handler.handle(subject, proceed)).status == 200
        except GatewayError as error:
            seen.append((error.status, error.message, error.headers))
        else:
            seen.append(
                (done, subject.consumer, subject.credential, subject.request.headers.raw, subject.request.target)
            )
    assert seen[0] == seen[1]


async def test_the_prelude_leaves_bodies_to_those_who_wait_for_them() -> None:
    subject = exchange(headers={"apikey": "alice-key"})
    assert not plugin(key_in_body=True).prelude(subject)
    assert subject.consumer is None
    assert subject.request.headers.get("apikey") == "alice-key"
