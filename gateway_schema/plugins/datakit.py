"""datakit: a small workflow of calls, jq programs and conditions, run before (and after) the service is called.

Each kind of node is a class here; how nodes connect is `datakit_graph`'s business. Both are checked in one go, so that
whoever wrote the configuration sees all its faults at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Tag,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway_schema.base import Record, Text
from gateway_schema.plugins.base import PluginConfig
from gateway_schema.plugins.datakit_graph import Plan, compile_nodes
from gateway_schema.plugins.datakit_ports import INPUTS, NAME_PATTERN, UNAVAILABLE_KINDS
from gateway_schema.violations import Violation, nearest

NodeName = Annotated[str, Field(min_length=1, max_length=255, pattern=NAME_PATTERN)]
Label = Annotated[str, Field(min_length=1, max_length=255)]
"""`NODE` or `NODE.FIELD`."""


class Node(Record):
    name: NodeName = Field(description="The node's name, by which others connect to it.")


class CallInputs(Record):
    body: Label | None = Field(None, description="Body: a string as it is, anything else as JSON.")
    headers: Label | None = Field(None, description="Map of headers; nulls are left out.")
    query: Label | None = Field(None, description="Map of query arguments, added to those of the URL.")
    url: Label | None = Field(None, description="URL, instead of the configured one.")
    http_proxy: Label | None = Field(None, description="Proxy for http URLs.")
    https_proxy: Label | None = Field(None, description="Proxy for https URLs.")
    proxy_auth_username: Label | None = Field(None, description="User name for the proxy.")
    proxy_auth_password: Label | None = Field(None, description="Password for the proxy.")


class CallOutputs(Record):
    body: Label | None = Field(None, description="The response's body; JSON is decoded.")
    headers: Label | None = Field(None, description="The response's headers.")
    status: Label | None = Field(None, description="The response's status.")
    raw_body: Label | None = Field(None, description="The response's body as it came.")


class CallNode(Node):
    """Make an HTTP request and wait for its response; other nodes go on meanwhile."""

    type: Literal["call"]
    url: Text | None = Field(None, description="Where to; may be left out when `inputs.url` is connected.")
    method: Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[A-Z]+$")] = Field(
        "GET", description="HTTP method, in capitals."
    )
    timeout: Annotated[int, Field(ge=0, le=2**31 - 2)] | None = Field(
        None, description="Milliseconds for the whole call; none or 0: 60 seconds."
    )
    ssl_verify: bool = Field(True, description="Whether the server's certificate is checked.")
    ssl_server_name: Text | None = Field(None, description="Server name for TLS, instead of the URL's host.")
    input: Label | None = Field(None, description="One source for all inputs.")
    inputs: CallInputs | None = Field(None, description="A source for each input.")
    output: Label | None = Field(None, description="One target for all outputs.")
    outputs: CallOutputs | None = Field(None, description="A target for each output.")

    @field_validator("url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        if value is not None and not is_http_url(value):
            raise ValueError("expected an http or https URL with a host")
        return value


class JqNode(Node):
    """Run a jq program over its input."""

    type: Literal["jq"]
    jq: Annotated[str, Field(min_length=1, max_length=10240)] = Field(description="The program.", repr=False)
    input: Label | None = Field(None, description="What the program sees as `.`.")
    inputs: dict[str, Label | None] | None = Field(None, description="Members of the object that the program sees.")
    output: Label | None = Field(
        None, description="Where the result goes: another node's input, or a name under which it can be read."
    )


class StaticNode(Node):
    """Values that are known beforehand."""

    type: Literal["static"]
    values: dict[str, Any] = Field(description="The values by name.")
    output: Label | None = Field(None, description="A target for the whole map.")
    outputs: dict[str, Label | None] | None = Field(None, description="Targets of single values.")

    @field_validator("values")
    @classmethod
    def _are_json(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not _is_json(values):
            raise ValueError("expected JSON: strings, finite numbers (integers of 64 bits), booleans, arrays, maps")
        return values


def _is_json(value: Any) -> bool:
    """What YAML may hold and a snapshot cannot: dates, other keys than strings, NaN, integers of any length."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(member) for name, member in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return math.isfinite(value) if isinstance(value, float) else value is None or isinstance(value, str)


class ExitInputs(Record):
    body: Label | None = Field(None, description="The response's body.")
    headers: Label | None = Field(None, description="The response's headers.")


class ExitNode(Node):
    """End the request here and answer."""

    type: Literal["exit"]
    status: Annotated[int, Field(ge=200, le=599)] = Field(200, description="Status of the response.")
    warn_headers_sent: bool | None = Field(
        None, description="Whether to log when headers were sent already; here they never are."
    )
    input: Label | None = Field(None, description="One source for body and headers.")
    inputs: ExitInputs | None = Field(None, description="A source for each input.")


class PropertyNode(Node):
    """Read a property of the gateway or, when the input is connected, write it."""

    type: Literal["property"]
    property: Annotated[str, Field(min_length=1, max_length=255)] = Field(description="The property's name.")
    content_type: Literal["application/json", "application/octet-stream", "text/plain"] | None = Field(
        None, description="application/json: written values are encoded, read ones decoded."
    )
    non_nil: bool = Field(False, description="Whether a null value fails the node.")
    input: Label | None = Field(None, description="The value to write.")
    output: Label | None = Field(None, description="A target for the value.")


class BranchOutputs(Record):
    then: Label | None = None
    else_: Label | None = Field(None, alias="else")


