"""Field types and the strict base class that entities and plugin configurations share."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.fields import FieldInfo

Protocol = Literal["http", "https", "grpc", "grpcs", "tcp", "tls", "tls_passthrough", "udp", "ws", "wss"]

ENCRYPTED = "x-encrypted"
"""Marks a field whose value is a secret: encrypted at rest, masked in views, logs and diffs."""

MASK = "[masked]"
NEW_MASK = "[masked] (changed)"
"""What is shown in place of a secret. They are no secrets themselves: neither may come back as one."""

REFERENCEABLE = "x-referenceable"
"""Marks a field that may hold a vault reference (`{vault://…}`)."""

Text = Annotated[str, Field(min_length=1)]
"""As in Kong, a text that is set says something: decK cannot read an entity whose key is empty."""
Secret = Annotated[Text, Field(json_schema_extra={ENCRYPTED: True, REFERENCEABLE: True})]
Referenceable = Annotated[Text, Field(json_schema_extra={REFERENCEABLE: True})]


def is_vault_reference(text: str) -> bool:
    return text.startswith("{vault://") and text.endswith("}")


def _or_reference(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return value if isinstance(value, str) and is_vault_reference(value) else check(value)


T = TypeVar("T")
OrReference = Annotated[
    T,
    WrapValidator(_or_reference),
    PlainSerializer(lambda value: value),
    Field(json_schema_extra={REFERENCEABLE: True}),
]
"""A choice or a number that may stand in a vault: what is found there is looked at by whoever reads it."""

_ID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def canonical_id(text: str) -> str | None:
    """The id as it is stored, when `text` is a UUID in its usual form; other spellings of one are none."""
    return text.lower() if _ID.fullmatch(text) else None


def is_address(text: str) -> bool:
    """Whether it is an IP address that means the same on every node: one with a zone (`fe80::1%eth0`) does not."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_network(text: str) -> bool:
    """Whether it is an IP address or a CIDR range, whose length is a number: masks are none."""
    address, slash, length = text.partition("/")
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return is_address(address) and (not slash or (length.isascii() and length.isdecimal()))


def _whole(value: float) -> int | float:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Number = Annotated[int | float, AfterValidator(_whole)]
"""Kong writes 1.0 as 1, and decK cannot read it otherwise where it expects an integer."""


class Record(BaseModel):
    """A record of known fields: an unknown one is an error, a string is never taken for a number.

    What pydantic says of a fault never quotes the value: it may be a secret, or stand beside one.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=False, hide_input_in_errors=True
    )


def without_nulls(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without null members at the top level: JSON clients spell `absent` as null."""
    return {key: value for key, value in data.items() if value is not None}


def is_secret(field: FieldInfo) -> bool:
    """Whether a model's field is marked as a secret, directly or inside an optional, a list or a map."""
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(ENCRYPTED):
        return True
    return _annotated_secret(field.annotation) or any(_annotated_secret(item) for item in field.metadata)


def _annotated_secret(annotation: Any) -> bool:
    if isinstance(annotation, FieldInfo):
        return isinstance(annotation.json_schema_extra, dict) and bool(annotation.json_schema_extra.get(ENCRYPTED))
    metadata = getattr(annotation, "__metadata__", ())
    if any(_annotated_secret(item) for item in metadata):
        return True
    return any(_annotated_secret(item) for item in getattr(annotation, "__args__", ()))
