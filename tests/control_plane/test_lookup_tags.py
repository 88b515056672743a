"""`_info.default_lookup_tags`: what a file may refer to, and leaves as it is."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.errors import DocumentRefused
from gateway_schema.violations import SchemaViolation
from tests.control_plane.test_plan import World, counts, faults, service

BOTH = ["base", "team"]
SHARED: dict[str, dict[str, Any]] = {
    "services": service("shared"),
    "routes": {"name": "shared", "paths": ["/"]},
    "consumers": {"username": "shared"},
    "consumer_groups": {"name": "shared"},
    "partials": {"name": "shared", "type": "redis-ce", "config": {"host": "r.test"}},
}


def info(**lookup: Any) -> dict[str, Any]:
    return {"_info": {"select_tags": ["team"], "default_lookup_tags": lookup}}


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("tags", [["base"], BOTH, ["x", *BOTH]])
def test_what_is_looked_up_stays_as_it_is(kind: str, tags: list[str]) -> None:
    world = World()
    world.apply({kind: [{**SHARED[kind], "tags": tags}]})
    assert not world.plan(info(**{kind: ["base"]}))


@pytest.mark.parametrize("kind", SHARED)
def test_what_does_not_carry_all_lookup_tags_is_deleted_as_ever(kind: str) -> None:
    world = World()
    world.apply({kind: [{**SHARED[kind], "tags": BOTH}]})
    assert counts(world.plan(info(**{kind: ["base", "other"]}))) == (0, 0, 1)
    other = next(name for name in SHARED if name != kind)
    assert counts(world.plan(info(**{other: ["base"]}))) == (0, 0, 1)


def test_without_select_tags_too_and_a_reset_takes_all() -> None:
    world = World()
    world.apply({"services": [service("shared", tags=["base"]), service("s")]})
    document = {"_info": {"default_lookup_tags": {"services": ["base"]}}}
    assert [row.written["name"] for row in world.plan(document).deletes] == ["s"]
    assert counts(world.plan(document, "reset")) == (0, 0, 2)


def test_what_is_looked_up_can_be_referred_to() -> None:
    world = World()
    world.apply({"routes": [{"name": "r", "paths": ["/"], "tags": BOTH}]})
    document = {**info(routes=["base"]), "plugins": [{"name": "key-auth", "route": "r"}]}
    assert counts(world.apply(document)) == (1, 0, 0)
    assert not world.plan(document)
    (route,) = world.holdings.of("routes").values()
    assert route.tags == BOTH


def test_what_belongs_to_it_and_carries_the_select_tags_is_the_documents() -> None:
    world = World()
    key = {"key": "k", "tags": ["team"]}
    world.apply({"consumers": [{"username": "shared", "tags": BOTH, "keyauth_credentials": [key]}]})
    assert [row.type.kind for row in world.plan(info(consumers=["base"])).deletes] == ["key-auth"]


def test_nothing_goes_that_it_needs() -> None:
    world = World()
    route = {"name": "r", "paths": ["/"], "tags": BOTH}
    world.apply({"services": [service("s", tags=["team"], routes=[route])]})
    with pytest.raises(DocumentRefused) as caught:
        world.plan(info(routes=["base"]))
    ((_, message),) = faults(caught.value)
    assert "route r refers to it and is kept by _info.default_lookup_tags" in message


def test_what_is_kept_does_not_count_among_what_could_be_deleted() -> None:
    world = World()
    world.apply({"services": [service("shared", tags=BOTH), service("s", tags=["team"])]})
    assert world.plan({**info(services=["base"]), "services": [service("s")]}).governed == 1


@pytest.mark.parametrize(
    ("lookup", "path", "message"),
    [
        ({"services": "base"}, "_info.default_lookup_tags.services", "expected an array of tags, one at least"),
        ({"services": []}, "_info.default_lookup_tags.services", "expected an array of tags, one at least"),
        ({"services": None}, "_info.default_lookup_tags.services", "expected an array of tags, one at least"),
        ({"services": ["a", 1]}, "_info.default_lookup_tags.services", "expected an array of tags, one at least"),
        ({"routes": ["a/b"]}, "_info.default_lookup_tags.routes", "invalid tag 'a/b'"),
        ({"service": ["a"]}, "_info.default_lookup_tags.service", "did you mean 'services'?"),
        ({"upstreams": ["a"]}, "_info.default_lookup_tags.upstreams", "unknown field"),
        (["base"], "_info.default_lookup_tags", "expected a record"),
    ],
)
def test_lookup_tags_of_another_form_are_refused(lookup: Any, path: str, message: str) -> None:
    with pytest.raises(SchemaViolation) as caught:
        World().plan({"_info": {"default_lookup_tags": lookup}})
    assert path in str(caught.value)
    assert message in str(caught.value)
