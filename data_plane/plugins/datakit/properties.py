"""Reading and writing gateway properties. Which exist is decided when the configuration is read
(`gateway_schema.plugins.datakit_properties`); here is where their values come from and go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from data_plane.exchange import Exchange
from data_plane.forwarding import forwarded_host
from data_plane.plugins.datakit.sources import port_of
from data_plane.plugins.datakit.state import State
from data_plane.plugins.datakit.values import NodeError
from gateway_schema.entities import Consumer

_SHARED = "kong.ctx.shared."
_PRIVATE = "kong.ctx.plugin."
_RESPONSE_SOURCES = {"upstream": "service", "plugin": "exit"}


def get(name: str, state: State) -> Any:
    """The property's value as data, None when it has none."""
    if name.startswith(_SHARED):
        return state.exchange.shared.get(name.removeprefix(_SHARED))
    if name.startswith(_PRIVATE):
        return state.private.get(name.removeprefix(_PRIVATE))
    return _GETTERS[name](state)


def set_(name: str, data: Any, state: State) -> None:
    """Raises NodeError for a value that the property cannot take."""
    if name.startswith(_SHARED):
        state.exchange.shared[name.removeprefix(_SHARED)] = data
    elif name.startswith(_PRIVATE):
        state.private[name.removeprefix(_PRIVATE)] = data
    else:
        _SETTERS[name](data, state)


def _entity(entity: BaseModel | None) -> Any:
    return None if entity is None else entity.model_dump(mode="json", by_alias=True, exclude_none=True)


def _id(entity: Any) -> Any:
    return None if entity is None else str(entity.id)


def _name(entity: Any) -> Any:
    return None if entity is None else entity.name


def _forwarded(exchange: Exchange, header: str, own: Any) -> Any:
    """What a trusted proxy says about the client's side, else our own side's fact."""
    return (exchange.request.headers.get(header) if exchange.trusted else None) or own


def _forwarded_port(state: State) -> int:
    exchange = state.exchange
    given = str(_forwarded(exchange, "x-forwarded-port", ""))
    return int(given) if given.isascii() and given.isdigit() else port_of(exchange)


def _response_source(state: State) -> str:
    response = state.exchange.response
    return _RESPONSE_SOURCES.get(response.source, "error") if response is not None else "service"


def _service_status(state: State) -> int | None:
    return state.exchange.upstream_status or (state.exchange.response.status if state.exchange.response else None)


_GETTERS: Mapping[str, Callable[[State], Any]] = {
    "kong.client.consumer": lambda s: _entity(s.exchange.consumer),
    "kong.client.credential": lambda s: _entity(s.exchange.credential),
    "kong.client.forwarded_ip": lambda s: s.exchange.client_ip,
    "kong.client.forwarded_port": lambda s: s.exchange.request.peer[1],
    "kong.client.ip": lambda s: s.exchange.request.peer[0],
    "kong.client.port": lambda s: s.exchange.request.peer[1],
    "kong.client.protocol": lambda s: s.exchange.scheme,
    "kong.request.forwarded_host": lambda s: forwarded_host(s.exchange),
    "kong.request.forwarded_port": _forwarded_port,
    "kong.request.forwarded_scheme": lambda s: s.exchange.scheme,
    "kong.request.port": lambda s: port_of(s.exchange),
    "kong.response.source": _response_source,
    "kong.router.route": lambda s: _entity(s.exchange.route),
    "kong.router.service": lambda s: _entity(s.exchange.service),
    "kong.route_id": lambda s: _id(s.exchange.route),
    "kong.route_name": lambda s: _name(s.exchange.route),
    "kong.service_id": lambda s: _id(s.exchange.service),
    "kong.service_name": lambda s: _name(s.exchange.service),
    "kong.service.response.status": _service_status,
    "kong.version": lambda s: s.supplies.version,
    "kong.nginx.subsystem": lambda s: "http",
    "kong.node.id": lambda s: s.supplies.node_id,
}


def _set_status(data: Any, state: State) -> None:
    if not isinstance(data, int) or isinstance(data, bool) or not 100 <= data <= 599:
        raise NodeError("kong.response.status: expected an integer between 100 and 599")
    state.status = data


def _set_consumer(data: Any, state: State) -> None:
    """Name the consumer for the plugins that follow; null takes the name away."""
    exchange = state.exchange
    exchange.credential = None
    exchange.consumer = None if data is None else _find_consumer(data, state)


def _find_consumer(data: Any, state: State) -> Consumer:
    consumers = state.supplies.consumers
    if isinstance(data, dict):
        for key in ("id", "username"):
            wanted = data.get(key)
            found = consumers.get(wanted) if isinstance(wanted, str) else None
            if found is not None and str(getattr(found, key)) == wanted:
                return found
        custom_id = data.get("custom_id")
        found = next((c for c in consumers.values() if custom_id is not None and c.custom_id == custom_id), None)
        if found is not None:
            return found
    raise NodeError("kong.client.consumer: no consumer with this id, username or custom_id")


_SETTERS: Mapping[str, Callable[[Any, State], None]] = {
    "kong.client.consumer": _set_consumer,
    "kong.response.status": _set_status,
}
