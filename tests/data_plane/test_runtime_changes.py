"""A runtime that follows another by a delta behaves as one that was built of the whole document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.app import build, rebuild
from data_plane.errors import ConfigError
from data_plane.http1.client import Client
from data_plane.loopback import Loopback
from data_plane.messages import BufferedBody, Headers, Request, Response
from data_plane.router import Router
from data_plane.runtime import Runtime, Workshop
from data_plane.settings import Settings
from gateway_schema.delta import Catalogue, Delta, changes_between, delta_of
from tests.data_plane.builders import document, entity_id, gateway, service

CHAT = {"prompts": {"append": [{"role": "user", "content": "x"}]}}


def workshop() -> Workshop:
    return Workshop(Settings(state_dir=Path("/nonexistent")), Client(), Loopback(frozenset()))


def delta_between(old: bytes, new: bytes) -> Delta:
    changes = changes_between(Catalogue.read(old), Catalogue.read(new))
    assert changes is not None
    return delta_of(changes)


def follow(payloads: list[bytes], shop: Workshop) -> Runtime:
    """The runtime of the first document, then each next one made of the one before."""
    runtime = build(payloads[0], shop)
    for former, payload in pairwise(payloads):
        runtime = rebuild(delta_between(former, payload), shop, runtime)
    return runtime


SHAPES: list[dict[str, Any]] = [
    {"paths": ["/"]},
    {"paths": ["/a", "/a/b"], "methods": ["GET"]},
    {"paths": ["~/a/(b|c)", "/a"], "hosts": ["h.test"]},
    {"paths": ["/a"], "hosts": ["*.test", "h.test:81"]},
    {"paths": ["/"], "headers": {"x-tier": ["gold"]}},
    {"paths": ["/a"], "headers": {"x-region": ["~*^eu"]}},
]
"""Few, so that a route is often what it was."""


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A few entities out of few names, so that successive documents share, change and lose some of them."""
    names = st.lists(st.sampled_from("abc"), unique=True)
    services = ["s", *draw(st.lists(st.just("t"), max_size=1))]
    routes = [
        {
            "name": name,
            "service": draw(st.sampled_from(["s", *services])),
            **draw(st.sampled_from(SHAPES)),
        }
        for name in draw(names)
    ]
    consumers = draw(st.sampled_from([[], ["a"], ["a", "b"]]))
    scopes = [{}, {"service": "s"}, *({"route": route["name"]} for route in routes)]
    plugins = [
        {"name": "key-auth", "instance_name": f"k{number}", "config": {"key_names": [draw(st.sampled_from("xy"))]}}
        | draw(st.sampled_from(scopes))
        for number in range(draw(st.integers(0, 2)))
    ]
    return document(
        services=[
            {"name": name, "host": draw(st.sampled_from(["h1", "h2"])), "enabled": draw(st.booleans())}
            for name in services
        ],
        routes=routes,
        consumers=[{"username": name} for name in consumers],
        keyauth_credentials=[{"key": f"key-{name}", "consumer": name} for name in consumers],
        plugins=plugins,
    )


def seen(runtime: Runtime, router: Router) -> dict[str, Any]:
    """Everything about a runtime with a router that a request can meet."""
    asked = {}
    for method in ("GET", "PUT"):
        for host in ("h.test", "h.test:81", "other.test", "else"):
            for path in ("/", "/a", "/a/b", "/a/c/d"):
                for more in ((), (("X-Tier", "gold"),), (("X-Region", "eu-1"), ("X-Tier", "gold"))):
                    request = Request(method, path, Headers([("Host", host), *more]), BufferedBody())
                    match = router.match(request)
                    asked[method, host, path, more] = match and (match.route, match.service, match.upstream_path)
    plans = {
        name: ([(s.name, s.anybody and s.anybody.id, dict(s.by_consumer)) for s in plan.slots], _service(plan.upstream))
        for name, plan in runtime.plans.items()
    }
    keys = {name: owner.username for name, (owner, _) in runtime.parts.directory.by_key.items()}
    handlers = {bound.id: vars(bound.handler)["_config"] for bound in runtime.plugins}
    return {"asked": asked, "plans": plans, "keys": keys, "handlers": handlers, "unrouted": len(runtime.unrouted.slots)}


def _service(upstream: Any) -> Any:
    return None if upstream is None else vars(upstream)["_host"]


@settings(max_examples=300, deadline=None)
@given(st.lists(documents(), min_size=2, max_size=5))
def test_step_by_step_is_the_same_as_at_once(payloads: list[bytes]) -> None:
    shop = workshop()
    followed, at_once = follow(payloads, shop), build(payloads[-1], shop)
    router = Router(at_once.parts.routes.values(), at_once.parts.services)
    assert seen(followed, followed.router) == seen(at_once, router)


BASE: dict[str, list[dict[str, Any]]] = {
    "services": [{"name": "s", "host": "h1"}, {"name": "t", "host": "h2"}],
    "routes": [{"name": "r", "paths": ["/r"], "service": "s"}, {"name": "q", "paths": ["/q"], "service": "t"}],
    "consumers": [{"username": "alice"}],
    "plugins": [
        {"name": "key-auth", "instance_name": "k"},
        {"name": "ai-prompt-decorator", "instance_name": "d", "route": "r", "config": CHAT},
    ],
}


def test_what_did_not_change_stays_the_same_object() -> None:
    shop = workshop()
    routes = [BASE["routes"][0], {"name": "q", "paths": ["/changed"], "service": "t"}]
    old = build(document(**BASE), shop)
    new = rebuild(delta_between(document(**BASE), document(**{**BASE, "routes": routes})), shop, old)
    assert new.plugins == old.plugins
    assert new.plans[entity_id("r")] is old.plans[entity_id("r")]
    assert {rule.route.name: id(rule) for rule in new.router.rules}["r"] in {id(rule) for rule in old.router.rules}