class BranchNode(Node):
    """Run some nodes or others."""

    type: Literal["branch"]
    then: Annotated[list[NodeName], Field(min_length=1, max_length=64)] | None = Field(
        None, description="Nodes that run when the input is true."
    )
    else_: Annotated[list[NodeName], Field(min_length=1, max_length=64)] | None = Field(
        None, alias="else", description="Nodes that run when the input is false."
    )
    input: Label | None = Field(None, description="The condition, a boolean.")
    output: Label | None = Field(None, description="Carries no data.")
    outputs: BranchOutputs | None = Field(None, description="Carry no data.")


class SinkInputs(Record):
    body: Label | None = Field(None, description="The outgoing request's body.")
    headers: Label | None = Field(None, description="Headers to set; null removes one.")
    query: Label | None = Field(None, description="The outgoing request's query arguments.")


class ServiceRequestNode(Record):
    """The implicit node `service_request`, declared in the list for its connections. An extension of Kong's grammar."""

    name: Literal["service_request"]
    input: Label | None = Field(None, description="One source for all inputs.")
    inputs: SinkInputs | None = Field(None, description="A source for each input.")


class UnknownNode(Node):
    """A node whose type is missing, misspelt or not available: never valid, it says why. Other fields stay unjudged."""

    model_config = ConfigDict(extra="ignore")

    type: str

    @field_validator("type")
    @classmethod
    def _refuse(cls, value: str, info: Any) -> str:
        if value in UNAVAILABLE_KINDS:
            raise ValueError(f'node "{info.data.get("name", "")}": nodes of type {value} are not available yet')
        suggestion = nearest(value, INPUTS)
        hint = f" (did you mean '{suggestion}'?)" if suggestion else ""
        raise ValueError(f"expected one of: {', '.join(sorted(INPUTS))}{hint}")


def _class_of(entry: Any) -> str:
    """The class to judge an entry by. Class names, because types are also names of fields (`jq`, `property`)."""
    if isinstance(entry, Record):
        return type(entry).__name__
    if not isinstance(entry, Mapping):
        return UnknownNode.__name__
    kind = entry.get("type")
    if kind is None and entry.get("name") == "service_request":
        return ServiceRequestNode.__name__
    return _CLASSES.get(kind, UnknownNode.__name__) if isinstance(kind, str) else UnknownNode.__name__


_CLASSES = {
    "branch": "BranchNode",
    "call": "CallNode",
    "exit": "ExitNode",
    "jq": "JqNode",
    "property": "PropertyNode",
    "static": "StaticNode",
}

AnyNode = Annotated[
    Annotated[BranchNode, Tag("BranchNode")]
    | Annotated[CallNode, Tag("CallNode")]
    | Annotated[ExitNode, Tag("ExitNode")]
    | Annotated[JqNode, Tag("JqNode")]
    | Annotated[PropertyNode, Tag("PropertyNode")]
    | Annotated[StaticNode, Tag("StaticNode")]
    | Annotated[ServiceRequestNode, Tag("ServiceRequestNode")]
    | Annotated[UnknownNode, Tag("UnknownNode")],
    Discriminator(_class_of),
]


class Resources(Record):
    """What nodes share. Nothing of it is available yet: the fields exist to be refused by name."""

    cache: Any = Field(None, description="Where `cache` nodes keep their data.")
    vault: Any = Field(None, description="Secrets that the `vault` node offers.")

    @field_validator("cache", "vault")
    @classmethod
    def _refuse(cls, value: Any, info: Any) -> Any:
        if value is not None:
            raise ValueError(f"datakit's {info.field_name} is not available yet")
        return value


class DatakitConfig(PluginConfig):
    priority: ClassVar[int] = 810

    nodes: Annotated[list[AnyNode], Field(min_length=1, max_length=64)] = Field(description="The workflow.")
    debug: bool = Field(False, description="Whether failures tell the client which node failed and why.")
    resources: Resources | None = Field(None, description="What nodes share.")

    _plan: Plan | None = PrivateAttr(default=None)

    @property
    def plan(self) -> Plan:
        """The compiled node list, made when this configuration was validated."""
        assert self._plan is not None
        return self._plan

    @field_serializer("nodes")
    def _as_written(self, nodes: list[Node]) -> list[dict[str, Any]]:
        """Without defaults: a schema in Kong's dialect cannot say which kind of node they belong to, so clients that
        fill and compare would see a difference in every node."""
        return [node.model_dump(mode="json", by_alias=True, exclude_unset=True) for node in nodes]

    @model_validator(mode="wrap")
    @classmethod
    def _compile(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Judge the nodes' shapes and their graph together; one fault must not hide another."""
        faults: list[InitErrorDetails] = []
        config: Self | None = None
        try:
            config = handler(data)
        except ValidationError as error:
            faults = [_again(detail) for detail in error.errors(include_url=False, include_input=False)]
        entries = data.get("nodes") if isinstance(data, Mapping) else None
        plan, violations = compile_nodes(entries if isinstance(entries, list) else [])
        faults += [_located(violation, entries) for violation in violations]
        if config is None or plan is None or faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        config._plan = plan
        return config


def is_http_url(value: str) -> bool:
    """Whether a request can be sent there as it is written: absolute, and without what must be escaped."""
    if not value.isascii() or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        return False


def _again(detail: Any) -> InitErrorDetails:
    """A fault that pydantic found, to be raised once more beside ours."""
    kind = PydanticCustomError(detail["type"], detail["msg"], detail.get("ctx"))
    return InitErrorDetails(type=kind, loc=detail["loc"], input=None)


def _located(violation: Violation, entries: Any) -> InitErrorDetails:
    """A fault of the graph, where pydantic would have put it: the class of an entry stands after its position."""
    head, position, *rest = violation.path
    kind = PydanticCustomError("datakit_graph", "{reason}", {"reason": violation.message})
    return InitErrorDetails(type=kind, loc=(head, position, _class_of(entries[int(position)]), *rest), input=None)
