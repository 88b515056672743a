"""Deltas: whatever two documents are, what leads from one to the other leads there byte for byte."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway_schema.delta import (
    Catalogue,
    Change,
    Delta,
    Section,
    changes_between,
    combined,
    delta_of,
    size_of,
)
from gateway_schema.document import canonical, hash_of
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.wire import config_pb2

WHOLE_NUMBERS = st.integers(-(2**63), 2**64 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE_NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ENTITIES = st.dictionaries(st.text(), VALUES, max_size=3)
IDS = st.sampled_from(["a", "b", "c", "B", "é", 'z,{"id":', "]}"]) | st.text()
KINDS = st.sampled_from([*list(ENTITY_TYPES)[:3], "routes"])
CONTENT = st.dictionaries(KINDS, st.dictionaries(IDS, ENTITIES, max_size=5), max_size=3)


def document(content: dict[str, dict[str, dict[str, Any]]]) -> bytes:
    entities = {name: [{**body, "id": key} for key, body in rows.items()] for name, rows in content.items()}
    return canonical('c"p', entities)


def changes(old: bytes, new: bytes) -> Any:
    found = changes_between(Catalogue.read(old), Catalogue.read(new))
    assert found is not None
    return found


@given(CONTENT)
def test_a_document_taken_apart_and_joined_is_the_same(content: dict[str, Any]) -> None:
    payload = document(content)
    assert Catalogue.read(payload).payload() == payload


@settings(max_examples=300)
@given(CONTENT, CONTENT)
def test_a_delta_leads_from_any_document_to_any_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = document(old), document(new)
    result = Catalogue.read(before).after(delta_of(changes(before, after)))
    assert result.payload() == after
    assert hash_of(result.payload()) == hash_of(after)
    assert Catalogue.read(after) == result


@settings(max_examples=300)
@given(CONTENT, st.lists(CONTENT, min_size=1, max_size=4))
def test_the_hash_of_a_document_that_follows_another_is_that_of_its_bytes(
    first: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    former = Catalogue.read(document(first))
    assert former.hash() == hash_of(document(first))
    for content in others:
        payload = document(content)
        following = former.after(delta_of(changes(former.payload(), payload)))
        assert following.hash(former) == hash_of(payload)
        assert Catalogue.read(payload).hash(former) == hash_of(payload)  # nothing in common, so far as it can know
        assert following.size == len(payload)
        former = following


def test_the_hash_after_a_document_of_another_control_plane_is_its_own() -> None:
    rows = Section({"a": b'{"id":"a"}'})
    one, two = Catalogue("one", {"routes": rows}), Catalogue("two", {"routes": rows})
    more = Catalogue("one", {"consumers": Section(), "routes": rows})
    for former, later in ((one, two), (one, more), (more, one)):
        former.hash()
        assert later.hash(former) == hash_of(later.payload())


@given(st.lists(CONTENT, min_size=2, max_size=6))
def test_steps_combined_lead_where_they_lead_one_by_one(contents: list[dict[str, Any]]) -> None:
    documents = [document(content) for content in contents]
    steps = [changes(old, new) for old, new in pairwise(documents)]
    whole = combined(steps)
    assert whole == changes(documents[0], documents[-1])
    assert Catalogue.read(documents[0]).after(delta_of(whole)).payload() == documents[-1]


@example({"certificates": {"\x80\x80\U00010000": {}}}, {})
@given(CONTENT, CONTENT)
def test_a_delta_is_never_larger_than_it_is_said_to_be(old: dict[str, Any], new: dict[str, Any]) -> None:
    found = changes(document(old), document(new))
    delta = delta_of(found)
    message = config_pb2.Delta(
        puts=[config_pb2.EntityPut(type=name, entity=entity) for name, _, entity in delta.puts],
        deletes=[config_pb2.EntityDelete(type=name, id=key) for name, key in delta.deletes],
    )
    assert message.ByteSize() <= size_of(found)


@given(CONTENT, st.data())
def test_damaged_bytes_are_refused_or_taken_as_they_are(content: dict[str, Any], data: st.DataObject) -> None:
    damaged = bytearray(document(content))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for payload in (bytes(damaged), cut):
        try:
            catalogue = Catalogue.read(payload)
        except ValueError:
            continue
        assert catalogue.payload() == payload


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"one",
        b"[]",
        b"\xff",
        b'{"control_plane_id":7,"entities":{}}',
        b'{"control_plane_id":"c","entities":{}} ',
        b'{"control_plane_id":"c","entities":{"routes":[1]}}',
        b'{"control_plane_id":"c","entities":{"routes":[{"id":1}]}}',
        b'{"control_plane_id":"c","entities":{"routes":[{"id":"a"},{"id":"a"}]}}',
        b'{"control_plane_id":"c","entities":{"routes":[],"routes":[]}}',
        b'{"control_plane_id":"\\ud800","entities":{}}',
        b'{"control_plane_id":"c","entities":{"routes":[{"id":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}}",
    ],
)
def test_what_is_no_canonical_document_is_not_taken_apart(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"document|entity|Expecting|decode"):
        Catalogue.read(payload)


@given(st.lists(st.tuples(KINDS | st.text(), IDS, st.binary())), st.lists(st.tuples(KINDS | st.text(), IDS)), CONTENT)
def test_any_delta_is_applied_or_refused_and_changes_nothing_in_place(
    puts: list[tuple[str, str, bytes]], deletes: list[tuple[str, str]], content: dict[str, Any]
) -> None:
    payload = document(content)
    catalogue = Catalogue.read(payload)
    try:
        after = catalogue.after(Delta(tuple(puts), tuple(deletes)))
    except ValueError:
        after = catalogue
    assert catalogue.payload() == payload
    for name, rows in after.entities.items():
        assert list(rows) == sorted(rows), name


def test_a_delete_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no entity 'x' among routes"):
        Catalogue.read(document({"routes": {"a": {}}})).after(Delta(deletes=(("routes", "x"),)))


def test_what_no_delta_can_say_is_none() -> None:
    one = Catalogue("one", {"routes": Section()})
    assert changes_between(one, Catalogue("two", {"routes": Section()})) is None
    assert changes_between(one, Catalogue("one", {"routes": Section(), "services": Section()})) is None
    assert changes_between(one, Catalogue("one", {"routes": Section({"a": b"{}"})})) == {
        ("routes", "a"): Change(None, b"{}")
    }
