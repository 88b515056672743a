"""A document, compiled: everything an exchange needs, immutable, swapped as a whole.

`Runtime.build` checks and makes all of it aside and raises ConfigError for the first thing that cannot run; the old
runtime serves until then and after a failure. An exchange takes the runtime once and finishes on it.

A runtime that follows another takes over what did not change: entities that are the same objects in both documents
keep their rules, handlers and plans. So handlers may serve in several runtimes at once; one is closed when the last
exchange of the last of these has ended (`Pipeline`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_plane.chain import Bound, OrderingError, Plan, Slot, make_slots
from data_plane.errors import ConfigError
from data_plane.exchange import Supplies
from data_plane.http1.client import Client
from data_plane.loopback import Loopback
from data_plane.plugins import HANDLERS
from data_plane.router import HTTP_PROTOCOLS, Router
from data_plane.settings import VERSION, Settings
from data_plane.upstream import Sender, ServiceUpstream
from gateway_schema.document import Document
from gateway_schema.entities import Consumer, Entity, KeyAuthCredential, Plugin, Reference, Route, Service
from gateway_schema.plugins import PLUGINS
from gateway_schema.plugins.base import PluginConfig
from gateway_schema.violations import SchemaViolation, nearest, parse

log = logging.getLogger(__name__)

_Any = TypeVar("_Any")

_PROXIED = frozenset({"http", "https", "ws", "wss"})

_SERVED = frozenset({"services", "routes", "consumers", "keyauth_credentials", "plugins"})
"""Kinds that traffic is served by. Others change nothing unless one of these refers to them, which is then refused."""


@dataclass(slots=True, eq=False)
class Workshop:
    """What a process has once and every runtime uses: client, loopback, settings."""

    settings: Settings
    client: Client
    loopback: Loopback
    port: int = 0
    """Of the listener, as it was bound."""
    node_id: str = ""
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    told: set[str] = field(default_factory=set)
    """Kinds of entities of which the log says already that nothing is done with them."""

    @property
    def sender(self) -> Sender:
        return Sender(self.client, self.loopback)


class Runtime:
    """One configuration at work. Made by `build`, or `empty` before there is any."""

    def __init__(self, parts: _Parts, plans: Mapping[str, Plan], unrouted: Plan) -> None:
        self.parts = parts
        self.router = parts.router
        self.plans = plans
        """By route id."""
        self.unrouted = unrouted
        """For requests without a route: only the log phase of global plugins."""
        self.version = 0
        """Of the snapshot it was built from."""
        self.exchanges = 0
        """Under way on this runtime."""

    @classmethod
    def empty(cls) -> Runtime:
        """Before any configuration: nothing matches."""
        parts = _Parts(Document("", {}), {}, {}, Router([], {}), _Directory((), ()), _Plugins({}), {}, {})
        return cls(parts, {}, Plan([], None))

    @classmethod
    def build(cls, document: Document, workshop: Workshop, former: Runtime | None = None) -> Runtime:
        """Compile a document. Raises ConfigError naming the entity and the field at fault.

        `former` is a runtime from the same workshop; the result behaves as if there were none.
        """
        return _Builder(document, workshop, former or cls.empty()).build()

    @property
    def document(self) -> Document:
        """What it was built of."""
        return self.parts.document

    @property
    def plugins(self) -> tuple[Bound, ...]:
        return self.parts.plugins.bounds


async def close_handlers(plugins: Iterable[Bound]) -> None:
    """Close what handlers hold. For those that no exchange can meet any more."""
    for bound in plugins:
        close = getattr(bound.handler, "close", None)
        if close is None:
            continue
        try:
            await close()
        except Exception:
            log.exception("closing plugin %s (%s) failed", bound.name, bound.id)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What a runtime is made of, each part with the entity that it was made of, for the runtime that follows."""

    document: Document
    services: Mapping[str, Service]
    """Those that are enabled, by id."""
    routes: Mapping[str, Route]
    """Those that are served, by id."""
    router: Router
    directory: _Directory
    plugins: _Plugins
    upstreams: Mapping[str, ServiceUpstream]
    """By service id."""
    shared: Mapping[str, Plan]
    """By service id ("" for none): of the routes that have no plugins of their own."""


