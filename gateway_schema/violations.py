"""What is wrong with a value, in words a person can act on.

Pydantic finds the faults; this module says them the way Kong's Admin API does (`required field missing`, `unknown
field`, `expected one of: …`), adds the nearest known name for a misspelt one, and keeps the path of each fault so that
the reader of a file can be led to the line.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

ModelT = TypeVar("ModelT", bound=BaseModel)

Path = tuple[str | int, ...]
Bounds = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault: where it is (keys and list positions from the entity's root) and what would be right."""

    path: Path
    message: str

    @property
    def field(self) -> str:
        """The path as people write it: `config.targets[0].model.name`; empty for the entity as a whole."""
        return render_path(self.path)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message

    def under(self, *prefix: str | int) -> Violation:
        return Violation((*prefix, *self.path), self.message)


class SchemaViolation(ValueError):
    """A value that its schema refuses, with every fault found, not only the first."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__(summarise(self.violations))


class FieldFaults(ValueError):
    """For validators of a whole record: what is wrong with which of its fields (dotted; empty for the record)."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {message}" if name else message for name, message in faults))
        self.faults = tuple(faults)


def summarise(violations: Sequence[Violation]) -> str:
    """Kong's sentence: `schema violation (f: e)` or `2 schema violations (f: e; g: e)`."""
    listed = "; ".join(str(violation) for violation in violations)
    count = len(violations)
    return f"schema violation ({listed})" if count == 1 else f"{count} schema violations ({listed})"


def render_path(path: Iterable[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse(model: type[ModelT], data: Any) -> ModelT:
    """Validate `data` as `model`; raises SchemaViolation with all faults."""
    if isinstance(data, Mapping):
        data = dict(data)
    else:
        raise SchemaViolation([Violation((), "expected a record")])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        refused = error
    # Outside of the handler: nothing that is raised from here on carries pydantic's error, which knows the values.
    raise SchemaViolation(violations_of(refused, model))


def violations_of(error: ValidationError, model: type[BaseModel]) -> list[Violation]:
    found: dict[tuple[Path, str], Violation] = {}
    for detail in error.errors(include_url=False, include_input=False):
        path, known, bounds = _walk(detail["loc"], model)
        cause = (detail.get("ctx") or {}).get("error")
        if isinstance(cause, FieldFaults):
            listed = [Violation((*path, *filter(None, name.split("."))), text) for name, text in cause.faults]
        else:
            listed = [Violation(path, _message(detail, path, known, bounds))]
        for violation in listed:
            found.setdefault((violation.path, violation.message), violation)
    return list(found.values())


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is alike."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown_field(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    suggestion = nearest(name, names)
    if suggestion:
        return f"unknown field (did you mean '{suggestion}'?)"
    return f"unknown field (known fields: {', '.join(names)})" if names else "unknown field"


def _message(detail: Any, path: Path, known: Iterable[str], bounds: Bounds | None) -> str:
    kind = str(detail["type"])
    context: Mapping[str, Any] = detail.get("ctx") or {}
    if kind == "extra_forbidden":
        return unknown_field(str(path[-1]), known)
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error", detail["msg"]))
    if kind in {"literal_error", "enum"}:
        return f"expected one of: {str(context['expected']).replace(' or ', ', ').replace(chr(39), '')}"
    if bounds is not None and kind in {"greater_than_equal", "less_than_equal"}:
        return f"value should be between {bounds[0]} and {bounds[1]}"
    if kind in _BOUNDS:
        template, key = _BOUNDS[kind]
        return template.format(context[key])
    return str(detail["msg"])


_FIXED = {
    "missing": "required field missing",
    "string_type": "expected a string",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "int_parsing": "expected an integer",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected a boolean",
    "bool_parsing": "expected a boolean",
    "list_type": "expected an array",
    "tuple_type": "expected an array",
    "dict_type": "expected a map",
    "model_type": "expected a record",
    "model_attributes_type": "expected a record",
    "uuid_parsing": "expected a valid UUID",
    "uuid_type": "expected a valid UUID",
}

_BOUNDS = {
    "greater_than_equal": ("value must be at least {}", "ge"),
    "greater_than": ("value must be greater than {}", "gt"),
    "less_than_equal": ("value must be at most {}", "le"),
    "less_than": ("value must be less than {}", "lt"),
    "string_too_short": ("length must be at least {}", "min_length"),
    "string_too_long": ("length must be at most {}", "max_length"),
    "too_short": ("length must be at least {}", "min_length"),
    "too_long": ("length must be at most {}", "max_length"),
    "string_pattern_mismatch": ("must match the pattern {}", "pattern"),
}


def _walk(location: Sequence[str | int], model: type[BaseModel]) -> tuple[Path, Iterable[str], Bounds | None]:
    """Follow pydantic's location through the model: drop the names of union members, keep real keys.

    Only where the schema has a choice between several does a location name a member: elsewhere a part is a key that
    somebody wrote, whatever it is called. Returns the path, the names that the innermost record knows (for
    suggestions), and the least and greatest value of the innermost field when it has both.
    """
    path: list[str | int] = []
    bounds: Bounds | None = None
    annotation: Any = model
    known: Iterable[str] = ()
    for part in location:
        annotation = _peeled(annotation)
        if choices := _choices(annotation):
            annotation = next((choice for choice in choices if part in _names(choice)), Any)
        elif isinstance(part, int):
            path.append(part)
            annotation = _element(annotation)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            known = fields = _fields(annotation)
            path.append(part)
            bounds = _bounds(annotation, part)
            annotation = fields.get(part, Any)
        elif (value := _mapping_value(annotation)) is not None:
            path.append(part)
            annotation = value
    return tuple(path), known, bounds


def _peeled(annotation: Any) -> Any:
    """Without what annotations add, and without a null beside one other type."""
    while True:
        if hasattr(annotation, "__metadata__"):
            annotation = get_args(annotation)[0]
        elif len(choices := _choices(annotation)) == 1:
            (annotation,) = choices
        else:
            return annotation


def _choices(annotation: Any) -> list[Any]:
    """The members of a union without null; none for what is no union."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return []
    return [member for member in get_args(annotation) if member is not type(None)]


def _names(choice: Any) -> set[str]:
    """What a location may call a member of a union: its tag, or its class."""
    tags = {mark.tag for mark in getattr(choice, "__metadata__", ()) if isinstance(mark, Tag)}
    return tags or {getattr(_peeled(choice), "__name__", "")}


def _bounds(model: type[BaseModel], name: str) -> Bounds | None:
    fields = [field for key, field in model.model_fields.items() if name in (key, field.alias)]
    marks = [mark for field in fields for mark in (*field.metadata, *_marks(field.annotation))]
    least = next((mark.ge for mark in marks if hasattr(mark, "ge")), None)
    greatest = next((mark.le for mark in marks if hasattr(mark, "le")), None)
    return (least, greatest) if least is not None and greatest is not None else None


def _marks(annotation: Any) -> Iterable[Any]:
    """Metadata of `Annotated` parts: `Annotated[int, Field(ge=0)] | None`, `list[Annotated[…]]`."""
    for mark in getattr(annotation, "__metadata__", ()):
        yield from getattr(mark, "metadata", ()) if hasattr(mark, "metadata") else (mark,)
    for argument in get_args(annotation):
        if not isinstance(argument, str | int):
            yield from _marks(argument)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _element(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) in (list, tuple, set, frozenset) else Any


def _mapping_value(annotation: Any) -> Any:
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return Any if annotation is Any else None
