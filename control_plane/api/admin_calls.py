"""A request on Kong's Admin API: which control plane it means, who sends it, what it may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request, Response
from sqlalchemy import select
from starlette.routing import Route

from control_plane.api.exchange import plane_of
from control_plane.auth import Principal, require
from control_plane.errors import NotFound
from control_plane.models import ControlPlane as ControlPlaneRow
from gateway_schema.base import canonical_id

if TYPE_CHECKING:
    from control_plane.plane import ControlPlane


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was let in."""

    request: Request
    plane: ControlPlane
    caller: Principal
    control_plane_id: str

    @property
    def key(self) -> str:
        return str(self.request.path_params["key"])


Handler = Callable[[Call], Awaitable[Response]]
_enter = {"read": require("read"), "write": require("write")}


def resource(path: str, handlers: Mapping[str, Handler], reads: frozenset[str] = frozenset({"GET"})) -> Route:
    """A path with a handler per method. Methods other than `reads` need a token that may write."""

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](await _let_in(request, "read" if method in reads else "write"))

    return Route(path, endpoint, methods=list(handlers), name=path)


async def _let_in(request: Request, scope: str) -> Call:
    """Raises Unauthorized, Forbidden or, for who may know it, NotFound."""
    plane = plane_of(request)
    found = await _find(plane, request.path_params["control_plane_id"])
    if found is not None:
        request.path_params["control_plane_id"] = found  # what the shared handlers and the token's own limits read
    caller = await _enter[scope](request)
    if found is None:
        raise NotFound
    return Call(request, plane, caller, found)


async def _find(plane: ControlPlane, key: str) -> str | None:
    """The id of a control plane by its id or name."""
    entity_id = canonical_id(key)
    condition = ControlPlaneRow.id == entity_id if entity_id else ControlPlaneRow.name == key
    async with plane.database.reading() as session:
        found: str | None = (await session.execute(select(ControlPlaneRow.id).where(condition))).scalar_one_or_none()
    return found
