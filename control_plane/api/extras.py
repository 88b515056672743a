"""What stands below `core-entities` beside the kinds of the registry: who uses a partial, and the one workspace.

A control plane has no workspaces but the default one: another control plane does what another workspace would. Clients
that ask for one hear so, in words, instead of meeting a path that is not there.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from control_plane.api import answers
from control_plane.api.entities import PAGING, PREFIX, check_options, read_offset, read_size, write_offset
from control_plane.api.exchange import Body, Plane, Reader, Writer, answer
from control_plane.api.konnect import find
from control_plane.api.openapi import accepts, queries, shows
from control_plane.api.segments import own_path
from control_plane.api.stems import StemRouter
from control_plane.errors import BadRequest, NotFound
from control_plane.models import ControlPlane
from control_plane.repository import Repository
from gateway_schema.registry import PARTIALS, PLUGINS

router = StemRouter(prefix=PREFIX, tags=["core entities"])

DEFAULT_WORKSPACE = "default"


class WorkspaceBody(BaseModel):
    name: str


@router.get("/partials/{key}/links", responses=shows(answers.PartialUsers), openapi_extra=queries(**PAGING))
async def list_partial_links(request: Request, control_plane_id: str, key: str, plane: Plane, _: Reader) -> Response:
    """The plugins that a partial fills a part of. `count`: of them all."""
    size, after = read_size(request.query_params), read_offset(request.query_params)
    check_options(request.query_params)
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        repository = Repository(session, control_plane.id, plane.cipher)
        partial = await repository.get(PARTIALS, key)
        users = await repository.listing(PLUGINS, "partials", partial.id)
    found = [row for row in users if after is None or row.id > after]
    body: dict[str, Any] = {"count": len(users), "data": [_link(row) for row in found[:size]], "next": None}
    if len(found) > size:
        body["offset"] = write_offset(found[size - 1].id)
        body["next"] = f"{own_path(request)}?offset={body['offset']}&size={size}"
    return answer(body)


def _link(plugin: Any) -> dict[str, Any]:
    return {
        "id": plugin.id,
        "name": plugin.written["name"],
        "instance_name": plugin.written.get("instance_name"),
    }


@router.get("/workspaces", responses=shows(answers.Workspaces))
async def list_workspaces(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
    return answer({"data": [_workspace(control_plane)], "next": None})


@router.get("/workspaces/{name}", responses=shows(answers.Workspace))
async def get_workspace(control_plane_id: str, name: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
    if name not in (DEFAULT_WORKSPACE, control_plane.id):
        raise NotFound
    return answer(_workspace(control_plane))


@router.post("/workspaces", status_code=400, openapi_extra=accepts(WorkspaceBody))
async def create_workspace(control_plane_id: str, body: Body, plane: Plane, _: Writer) -> Response:
    """Refused, with what to do instead."""
    async with plane.database.reading() as session:
        await find(session, control_plane_id)
    raise BadRequest(
        "there is no workspace but 'default': make a control plane for what another workspace would hold, and name it "
        "with --konnect-control-plane-name"
    )


def _workspace(control_plane: ControlPlane) -> dict[str, Any]:
    """The default workspace has its control plane's id."""
    created = control_plane.created_at // 1000
    return {"id": control_plane.id, "name": DEFAULT_WORKSPACE, "comment": None, "created_at": created}