class _Builder:
    """Of thousands of entities a change concerns a few: only those are looked at that it may concern."""

    def __init__(self, document: Document, workshop: Workshop, former: Runtime) -> None:
        self._workshop = workshop
        self._document = document
        self._former = former
        self._known = former.parts
        self._declared: dict[str, set[str | None]] = {}
        self._services = self._enabled_services()
        self._has_same_services = self._has_same("services", self._known.services, self._services)
        self._changed_services = _changed(self._known.services, self._services)
        self._routes = self._served_routes()
        self._changed_routes = self._routes_to_redo()
        self._gone_routes = _gone(self._known.routes, self._routes)

    def build(self) -> Runtime:
        self._check_unserved()
        router = self._known.router.after(self._changed_routes, self._gone_routes, self._services)
        directory = self._directory()
        plugins = self._plugins(directory)
        upstreams = self._upstreams()
        same = plugins is self._known.plugins
        unrouted = self._former.unrouted if same else Plan(self._slots(plugins.everywhere, None), None)
        plans, shared = self._plans(plugins, upstreams)
        parts = _Parts(self._document, self._services, self._routes, router, directory, plugins, upstreams, shared)
        return Runtime(parts, plans, unrouted)

    # What a change concerns.

    def _is_unchanged(self, kind: str) -> bool:
        return self._document.of(kind) is self._known.document.of(kind)

    def _enabled_services(self) -> Mapping[str, Service]:
        if self._is_unchanged("services"):
            return self._known.services
        return {str(service.id): service for service in self._document.of("services") if service.enabled}

    def _served_routes(self) -> Mapping[str, Route]:
        if self._is_unchanged("routes") and self._has_same_services:
            return self._known.routes
        served = self._known.routes if self._has_same_services else {}
        return {
            str(route.id): route
            for route in self._document.of("routes")
            if served.get(route.id) is route or self._is_served(route)
        }

    def _has_same(self, kind: str, served_then: Mapping[str, Any], served_now: Mapping[str, Any]) -> bool:
        """Whether the same entities of a kind exist as before, by their ids, and the same of them are served."""
        if self._is_unchanged(kind) and served_then is served_now:
            return True
        former, now = self._known.document.of(kind), self._document.of(kind)
        same = len(former) == len(now) and all(a is b or a.id == b.id for a, b in zip(former, now, strict=True))
        return same and served_then.keys() == served_now.keys()

    def _routes_to_redo(self) -> Mapping[str, Route]:
        """The routes, by id, that are not what they were, or whose service is not."""
        former, services = self._known.routes, self._changed_services
        redone = dict(_changed(former, self._routes))
        for name, route in self._routes.items() if services else ():
            if route.service is not None and route.service.id in services:
                redone[name] = route
        return redone

    def _directory(self) -> _Directory:
        consumers, credentials = self._document.of("consumers"), self._document.of("keyauth_credentials")
        known = self._known.directory
        return known if known.made_of(consumers, credentials) else _Directory(consumers, credentials)

    def _plugins(self, directory: _Directory) -> _Plugins:
        if self._is_unchanged("plugins") and directory is self._known.directory and self._has_same_targets():
            return self._known.plugins
        return _Plugins(
            {
                str(plugin.id): (plugin, self._bound(plugin, directory))
                for plugin in self._document.of("plugins")
                if self._is_active(plugin)
            }
        )

    def _has_same_targets(self) -> bool:
        """Whether what plugins may be put on is there, and served, as it was before."""
        return self._has_same_services and self._has_same("routes", self._known.routes, self._routes)

    def _bound(self, plugin: Plugin, directory: _Directory) -> Bound:
        """A handler knows the consumers, so it stays only as long as they do."""
        known = self._known.plugins.by_id.get(str(plugin.id))
        if known is not None and known[0] is plugin and self._known.directory is directory:
            return known[1]
        return self._bind(plugin, directory)

    # Which entities exist for traffic.

    def _check_unserved(self) -> None:
        """Refuse what would mean something else when it is left out; say once of the rest that it is left out."""
        names = {upstream.name for upstream in self._document.of("upstreams")}
        services = self._changed_services if self._is_unchanged("upstreams") else self._services
        for service in services.values() if names else ():
            if service.host in names:
                raise _fault("services", service, "host", f"upstream '{service.host}': balancing is not supported yet")
        for chain in self._document.of("filter_chains"):
            if chain.enabled:
                raise _fault("filter_chains", chain, "filters", "filters are not supported yet")
        for kind, entities in self._document.entities.items():
            if entities and kind not in _SERVED and kind not in self._workshop.told:
                self._workshop.told.add(kind)
                log.info("the configuration has %d %s, which this gateway makes no use of", len(entities), kind)

    def _is_served(self, route: Route) -> bool:
        """Routes of disabled services do not exist; those of unknown ones are an error."""
        if route.service is not None and route.service.id not in self._services:
            if not self._is_declared("services", route.service.id):
                raise _fault("routes", route, "service", f"no service {route.service.id}")
            return False
        if route.expression is not None:
            raise _fault("routes", route, "expression", "routes with expressions are not supported yet")
        return not HTTP_PROTOCOLS.isdisjoint(route.protocols)

    def _is_declared(self, kind: str, entity_id: str | None) -> bool:
        """Whether there is such an entity, be it switched off. Seldom asked, but then perhaps for thousands."""
        if kind not in self._declared:
            self._declared[kind] = {entity.id for entity in self._document.of(kind)}
        return entity_id in self._declared[kind]

    def _is_active(self, plugin: Plugin) -> bool:
        """A plugin of a disabled service, or of one of its routes, does not exist; of an unknown one, it is refused."""
        if not plugin.enabled:
            return False
        for kind, scope, existing in (("services", "service", self._services), ("routes", "route", self._routes)):
            target = getattr(plugin, scope)
            if target is None or target.id in existing:
                continue
            if not self._is_declared(kind, target.id):
                raise _fault("plugins", plugin, scope, f"no {scope} {target.id}")
            return False
        return True

    # Plugins.

    def _bind(self, plugin: Plugin, directory: _Directory) -> Bound:
        config_class, make = PLUGINS.get(plugin.name), HANDLERS.get(plugin.name)
        if config_class is None or make is None:
            suggestion = nearest(plugin.name, HANDLERS)
            hint = f" (did you mean '{suggestion}'?)" if suggestion else ""
            raise _fault("plugins", plugin, "name", f"no plugin '{plugin.name}' in this gateway{hint}")
        self._check_scopes(plugin, config_class, directory)
        config = _config(plugin, config_class)
        try:
            handler = make(config, self._supplies(plugin, directory))
        except ConfigError as error:
            raise _fault("plugins", plugin, error.field or "config", error.message) from error
        except ValueError as error:
            raise _fault("plugins", plugin, "config", str(error)) from error
        ordering = plugin.ordering
        return Bound(
            id=str(plugin.id),
            name=plugin.name,
            priority=config_class.priority,
            handler=handler,
            log=getattr(handler, "log", None),
            prelude=getattr(handler, "prelude", None),
            service_id=_id(plugin.service),
            route_id=_id(plugin.route),
            consumer_id=_id(plugin.consumer),
            before=frozenset((ordering.before.access or ()) if ordering and ordering.before else ()),
            after=frozenset((ordering.after.access or ()) if ordering and ordering.after else ()),
        )

    def _check_scopes(self, plugin: Plugin, config_class: type[PluginConfig], directory: _Directory) -> None:
        for scope in config_class.forbidden_scopes:
            if getattr(plugin, scope, None) is not None:
                raise _fault("plugins", plugin, scope, "value must be null: this plugin cannot have such a scope")
        if plugin.consumer_group is not None:
            raise _fault("plugins", plugin, "consumer_group", "consumer groups are not supported yet")
        if plugin.condition is not None:
            raise _fault("plugins", plugin, "condition", "conditions are not supported yet")
        if plugin.partials:
            raise _fault("plugins", plugin, "partials", "partials are not supported yet")
        if plugin.consumer is not None and plugin.consumer.id not in directory.consumers:
            raise _fault("plugins", plugin, "consumer", f"no consumer {plugin.consumer.id}")

    def _supplies(self, plugin: Plugin, directory: _Directory) -> Supplies:
        workshop = self._workshop
        return Supplies(
            plugin_id=str(plugin.id),
            plugin_name=plugin.name,
            instance_name=plugin.instance_name or "",
            consumers_by_key=directory.by_key,
            consumers=directory.consumers,
            http=workshop.sender,
            client=workshop.client,
            environment=workshop.environment,
            node_id=workshop.node_id,
            version=VERSION,
            debug_trace_allowed=workshop.settings.debug_trace,
        )

    # Routes.

    def _plans(
        self, plugins: _Plugins, upstreams: Mapping[str, ServiceUpstream]
    ) -> tuple[dict[str, Plan], dict[str, Plan]]:
        """One plan per route, and the shared ones: routes of one service without plugins of their own share theirs."""
        redone, plans, shared = self._plans_to_redo(plugins)
        for route_id, route in redone.items():
            service_id = _id(route.service)
            own = [bound for bound in plugins.by_route.get(route_id, ()) if bound.service_id in ("", service_id)]
            if not own and service_id in shared:
                plans[route_id] = shared[service_id]
                continue
            wider = [*plugins.by_service.get("", ()), *(plugins.by_service.get(service_id, ()) if service_id else ())]
            plan = plans[route_id] = self._plan(route, (*wider, *own), upstreams.get(service_id))
            if not own:
                shared[service_id] = plan
        return plans, shared

    def _plans_to_redo(self, plugins: _Plugins) -> tuple[Mapping[str, Route], dict[str, Plan], dict[str, Plan]]:
        """The routes that need a plan anew; the plans that hold, by route, and those that are shared, by service."""
        if plugins.bounds != self._known.plugins.bounds:
            return self._routes, {}, {}
        plans, shared = dict(self._former.plans), dict(self._known.shared)
        for name in (*self._changed_routes, *self._gone_routes):
            plans.pop(name, None)
        for name in (*self._changed_services, *_gone(self._known.services, self._services)):
            shared.pop(name, None)
        return self._changed_routes, plans, shared

    def _plan(self, route: Route, bounds: tuple[Bound, ...], upstream: ServiceUpstream | None) -> Plan:
        known = self._former.plans.get(str(route.id))
        if known is not None and known.bounds == bounds and known.upstream is upstream:
            return known
        return Plan(self._slots(bounds, route), upstream, bounds)

    def _slots(self, plugins: Sequence[Bound], route: Route | None) -> list[Slot]:
        try:
            return make_slots(plugins)
        except OrderingError as error:
            guilty = next(bound for bound in plugins if bound.name in error.names and (bound.before or bound.after))
            plugin = next(plugin for plugin in self._document.of("plugins") if plugin.id == guilty.id)
            where = f" on route {route.name or route.id}" if route is not None else ""
            raise _fault("plugins", plugin, "ordering", f"{error}{where}") from None

    def _upstreams(self) -> Mapping[str, ServiceUpstream]:
        upstreams = dict(self._known.upstreams)
        for name in _gone(self._known.services, self._services):
            del upstreams[name]
        for name, service in self._changed_services.items():
            upstreams[name] = self._upstream(service)
        return upstreams

    def _upstream(self, service: Service) -> ServiceUpstream:
        workshop = self._workshop
        if service.protocol not in _PROXIED:
            raise _fault("services", service, "protocol", f"{service.protocol} services cannot be proxied yet")
        for name in ("client_certificate", "ca_certificates", "tls_sans"):
            if getattr(service, name):
                raise _fault("services", service, name, "certificates of services are not supported yet")
        return ServiceUpstream(service, workshop.client, workshop.loopback, workshop.port)


