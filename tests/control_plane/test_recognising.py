"""Which rows a document means, and what it may call them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.errors import DocumentRefused
from tests.control_plane.test_plan import ID, World, counts, faults, meaning, service
from tests.pems import certificate_pem
from tests.thorough import times

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
    assert message.startswith("give it a name or an id")


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


def test_who_has_another_name_now_is_said() -> None:
    held, renamed, referring, _ = HELD_AND_RENAMED[0]
    world = World()
    world.apply(held)
    with pytest.raises(DocumentRefused) as caught:
        world.plan({**renamed, **referring})
    ((path, message),) = faults(caught.value)
    assert path == ["routes", 0, "service"]
    assert message.endswith("any more: the document gives that one another name, 'new'")


def test_an_authority_is_told_by_its_certificate() -> None:
    world = World()
    document = {"ca_certificates": [{"cert": certificate_pem("authority", authority=True)}]}
    world.apply(document)
    assert not world.plan(document)


# -- what holds for all documents

IDS = st.sampled_from([ID.format(1), ID.format(2)])


@st.composite
def wandering(draw: st.DrawFn) -> dict[str, Any]:
    """Few entities with several keys each, so that names, ids and references meet in all ways, also where they do not
    belong to each other."""
    users, names = ["u0", "u1", "u2"], ["s0", "s1"]
    customs = iter(draw(st.permutations(["c0", "c1", None, None])))
    people = [
        {"username": name, **({"custom_id": custom} if (custom := next(customs)) else {}), **draw(an_id())}
        for name in draw(st.lists(st.sampled_from(users), unique=True))
    ]
    services = [service(name, **draw(an_id())) for name in draw(st.lists(st.sampled_from(names), unique=True))]
    document: dict[str, Any] = {"consumers": people, "services": services}
    if draw(st.booleans()):
        document["routes"] = [{"name": "r", "paths": ["/"], "service": {"name": draw(st.sampled_from(names))}}]
    if draw(st.booleans()):
        document["consumer_groups"] = [{"name": "g", "consumers": [{"username": draw(st.sampled_from(users))}]}]
    return document


def an_id() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={"id": IDS})


def accepts(world: World, document: dict[str, Any]) -> bool:
    try:
        world.apply(document)
    except DocumentRefused:
        return False
    return True


@settings(max_examples=times(300, 5000), deadline=None)
@given(wandering(), wandering())
def test_what_was_there_before_decides_neither_whether_a_document_is_taken_nor_what_it_means(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    world, alone = World(), World()
    accepts(world, first)
    taken = accepts(world, second)
    assert accepts(alone, second) is taken
    if taken:
        assert meaning(world) == meaning(alone)
        assert not world.plan(second)
