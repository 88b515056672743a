"""The plan, as a pure function: documents in, changes out, and what holds for all documents."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.errors import DocumentRefused
from control_plane.holdings import Holdings
from control_plane.plan import Mode, make_plan
from control_plane.planned import Plan
from control_plane.snapshot import build
from gateway_schema.document import Document, canonical, read_declaration
from gateway_schema.dump import write_declaration
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, render_path
from tests.control_plane.everything import everything
from tests.thorough import times

ID = "11111111-1111-4111-8111-11111111111{}"


class World:
    """A control plane's holdings, and how documents change them."""

    def __init__(self) -> None:
        self.holdings = Holdings("cp", 0, {})
        self._ids = (f"00000000-0000-4000-8000-{number:012d}" for number in itertools.count(1))

    def plan(self, document: dict[str, Any], mode: Mode = "sync", tags: tuple[str, ...] = ()) -> Plan:
        declaration = read_declaration({"_format_version": "3.0", **document}, tags)
        tags = declaration.select_tags
        return make_plan(self.holdings, declaration, mode=mode, select_tags=tags, now=7, new_id=lambda: next(self._ids))

    def apply(self, document: dict[str, Any], mode: Mode = "sync", tags: tuple[str, ...] = ()) -> Plan:
        plan = self.plan(document, mode, tags)
        puts = [*plan.creates, *(after for _, after in plan.updates)]
        self.holdings = self.holdings.after(self.holdings.version + 1, puts, plan.deletes)
        return plan

    def dump(self) -> dict[str, Any]:
        rows = {name: [{"id": r.id, **r.written} for r in self.holdings.of(name).values()] for name in ENTITY_TYPES}
        return write_declaration(rows)


def counts(plan: Plan) -> tuple[int, int, int]:
    return len(plan.creates), len(plan.updates), len(plan.deletes)


def faults(error: DocumentRefused) -> list[tuple[list[Any], str]]:
    return [(item["path"], item["message"]) for item in error.faults]


def service(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "host": f"{name}.test", **more}


def test_an_unchanged_document_is_no_change() -> None:
    world = World()
    document = {
        "services": [service("s", routes=[{"name": "r", "paths": ["/"], "plugins": [{"name": "key-auth"}]}])],
        "consumers": [{"username": "bob", "keyauth_credentials": [{"key": "k"}]}],
        "plugins": [{"name": "key-auth"}],
    }
    assert counts(world.apply(document)) == (6, 0, 0)
    assert not world.plan(document)


def test_creation_goes_down_the_levels_and_deletion_up() -> None:
    world = World()
    created = world.apply(
        {"services": [service("s", routes=[{"name": "r", "paths": ["/"]}], plugins=[{"name": "key-auth"}])]}
    )
    assert [row.type.kind for row in created.creates] == ["service", "route", "plugin"]
    assert [row.type.kind for row in world.apply({}).deletes] == ["plugin", "route", "service"]


@pytest.mark.parametrize(
    "change",
    [{"port": 80}, {"retries": 5, "protocol": "http"}, {"tags": ["b", "a"]}, {"path": None}],
)
def test_writing_out_a_default_or_another_order_of_tags_is_no_change(change: dict[str, Any]) -> None:
    world = World()
    world.apply({"services": [service("s", tags=["a", "b"])]})
    assert not world.plan({"services": [service("s", **{"tags": ["a", "b"], **change})]})


def test_the_order_of_a_routes_lists_is_a_change_and_that_of_a_plugins_protocols_is_not() -> None:
    world = World()
    world.apply(
        {
            "routes": [{"name": "r", "paths": ["/a", "/b"]}],
            "plugins": [{"name": "key-auth", "protocols": ["http", "https"]}],
        }
    )
    plan = world.plan(
        {
            "routes": [{"name": "r", "paths": ["/b", "/a"]}],
            "plugins": [{"name": "key-auth", "protocols": ["https", "http"]}],
        }
    )
    assert [after.type.kind for _, after in plan.updates] == ["route"]


TCP = {"protocols": ["tcp"], "sources": [{"port": 9000}]}
OF_ROUTE = "protocols: must match the associated route's protocols"
OF_SERVICE = "protocols: must match the protocols of at least one route pointing to this Plugin's service"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"routes": [{"name": "r", **TCP, "plugins": [{"name": "key-auth"}]}]}, f"{OF_ROUTE} (tcp)"),
        (
            {
                "services": [service("s", routes=[{"name": "r", "paths": ["/"], "protocols": ["https"]}])],
                "plugins": [{"name": "key-auth", "protocols": ["http"], "service": "s"}],
            },
            f"{OF_SERVICE} (https)",
        ),
    ],
)
def test_a_plugin_without_a_protocol_of_its_route_or_service_is_refused(
    document: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DocumentRefused) as refused:
        World().plan(document)
    assert [message for _, message in faults(refused.value)] == [expected]


