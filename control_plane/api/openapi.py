"""The OpenAPI document: what FastAPI finds by itself, and what it cannot.

Handlers read bodies by themselves and answer plain dicts, so each route says in its decorator which class checks its
body (`accepts`) and which describes its answer (`shows`). What every route may answer besides follows from
its shape: a path that names something may not find it, a body may be too large. All of that is in `document`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from control_plane.api.answers import Answer, Listed, Problem
from gateway_schema.entities import TRADITIONAL_ONLY, Reference, Route
from gateway_schema.registry import ENTITY_TYPES, EntityType

PROBLEM = "application/problem+json"
_UUID = {"type": "string", "format": "uuid", "title": "Id"}
_ENTITY = "x-entity"
_REF = "#/components/schemas/"

CONFLICT: dict[int | str, dict[str, Any]] = {409: {"description": "Something else has it, or has changed it"}}
MISSING: dict[int | str, dict[str, Any]] = {404: {"description": "The body names what is not there"}}
REFUSED: dict[int | str, dict[str, Any]] = {400: {"description": "It cannot be done to this one"}}

TRANSIENT: Mapping[str, Mapping[str, Any]] = {"certificates": {"snis": list[str] | None}}
"""What may be written of an entity of a kind without being one of its fields, with its type."""

_DONE: Mapping[int, str] = {200: "Done", 201: "Made"}
_MEANINGS: Mapping[int, str] = {
    400: "A parameter or the body is not as it should be",
    401: "No valid token",
    403: "The token may not do this",
    404: "There is nothing of that name",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "Too many wrong tokens; `Retry-After` says how long",
    500: "A fault of ours; the log has more under `instance`",
    503: "The database cannot be reached",
}


def accepts(model: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_extra`: the body is checked by this class."""
    return _body({**_definitions(model), "$ref": _REF + model.__name__}, bool(_schema(model).get("required")))


def accepts_entity(row: EntityType, method: str, parent_field: str | None) -> dict[str, Any]:
    """For `openapi_extra`: the body is an entity, all of it or, for PATCH, some. Its shape is drawn with the document:
    there are hundreds of these, and most processes never show theirs."""
    fields = row.model.model_fields
    elsewhere = {parent_field, row.endpoint_key if method == "PUT" else None}
    required = [name for name in fields if fields[name].is_required() and name not in elsewhere]
    note = {_ENTITY: row.name, "required": [] if method == "PATCH" else required}
    return _body(note, bool(note["required"]))


def _entity(note: Mapping[str, Any]) -> dict[str, Any]:
    """The shape that `accepts_entity` left a note of."""
    row = ENTITY_TYPES[note[_ENTITY]]
    schema = _schema(row.model)
    for name in row.model.shorthands:
        kind = {"type": "boolean"} if name.startswith("skip_") else {"type": "string"}
        schema["properties"][name] = {**kind, "writeOnly": True, "title": name.replace("_", " ").title()}
    for name, annotation in TRANSIENT.get(row.name, {}).items():
        kind = TypeAdapter(annotation).json_schema()
        schema["properties"][name] = {**kind, "writeOnly": True, "title": name.title()}
    schema.pop("required", None)
    return {**schema, "required": note["required"]} if note["required"] else schema


def accepts_anything() -> dict[str, Any]:
    """For `openapi_extra`: the body is an object whose fields something else decides on."""
    return _body({"type": "object", "additionalProperties": True}, False)


