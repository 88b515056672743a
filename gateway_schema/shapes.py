"""Walking untyped JSON by the model that describes it: where secrets stand, which nulls say nothing, what is whole.

What a person wrote stays a plain dict, so that defaults never mix with it. These walks know from the model which dict
is a record (its keys are fields) and which is a map (its keys are data, and a null inside it is data too).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway_schema.base import is_secret
from gateway_schema.violations import Path


@dataclass(slots=True)
class Shape:
    """A record's fields as far as the walks must know them. Members of a union share one shape."""

    fields: dict[str, FieldShape] = field(default_factory=dict)
    has_secrets: bool = True
    """Until a shape is complete it counts as holding some: a record inside itself is then walked, never skipped."""


@dataclass(slots=True)
class FieldShape:
    secret: bool
    keeps_null: bool
    """Null means something here: it is allowed and it is not the default."""
    record: Shape | None
    """Shape of the value, or of the elements of a list."""
    values: Shape | None
    """Shape of a map's values."""
    whole: bool
    """It, or each element of it, is an integer."""


@cache
def shape_of(model: type[BaseModel]) -> Shape:
    """The shape of a model, recursive models included."""
    return _Builder().record((model,))


class _Builder:
    def __init__(self) -> None:
        self._known: dict[tuple[type[BaseModel], ...], Shape] = {}

    def record(self, models: tuple[type[BaseModel], ...]) -> Shape:
        if models in self._known:
            return self._known[models]
        shape = self._known[models] = Shape()
        for model in models:
            for name, info in model.model_fields.items():
                found = self._field(info)
                known = shape.fields.setdefault(info.alias or name, found)
                known.secret |= found.secret
                known.keeps_null |= found.keeps_null
                known.whole |= found.whole
                known.record = known.record or found.record
                known.values = known.values or found.values
        shape.has_secrets = any(_has_secrets(item) for item in shape.fields.values())
        return shape

    def _field(self, info: FieldInfo) -> FieldShape:
        nullable = any(member is type(None) for member in _members(info.annotation))
        default = info.get_default(call_default_factory=False)
        has_default = not info.is_required() and (default is not None or info.default_factory is not None)
        return FieldShape(
            secret=is_secret(info),
            keeps_null=nullable and has_default,
            record=self._shape(_records(info.annotation)),
            values=self._shape(_records(_map_value(info.annotation))),
            whole=_is_whole(info.annotation),
        )

    def _shape(self, models: tuple[type[BaseModel], ...]) -> Shape | None:
        return self.record(models) if models else None


def _has_secrets(known: FieldShape) -> bool:
    nested = (known.record, known.values)
    return known.secret or any(shape is not None and shape.has_secrets for shape in nested)


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    if hasattr(annotation, "__metadata__"):
        return _members(get_args(annotation)[0])
    return [annotation]


def _records(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models an annotation may hold, directly or as elements of a list."""
    found: list[type[BaseModel]] = []
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            found.append(member)
        elif get_origin(member) in (list, tuple, set, frozenset):
            found.extend(_records(get_args(member)[0]))
    return tuple(dict.fromkeys(found))


def _is_whole(annotation: Any) -> bool:
    members = _members(annotation)
    if any(get_origin(member) is list and _is_whole(get_args(member)[0]) for member in members):
        return True
    if any(get_origin(member) is Literal and isinstance(get_args(member)[0], int) for member in members):
        return True
    return int in members and float not in members


def _map_value(annotation: Any) -> Any:
    for member in _members(annotation):
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def map_secrets(shape: Shape, value: Any, change: Callable[[str], str]) -> Any:
    """A copy of `value` with `change` applied to every secret text in it; the value itself when it holds none."""
    if not shape.has_secrets:
        return value
    if isinstance(value, list):
        return [map_secrets(shape, item, change) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {key: _map_field(shape.fields.get(key), item, change) for key, item in value.items()}


def _map_field(known: FieldShape | None, value: Any, change: Callable[[str], str]) -> Any:
    if known is None or value is None:
        return value
    if known.secret:
        return _map_leaves(value, change)
    if known.record is not None:
        return map_secrets(known.record, value, change)
    if known.values is not None and isinstance(value, Mapping):
        return {key: map_secrets(known.values, item, change) for key, item in value.items()}
    return value


def _map_leaves(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_leaves(item, change) for item in value]
    if isinstance(value, Mapping):
        return {key: _map_leaves(item, change) for key, item in value.items()}
    return value


def find_secrets(shape: Shape, value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every secret text in `value`, with where it stands: what `map_secrets` would change."""
    if not shape.has_secrets:
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from find_secrets(shape, item, (*path, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _find_in_field(shape.fields.get(key), item, (*path, key))


def _find_in_field(known: FieldShape | None, value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if known is None or value is None:
        return
    if known.secret:
        yield from _leaves(value, path)
    elif known.record is not None:
        yield from find_secrets(known.record, value, path)
    elif known.values is not None and isinstance(value, Mapping):
        for key, item in value.items():
            yield from find_secrets(known.values, item, (*path, key))


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list | Mapping):
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            yield from _leaves(item, (*path, key))


def normal(shape: Shape, value: Any) -> Any:
    """A copy without the nulls that mean `not set`, and with integers where 5.0 stands for 5, in records of every
    depth; maps and free values stay whole, and so does a list in a list, which is no record and may be of any depth."""
    if isinstance(value, list):
        return [normal(shape, item) if isinstance(item, Mapping) else item for item in value]
    if not isinstance(value, Mapping):
        return value
    kept: dict[str, Any] = {}
    for key, item in value.items():
        known = shape.fields.get(key)
        if item is None:
            if known is None or known.keeps_null:
                kept[key] = None
        elif known is None:
            kept[key] = item
        elif known.record is not None:
            kept[key] = normal(known.record, item)
        elif known.whole:
            kept[key] = [_as_integer(one) for one in item] if isinstance(item, list) else _as_integer(item)
        elif known.values is not None and isinstance(item, Mapping):
            kept[key] = {name: normal(known.values, entry) for name, entry in item.items()}
        else:
            kept[key] = item
    return kept


def _as_integer(value: Any) -> Any:
    """JSON knows one kind of number, and YAML's arithmetic gives fractions: 5.0 is 5, as for Kong. What is no integer
    of 64 bits stays as it is, to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def merged(shape: Shape, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """PATCH: records merge field by field, everything else is replaced; null stays, for `normal` to judge."""
    result = dict(old)
    for key, item in new.items():
        known, before = shape.fields.get(key), result.get(key)
        nested = known.record if known is not None else None
        if nested is not None and isinstance(before, Mapping) and isinstance(item, Mapping):
            result[key] = merged(nested, before, item)
        else:
            result[key] = item
    return result