def test_a_plugins_protocols_are_compared_with_the_routes_that_will_be() -> None:
    world = World()
    plugin = {"name": "key-auth", "protocols": ["http"]}
    old, new = {"name": "old", "paths": ["/"]}, {"name": "new", **TCP}
    world.apply({"services": [service("s", routes=[old])]})
    assert counts(world.plan({"services": [service("s", plugins=[plugin])]})) == (1, 0, 1)
    assert counts(world.plan({"services": [service("s", routes=[old, new], plugins=[plugin])]})) == (2, 0, 0)
    with pytest.raises(DocumentRefused) as refused:
        world.plan({"services": [service("s", routes=[new], plugins=[plugin])]})
    assert faults(refused.value) == [(["services", 0, "plugins", 0, "protocols"], f"{OF_SERVICE} (tcp)")]
    with pytest.raises(DocumentRefused):
        world.plan({"routes": [{**old, "protocols": ["https"], "plugins": [plugin]}]})


def test_two_services_can_swap_their_names() -> None:
    world = World()
    world.apply({"services": [service("a", id=ID.format(1)), service("b", id=ID.format(2))]})
    plan = world.apply({"services": [service("b", id=ID.format(1)), service("a", id=ID.format(2))]})
    assert counts(plan) == (0, 2, 0)


def test_a_name_under_another_id_deletes_the_old_row_and_creates_the_new_one() -> None:
    world = World()
    world.apply({"services": [service("a", id=ID.format(1))]})
    assert counts(world.apply({"services": [service("a", id=ID.format(2))]})) == (1, 0, 1)


def test_a_key_that_moves_to_another_consumer_keeps_its_id() -> None:
    world = World()
    world.apply({"consumers": [{"username": "bob", "keyauth_credentials": [{"key": "k"}]}, {"username": "eve"}]})
    (credential,) = world.holdings.of("keyauth_credentials")
    plan = world.apply({"consumers": [{"username": "bob"}, {"username": "eve", "keyauth_credentials": [{"key": "k"}]}]})
    assert counts(plan) == (0, 1, 0)
    assert plan.updates[0][1].id == credential


def test_references_by_name_and_by_id_mean_the_same() -> None:
    world = World()
    world.apply(
        {
            "services": [service("s", id=ID.format(1))],
            "routes": [{"name": "r", "paths": ["/"], "service": {"name": "s"}}],
        }
    )
    by_id = {"services": [service("s")], "routes": [{"name": "r", "paths": ["/"], "service": {"id": ID.format(1)}}]}
    assert not world.plan(by_id)
    assert not world.plan({"services": [service("s", routes=[{"name": "r", "paths": ["/"]}])]})


def test_apply_deletes_nothing_and_reset_everything() -> None:
    world = World()
    world.apply({"services": [service("a"), service("b")]})
    assert counts(world.plan({"services": [service("c")]}, "apply")) == (1, 0, 0)
    assert counts(world.plan({"services": [service("c")]}, "reset")) == (0, 0, 2)


def test_with_select_tags_the_rows_of_others_stay() -> None:
    world = World()
    world.apply({"services": [service("theirs")]})
    world.apply({"services": [service("mine")]}, tags=("team",))
    assert {row.written["name"] for row in world.holdings.all()} == {"theirs", "mine"}
    plan = world.apply({}, tags=("team",))
    assert [row.written["name"] for row in plan.deletes] == ["mine"]


def test_rows_must_carry_all_select_tags_to_be_deleted() -> None:
    world = World()
    world.apply({"services": [service("one", tags=["a"]), service("both", tags=["a", "b"])]})
    assert [row.written["name"] for row in world.plan({}, tags=("a", "b")).deletes] == ["both"]


def test_a_name_that_others_hold_is_a_conflict_that_names_their_row() -> None:
    world = World()
    world.apply({"services": [service("s", id=ID.format(1))]})
    with pytest.raises(DocumentRefused) as caught:
        world.plan({"services": [service("s")]}, tags=("team",))
    ((path, message),) = faults(caught.value)
    assert path == ["services", 0]
    assert f"service 's' exists (id {ID.format(1)}) and does not carry the tag 'team'" in message
    with pytest.raises(DocumentRefused) as caught:
        world.plan({"services": [service("s", id=ID.format(2))]}, tags=("team",))
    assert f"is taken by service 's' (id {ID.format(1)}), which does not carry the tag 'team'" in caught.value.message