class _Plugins:
    """The plugins that are switched on, by id, and by what they are put on."""

    def __init__(self, by_id: Mapping[str, tuple[Plugin, Bound]]) -> None:
        self.by_id = by_id
        self.bounds = tuple(bound for _, bound in by_id.values())
        self.everywhere = [b for b in self.bounds if not (b.service_id or b.route_id or b.consumer_id)]
        self.by_route = _group(self.bounds, lambda bound: bound.route_id)
        self.by_service = _group((b for b in self.bounds if not b.route_id), lambda bound: bound.service_id)


class _Directory:
    """Consumers by id, username and custom id; credentials by key."""

    def __init__(self, consumers: Sequence[Consumer], credentials: Sequence[KeyAuthCredential]) -> None:
        self._sources = (consumers, credentials)
        self.consumers: dict[str, Consumer] = {}
        for consumer in consumers:
            if consumer.username:
                self.consumers.setdefault(consumer.username, consumer)
            self.consumers[str(consumer.id)] = consumer
        self.by_key: dict[str, tuple[Consumer, KeyAuthCredential]] = {}
        for credential in credentials:
            owner = self.consumers.get(credential.consumer.id or "")
            if owner is None:
                raise _fault("keyauth_credentials", credential, "consumer", f"no consumer {credential.consumer.id}")
            if credential.key:
                self.by_key[_wire(credential.key)] = (owner, credential)

    def made_of(self, consumers: Sequence[Consumer], credentials: Sequence[KeyAuthCredential]) -> bool:
        """Whether it was made of these very sequences."""
        return self._sources[0] is consumers and self._sources[1] is credentials


