"""Upstreams and their targets: where the requests of one service may go, and how that is decided."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gateway_schema.base import Number, Record, Text, is_address
from gateway_schema.entities import Entity, Reference, UrlPath, check_header_name
from gateway_schema.violations import FieldFaults

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_\-.]*[A-Za-z0-9_])?\.?")
_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of HTTP: neither control characters nor separators."""
_PORT = re.compile(r"[0-9]{1,5}")
DEFAULT_TARGET_PORT = 8000


def _check_cookie_name(value: str) -> str:
    if not _COOKIE_NAME.fullmatch(value):
        raise ValueError(f"bad cookie name '{value}', allowed are letters, digits and !#$%&'*+-.^_`|~")
    return value


def _check_server_name(value: str) -> str:
    if is_address(value.strip("[]")):
        raise ValueError("must not be an IP")
    if ":" in value:
        raise ValueError("must not have a port")
    if not _HOST.fullmatch(value):
        raise ValueError(f"invalid value: {value}")
    return value


HeaderName = Annotated[Text, AfterValidator(check_header_name)]
CookieName = Annotated[Text, AfterValidator(_check_cookie_name)]
Seconds = Annotated[Number, Field(ge=0, le=65_535)]
Counter = Annotated[int, Field(ge=0, le=255)]
Status = Annotated[int, Field(ge=100, le=999)]
ProbeType = Literal["tcp", "http", "https", "grpc", "grpcs"]
HashInput = Literal["none", "consumer", "ip", "header", "cookie", "path", "query_arg", "uri_capture"]


class ActiveHealthy(Record):
    interval: Seconds = 0
    http_statuses: list[Status] = Field(default_factory=lambda: [200, 302])
    successes: Counter = 0


class ActiveUnhealthy(Record):
    interval: Seconds = 0
    http_statuses: list[Status] = Field(default_factory=lambda: [429, 404, 500, 501, 502, 503, 504, 505])
    tcp_failures: Counter = 0
    timeouts: Counter = 0
    http_failures: Counter = 0


class ActiveChecks(Record):
    """Probes that the gateway sends. Seconds."""

    type: ProbeType = "http"
    timeout: Seconds = 1
    concurrency: Annotated[int, Field(ge=1, le=2**31)] = 10
    http_path: UrlPath = "/"
    https_sni: Annotated[Text, AfterValidator(_check_server_name)] | None = None
    https_verify_certificate: bool = True
    headers: dict[str, list[str]] | None = None
    healthy: ActiveHealthy = Field(default_factory=ActiveHealthy)
    unhealthy: ActiveUnhealthy = Field(default_factory=ActiveUnhealthy)


_PASSIVE_STATUSES = (*range(200, 209), 226, *range(300, 309))


class PassiveHealthy(Record):
    http_statuses: list[Status] = Field(default_factory=lambda: list(_PASSIVE_STATUSES))
    successes: Counter = 0


class PassiveUnhealthy(Record):
    http_statuses: list[Status] = Field(default_factory=lambda: [429, 500, 503])
    tcp_failures: Counter = 0
    timeouts: Counter = 0
    http_failures: Counter = 0


class PassiveChecks(Record):
    """What the traffic itself tells."""

    type: ProbeType = "http"
    healthy: PassiveHealthy = Field(default_factory=PassiveHealthy)
    unhealthy: PassiveUnhealthy = Field(default_factory=PassiveUnhealthy)


class Healthchecks(Record):
    active: ActiveChecks = Field(default_factory=ActiveChecks)
    passive: PassiveChecks = Field(default_factory=PassiveChecks)
    threshold: Annotated[Number, Field(ge=0, le=100)] = 0


def _check_upstream_name(value: str) -> str:
    if is_address(value.strip("[]")):
        raise ValueError(f"Invalid name ('{value}'); no ip addresses allowed")
    if ":" in value:
        raise ValueError(f"Invalid name ('{value}'); no port allowed")
    if not _HOST.fullmatch(value):
        raise ValueError(f"Invalid name ('{value}'); not a valid hostname")
    return value


def _check_host_header(value: str) -> str:
    host, _, port = value.partition(":")
    if not _HOST.fullmatch(host) or (":" in value and not _PORT.fullmatch(port)):
        raise ValueError(f"invalid value: {value}")
    return value


_COMPANIONS = {
    "header": ("hash_on_header", "hash_fallback_header"),
    "cookie": ("hash_on_cookie", "hash_on_cookie"),
    "query_arg": ("hash_on_query_arg", "hash_fallback_query_arg"),
    "uri_capture": ("hash_on_uri_capture", "hash_fallback_uri_capture"),
}