@pytest.mark.parametrize("child", [{"routes": [{"name": "r", "paths": ["/"]}]}, {"plugins": [{"name": "key-auth"}]}])
def test_a_deletion_that_would_take_the_rows_of_others_along_is_a_conflict(child: dict[str, Any]) -> None:
    world = World()
    world.apply({"services": [service("s", tags=["team"], **child)]})
    with pytest.raises(DocumentRefused, match="cannot be deleted") as caught:
        world.plan({}, "reset", ("team",))
    assert "does not carry the tag 'team'" in caught.value.message


def test_what_others_hold_can_be_referred_to() -> None:
    world = World()
    world.apply({"services": [service("shared")]})
    plan = world.apply({"routes": [{"name": "r", "paths": ["/"], "service": {"name": "shared"}}]}, tags=("team",))
    assert counts(plan) == (1, 0, 0)


def test_a_reference_to_what_this_sync_would_delete_is_refused() -> None:
    world = World()
    world.apply({"services": [service("s")]})
    with pytest.raises(DocumentRefused, match="this sync would delete it"):
        world.plan({"routes": [{"name": "r", "paths": ["/"], "service": {"name": "s"}}]})


def test_every_fault_is_reported_with_its_path() -> None:
    with pytest.raises(DocumentRefused) as caught:
        World().plan(
            {
                "services": [
                    service("a", port="80", plugins=[{"name": "key-auth", "config": {"key_namez": []}}]),
                    service("b", routes=[{"name": "r"}]),
                ],
                "plugins": [{"name": "key-aut", "service": "c"}],
                "consumers": [{"username": "x", "keyauth_credentials": [{}]}],
            }
        )
    found = {tuple(path): message for path, message in faults(caught.value)}
    assert found[("services", 0, "port")] == "port: expected an integer"
    assert found[("services", 0, "plugins", 0, "config", "key_namez")].startswith("config.key_namez: unknown field")
    assert "must set one of" in found[("services", 1, "routes", 0)]
    assert found[("plugins", 0, "service")].startswith("service: there is no service 'c'")
    assert found[("consumers", 0, "keyauth_credentials", 0, "key")] == "key: required field missing"
    entities = {tuple(item["path"]): item["entity"] for item in caught.value.faults}
    assert entities[("services", 0, "plugins", 0, "config", "key_namez")] == "plugin key-auth for service a"


@pytest.mark.parametrize(
    "document",
    [
        {"services": [service("a"), service("a")]},
        {"services": [service("a", id=ID.format(1)), service("b", id=ID.format(1))]},
        {"consumers": [{"username": "a", "keyauth_credentials": [{"key": "k"}, {"key": "k"}]}]},
        {"plugins": [{"name": "key-auth"}, {"name": "key-auth"}]},
        {
            "plugins": [{"name": "key-auth", "instance_name": "x"}],
            "services": [service("a", plugins=[{"name": "key-auth", "instance_name": "x"}])],
        },
    ],
)
@pytest.mark.parametrize("existing", [True, False])
def test_what_is_declared_twice_is_refused(document: dict[str, Any], existing: bool) -> None:
    world = World()
    if existing:
        world.apply({"services": [service("a")], "consumers": [{"username": "a"}], "plugins": [{"name": "key-auth"}]})
    with pytest.raises(DocumentRefused, match="declared twice"):
        world.plan(document)


@pytest.mark.parametrize(
    ("document", "path", "also"),
    [
        (
            {"services": [service("a", id=ID.format(1)), service("b", id=ID.format(1))]},
            ["services", 1],
            ["services", 0],
        ),
        ({"services": [service("a"), service("a")]}, ["services", 1, "name"], ["services", 0]),
        (
            {"consumers": [{"username": "a", "keyauth_credentials": [{"key": "k"}, {"key": "k"}]}]},
            ["consumers", 0, "keyauth_credentials", 1, "key"],
            ["consumers", 0, "keyauth_credentials", 0],
        ),
    ],
)
def test_what_is_declared_twice_names_both_places(document: dict[str, Any], path: list[Any], also: list[Any]) -> None:
    with pytest.raises(DocumentRefused) as caught:
        World().plan(document)
    (found,) = caught.value.faults
    assert (found["path"], found["also"]) == (path, also)
    assert found["message"].endswith(f"at {render_path(also)}")


