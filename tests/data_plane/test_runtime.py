from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_plane.app import build
from data_plane.errors import ConfigError
from data_plane.http1.client import Client
from data_plane.loopback import Loopback
from data_plane.messages import BufferedBody, Headers, Request
from data_plane.runtime import Runtime, Workshop, close_handlers
from data_plane.settings import Settings
from tests.data_plane.builders import document, entity_id

SERVICE = {"name": "s", "host": "backend"}
ROUTE = {"name": "r", "paths": ["/"], "service": "s"}


def compiled(**kinds: list[dict[str, Any]]) -> Runtime:
    workshop = Workshop(Settings(state_dir=Path("/nonexistent")), Client(), Loopback(frozenset()))
    return build(document(**kinds), workshop)


def names_on(runtime: Runtime, route: str) -> list[str]:
    return [slot.name for slot in runtime.plans[entity_id(route)].slots]


def matched(runtime: Runtime, path: str) -> str | None:
    match = runtime.router.match(Request("GET", path, Headers(), BufferedBody()))
    return match.route.name if match else None


def test_what_is_disabled_does_not_exist() -> None:
    runtime = compiled(
        services=[SERVICE, {"name": "off", "host": "backend", "enabled": False}],
        routes=[ROUTE, {"name": "of off", "paths": ["/off"], "service": "off"} | {"name": "of-off"}],
        plugins=[
            {"name": "key-auth", "enabled": False},
            {"name": "key-auth", "service": "off", "instance_name": "a"},
            {"name": "key-auth", "route": "of-off", "instance_name": "b"},
        ],
    )
    assert matched(runtime, "/off/x") == "r"
    assert names_on(runtime, "r") == []
    assert runtime.plugins == ()


def test_a_plugin_reaches_the_routes_of_its_scope() -> None:
    runtime = compiled(
        services=[SERVICE, {"name": "t", "host": "backend"}],
        routes=[
            {"name": "s1", "paths": ["/1"], "service": "s"},
            {"name": "s2", "paths": ["/2"], "service": "s"},
            {"name": "t1", "paths": ["/3"], "service": "t"},
            {"name": "alone", "paths": ["/4"]},
        ],
        plugins=[
            {"name": "key-auth", "service": "s"},
            {"name": "ai-prompt-decorator", "route": "t1", "config": {"prompts": {"append": [{"content": "x"}]}}},
        ],
    )
    assert [names_on(runtime, name) for name in ("s1", "s2", "t1", "alone")] == [
        ["key-auth"],
        ["key-auth"],
        ["ai-prompt-decorator"],
        [],
    ]


def test_routes_with_the_same_plugins_share_a_plan() -> None:
    routes = [{"name": f"r{number}", "paths": [f"/{number}"], "service": "s"} for number in range(100)]
    runtime = compiled(services=[SERVICE], routes=routes, plugins=[{"name": "key-auth"}])
    assert len(runtime.plans) == 100
    assert len({id(plan) for plan in runtime.plans.values()}) == 1


