"""The entities of a gateway's configuration, one strict class each; field rules follow Kong Gateway 3.15.

A class says what one entity may hold and what it holds when nothing was written. Which tables, paths and file keys an
entity has stands in `registry.py`. Times are integer Unix seconds, timeouts integer milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gateway_schema import defaults
from gateway_schema.base import Protocol, Record, Secret, Text, canonical_id, is_address, is_network
from gateway_schema.expressions import ExpressionError, check_expression
from gateway_schema.paths import written_normally
from gateway_schema.patterns import PatternError, compile_path
from gateway_schema.violations import FieldFaults

Timeout = Annotated[int, Field(ge=1, le=2_147_483_646)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Priority = Annotated[int, Field(ge=0, le=2**46 - 1)]

_NAME = re.compile(r"[A-Za-z0-9._~\-\u0080-\U0010ffff]+")
_TAG = re.compile(r"[ -+\--.0-~\u0080-\U0010ffff]+")
_METHOD = re.compile(r"[A-Z]+")
_PATH = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@/%]*")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_\-.]*[A-Za-z0-9_])?(\.\*)?(:[0-9]{1,5})?")
_SERVICE_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_\-.]*[A-Za-z0-9_])?\.?")

_ROUTE_PATH = re.compile(r"/(?:[^\x00-\x1f\x7f\ud800-\udfff%?#\[\]]|%[0-9A-Fa-f]{2})*")
"""More than a URI's characters: the normal form of an escape is the character."""
_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]+")

PROTOCOL_FAMILIES = (
    frozenset({"http", "https"}),
    frozenset({"tcp", "tls", "udp"}),
    frozenset({"tls_passthrough"}),
    frozenset({"grpc", "grpcs"}),
    frozenset({"ws", "wss"}),
)


def _check_id(value: str) -> str:
    if (entity_id := canonical_id(value)) is None:
        raise ValueError("expected a valid UUID")
    return entity_id


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"invalid value '{value}': it must only contain letters, digits, '.', '-', '_', '~' or UTF-8")
    return value


def check_tags(tags: list[str]) -> list[str]:
    """Each tag once. Raises ValueError for one that Kong would refuse."""
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise ValueError(
                f"invalid tag '{tag}': expected printable ascii (except `,` and `/`) or valid utf-8 sequences"
            )
    return list(dict.fromkeys(tags))


def _check_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("should start with: /")
    if "//" in value:
        raise ValueError("must not have empty segments")
    if not _PATH.fullmatch(value) or re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise ValueError(f"invalid path: '{value}' (characters outside of RFC 3986, or a broken percent-encoding)")
    return value


def _check_route_path(value: str) -> str:
    if value.startswith("~/"):
        try:
            compile_path(value[1:])
        except PatternError as error:
            raise ValueError(f"not a valid regex: {value[1:]} ({error})") from None
        return value
    if not value.startswith("/"):
        raise ValueError("should start with: / (fixed path) or ~/ (regex path)")
    if "//" in value:
        raise ValueError("must not have empty segments")
    if not _ROUTE_PATH.fullmatch(value):
        raise ValueError(f"invalid path: '{value}' (one of ?, #, [, ], a control character, or a broken escape)")
    if (normal := written_normally(value)) != value:
        raise ValueError(f"non-normalized path, consider use '{normal}' instead")
    return value


def _check_host(value: str) -> str:
    if not _HOST.fullmatch(value) or value.count("*") > 1:
        raise ValueError(f"invalid value: {value} (a host name, with one '*' at its start or end at the most)")
    if int(value.partition(":")[2] or 0) > 65_535:
        raise ValueError(f"invalid value: {value} (a port is at most 65535)")
    return value


def _check_route_sni(value: str) -> str:
    if ":" in value:
        raise ValueError("must not have a port")
    if re.fullmatch(r"[0-9.]+", value):
        raise ValueError("must not be an IP")
    _check_host(value.removesuffix("."))
    return value


def check_header_name(name: str) -> str:
    if not name:
        raise ValueError("no header name provided")
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"bad header name '{name}', allowed characters are A-Z, a-z, 0-9, '_', and '-'")
    return name


def _check_header_names(headers: dict[str, list[str]]) -> dict[str, list[str]]:
    for name in map(check_header_name, headers):
        if name.lower() == "host":
            raise ValueError("must not contain 'host' (use 'hosts')")
    return headers


