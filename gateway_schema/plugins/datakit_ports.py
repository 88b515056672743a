"""What Datakit's nodes can be connected by: their inputs and outputs, each with its type.

Types are Kong's: `object` has fixed fields, `map` free keys, `any` is checked when the value is there. `array` is ours:
it only ever is the type of a literal in a `static` node, and fits nothing but `any`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Type = Literal["any", "map", "object", "string", "number", "boolean", "array"]

NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]*$"

RESERVED = frozenset({"request", "service_request", "service_response", "response", "vault"})
UNAVAILABLE_KINDS = frozenset({"cache", "xml_to_json", "json_to_xml", "jwt_decode", "jwt_sign", "jwt_verify"})
"""Kinds of Kong's that this version does not run."""


@dataclass(frozen=True, slots=True)
class Ports:
    """One side of a node. `whole` is the type of a connection to the node itself, None where there is none."""

    whole: Type | None
    fields: Mapping[str, Type] = field(default_factory=dict)
    free: bool = False
    """Whether any name is a field: the inputs of a jq program are named as its author likes."""

    def type_of(self, name: str | None) -> Type | None:
        if name is None:
            return self.whole
        return self.fields.get(name) or ("any" if self.free else None)


NONE = Ports(None)

SOURCES: Mapping[str, Ports] = {
    "request": Ports(
        "object",
        {
            "body": "any",
            "headers": "map",
            "query": "map",
            "path": "string",
            "raw_path": "string",
            "port": "number",
            "method": "string",
            "scheme": "string",
            "version": "number",
        },
    ),
    "service_response": Ports("object", {"body": "any", "headers": "map", "status": "number", "raw_body": "string"}),
}

SINKS: Mapping[str, Ports] = {
    "service_request": Ports("object", {"body": "any", "headers": "map", "query": "map"}),
    "response": Ports("object", {"body": "any", "headers": "map"}),
}

PROXY_INPUTS = frozenset({"http_proxy", "https_proxy", "proxy_auth_username", "proxy_auth_password"})

INPUTS: Mapping[str, Ports] = {
    "call": Ports(
        "object",
        {"body": "any", "headers": "map", "query": "map", "url": "string", **dict.fromkeys(PROXY_INPUTS, "string")},
    ),
    "jq": Ports("any", free=True),
    "exit": Ports("object", {"body": "any", "headers": "map"}),
    "property": Ports("any"),
    "branch": Ports("boolean"),
    "static": NONE,
}

_OUTPUTS: Mapping[str, Ports] = {
    "call": Ports("object", {"body": "any", "headers": "map", "status": "number", "raw_body": "string"}),
    "jq": Ports("any"),
    "exit": NONE,
    "property": Ports("any"),
    "branch": Ports("any", {"then": "any", "else": "any"}),
}


def outputs_of(kind: str, node: Mapping[str, Any]) -> Ports:
    """What can be read from a node; those of `static` are its values."""
    if kind != "static":
        return _OUTPUTS[kind]
    values = node.get("values")
    return Ports("map", {k: type_of_value(v) for k, v in values.items()} if isinstance(values, Mapping) else {})


def type_of_value(value: Any) -> Type:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, Mapping):
        return "map"
    return "array" if isinstance(value, list) else "any"


def fits(source: Type, target: Type) -> bool:
    """Whether a value of one type may be connected to an input of another. Object to object is not a question here."""
    if source == "any" or target == "any" or source == target:
        return True
    if source == "map":
        return target == "object"
    return {source, target} == {"string", "number"}