def test_secrets_are_masked_in_a_plan_and_a_changed_one_says_so() -> None:
    world = World()

    def document(key: str, **more: Any) -> dict[str, Any]:
        return {"consumers": [{"username": "bob", "keyauth_credentials": [{"id": ID.format(1), "key": key, **more}]}]}

    shown = world.apply(document("first-secret")).shown()
    assert "first-secret" not in str(shown)
    assert shown["changes"]["creating"][1]["body"]["new"]["key"] == "[masked]"
    updated = world.plan(document("second-secret")).shown()["changes"]["updating"][0]["body"]
    assert (updated["old"]["key"], updated["new"]["key"]) == ("[masked]", "[masked] (changed)")
    tagged = world.plan(document("first-secret", tags=["t"])).shown()["changes"]["updating"][0]["body"]
    assert tagged["new"]["key"] == "[masked]"
    assert (
        world.apply(document("second-secret")).shown(include_secrets=True)["changes"]["updating"][0]["body"]["new"][
            "key"
        ]
        == "second-secret"
    )


def test_secrets_that_change_places_are_changes_of_both() -> None:
    world = World()

    def targets(*values: str) -> dict[str, Any]:
        model = {"provider": "openai", "name": "m"}
        listed = [
            {
                "route_type": "llm/v1/chat",
                "model": model,
                "auth": {"header_name": "Authorization", "header_value": text},
            }
            for text in values
        ]
        return {"plugins": [{"name": "ai-proxy-advanced", "config": {"targets": listed}}]}

    world.apply(targets("one", "two", "three", "{vault://env/key}"))
    body = world.plan(targets("two", "one", "three", "one")).shown()["changes"]["updating"][0]["body"]
    shown = [[target["auth"]["header_value"] for target in body[side]["config"]["targets"]] for side in ("old", "new")]
    changed = "[masked] (changed)"
    assert shown == [
        ["[masked]", "[masked]", "[masked]", "{vault://env/key}"],
        [changed, changed, "[masked]", changed],
    ]


def test_names_are_those_that_deck_prints() -> None:
    plugin = {"name": "ai-prompt-decorator", "config": {"prompts": {"append": [{"content": "x"}]}}}
    shown = (
        World()
        .plan(
            {
                "services": [service("s", routes=[{"name": "r", "paths": ["/"]}])],
                "consumers": [{"username": "c", "keyauth_credentials": [{"key": "0123456789-0123456789-abcde"}]}],
                "plugins": [{"name": "key-auth"}, {**plugin, "service": "s", "route": "r", "consumer": "c"}],
            }
        )
        .shown()
    )
    names = [(entry["kind"], entry["name"]) for entry in shown["changes"]["creating"]]
    assert names == [
        ("consumer", "c"),
        ("service", "s"),
        ("key-auth", "…abcde for consumer c"),
        ("route", "r"),
        ("plugin", "key-auth (global)"),
        ("plugin", "ai-prompt-decorator for service s and route r and consumer c"),
    ]
    assert shown["summary"] == {"creating": 6, "updating": 0, "deleting": 0, "total": 6}


# -- what holds for all documents

TAGS = st.lists(st.sampled_from(["x", "y", "z"]), unique=True, max_size=2)
KEY_AUTH = st.fixed_dictionaries(
    {"name": st.just("key-auth")},
    optional={
        "config": st.fixed_dictionaries(
            {}, optional={"key_names": st.just(["k"]), "realm": st.sampled_from([None, "a"])}
        ),
        "enabled": st.booleans(),
        "tags": TAGS,
    },
)
DECORATOR = st.fixed_dictionaries(
    {
        "name": st.just("ai-prompt-decorator"),
        "config": st.fixed_dictionaries(
            {
                "prompts": st.fixed_dictionaries(
                    {"append": st.just([{"content": "hi"}])}, optional={"prepend": st.none()}
                )
            }
        ),
    }
)