class Upstream(Entity):
    """A virtual host name: a service whose host it is sends its requests to the targets."""

    name: Annotated[str, AfterValidator(_check_upstream_name)]
    algorithm: Literal["round-robin", "consistent-hashing", "least-connections", "latency", "sticky-sessions"] = (
        "round-robin"
    )
    hash_on: HashInput = "none"
    hash_fallback: HashInput = "none"
    hash_on_header: HeaderName | None = None
    hash_fallback_header: HeaderName | None = None
    hash_on_cookie: CookieName | None = None
    hash_on_cookie_path: UrlPath = "/"
    hash_on_query_arg: Text | None = None
    hash_fallback_query_arg: Text | None = None
    hash_on_uri_capture: Text | None = None
    hash_fallback_uri_capture: Text | None = None
    slots: Annotated[int, Field(ge=10, le=65_536)] = 10_000
    healthchecks: Healthchecks = Field(default_factory=Healthchecks)
    host_header: Annotated[str, AfterValidator(_check_host_header)] | None = None
    client_certificate: Reference | None = None
    use_srv_name: bool = False
    sticky_sessions_cookie: CookieName | None = None
    sticky_sessions_cookie_path: UrlPath = "/"
    updated_at: int | None = None

    @classmethod
    def settle(cls, sent: dict[str, Any]) -> dict[str, Any]:
        """What is hashed on decides how targets are chosen, as in Kong, where that is not sent along. Not so in a file:
        decK fills in the default, and takes what comes back otherwise for a difference."""
        hash_on = sent.get("hash_on")
        if sent.get("algorithm") is not None or not isinstance(hash_on, str):
            return sent
        return {**sent, "algorithm": "round-robin" if hash_on == "none" else "consistent-hashing"}

    @model_validator(mode="before")
    @classmethod
    def _settle_hash_on(cls, data: Any) -> Any:
        """These algorithms hash on nothing, as in Kong."""
        if not isinstance(data, dict) or data.get("algorithm") not in ("least-connections", "latency"):
            return data
        return {**data, "hash_on": "none"} if isinstance(data.get("hash_on"), str) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = [
            *self._missing_companion("hash_on", self.hash_on, 0),
            *self._missing_companion("hash_fallback", self.hash_fallback, 1),
            *self._contradictions(),
        ]
        if faults:
            raise FieldFaults(faults)
        return self

    def _missing_companion(self, field: str, value: str, place: int) -> list[tuple[str, str]]:
        if value not in _COMPANIONS or getattr(self, _COMPANIONS[value][place]):
            return []
        said = f"failed conditional validation given value of field '{field}'"
        return [("", said), (_COMPANIONS[value][place], "required field missing")]

    def _contradictions(self) -> list[tuple[str, str]]:
        found = []
        said = ("", "failed conditional validation given value of field 'hash_on'")
        if self.hash_on in {"none", "cookie"} and self.hash_fallback != "none":
            found += [said, ("hash_fallback", "expected one of: none")]
        elif self.hash_on in {"consumer", "ip", "path"} and self.hash_fallback == self.hash_on:
            others = ("none", "consumer", "ip", "header", "cookie", "path", "query_arg", "uri_capture")
            listed = ", ".join(name for name in others if name != self.hash_on)
            found += [said, ("hash_fallback", f"expected one of: {listed}")]
        for first, second in (_COMPANIONS["header"], _COMPANIONS["query_arg"], _COMPANIONS["uri_capture"]):
            value = getattr(self, first)
            if value is not None and value == getattr(self, second):
                found.append(("", f"values of these fields must be distinct: '{first}', '{second}'"))
        return found


def _check_target(value: str) -> str:
    host, port = split_target(value)
    address = host[1:-1] if host.startswith("[") else host
    if not (is_address(address) if host.startswith("[") else is_address(host) or _HOST.fullmatch(host)):
        raise ValueError("Invalid target; not a valid hostname or ip address")
    if value.endswith(":") or (port and not (_PORT.fullmatch(port) and int(port) <= 65_535)):
        raise ValueError("Invalid target; not a valid port")
    return value


def split_target(target: str) -> tuple[str, str]:
    """Host (IPv6 in brackets) and port, empty when there is none."""
    if target.startswith("["):
        host, _, rest = target.partition("]")
        return f"{host}]", rest.removeprefix(":")
    if target.count(":") > 1:
        return f"[{target}]", ""
    host, _, port = target.partition(":")
    return host, port


class Target(Entity):
    """An address behind an upstream: a host or an address with its port, and its share of the requests.

    A host stays as it was written, because decK compares it so; without a port it means DEFAULT_TARGET_PORT.
    """

    upstream: Reference
    target: Annotated[str, AfterValidator(_check_target)]
    weight: Annotated[int, Field(ge=0, le=65_535)] = 100
    failover: bool = False
    created_at: int | float | None = None  # type: ignore[assignment]
    updated_at: int | float | None = None

    @classmethod
    def expand(cls, written: dict[str, Any]) -> dict[str, Any]:
        """IPv6 as decK writes it, whatever its file says: eight groups of four and a port."""
        target = written.get("target")
        kept = _spelt_out(target) if isinstance(target, str) else target
        return written if kept == target else {**written, "target": kept}


def _spelt_out(target: str) -> str:
    """What is no IPv6 address with or without a port stays as it is."""
    host, port = split_target(target)
    if not (host.startswith("[") and is_address(host[1:-1])) or target.endswith(":"):
        return target
    return f"[{ipaddress.ip_address(host[1:-1]).exploded}]:{port or DEFAULT_TARGET_PORT}"
