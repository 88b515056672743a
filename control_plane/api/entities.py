"""`core-entities`: one set of handlers, and a row of the registry for each kind of entity.

Flat (`/routes`, `/routes/{route}`) and, where the registry says so, under a parent (`/services/{service}/routes`). A
path segment that is a UUID is an id; any other is the endpoint key. Entities are answered whole: every field, null
where unset, whole seconds.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.api import answers
from control_plane.api.exchange import Body, Plane, Reader, Writer, answer
from control_plane.api.openapi import CONFLICT, REFUSED, accepts_entity, queries, shows
from control_plane.api.paging import read_number
from control_plane.api.segments import own_path
from control_plane.api.stems import StemRouter
from control_plane.auth import Principal
from control_plane.errors import InvalidOffset, InvalidOptions, InvalidSize, NotFound
from control_plane.holdings import NO_CONTROL_PLANE, Row
from control_plane.repository import Filters, Repository, Scope
from control_plane.secrets import mask
from gateway_schema import content
from gateway_schema.base import canonical_id
from gateway_schema.registry import ENTITY_TYPES, EntityType, children_of

PREFIX = "/v2/control-planes/{control_plane_id}/core-entities"
DEFAULT_SIZE = 100
MAX_SIZE = 1000
MAX_TAGS = 5
_STATUSES = {"POST": 201, "DELETE": 204}
_FILTERED = {"services": ("name",), "routes": ("name",)}
"""Fields that `filter[field][eq|contains]` knows."""
_HOW = ("", "[eq]", "[contains]")


class Collection:
    """The handlers of one kind of entity, under one parent or none."""

    def __init__(self, row: EntityType, field: str | None = None) -> None:
        self._row = row
        self._field = field
        self.whole: type[BaseModel] = row.model
        """The shape of what `get` answers."""
        self.options: Mapping[str, Mapping[str, Any]] = {}
        """What a GET of one or of many takes beside what narrows a list."""

    async def list(self, request: Request, plane: Plane, caller: Reader) -> Response:
        size = read_size(request.query_params)
        after = read_offset(request.query_params)
        async with plane.database.reading() as session:
            repository = await self._repository(request, plane, session)
            filters = self._filters(request.query_params, await self._scope(request, repository))
            rows, more = await repository.list(self._row, size, after, filters)
            shown = await self._views(repository, await self._asked_for(request, repository, rows), caller)
            body: dict[str, Any] = {"data": shown, "next": None}
        if more:
            body["offset"] = write_offset(rows[-1].id)
            query = {**request.query_params, "offset": body["offset"], "size": str(size)}
            body["next"] = f"{own_path(request)}?{urlencode(query)}"
        return answer(body)

    async def get(self, request: Request, plane: Plane, caller: Reader) -> Response:
        async with plane.database.reading() as session:
            repository = await self._repository(request, plane, session)
            scope = await self._scope(request, repository)
            found = await repository.get(self._row, _key(request), scope)
            [row] = await self._asked_for(request, repository, [found])
            shown = await self._view(repository, row, caller)
        return answer(shown)

    async def create(self, request: Request, body: Body, plane: Plane, caller: Writer) -> Response:
        body = self._with_options(request, body)
        async with self._writing(request, plane, caller) as (repository, scope):
            created = await self._create(repository, body, scope)
            shown = await self._view(repository, created, caller)
        return answer(shown, 201)

    async def replace(self, request: Request, body: Body, plane: Plane, caller: Writer) -> Response:
        body = self._with_options(request, body)
        async with self._writing(request, plane, caller) as (repository, scope):
            replaced = await self._replace(repository, _key(request), body, scope)
            shown = await self._view(repository, replaced, caller)
        return answer(shown)

    async def merge(self, request: Request, body: Body, plane: Plane, caller: Writer) -> Response:
        async with self._writing(request, plane, caller) as (repository, scope):
            merged = await self._merge(repository, _key(request), body, scope)
            shown = await self._view(repository, merged, caller)
        return answer(shown)

    def _with_options(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """`?skip_hash=true`: the password is a digest already."""
        if "skip_hash" in self._row.model.shorthands and request.query_params.get("skip_hash") == "true":
            return {**body, "skip_hash": True}
        return body

    async def delete(self, request: Request, plane: Plane, caller: Writer) -> Response:
        """204 also when there is nothing: a cascade may have been faster than the client."""
        async with plane.database.writing() as session:
            repository = await self._repository(request, plane, session, caller)
            scope = await self._scope(request, repository)
            deleted = await repository.delete(self._row, _key(request), scope)
        if deleted:
            plane.touch(_control_plane_id(request))
        return Response(status_code=204)

    # -- what kinds with more to them than their fields do in a way of their own, inside the transaction

    async def _create(self, repository: Repository, body: dict[str, Any], scope: Scope | None) -> Row:
        return await repository.create(self._row, body, scope)

    async def _replace(self, repository: Repository, key: str, body: dict[str, Any], scope: Scope | None) -> Row:
        return await repository.replace(self._row, key, body, scope)

    async def _merge(self, repository: Repository, key: str, body: dict[str, Any], scope: Scope | None) -> Row:
        return await repository.merge(self._row, key, body, scope)

    async def _asked_for(self, request: Request, repository: Repository, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows as a GET's `options` want them."""
        return rows

    async def _view(self, repository: Repository, row: Row, caller: Principal) -> dict[str, Any]:
        """One that was asked for, or written, by itself."""
        [shown] = await self._views(repository, [row], caller)
        return shown

    async def _views(self, repository: Repository, rows: Sequence[Row], caller: Principal) -> Sequence[dict[str, Any]]:
        """Secrets in clear for who may see them (decK compares them), masked for everyone else, also for who wrote
        them."""
        entities = [row.entity() for row in rows]
        if caller.may("reveal"):
            return entities
        return [content.change_secrets(self._row, entity, mask) for entity in entities]

    @contextlib.asynccontextmanager
    async def _writing(
        self, request: Request, plane: Plane, caller: Principal
    ) -> AsyncIterator[tuple[Repository, Scope | None]]:
        """A transaction, and after its commit a new snapshot."""
        async with plane.database.writing() as session:
            repository = await self._repository(request, plane, session, caller)
            yield repository, await self._scope(request, repository)
        version = None
        for version, changes in repository.written:
            plane.expiry.expect(changes.puts)
            if not changes.deletes:  # the database may have deleted more with them
                plane.holdings.follow(_control_plane_id(request), version, changes.puts)
        plane.touch(_control_plane_id(request), version)

    async def _repository(
        self, request: Request, plane: Plane, session: AsyncSession, author: Principal | None = None
    ) -> Repository:
        repository = Repository(session, _control_plane_id(request), plane.cipher, author)
        # Whoever writes does so alone: what is looked up from here on stays as it is until the commit.
        await (repository.exists() if author is None else repository.lock())
        return repository

    async def _scope(self, request: Request, repository: Repository) -> Scope | None:
        if self._field is None:
            return None
        parent = ENTITY_TYPES[self._row.parents[self._field].type]
        found = await repository.get(parent, request.path_params["parent"])
        return Scope(self._field, found.id)

    def _filters(self, query: Mapping[str, str], scope: Scope | None) -> Filters:
        tags, any_tag = read_tags(query) if scope is None else ((), False)
        equals: dict[str, str] = {}
        contains: dict[str, str] = {}
        check_options(query, self._row)
        for field in _FILTERED.get(self._row.name, ()):
            for option, filters in (("", equals), ("[eq]", equals), ("[contains]", contains)):
                if (value := query.get(f"filter[{field}]{option}")) is not None:
                    filters[field] = _filter_value(f"filter[{field}]{option}", value)
        if self._row.name == "consumers" and (custom_id := query.get("custom_id")) is not None:
            equals["custom_id"] = _filter_value("custom_id", custom_id)
        return Filters(tags, any_tag, equals, contains, scope)


