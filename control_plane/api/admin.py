"""Kong's Admin API, one base address per control plane: `http://host:8001/admin/{control plane's id or name}`.

For `deck --kong-addr`, for curl and for whatever else speaks to Kong itself. It is a second face of the same
repository: what is written here is read there. It differs from `core-entities` in what surrounds the entities: errors
have Kong's shape, bodies may be forms, the token may stand in `Kong-Admin-Token`, an entity's parents can be reached
through it (`/routes/{route}/service`), and a few paths tell about the gateway. There are no workspaces.

It is mounted as an application of its own, so that also what the routing refuses is answered in Kong's way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from control_plane.api.admin_bodies import Form, read_body, typed
from control_plane.api.admin_calls import Call, resource
from control_plane.api.admin_certificates import NamedCertificates
from control_plane.api.admin_errors import error_response, routing_response
from control_plane.api.admin_gateway import gateway_routes
from control_plane.api.admin_routes import Routes
from control_plane.api.entities import Collection
from control_plane.api.exchange import answer
from control_plane.api.groups import OF_CONSUMER, OF_GROUP, Members
from control_plane.api.kinds import collection
from control_plane.auth import tell_denied
from control_plane.errors import ControlPlaneError, NotFound
from control_plane.repository import Repository
from control_plane.settings import VERSION
from gateway_schema.registry import (
    CERTIFICATES,
    ENTITY_TYPES,
    ROUTES,
    TARGETS,
    EntityType,
    children_of,
)

PREFIX = "/admin/"
_SERVER = f"tandem/{VERSION}"
"""decK's dump asks for this header, and takes the gateway for another product when it says `ai-gateway`."""


class EntityFace:
    """The handlers of one kind of entity, under one parent or none: the ones of `core-entities`, for this face."""

    def __init__(self, row: EntityType, field: str | None = None) -> None:
        self._row = row
        self._shared = _shared(row, field)

    async def list(self, call: Call) -> Response:
        return await self._shared.list(call.request, call.plane, call.caller)

    async def get(self, call: Call) -> Response:
        return await self._shared.get(call.request, call.plane, call.caller)

    async def create(self, call: Call) -> Response:
        return await self._shared.create(call.request, await self._body(call), call.plane, call.caller)

    async def replace(self, call: Call) -> Response:
        return await self._shared.replace(call.request, await self._body(call), call.plane, call.caller)

    async def merge(self, call: Call) -> Response:
        return await self._shared.merge(call.request, await self._body(call, merging=True), call.plane, call.caller)

    async def delete(self, call: Call) -> Response:
        return await self._shared.delete(call.request, call.plane, call.caller)

    async def _body(self, call: Call, merging: bool = False) -> dict[str, Any]:
        body = await read_body(call.request)
        if not isinstance(body, Form):
            return body
        kind = None
        if merging and self._row.config_key is not None and self._row.config_key not in body:
            kind = await _value(call, self._row, call.key, self._row.config_key)
        return typed(self._row, body, kind)


def _shared(row: EntityType, field: str | None) -> Collection:
    if row is CERTIFICATES:
        return NamedCertificates()
    return Routes(row, field) if row is ROUTES else collection(row, field)


class ParentFace:
    """An entity reached through a child that refers to it: `/routes/{key}/service`."""

    def __init__(self, child: EntityType, field: str) -> None:
        self._child = child
        self._field = field
        self._parent = EntityFace(ENTITY_TYPES[child.parents[field].type])

    async def get(self, call: Call) -> Response:
        return await self._parent.get(await self._through(call))

    async def replace(self, call: Call) -> Response:
        return await self._parent.replace(await self._through(call))

    async def merge(self, call: Call) -> Response:
        return await self._parent.merge(await self._through(call))

    async def _through(self, call: Call) -> Call:
        reference = await _value(call, self._child, call.key, self._field)
        if not reference:
            raise NotFound
        call.request.path_params["key"] = reference["id"]
        return call


