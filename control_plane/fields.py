"""A model's fields as plain facts: type, bounds, default, what is inside. Every schema we serve is drawn from them.

`schemas.py` draws two dialects; both must say the same defaults as the entities that are stored, so neither is written
by hand.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from gateway_schema.entities import Reference

Kind = Literal["string", "integer", "number", "boolean", "array", "map", "record", "foreign", "any"]

_SCALARS: Mapping[Any, Kind] = {str: "string", bool: "boolean", int: "integer", float: "number"}
_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")


@dataclass(slots=True)
class Value:
    """What a value may be."""

    kind: Kind = "any"
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    bounds: dict[str, Any] = field(default_factory=dict)
    """Pydantic's words: `ge`, `gt`, `le`, `lt`, `min_length`, `max_length`, `pattern`."""
    marks: dict[str, Any] = field(default_factory=dict)
    """Extensions such as `x-encrypted`."""
    element: Value | None = None
    """Of an array, or the values of a map."""
    records: tuple[type[BaseModel], ...] = ()
    """The classes of a record; more than one where a value tells by its content which it is."""


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    value: Value
    required: bool
    """It must be written: there is no default, and null is none."""
    default: Any
    """As JSON; None where there is none."""
    description: str | None


def fields_of(*models: type[BaseModel]) -> Iterator[Field]:
    """The fields of a record in order; those of a union's members together, the first one of a name."""
    seen: set[str] = set()
    for model in models:
        for name, info in model.model_fields.items():
            name = info.alias or name
            if name not in seen:
                seen.add(name)
                yield Field(name, _value(info.annotation, info), info.is_required(), _default(info), info.description)


def own_defaults(*models: type[BaseModel]) -> dict[str, Any]:
    """What a record holds when nothing of it was written."""
    return {item.name: item.default for item in fields_of(*models)}


def _default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True, validated_data={})
    return None if default is PydanticUndefined else to_jsonable_python(default, by_alias=True)


def _value(annotation: Any, info: FieldInfo | None = None) -> Value:
    value = Value()
    for member in _members(annotation, value):
        _describe(member, value)
    if len(value.records) > 1 and value.kind == "record":
        value.kind = "any"
    if info is not None:
        _limit(value, [info])
    return value


def _members(annotation: Any, value: Value) -> Iterator[Any]:
    """The members of a union without null; what annotations say of them goes to `value`."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _members(argument, value)
    elif annotation is type(None):
        value.nullable = True
    elif hasattr(annotation, "__metadata__"):
        _limit(value, annotation.__metadata__)
        yield from _members(get_args(annotation)[0], value)
    else:
        yield annotation


def _limit(value: Value, metadata: Any) -> None:
    for item in metadata:
        if isinstance(item, FieldInfo):
            if isinstance(item.json_schema_extra, dict):
                value.marks.update(item.json_schema_extra)
            _limit(value, item.metadata)
            continue
        for bound in _BOUNDS:
            if (limit := getattr(item, bound, None)) is not None:
                value.bounds[bound] = limit


def _describe(member: Any, value: Value) -> None:
    origin = get_origin(member)
    if member in _SCALARS:
        value.kind = "number" if value.kind == "number" else _SCALARS[member]
    elif origin is Literal:
        value.choices += get_args(member)
        value.kind = _SCALARS[type(value.choices[0])]
    elif origin in (list, tuple, set, frozenset):
        value.kind = "array"
        value.element = _value(get_args(member)[0])
    elif origin is dict:
        value.kind = "map"
        value.element = _value(get_args(member)[1])
    elif isinstance(member, type) and issubclass(member, Reference):
        value.kind = "foreign"
    elif isinstance(member, type) and issubclass(member, BaseModel):
        value.kind = "record"
        value.records += (member,)