def test_routes_lead_to_what_their_service_has_become() -> None:
    shop = workshop()
    old = build(document(**BASE), shop)
    services = [{"name": "s", "host": "elsewhere"}, BASE["services"][1]]
    new = rebuild(delta_between(document(**BASE), document(**{**BASE, "services": services})), shop, old)
    hosts = {name: _service(new.plans[entity_id(name)].upstream) for name in ("r", "q")}
    assert hosts == {"r": "elsewhere", "q": "h2"}


def test_a_disabled_service_that_goes_leaves_no_route_behind() -> None:
    shop = workshop()
    services = [*BASE["services"], {"name": "off", "host": "h3", "enabled": False}]
    routes = [*BASE["routes"], {"name": "of-it", "paths": ["/off"], "service": "off"}]
    old, new = document(services=services, routes=routes), document(services=BASE["services"], routes=routes)
    with pytest.raises(ConfigError, match="no service"):
        rebuild(delta_between(old, new), shop, build(old, shop))


UDP = {"name": "udp", "protocols": ["udp"], "destinations": [{"port": 53}], "service": "s"}
"""Not served here, but a plugin may stand on it."""


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        pytest.param(
            {"routes": [*BASE["routes"], UDP], "plugins": [{"name": "key-auth", "route": "udp"}]},
            {"routes": BASE["routes"], "plugins": [{"name": "key-auth", "route": "udp"}]},
            ("plugins", "route"),
            id="a plugin stays without its route",
        ),
        pytest.param(
            {
                "services": [*BASE["services"], {"name": "u", "host": "h3"}],
                "plugins": [{"name": "key-auth", "service": "u"}],
            },
            {"plugins": [{"name": "key-auth", "service": "u"}]},
            ("plugins", "service"),
            id="a plugin stays without its service",
        ),
        pytest.param({}, {"upstreams": [{"name": "h1"}]}, ("services", "host"), id="an upstream comes"),
        pytest.param(
            {"upstreams": [{"name": "up"}]},
            {"upstreams": [{"name": "up"}], "services": [BASE["services"][0], {"name": "t", "host": "up"}]},
            ("services", "host"),
            id="a service goes behind an upstream",
        ),
    ],
)
def test_what_cannot_be_built_at_once_is_refused_as_a_step_too(
    before: dict[str, Any], after: dict[str, Any], fault: tuple[str, str]
) -> None:
    shop = workshop()
    old, new = document(**{**BASE, **before}), document(**{**BASE, **after})
    with pytest.raises(ConfigError) as at_once:
        build(new, shop)
    with pytest.raises(ConfigError) as step:
        rebuild(delta_between(old, new), shop, build(old, shop))
    for raised in (at_once.value, step.value):
        assert (raised.entity_type, raised.field) == fault


def test_handlers_know_the_consumers_of_their_own_configuration() -> None:
    shop = workshop()
    old = build(document(**BASE), shop)
    more = {**BASE, "keyauth_credentials": [{"key": "key-alice", "consumer": "alice"}]}
    new = rebuild(delta_between(document(**BASE), document(**more)), shop, old)
    assert not set(new.plugins) & set(old.plugins)
    assert list(new.parts.directory.by_key) == ["key-alice"]


def test_a_fault_in_a_change_is_told_by_entity_and_field() -> None:
    shop = workshop()
    old = build(document(**BASE), shop)
    route = entity_id("r")
    delta = Delta(puts=(("routes", route, b'{"id":"' + route.encode() + b'","paths":["nonsense"]}'),))
    with pytest.raises(ConfigError) as raised:
        rebuild(delta, shop, old)
    assert (raised.value.entity_type, raised.value.entity_id) == ("routes", route)
    assert "paths" in raised.value.field


@pytest.mark.parametrize("delta", [Delta(deletes=(("routes", "gone"),)), Delta(deletes=(("nonsense", "x"),))])
def test_a_delta_about_another_document_is_no_configuration_error(delta: Delta) -> None:
    shop = workshop()
    with pytest.raises(ValueError, match=r"gone|nonsense"):
        rebuild(delta, shop, build(document(**BASE), shop))


async def test_a_handler_serves_on_while_any_runtime_that_shares_it_has_exchanges() -> None:
    """The stream holds the first runtime; the second shares the handler; only the third lacks it."""
    gate, closed = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()

    async def answer(request: Request) -> Response:
        return Response(200, body=pieces())

    def configuration(url: str, path: str, with_plugin: bool) -> bytes:
        plugin = {"name": "key-auth", "instance_name": "k", "route": "other"}
        return document(
            services=[{"name": "s", "url": url}],
            routes=[{"name": "r", "paths": ["/a"], "service": "s"}, {"name": "other", "paths": [path]}],
            plugins=[plugin] if with_plugin else [],
        )

    async with service(answer) as backend, gateway(configuration(backend.url, "/1", True)) as node:
        response = await node.open("GET", "/a")
        (plugin,) = node.worker.pipeline.runtime.plugins

        async def close() -> None:
            closed.set()

        plugin.handler.close = close  # type: ignore[attr-defined]
        steps = [configuration(backend.url, "/1", True), configuration(backend.url, "/2", True)]
        steps.append(configuration(backend.url, "/2", False))
        for version, (before, after) in enumerate(pairwise(steps), start=2):
            await node.worker.change(delta_between(before, after), version)
            assert (await node.send("GET", "/nowhere")).status == 404
        assert not closed.is_set()
        gate.set()
        assert await response.read() == b"first"
        async with asyncio.timeout(5):
            await closed.wait()