def _body(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": required}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_REF + "{model}")


def _definitions(model: type[BaseModel]) -> dict[str, Any]:
    schema = _schema(model)
    return {"$defs": {**schema.pop("$defs", {}), model.__name__: schema}}


def shows(model: type[BaseModel], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """For `responses`: the answer has this shape. (As `response_model`, FastAPI would build a validator per route.)"""
    schema = {"$ref": _REF + _name(model)}
    return {status: {"description": _DONE[status], "content": {"application/json": {"schema": schema}}}}


def queries(**described: Mapping[str, Any]) -> dict[str, Any]:
    """For `openapi_extra`: parameters of the query that the handler reads by itself, each with its schema."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": dict(schema)}
            for name, schema in described.items()
        ]
    }


# -- the document


def document(app: FastAPI) -> dict[str, Any]:
    """Made once, at the first request for it."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = made.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(_answers())
    _tighten_entities(schemas)
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _hoist_body(operation, schemas)
            _complete_responses(path, operation)
    return made


def _answers() -> dict[str, Any]:
    """The shapes of all answers, by the names that `shows` refers to."""
    entities: list[Any] = [row.model for row in ENTITY_TYPES.values()]
    # Held here: of a shape that nobody holds, pydantic knows nothing any more.
    lists = [Listed.__class_getitem__(entity) for entity in entities]
    models: list[Any] = [Problem, *_subclasses(Answer), *entities, *lists]
    every = [
        (model, "serialization")
        for model in dict.fromkeys(models)
        if not model.__pydantic_generic_metadata__["parameters"]
    ]
    _, made = models_json_schema(every, ref_template=_REF + "{model}")  # type: ignore[arg-type]
    found: dict[str, Any] = made["$defs"]
    return found


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _subclasses(below)


def _name(model: type[BaseModel]) -> str:
    """As pydantic calls it among definitions: `Listed_Service_`."""
    return re.sub(r"\W", "_", model.__name__)


def _tighten_entities(schemas: dict[str, Any]) -> None:
    """An answer has every field of an entity, and its id and times are never null."""
    route = _schema(Route)  # a class that serialises itself has no shape of its own
    for name in TRADITIONAL_ONLY:
        route["properties"][name] = {"anyOf": [route["properties"][name], {"type": "null"}]}
    schemas.update({**route.pop("$defs", {}), Route.__name__: route})
    todo = [row.model.__name__ for row in ENTITY_TYPES.values()]
    done: set[str] = set()
    while todo:
        name = todo.pop()
        schema = schemas.get(name)
        if name in done or schema is None:
            continue
        done.add(name)
        properties = schema.get("properties", {})
        schema["required"] = sorted(properties)
        todo += [reference.removeprefix(_REF) for reference in _references(properties)]
    schemas[Reference.__name__] = {
        "type": "object",
        "properties": {"id": _UUID},
        "required": ["id"],
        "additionalProperties": False,
        "title": Reference.__name__,
        "description": "Another entity, by its id: names that may be written in its place are answered as ids.",
    }
    for row in ENTITY_TYPES.values():
        if row.model.__name__ in done:
            _own(schemas[row.model.__name__]["properties"], "number" if row.fractional_times else "integer")


def _own(properties: dict[str, Any], time: str) -> None:
    properties["id"] = _UUID
    for name in ("created_at", "updated_at"):
        if name in properties:
            properties[name] = {"type": time, "title": properties[name].get("title", name)}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _hoist_body(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move a body's definitions to the components, under a name of their own where an answer's shape has theirs."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    if _ENTITY in content["schema"]:
        content["schema"] = _entity(content["schema"])
    found: dict[str, Any] = content["schema"].pop("$defs", {})
    names = {old: f"{old}Input" if schemas.get(old, new) != new else old for old, new in found.items()}
    for old, new in _renamed(found, names).items():
        if schemas.setdefault(names[old], new) != new:
            raise ValueError(f"two shapes of bodies are called {names[old]}")
    content["schema"] = _renamed(content["schema"], names)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _REF + names.get(item.removeprefix(_REF), item.removeprefix(_REF))
            if key == "$ref" and isinstance(item, str)
            else _renamed(item, names)
            for key, item in value.items()
        }
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value


def _complete_responses(path: str, operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    for status in _possible(path, operation):
        responses.setdefault(str(status), {"description": _MEANINGS[status]})
    for code, response in responses.items():
        if int(code) >= 400:
            response["content"] = {PROBLEM: {"schema": {"$ref": _REF + Problem.__name__}}}
    operation["responses"] = dict(sorted(responses.items()))


def _possible(path: str, operation: Mapping[str, Any]) -> Iterator[int]:
    if not operation.get("security"):
        return
    yield from (401, 403, 429, 500, 503)
    if "{" in path:
        yield 404
    if "requestBody" in operation:
        yield from (400, 413, 415)
    parameters = operation.get("parameters", ())
    if any(one["in"] == "query" or one["schema"].get("type") != "string" for one in parameters):
        yield 400
