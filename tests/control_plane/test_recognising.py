"""Which rows a document means, and what it may call them."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.errors import DocumentRefused
from tests.control_plane.test_plan import ID, World, counts, faults, meaning, service

KEY = '{"kty":"oct","k":"c2VjcmV0","kid":"one"}'


def consumers(*bodies: dict[str, Any]) -> dict[str, Any]:
    return {"consumers": list(bodies)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            consumers({"username": "q1", "custom_id": "c9"}),
            consumers({"username": "q1"}, {"username": "q3", "custom_id": "c9"}),
        ),
        (
            consumers({"username": "q1", "custom_id": "c9"}),
            consumers({"username": "q3", "custom_id": "c9"}, {"username": "q1"}),
        ),
        (
            consumers({"username": "a", "custom_id": "1"}, {"username": "b", "custom_id": "2"}),
            consumers({"username": "b", "custom_id": "1"}, {"username": "a", "custom_id": "2"}),
        ),
        (
            consumers({"username": "a", "custom_id": "1"}),
            consumers({"username": "b", "custom_id": "1"}, {"username": "a", "custom_id": "2", "id": ID.format(1)}),
        ),
        (
            {"keys": [{"name": "a", "kid": "one", "jwk": KEY}]},
            {
                "keys": [
                    {"name": "b", "kid": "one", "jwk": KEY},
                    {"name": "a", "kid": "two", "jwk": KEY.replace("one", "two")},
                ]
            },
        ),
    ],
)
def test_a_unique_value_may_move_to_another_entity(first: dict[str, Any], second: dict[str, Any]) -> None:
    world, alone = World(), World()
    world.apply(first)
    world.apply(second)
    alone.apply(second)
    assert meaning(world) == meaning(alone)
    assert not world.plan(second)


def test_who_keeps_the_strongest_key_stays_who_it_is() -> None:
    world = World()
    world.apply(consumers({"username": "q1", "custom_id": "c9"}))
    (entity_id,) = world.holdings.of("consumers")
    world.apply(consumers({"username": "q3", "custom_id": "c9"}, {"username": "q1"}))
    assert world.holdings.of("consumers")[entity_id].written["username"] == "q1"


def test_one_that_is_alone_with_a_weaker_key_is_renamed() -> None:
    world = World()
    world.apply(consumers({"username": "old", "custom_id": "c"}))
    assert counts(world.plan(consumers({"username": "new", "custom_id": "c"}))) == (0, 1, 0)


HELD_AND_RENAMED = [
    (
        {"services": [service("old", id=ID.format(1))]},
        {"services": [service("new", id=ID.format(1))]},
        {"routes": [{"name": "r", "paths": ["/"], "service": {"name": "old"}}]},
        "there is no service 'old'",
    ),
    (
        consumers({"username": "old", "custom_id": "c"}),
        consumers({"username": "new", "custom_id": "c"}),
        {"consumer_groups": [{"name": "g", "consumers": [{"username": "old"}]}]},
        "there is no consumer 'old'",
    ),
    (
        {"partials": [{"id": ID.format(1), "name": "old", "type": "redis-ce", "config": {"host": "r.test"}}]},
        {"partials": [{"id": ID.format(1), "name": "new", "type": "redis-ce", "config": {"host": "r.test"}}]},
        {"plugins": [{"name": "rate-limiting", "config": {"minute": 1}, "partials": [{"name": "old"}]}]},
        "there is no partial 'old'",
    ),
]


@pytest.mark.parametrize(("held", "renamed", "referring", "message"), HELD_AND_RENAMED)
@pytest.mark.parametrize("mode", ["sync", "apply"])
def test_a_former_name_is_nobodys_in_the_document_that_changes_it(
    held: dict[str, Any], renamed: dict[str, Any], referring: dict[str, Any], message: str, mode: Any
) -> None:
    world = World()
    world.apply(held)
    with pytest.raises(DocumentRefused) as caught:
        world.plan({**renamed, **referring}, mode)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "document",
    [
        {"services": [{"host": "s.test"}]},
        {"routes": [{"paths": ["/"]}]},
        {"services": [service("s", routes=[{"paths": ["/"]}])]},
        {"partials": [{"type": "redis-ce", "config": {"host": "r.test"}}]},
    ],
)
@pytest.mark.parametrize("mode", ["sync", "apply"])
def test_what_would_never_be_recognised_again_is_refused(document: dict[str, Any], mode: Any) -> None:
    with pytest.raises(DocumentRefused) as caught:
        World().plan(document, mode)
    ((_, message),) = faults(caught.value)
    assert message.startswith("give it name or id")


@pytest.mark.parametrize(
    "document",
    [
        {"services": [{"id": ID.format(1), "host": "s.test"}]},
        {"keys": [{"kid": "one", "jwk": KEY}]},
        {"services": [service("s", filter_chains=[{"filters": [{"name": "f"}]}])]},
        {"upstreams": [{"name": "u", "targets": [{"target": "t.test:80"}]}]},
        consumers({"custom_id": "c", "acls": [{"group": "g"}]}),
    ],
)
def test_what_is_told_by_an_id_or_other_keys_needs_no_name(document: dict[str, Any]) -> None:
    world = World()
    assert world.apply(document)
    assert not world.plan(document)