async def _value(call: Call, row: EntityType, key: str, field: str) -> Any:
    """What an entity says in a field. Raises NotFound."""
    async with call.plane.database.reading() as session:
        found = await Repository(session, call.control_plane_id, call.plane.cipher).get(row, key)
    return found.written.get(field)


def entity_routes() -> Iterator[Route]:
    """All paths of entities, from the registry."""
    for row in ENTITY_TYPES.values():
        if row is not TARGETS and not row.is_link:  # those are reached through their parents only
            yield from _collection(f"/{row.path}", EntityFace(row))
            for field in row.parents:
                up = ParentFace(row, field)
                handlers = {"GET": up.get, "PUT": up.replace, "PATCH": up.merge}
                yield resource(f"/{row.path}/{{key}}/{field}", handlers)
    yield from _memberships("/consumer_groups/{parent}/consumers", Members(OF_GROUP))
    yield from _memberships("/consumers/{parent}/consumer_groups", Members(OF_CONSUMER))
    for parent in ENTITY_TYPES.values():
        for row, field, link in children_of(parent.name):
            if row is TARGETS:
                targets = EntityFace(row, field)
                yield resource("/upstreams/{parent}/targets/all", {"GET": targets.list})
            if link.nested_path is not None:
                yield from _collection(f"/{parent.path}/{{parent}}/{link.nested_path}", EntityFace(row, field))


def _collection(path: str, face: EntityFace) -> Iterator[Route]:
    yield resource(path, {"GET": face.list, "POST": face.create})
    item = {"GET": face.get, "PUT": face.replace, "PATCH": face.merge, "DELETE": face.delete}
    yield resource(f"{path}/{{key}}", item)


def _memberships(path: str, shared: Members) -> Iterator[Route]:
    async def everything(call: Call) -> Response:
        return await shared.list(call.request, call.plane, call.caller)

    async def one(call: Call) -> Response:
        return await shared.get(call.request, call.plane, call.caller)

    async def add(call: Call) -> Response:
        return await shared.create(call.request, await read_body(call.request), call.plane, call.caller)

    async def remove(call: Call) -> Response:
        return await shared.delete(call.request, call.plane, call.caller)

    async def clear(call: Call) -> Response:
        return await shared.clear(call.request, call.plane, call.caller)

    yield resource(path, {"GET": everything, "POST": add, "DELETE": clear})
    yield resource(f"{path}/{{key}}", {"GET": one, "DELETE": remove})


def _endpoints(known: list[Route]) -> Route:
    """`/endpoints`: every path there is."""
    paths = sorted({"/endpoints", *(route.path for route in known)})

    async def list_paths(_: Call) -> Response:
        return answer({"data": paths})

    return resource("/endpoints", {"GET": list_paths})


class Face:
    """The application: routes, and errors in Kong's shape. Faults of ours are left to the layer around everything."""

    def __init__(self, routes: list[Route]) -> None:
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        async def send_signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["server"] = _SERVER
            await send(message)

        await self._answer(scope, receive, send_signed)

    async def _answer(self, scope: Connection, receive: Receive, send: Send) -> None:
        answer: ASGIApp
        scope = _below(scope)
        try:
            await self._router(scope, receive, send)
            return
        except ControlPlaneError as error:
            await tell_denied(Request(scope), error)
            answer = error_response(error)
        except HTTPException as error:
            answer = routing_response(error, scope["method"])
        await answer(scope, receive, send)


def _below(scope: Connection) -> Connection:
    """The same request as seen from the base address; a slash at the end of a path says nothing.

    It goes without the outer application's exception handlers, which Starlette's routes would use: they speak Konnect.
    """
    _, face, control_plane, *rest = scope["path"].split("/", 3)
    base = f"/{face}/{control_plane}"
    own = {"root_path": base, "path": f"{base}/{''.join(rest).strip('/')}", "starlette.exception_handlers": ({}, {})}
    return {**scope, **own}


def route() -> Route:
    """The base addresses and all below them, for the control plane's application."""
    known = [*gateway_routes(), *entity_routes()]
    face = Face([_endpoints(known), *known])
    return Route(f"{PREFIX}{{control_plane_id}}{{rest:path}}", face, include_in_schema=False)