def _check_service_host(value: str) -> str:
    if value.startswith("[") and value.endswith("]") and is_address(value[1:-1]):
        return value
    if ":" in value and value.count(":") == 1:
        raise ValueError("must not have a port")
    if not value:
        raise ValueError("must not be empty; a url names scheme and host, such as http://service.test:8080/path")
    if not (is_address(value) or _SERVICE_HOST.fullmatch(value)):
        raise ValueError(f"invalid value: {value} (a host name or an IP address)")
    return value


def _check_method(value: str) -> str:
    if not _METHOD.fullmatch(value):
        raise ValueError(f"invalid value: {value} (a method in capital letters, such as GET)")
    return value


def _check_network(value: str) -> str:
    if not is_network(value):
        raise ValueError(f"invalid ip or cidr range: '{value}'")
    return value


def _check_expression(value: str) -> str:
    try:
        check_expression(value)
    except ExpressionError as error:
        raise ValueError(f"Router Expression failed validation: {error}") from None
    return value


Id = Annotated[str, AfterValidator(_check_id)]
Name = Annotated[str, AfterValidator(_check_name)]
Tags = Annotated[list[str], AfterValidator(check_tags)]
UrlPath = Annotated[Text, AfterValidator(_check_path)]


class Reference(BaseModel):
    """A foreign key. Written as `{id}` or by natural key; clients may add further keys, which say nothing new."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

    id: Id | None = None
    name: str | None = None
    username: str | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.id is None and self.name is None and self.username is None:
            raise ValueError('expected a reference: {"id": …} or {"name": …}')
        return self


class Entity(Record):
    """What every entity has. `id` and the times are the control plane's when they are not given.

    Four hooks stand between what a client says and what is kept. `settle` runs once, on what is sent to the API about
    one entity, and not on files. `expand` is a pure rewriting and may run any number of times. `admit` runs once, when
    something is written: what depends on the moment, or cannot be undone, goes there. Validators check what is kept,
    and run whenever it is read: they must always come to the same verdict.
    """

    shorthands: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be written but never stored: `expand` turns them into real ones."""

    id: Id | None = None
    tags: Tags | None = None
    created_at: int | None = None

    @classmethod
    @cache
    def overrides(cls, hook: str) -> bool:
        """Whether this kind has a hook of its own: where it has none, ten thousand calls can be saved."""
        return any(hook in vars(each) for each in cls.__mro__[: cls.__mro__.index(Entity)])

    @classmethod
    def settle(cls, sent: dict[str, Any]) -> dict[str, Any]:
        """What was sent, a PATCH perhaps, with the fields that follow from it but could be sent as well."""
        return sent

    @classmethod
    def expand(cls, written: dict[str, Any]) -> dict[str, Any]:
        """What was written, with shorthands turned into the fields they stand for."""
        return written

    @classmethod
    def admit(cls, written: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is kept of `written` in place of `before` (None: it is new). Raises SchemaViolation."""
        return written


class TlsSans(Record):
    """Names of which a service's certificate must carry one."""

    dnsnames: list[str] | None = None
    uris: list[str] | None = None


class Service(Entity):
    """A service behind the gateway."""

    shorthands: ClassVar[frozenset[str]] = frozenset({"url"})

    name: Name | None = None
    protocol: Protocol = "http"
    host: Annotated[str, AfterValidator(_check_service_host)]
    port: Port = 80
    path: UrlPath | None = None
    retries: Annotated[int, Field(ge=0, le=32_767)] = defaults.SERVICE_RETRIES
    connect_timeout: Timeout = defaults.SERVICE_TIMEOUT_MS
    write_timeout: Timeout = defaults.SERVICE_TIMEOUT_MS
    read_timeout: Timeout = defaults.SERVICE_TIMEOUT_MS
    client_certificate: Reference | None = None
    tls_verify: bool | None = None
    tls_verify_depth: Annotated[int, Field(ge=0, le=64)] | None = None
    ca_certificates: list[Id] | None = None
    tls_sans: TlsSans | None = None
    enabled: bool = True
    updated_at: int | None = None

    @classmethod
    def expand(cls, written: dict[str, Any]) -> dict[str, Any]:
        url = written.get("url")
        if not isinstance(url, str):
            return written
        return {**{key: value for key, value in written.items() if key != "url"}, **_split_url(url)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        if self.path is not None and self.protocol in {"tcp", "tls", "udp", "grpc", "grpcs"}:
            faults.append("path")
        if self.protocol not in {"https", "tls", "grpcs", "wss"}:
            tls = ("client_certificate", "tls_verify", "tls_verify_depth", "ca_certificates", "tls_sans")
            faults.extend(name for name in tls if getattr(self, name) is not None)
        if faults:
            said = "failed conditional validation given value of field 'protocol'"
            raise FieldFaults([("", said), *((name, "value must be null") for name in faults)])
        return self


@lru_cache(maxsize=16_384)
def _split_url(url: str) -> Mapping[str, Any]:
    """Kong's `url` shorthand: protocol, host, port and path. Where there is no host, an empty one, to be refused."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return {"host": ""}
    if not parts.hostname:
        return {"host": ""}
    protocol = parts.scheme or ("https" if port == 443 else "http")
    if port is None:
        port = 443 if protocol == "https" else 80
    address = parts.netloc.rpartition("@")[2]
    return {
        "protocol": protocol,
        "host": address[: address.index("]") + 1] if address.startswith("[") else address.partition(":")[0],
        "port": port,
        "path": parts.path or None,
    }


_CRITERIA = ("methods", "hosts", "paths", "headers", "snis", "sources", "destinations")
TRADITIONAL_ONLY = ("regex_priority", "path_handling")
_WITH_SNI = frozenset({"grpcs", "https", "tls", "tls_passthrough", "wss"})

_MATCHING = (
    (("http", "ws"), ("methods", "hosts", "headers", "paths"), ("sources", "destinations")),
    (("https", "wss"), ("methods", "hosts", "headers", "paths", "snis"), ("sources", "destinations")),
    (("grpc",), ("hosts", "headers", "paths"), ("methods", "sources", "destinations")),
    (("grpcs",), ("hosts", "headers", "paths", "snis"), ("methods", "sources", "destinations")),
    (("tcp", "tls", "udp"), ("sources", "destinations", "snis"), ("methods", "hosts", "paths", "headers")),
    (("tls_passthrough",), ("snis",), ("methods", "hosts", "paths", "headers")),
)
"""(protocols, fields of which one must be set, fields that must not be), the first that applies."""


class Endpoint(Record):
    """An address of a stream: IP or CIDR, port, or both."""

    ip: Annotated[str, AfterValidator(_check_network)] | None = None
    port: Port | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.ip is None and self.port is None:
            raise ValueError("at least one of these fields must be non-empty: 'ip', 'port'")
        return self


class Route(Entity):
    """A rule by which requests reach a service: fields that must match, or one expression."""

    name: Name | None = None
    protocols: Annotated[list[Protocol], Field(min_length=1)] = Field(
        default_factory=lambda: list(defaults.ROUTE_PROTOCOLS)
    )
    methods: list[Annotated[str, AfterValidator(_check_method)]] | None = None
    hosts: list[Annotated[str, AfterValidator(_check_host)]] | None = None
    paths: list[Annotated[str, AfterValidator(_check_route_path)]] | None = None
    headers: Annotated[dict[str, list[str]], AfterValidator(_check_header_names)] | None = None
    snis: list[Annotated[str, AfterValidator(_check_route_sni)]] | None = None
    sources: list[Endpoint] | None = None
    destinations: list[Endpoint] | None = None
    expression: Annotated[str, AfterValidator(_check_expression)] | None = None
    priority: Priority | None = None
    https_redirect_status_code: Literal[426, 301, 302, 307, 308] = 426
    regex_priority: Annotated[int, Field(ge=-(2**53), le=2**53)] = 0
    strip_path: bool = True
    path_handling: Literal["v0", "v1"] = "v0"
    preserve_host: bool = False
    request_buffering: bool = True
    response_buffering: bool = True
    service: Reference | None = None
    updated_at: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _settle_defaults(cls, data: Any) -> Any:
        """Defaults that depend on the kind of route: grpc paths are never cut, only expressions have a priority."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        protocols = data.get("protocols")
        if isinstance(protocols, list) and protocols and set(map(str, protocols)) <= {"grpc", "grpcs"}:
            data.setdefault("strip_path", False)
        if data.get("expression") is not None:
            data["priority"] = data.get("priority") or 0
            for name in TRADITIONAL_ONLY:
                if data.get(name, 0) is None:
                    del data[name]
        return data

    @model_serializer(mode="wrap")
    def _without_foreign_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields of traditional routes are null in one with an expression: decK takes them for a difference."""
        shown: dict[str, Any] = dump(self)
        return shown if self.expression is None else {**shown, **dict.fromkeys(TRADITIONAL_ONLY)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not any(set(self.protocols) <= family for family in PROTOCOL_FAMILIES):
            text = (
                "these sets are mutually exclusive: ('http', 'https'), ('tcp', 'tls', 'udp'), "
                "('tls_passthrough'), ('grpc', 'grpcs'), ('ws', 'wss')"
            )
            raise FieldFaults([("protocols", text)])
        if self.snis and _WITH_SNI.isdisjoint(self.protocols):
            text = "'snis' can only be set when 'protocols' is 'grpcs', 'https', 'tls', 'tls_passthrough', or 'wss'"
            raise FieldFaults([("snis", text)])
        if self.strip_path and {"grpc", "grpcs"} & set(self.protocols):
            raise FieldFaults([("strip_path", "cannot set 'strip_path' when 'protocols' is 'grpc' or 'grpcs'")])
        if self.expression is None:
            self._check_criteria()
        else:
            self._check_unmixed()
        return self

    def _check_unmixed(self) -> None:
        mixed = [name for name in _CRITERIA if getattr(self, name)]
        if self.regex_priority != 0:
            mixed.append("regex_priority")
        if mixed:
            names = ", ".join(f"'{name}'" for name in mixed)
            raise ValueError(f"Router Expression failed validation: cannot set {names} when 'expression' is set")

    def _check_criteria(self) -> None:
        """What a route of its protocols must match by, and what it cannot."""
        if self.priority:
            raise ValueError("Router Expression failed validation: cannot set 'priority' without 'expression'")
        for family, needed, forbidden in _MATCHING:
            protocol = next((name for name in family if name in self.protocols), None)
            if protocol is None:
                continue
            faults = [(name, f"cannot set '{name}' when 'protocols' is '{protocol}'") for name in forbidden]
            if found := [fault for fault in faults if getattr(self, fault[0])]:
                raise FieldFaults(found)
            if not any(getattr(self, name) for name in needed):
                names = ", ".join(f"'{name}'" for name in needed)
                raise ValueError(f"must set one of {names} when 'protocols' is '{protocol}'")
            return


class Consumer(Entity):
    """Who calls the gateway."""

    username: Text | None = None
    custom_id: Text | None = None
    updated_at: int | None = None

    @model_validator(mode="after")
    def _is_someone(self) -> Self:
        if not self.username and not self.custom_id:
            raise ValueError("at least one of these fields must be non-empty: 'custom_id', 'username'")
        return self


class ConsumerGroup(Entity):
    """Consumers that are treated alike."""

    name: Name
    updated_at: int | None = None


class ConsumerGroupMember(Entity):
    """That a consumer belongs to a group."""

    consumer_group: Reference
    consumer: Reference


class KeyAuthCredential(Entity):
    """A key by which a consumer is known to key-auth."""

    consumer: Reference
    key: Secret | None = None
    ttl: Annotated[int, Field(ge=0, le=100_000_000)] | None = None


class Ordering(Record):
    """Which plugins this one runs before or after, in the access phase."""

    class Phases(Record):
        access: list[str] | None = None

    before: Phases | None = None
    after: Phases | None = None


class PartialLink(Record):
    """A partial that fills a part of a plugin's configuration. Written by id or name, kept by id."""

    id: Id | None = None
    name: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.id is None and self.name is None:
            raise ValueError("at least one of these fields must be non-empty: 'id', 'name'")
        return self


class Plugin(Entity):
    """A plugin's configuration, for all traffic or for one service, route, consumer or several of them.

    `config` is checked by the plugin's own class, see `gateway_schema.plugins`.
    """

    name: str
    instance_name: Name | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    protocols: Annotated[list[Protocol], Field(min_length=1)] | None = None
    enabled: bool = True
    service: Reference | None = None
    route: Reference | None = None
    consumer: Reference | None = None
    consumer_group: Reference | None = None
    ordering: Ordering | None = None
    condition: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    partials: list[PartialLink] | None = None
    updated_at: int | None = None