def routers(collection: Callable[[EntityType, str | None], Collection] = Collection) -> Sequence[APIRouter]:
    """All paths, from the registry, a router for each kind and what is below it. `collection`: makes the handlers of a
    kind under a parent, or none."""
    made = []
    for kind in ENTITY_TYPES.values():
        routes = StemRouter(prefix=PREFIX, tags=["core entities"])
        if not kind.is_link:
            _add(routes, kind, f"/{kind.path}", collection(kind, None), None)
        for row, field, link in children_of(kind.name):
            if link.nested_path is not None:
                path = f"/{kind.path}/{{parent}}/{link.nested_path}"
                _add(routes, row, path, collection(row, field), field)
        made.append(routes)
    return made


def _add(routes: APIRouter, row: EntityType, path: str, collection: Collection, field: str | None) -> None:
    one: Any = row.model
    many: Any = answers.Listed[one]
    item = f"{path}/{{key}}"
    on_list, on_item = path_parameters(path), path_parameters(item)
    search = queries(**_queries(row, field), **collection.options)["parameters"]
    asked = queries(**collection.options)["parameters"]
    options = queries(skip_hash={"type": "boolean"})["parameters"] if "skip_hash" in row.model.shorthands else []
    post, put, patch = (accepts_entity(row, method, field) for method in ("POST", "PUT", "PATCH"))
    taken = shows(one) | CONFLICT
    endpoints: list[tuple[str, str, Any, Mapping[int | str, Any], dict[str, Any]]] = [
        ("GET", path, collection.list, shows(many), {"parameters": on_list + search}),
        ("POST", path, collection.create, shows(one, 201) | CONFLICT, {"parameters": on_list + options} | post),
        ("GET", item, collection.get, shows(collection.whole), {"parameters": on_item + asked}),
        ("PUT", item, collection.replace, taken, {"parameters": on_item + options} | put),
        ("PATCH", item, collection.merge, taken, {"parameters": on_item} | patch),
        ("DELETE", item, collection.delete, REFUSED, {"parameters": on_item}),
    ]
    name = row.path.replace("-", "_") + (f"_of_{field}" if field else "")
    for method, where, endpoint, responses, extra in endpoints:
        verb = "list" if method == "GET" and where == path else method.lower()
        operation = f"{verb}_{name}"
        named: dict[str, Any] = {"operation_id": operation, "name": operation, "status_code": _STATUSES.get(method)}
        routes.add_api_route(where, endpoint, methods=[method], responses=dict(responses), openapi_extra=extra, **named)


