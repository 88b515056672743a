"""Consumer groups and who is in them, the same on both faces.

A membership is a row of its own in the database and in snapshots, but the API shows it only through its two ends:
`/consumer_groups/{group}/consumers` and `/consumers/{consumer}/consumer_groups`. Adding somebody twice is no fault:
decK adds whom it does not see, and another may have been faster.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from control_plane.api import answers
from control_plane.api.entities import (
    PAGING,
    PREFIX,
    Collection,
    check_options,
    path_parameters,
    read_offset,
    read_size,
    write_offset,
)
from control_plane.api.exchange import Body, Plane, Reader, Writer, answer
from control_plane.api.openapi import queries, shows
from control_plane.api.segments import own_path
from control_plane.api.stems import StemRouter
from control_plane.errors import NotFound, SchemaFault
from control_plane.holdings import Row
from control_plane.repository import Repository
from gateway_schema.registry import CONSUMER_GROUP_CONSUMERS, CONSUMER_GROUPS, CONSUMERS, EntityType
from gateway_schema.violations import Violation


class Groups(Collection):
    """Consumer groups: one that is asked for by itself comes with its members."""

    def __init__(self) -> None:
        super().__init__(CONSUMER_GROUPS)
        self.whole = answers.GroupWithConsumers

    async def get(self, request: Request, plane: Plane, caller: Reader) -> Response:
        """`list_consumers=false` leaves the members out."""
        async with plane.database.reading() as session:
            repository = await self._repository(request, plane, session)
            group = await repository.get(self._row, str(request.path_params["key"]))
            [shown] = await self._views(repository, [group], caller)
            body: dict[str, Any] = {"consumer_group": shown}
            if request.query_params.get("list_consumers") != "false":
                body["consumers"] = [row.entity() for row in await members(repository, OF_GROUP, group)]
        return answer(body)


@dataclass(frozen=True, slots=True)
class End:
    """Memberships as seen from one of their ends."""

    holder: EntityType
    holder_field: str
    member: EntityType
    member_field: str
    body_key: str
    """Who or what is to be added, in the body of a POST: an id or an endpoint key."""
    one: str
    """Keys of the answer to a POST: the holder, and what it now holds of what was added."""
    many: str
    added: type[answers.Answer]
    """The shape of that answer."""


OF_GROUP = End(
    CONSUMER_GROUPS,
    "consumer_group",
    CONSUMERS,
    "consumer",
    body_key="consumer",
    one="consumer_group",
    many="consumers",
    added=answers.ConsumersAdded,
)
OF_CONSUMER = End(
    CONSUMERS,
    "consumer",
    CONSUMER_GROUPS,
    "consumer_group",
    body_key="group",
    one="consumer",
    many="consumer_groups",
    added=answers.GroupsJoined,
)


class Members(Collection):
    """The handlers of memberships below one of their ends; the items are the entities at the other end."""

    def __init__(self, end: End) -> None:
        super().__init__(CONSUMER_GROUP_CONSUMERS, end.holder_field)
        self._end = end

    async def list(self, request: Request, plane: Plane, caller: Reader) -> Response:
        size, after = read_size(request.query_params), read_offset(request.query_params)
        check_options(request.query_params)
        async with plane.database.reading() as session:
            repository = await self._repository(request, plane, session)
            rows = await members(repository, self._end, await self._holder(request, repository))
        found = [row for row in rows if after is None or row.id > after]
        body: dict[str, Any] = {"data": [row.entity() for row in found[:size]], "next": None}
        if len(found) > size:
            body["offset"] = write_offset(found[size - 1].id)
            body["next"] = f"{own_path(request)}?offset={body['offset']}&size={size}"
        return answer(body)

    async def get(self, request: Request, plane: Plane, caller: Reader) -> Response:
        async with plane.database.reading() as session:
            repository = await self._repository(request, plane, session)
            link = await self._link(request, repository)
            if link is None:
                raise NotFound
            [found] = await repository.of_ids(self._end.member, [link.reference(self._end.member_field) or ""])
        return answer(found.entity())

    async def create(self, request: Request, body: Body, plane: Plane, caller: Writer) -> Response:
        keys = self._keys(body)
        async with self._changing(request, plane, caller) as repository:
            await repository.lock()
            holder = await self._holder(request, repository)
            added = [await self._add(repository, holder, key) for key in keys]
        return answer({self._end.one: holder.entity(), self._end.many: [row.entity() for row in added]}, 201)

    async def delete(self, request: Request, plane: Plane, caller: Writer) -> Response:
        async with self._changing(request, plane, caller) as repository:
            with contextlib.suppress(NotFound):  # gone already, with its group or its consumer
                link = await self._link(request, repository)
                if link is not None:
                    await repository.delete(self._row, link.id)
        return Response(status_code=204)

    async def clear(self, request: Request, plane: Plane, caller: Writer) -> Response:
        """Everybody leaves."""
        async with self._changing(request, plane, caller) as repository:
            holder = await self._holder(request, repository)
            for link in await repository.referring(self._row, self._end.holder_field, [holder.id]):
                await repository.delete(self._row, link.id)
        return Response(status_code=204)

    def _keys(self, body: dict[str, Any]) -> Sequence[str]:
        given = body.get(self._end.body_key)
        keys = given if isinstance(given, list) else [given]
        if not keys or not all(isinstance(key, str) for key in keys):
            text = "required field missing" if given is None else "expected a string"
            raise SchemaFault([Violation((self._end.body_key,), text)])
        return list(dict.fromkeys(keys))

    async def _add(self, repository: Repository, holder: Row, key: str) -> Row:
        member = await repository.get(self._end.member, key)
        ends = {self._end.holder_field: holder.id, self._end.member_field: member.id}
        if await repository.joining(self._row, ends) is None:
            await repository.create(self._row, {field: {"id": entity_id} for field, entity_id in ends.items()})
        return member

    async def _holder(self, request: Request, repository: Repository) -> Row:
        return await repository.get(self._end.holder, str(request.path_params["parent"]))

    async def _link(self, request: Request, repository: Repository) -> Row | None:
        holder = await self._holder(request, repository)
        member = await repository.get(self._end.member, str(request.path_params["key"]))
        ends = {self._end.holder_field: holder.id, self._end.member_field: member.id}
        return await repository.joining(self._row, ends)

    @contextlib.asynccontextmanager
    async def _changing(self, request: Request, plane: Plane, caller: Writer) -> AsyncIterator[Repository]:
        control_plane_id = str(request.path_params["control_plane_id"]).lower()
        async with plane.database.writing() as session:
            yield await self._repository(request, plane, session, caller)
        plane.touch(control_plane_id)


async def members(repository: Repository, end: End, holder: Row) -> Sequence[Row]:
    """What is at the other ends, in the order of ids."""
    links = await repository.referring(CONSUMER_GROUP_CONSUMERS, end.holder_field, [holder.id])
    return await repository.of_ids(end.member, sorted(str(link.reference(end.member_field)) for link in links))


def router() -> APIRouter:
    """The paths of memberships on Konnect's face."""
    routes = StemRouter(prefix=PREFIX, tags=["core entities"])
    for end in (OF_GROUP, OF_CONSUMER):
        shared, name = Members(end), f"{end.many}_of_{end.one}"
        path = f"/{end.holder.path}/{{parent}}/{end.many}"
        one: Any = end.member.model
        many: Any = answers.Listed[one]
        for method, where, endpoint, status, model in (
            ("GET", path, shared.list, 200, many),
            ("POST", path, shared.create, 201, end.added),
            ("DELETE", path, shared.clear, 204, None),
            ("GET", f"{path}/{{key}}", shared.get, 200, one),
            ("DELETE", f"{path}/{{key}}", shared.delete, 204, None),
        ):
            verb = {"GET": "list", "DELETE": "clear"}.get(method, "post") if where == path else method.lower()
            operation = f"{verb}_{name}"
            options: dict[str, Any] = {"status_code": status, "openapi_extra": _described(end, method, where)}
            if model is not None:
                options["responses"] = shows(model, status)
            routes.add_api_route(where, endpoint, methods=[method], operation_id=operation, name=operation, **options)
    return routes


def _described(end: End, method: str, path: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"parameters": path_parameters(path)}
    if method == "GET" and "{key}" not in path:
        shown["parameters"] += queries(**PAGING)["parameters"]
    if method == "POST":
        name: dict[str, Any] = {"type": "string"}
        either = {"anyOf": [name, {"type": "array", "items": name, "minItems": 1}]}
        schema = {"type": "object", "properties": {end.body_key: either}, "required": [end.body_key]}
        shown["requestBody"] = {"content": {"application/json": {"schema": schema}}, "required": True}
    return shown