@pytest.mark.parametrize(
    ("entities", "kind", "field", "text"),
    [
        ({"routes": [ROUTE]}, "routes", "service", "no service"),
        ({"plugins": [{"name": "key-auht"}]}, "plugins", "name", "did you mean 'key-auth'"),
        ({"plugins": [{"name": "key-auth", "service": "gone"}]}, "plugins", "service", "no service"),
        ({"plugins": [{"name": "key-auth", "route": "gone"}]}, "plugins", "route", "no route"),
        (
            {"plugins": [{"name": "key-auth", "config": {"key_name": ["x"]}}]},
            "plugins",
            "config.key_name",
            "did you mean 'key_names'",
        ),
        (
            {"plugins": [{"name": "key-auth", "config": {"principals": {"enabled": True}}}]},
            "plugins",
            "config.principals.enabled",
            "not available",
        ),
        (
            {"consumers": [{"username": "alice"}], "plugins": [{"name": "key-auth", "consumer": "alice"}]},
            "plugins",
            "consumer",
            "must be null",
        ),
        (
            {
                "plugins": [
                    {
                        "name": "ai-prompt-decorator",
                        "config": {"prompts": {"append": [{"content": "x"}]}},
                        "consumer": "gone",
                    }
                ]
            },
            "plugins",
            "consumer",
            "no consumer",
        ),
        ({"plugins": [{"name": "key-auth", "condition": "true"}]}, "plugins", "condition", "not supported"),
        ({"keyauth_credentials": [{"key": "secret", "consumer": "gone"}]}, "keyauth_credentials", "consumer", "no"),
        ({"services": [{"name": "g", "host": "h", "protocol": "grpc"}]}, "services", "protocol", "grpc"),
        ({"services": [SERVICE], "upstreams": [{"name": "backend"}]}, "services", "host", "balancing"),
        (
            {"services": [SERVICE], "filter_chains": [{"service": "s", "filters": [{"name": "f"}]}]},
            "filter_chains",
            "filters",
            "not supported",
        ),
        (
            {"services": [SERVICE], "routes": [{"name": "e", "expression": 'http.path == "/"', "service": "s"}]},
            "routes",
            "expression",
            "not supported",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_entity_and_field(
    entities: dict[str, Any], kind: str, field: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        compiled(**entities)
    error = caught.value
    assert (error.entity_type, error.field) == (kind, field)
    assert error.entity_id
    assert "secret" not in str(error)


def test_kinds_that_traffic_does_not_need_are_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    workshop = Workshop(Settings(state_dir=Path("/nonexistent")), Client(), Loopback(frozenset()))
    entities = document(services=[SERVICE], routes=[ROUTE], consumer_groups=[{"name": "a"}, {"name": "b"}])
    with caplog.at_level("INFO", logger="data_plane.runtime"):
        runtimes = [build(entities, workshop) for _ in range(2)]
    assert matched(runtimes[1], "/x") == "r"
    assert [record.getMessage() for record in caplog.records] == [
        "the configuration has 2 consumer_groups, which this gateway makes no use of"
    ]


def test_contradictory_ordering_is_refused() -> None:
    prompts = {"prompts": {"append": [{"content": "x"}]}}
    plugins = [
        {"name": "key-auth", "ordering": {"before": {"access": ["ai-prompt-decorator"]}}},
        {"name": "ai-prompt-decorator", "config": prompts, "ordering": {"before": {"access": ["key-auth"]}}},
    ]
    with pytest.raises(ConfigError, match="contradictory ordering: ") as caught:
        compiled(services=[SERVICE], routes=[ROUTE], plugins=plugins)
    assert caught.value.field == "ordering"


def test_bytes_that_are_no_document_are_refused() -> None:
    workshop = Workshop(Settings(state_dir=Path("/nonexistent")), Client(), Loopback(frozenset()))
    with pytest.raises(ConfigError, match="not a document"):
        build(b"{", workshop)
    broken = document(services=[SERVICE]).replace(b'"backend"', b"7")
    with pytest.raises(ConfigError) as caught:
        build(broken, workshop)
    assert (caught.value.entity_type, caught.value.field) == ("services", "[0].host")


async def test_closing_goes_on_after_a_handler_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    runtime = compiled(plugins=[{"name": "key-auth", "instance_name": "a"}, {"name": "key-auth", "instance_name": "b"}])
    closed: list[str] = []

    async def fail() -> None:
        closed.append("a")
        raise RuntimeError("stuck")

    async def succeed() -> None:
        closed.append("b")

    runtime.plugins[0].handler.close = fail  # type: ignore[attr-defined]
    runtime.plugins[1].handler.close = succeed  # type: ignore[attr-defined]
    await close_handlers(runtime.plugins)
    assert closed == ["a", "b"]
    assert "closing plugin key-auth" in caplog.text
