"""Reading requests and writing answers, the same on every path of the API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request, Response
from pydantic import BaseModel, ValidationError

from control_plane.auth import Principal, require
from control_plane.errors import BadRequest, InvalidParameters, UnsupportedEncoding, UnsupportedMediaType

if TYPE_CHECKING:
    from control_plane.plane import ControlPlane

ModelT = TypeVar("ModelT", bound=BaseModel)


def plane_of(request: Request) -> ControlPlane:
    """The running control plane that this request reached."""
    plane: ControlPlane = request.app.state.plane
    return plane


Plane = Annotated["ControlPlane", Depends(plane_of)]
Reader = Annotated[Principal, Depends(require("read"))]
Writer = Annotated[Principal, Depends(require("write"))]
Admin = Annotated[Principal, Depends(require("admin"))]
AnyReader = Annotated[Principal, Depends(require("read", narrows=True))]
AnyAdmin = Annotated[Principal, Depends(require("admin", narrows=True))]
"""For paths above the control planes: the handler shows a limited caller its own control plane only."""


async def plain_body(request: Request) -> bytes:
    """Raises UnsupportedEncoding."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedEncoding(encoding)
    return await request.body()


async def json_object(request: Request) -> dict[str, Any]:
    """The body, a JSON object; an empty body is an empty one. Raises BadRequest or UnsupportedMediaType."""
    data = await plain_body(request)
    if not data.strip():
        return {}
    content_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMediaType(content_type)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Cannot parse JSON body: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("Cannot parse JSON body: expected an object")
    return body


WITHOUT_NUL = r"^[^\x00]*$"
"""The pattern of texts that are stored: PostgreSQL keeps no NUL in one."""
Body = Annotated[dict[str, Any], Depends(json_object)]


def answer(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def parameters(model: type[ModelT], body: dict[str, Any]) -> ModelT:
    """Check a control plane's own resource. Raises InvalidParameters with Konnect's rules."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    # Outside of the handler: nothing that is raised from here on carries pydantic's error, which knows the values.
    raise InvalidParameters([_parameter(detail) for detail in found])


_RULES = {
    "missing": ("required", "is required"),
    "extra_forbidden": ("unknown_property", "is not a known property"),
    "string_type": ("is_string", "must be a string"),
    "int_type": ("is_integer", "must be an integer"),
    "bool_type": ("is_boolean", "must be a boolean"),
    "dict_type": ("is_object", "must be an object"),
    "list_type": ("is_array", "must be an array"),
}
_BOUNDS = {
    "string_too_short": ("min_length", "minimum", "min_length", "must have at least {} characters"),
    "string_too_long": ("max_length", "maximum", "max_length", "must have at most {} characters"),
    "too_long": ("max_items", "maximum", "max_length", "must have at most {} items"),
    "greater_than_equal": ("min", "minimum", "ge", "must be at least {}"),
    "less_than_equal": ("max", "maximum", "le", "must be at most {}"),
}


def _parameter(detail: Any) -> dict[str, Any]:
    field = ".".join(str(part) for part in detail["loc"])
    kind, context = str(detail["type"]), detail.get("ctx") or {}
    base = {"field": field, "source": "body"}
    if kind in _RULES:
        rule, reason = _RULES[kind]
        return {**base, "rule": rule, "reason": reason}
    if kind in _BOUNDS:
        rule, member, key, reason = _BOUNDS[kind]
        return {**base, "rule": rule, member: context[key], "reason": reason.format(context[key])}
    if kind == "literal_error":
        choices = [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        return {**base, "rule": "enum", "choices": choices, "reason": f"must be one of {', '.join(choices)}"}
    if context.get("pattern") == WITHOUT_NUL:
        return {**base, "rule": "invalid", "reason": "must not contain NUL characters"}
    reason = str(context["error"]) if "error" in context else str(detail["msg"])
    return {**base, "rule": "invalid", "reason": reason}


def rfc3339(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