def _plugins(*kinds: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.one_of(*kinds), max_size=2, unique_by=lambda plugin: plugin["name"])


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Small documents over few names, so that two of them often speak of the same entities."""
    routes = iter(draw(st.permutations(["r0", "r1", "r2", "r3", "r4"])))
    keys = iter(draw(st.permutations(["k0", "k1", "k2", "k3"])))
    document: dict[str, Any] = {"services": [], "consumers": [], "routes": []}

    def route() -> dict[str, Any]:
        body = {"name": next(routes), "paths": draw(st.sampled_from([["/a"], ["/b", "/c"]]))}
        return {
            **body,
            "plugins": draw(_plugins(KEY_AUTH, DECORATOR)),
            **({"strip_path": False} if draw(st.booleans()) else {}),
        }

    for name in draw(st.lists(st.sampled_from(["s0", "s1", "s2"]), unique=True)):
        optional = {"port": st.sampled_from([80, 81]), "tags": TAGS, "retries": st.just(5)}
        body = {**service(name), **draw(st.fixed_dictionaries({}, optional=optional))}
        body["routes"] = [route() for _ in range(draw(st.integers(0, 1)))]
        document["services"].append({**body, "plugins": draw(_plugins(KEY_AUTH, DECORATOR))})
    for name in draw(st.lists(st.sampled_from(["c0", "c1"]), unique=True)):
        credentials = [{"key": next(keys)} for _ in range(draw(st.integers(0, 2)))]
        document["consumers"].append(
            {"username": name, "keyauth_credentials": credentials, "plugins": draw(_plugins(DECORATOR))}
        )
    for _ in range(draw(st.integers(0, 1))):
        body = route()
        if document["services"] and draw(st.booleans()):
            body["service"] = {"name": document["services"][0]["name"]}
        document["routes"].append(body)
    document["plugins"] = draw(_plugins(KEY_AUTH, DECORATOR))
    return document


@settings(max_examples=times(150, 1000), deadline=None)
@given(documents())
def test_what_was_applied_and_dumped_applies_to_nothing(document: dict[str, Any]) -> None:
    world = World()
    world.apply(document)
    assert not world.plan(document)
    dumped = world.dump()
    dumped.pop("_format_version")
    assert not world.plan(dumped)


@settings(max_examples=times(150, 1000), deadline=None)
@given(documents(), documents())
def test_one_document_after_another_is_the_same_as_the_other_alone(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    world, alone = World(), World()
    world.apply(first)
    world.apply(second)
    alone.apply(second)
    assert meaning(world) == meaning(alone)


def meaning(world: World) -> dict[str, Any]:
    """The complete entities, ids replaced by names."""
    rows = list(world.holdings.all())
    names = {(row.type.name, row.id): row.written.get("name") or row.written.get("username") for row in rows}

    def readable(row: Any) -> str:
        kinds = {field: parent.type for field, parent in row.type.parents.items()}
        body = {k: names[kinds[k], v["id"]] if k in kinds and v else v for k, v in row.complete.items()}
        return str(sorted({**body, "tags": sorted(body["tags"] or [])}.items()))

    return {name: sorted(map(readable, world.holdings.of(name).values())) for name in ENTITY_TYPES}


@settings(max_examples=times(60, 1000), deadline=None)
@given(documents(), documents())
def test_the_rows_of_another_team_never_change(theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    world = World()
    world.apply(theirs, tags=("theirs",))
    before = {row.id: row.written for row in world.holdings.all()}
    try:
        world.apply(mine, tags=("mine",))
    except DocumentRefused:
        return
    after = {row.id: row.written for row in world.holdings.all()}
    assert {entity_id: after.get(entity_id) for entity_id in before} == before


@settings(max_examples=times(60, 1000), deadline=None)
@given(documents())
def test_a_snapshot_is_the_canonical_document(document: dict[str, Any]) -> None:
    world = World()
    world.apply(document)
    snapshot = build(world.holdings)
    entities = {name: [row.entity() for row in world.holdings.of(name).values()] for name in ENTITY_TYPES}
    assert snapshot.payload == canonical("cp", entities)
    loaded = Document.load(snapshot.payload)
    assert sum(len(loaded.of(name)) for name in ENTITY_TYPES) == len(list(world.holdings.all()))


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "x\n", "\x00", "\ud800", 2**64, "[masked]", "{vault://a/b}", ID.format(1)]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document below its top."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [place for key, item in entries for place in places(item, (*path, key))]
    return [path, *found] if path else found


@settings(max_examples=times(150, 10_000), deadline=None)
@given(data=st.data(), odd=ODD, tags=st.sampled_from([(), ("team",)]))
def test_whatever_stands_in_a_document_is_taken_or_refused(data: Any, odd: Any, tags: tuple[str, ...]) -> None:
    document = everything()
    *outer, last = data.draw(st.sampled_from(places(document)))
    holder = document
    for key in outer:
        holder = holder[key]
    holder[last] = odd
    with contextlib.suppress(SchemaViolation, DocumentRefused):
        World().plan(document, tags=tags)