def path_parameters(path: str) -> list[dict[str, Any]]:
    """The parameters of a path below `PREFIX` that the shared handlers read by themselves."""
    names = [name for name in ("control_plane_id", "parent", "key") if f"{{{name}}}" in PREFIX + path]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


PAGING: Mapping[str, Mapping[str, Any]] = {
    "size": {"type": "integer", "minimum": 1, "maximum": MAX_SIZE, "default": DEFAULT_SIZE},
    "offset": {"type": "string", "description": "From the page before; empty: none"},
}


def _queries(row: EntityType, field: str | None) -> dict[str, Mapping[str, Any]]:
    """What narrows a list, as `_filters` reads it."""
    shown: dict[str, Mapping[str, Any]] = dict(PAGING)
    if field is None:
        shown["tags"] = {"type": "string", "minLength": 1, "description": "`a,b`: all of them; `a/b`: any"}
    for name in _FILTERED.get(row.name, ()):
        shown |= {f"filter[{name}][{operator}]": {"type": "string", "minLength": 1} for operator in ("eq", "contains")}
    if row.name == "consumers":
        shown["custom_id"] = {"type": "string", "minLength": 1}
    return shown


def _control_plane_id(request: Request) -> str:
    found = canonical_id(request.path_params["control_plane_id"])
    if found is None:
        raise NotFound(NO_CONTROL_PLANE)
    return found


def _key(request: Request) -> str:
    return str(request.path_params["key"])


def read_size(query: Mapping[str, str]) -> int:
    """Raises InvalidSize."""
    text = query.get("size")
    if text is None or text == "":
        return DEFAULT_SIZE
    size = read_number(text)
    if size is None:
        raise InvalidSize("size must be a number")
    if not 1 <= size <= MAX_SIZE:
        raise InvalidSize(f"size must be an integer between 1 and {MAX_SIZE}")
    return size


def read_offset(query: Mapping[str, str]) -> str | None:
    """The id behind which a page starts. An empty offset is none at all. Raises InvalidOffset."""
    text = query.get("offset")
    if not text:
        return None
    try:
        found = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, orjson.JSONDecodeError, ValueError):
        raise InvalidOffset(text) from None
    after = canonical_id(found) if isinstance(found, str) else None
    if after is None:
        raise InvalidOffset(text)
    return after


def write_offset(entity_id: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(entity_id)).decode().rstrip("=")


def check_options(query: Mapping[str, str], row: EntityType | None = None) -> None:
    """Whoever narrows or sorts a list in a way that it does not know must not take all of it for the answer. Raises
    InvalidOptions."""
    known = [f"filter[{field}]{operator}" for field in _FILTERED.get(row.name if row else "", ()) for operator in _HOW]
    for option in query:
        if option.startswith("filter") and option not in known:
            raise InvalidOptions(option, f"unknown filter: {_or_none(known)}")
        if option == "sort":
            raise InvalidOptions(option, "unknown order: lists are in the order of ids")


def _or_none(known: Sequence[str]) -> str:
    return f"this list knows {', '.join(known)}" if known else "this list knows none"


def _filter_value(option: str, text: str) -> str:
    """An empty one would be met by nothing, or by all: nobody means that. Raises InvalidOptions."""
    if not text:
        raise InvalidOptions(option, "cannot be empty")
    if "\x00" in text:  # PostgreSQL's texts cannot hold it
        raise InvalidOptions(option, "invalid filter syntax")
    return text


def read_tags(query: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """`a,b`: all of them; `a/b`: any. Raises InvalidOptions."""
    text = query.get("tags")
    if text is None:
        return (), False
    if "," in text and "/" in text:
        raise InvalidOptions("tags", "invalid filter syntax")
    any_tag = "/" in text
    tags = tuple(dict.fromkeys(part for part in text.split("/" if any_tag else ",") if part))
    if not tags:
        raise InvalidOptions("tags", "cannot be null")
    if len(tags) > MAX_TAGS:
        raise InvalidOptions("tags", f"cannot query more than {MAX_TAGS} tags")
    if any("\x00" in tag for tag in tags):
        raise InvalidOptions("tags", "invalid filter syntax")
    return tags, any_tag