def _wire(key: str) -> str:
    """A key as it reads among headers, which are latin-1 text of the bytes on the wire."""
    return key if key.isascii() else key.encode().decode("latin-1")


def _config(plugin: Plugin, config_class: type[PluginConfig]) -> PluginConfig:
    try:
        return parse(config_class, config_class.expand(dict(plugin.config)))
    except SchemaViolation as error:
        first = error.violations[0].under("config")
        others = len(error.violations) - 1
        more = f" (and {others} more)" if others else ""
        raise _fault("plugins", plugin, first.field, first.message + more) from None


def _changed(former: Mapping[str, _Any], now: Mapping[str, _Any]) -> Mapping[str, _Any]:
    """What of `now` is not the same object in `former`."""
    return {} if former is now else {name: each for name, each in now.items() if former.get(name) is not each}


def _gone(former: Mapping[str, Any], now: Mapping[str, Any]) -> frozenset[str]:
    """The names that are not there any more."""
    return frozenset() if former is now else frozenset(former.keys() - now.keys())


def _group(plugins: Iterable[Bound], key: Any) -> dict[str, list[Bound]]:
    groups: dict[str, list[Bound]] = {}
    for bound in plugins:
        groups.setdefault(key(bound), []).append(bound)
    return groups


def _id(reference: Reference | None) -> str:
    return (reference.id or "") if reference is not None else ""


def _fault(kind: str, entity: Entity, where: str, message: str) -> ConfigError:
    name = getattr(entity, "name", None) or getattr(entity, "username", None) or ""
    return ConfigError(message, entity_type=kind, entity_id=str(entity.id or ""), entity_name=name, field=where)
