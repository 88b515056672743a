"""Bodies as Kong's Admin API takes them: JSON, or the forms that `curl -d name=x` and `curl -F name=x` send.

A form holds text only. Its keys say the nesting (`config.minute`, `paths[]`, `service.id`), the entity's class says
what each text means: `retries=3` is a number because that field is one. A text that does not fit stays as it is, so
that the schema refuses it in its own words. An empty text is null.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel

from control_plane.api.exchange import json_object, plain_body
from control_plane.api.openapi import TRANSIENT
from control_plane.errors import BadRequest
from gateway_schema.content import config_class
from gateway_schema.registry import EntityType

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
_MAX_FIELDS = 1000
_MAX_DEPTH = 32
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?")
_KEY_PART = re.compile(r"([^.\[\]]+)|\[(\d*)\]")


class Form(dict[str, Any]):
    """A body that came as a form: nested, but all its leaves are text."""


async def read_body(request: Request) -> dict[str, Any]:
    """The body as a record, a `Form` when it was one. Raises BadRequest or UnsupportedMediaType."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.split(";")[0].strip().lower()
    if kind == FORM:
        return _nested(_urlencoded(await plain_body(request)))
    if kind == MULTIPART:
        return _nested(_multipart(content_type, await plain_body(request)))
    return await json_object(request)


def typed(row: EntityType, form: Form, kind: str | None = None) -> dict[str, Any]:
    """What a form says of an entity. `kind`: what decides on the fields of `config` (a plugin's name, a partial's
    type), where the form does not repeat it."""
    config = config_class(row, form if kind is None else {**form, str(row.config_key): kind})
    result = {}
    for name, value in form.items():
        if name == "config" and config is not None:
            result[name] = _record((config,), value) if isinstance(value, dict) else value
        else:
            field = row.model.model_fields.get(name)
            result[name] = _typed(field.annotation if field else TRANSIENT.get(row.name, {}).get(name, Any), value)
    return result


def _urlencoded(data: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise BadRequest("Cannot parse form body") from None


def _multipart(content_type: str, data: bytes) -> list[tuple[str, str]]:
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + data)
    if not message.is_multipart():
        raise BadRequest("Cannot parse multipart body")
    fields: list[tuple[str, str]] = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(payload, bytes) or len(fields) >= _MAX_FIELDS:
            raise BadRequest("Cannot parse multipart body")
        try:
            fields.append((name, payload.decode()))
        except UnicodeDecodeError:
            raise BadRequest("Cannot parse multipart body") from None
    return fields


def _nested(fields: Iterable[tuple[str, str]]) -> Form:
    form = Form()
    for key, value in fields:
        parts = [found.group(1) or found.group(2) or "" for found in _KEY_PART.finditer(key)]
        if not parts or len(parts) > _MAX_DEPTH:
            raise BadRequest(f"Cannot parse form body: the field name '{key[:64]}' cannot be read")
        _put(form, parts, value)
    return form


def _put(node: dict[str, Any], parts: list[str], value: str) -> None:
    """`a.b` goes into records, `a[]` and a repeated `a` become lists, `a[1]` keeps its place in one."""
    for part in parts[:-1]:
        below = node.get(part)
        if not isinstance(below, dict):
            below = node[part] = {} if below is None else {"": below}
        node = below
    last, known = parts[-1], node.get(parts[-1])
    if last == "" or known is not None:
        node[last] = [*(known if isinstance(known, list) else [] if known is None else [known]), value]
    else:
        node[last] = value


def _typed(annotation: Any, value: Any) -> Any:
    members = list(_members(annotation))
    if isinstance(value, dict):
        elements = _elements(value)
        element = _element(members)
        if element is not None and elements is not None:
            return [_typed(element, item) for item in elements]
        return _record(tuple(_models(members)), value, _map_value(members))
    element = _element(members)
    if element is not None:
        items = value if isinstance(value, list) else [value] if value != "" else None
        return None if items is None else [_typed(element, item) for item in items]
    return [_typed(Any, item) for item in value] if isinstance(value, list) else _scalar(members, value)


def _record(models: tuple[type[BaseModel], ...], value: Mapping[str, Any], values: Any = Any) -> dict[str, Any]:
    fields = {info.alias or name: info.annotation for model in models for name, info in model.model_fields.items()}
    return {key: _typed(fields.get(key, values), item) for key, item in value.items()}


def _scalar(members: list[Any], text: str) -> Any:
    if text == "":
        return None
    if bool in members and text in ("true", "false"):
        return text == "true"
    for member in members:
        if get_origin(member) is Literal:
            meant = {str(choice): choice for choice in get_args(member)}
            if text in meant:
                return meant[text]
    if str not in members and (int in members or float in members):
        return _number(text)
    return text


def _number(text: str) -> int | float | str:
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _elements(value: Mapping[str, Any]) -> list[Any] | None:
    """The elements of a list written as `a[]` or `a[1]`; None when the keys are names."""
    if set(value) == {""}:
        return list(value[""])
    if all(key.isdecimal() and key.isascii() for key in value):
        return [value[key] for key in sorted(value, key=lambda key: (len(key), key))]
    return None


def _members(annotation: Any) -> Iterable[Any]:
    """The members of a union, without the annotations around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    else:
        yield annotation


def _models(members: Iterable[Any]) -> Iterable[type[BaseModel]]:
    return (member for member in members if isinstance(member, type) and issubclass(member, BaseModel))


def _element(members: Iterable[Any]) -> Any:
    return next((get_args(member)[0] for member in members if get_origin(member) is list), None)


def _map_value(members: Iterable[Any]) -> Any:
    return next((get_args(member)[1] for member in members if get_origin(member) is dict), Any)
