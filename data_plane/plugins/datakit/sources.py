"""The implicit nodes that can be read: the request as it stands, and the service's response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from data_plane.exchange import Exchange
from data_plane.messages import Response
from data_plane.paths import normalise
from data_plane.plugins.datakit.values import (
    NULL,
    Value,
    object_of,
    read_body,
    read_headers,
    read_query,
    read_string,
)
from data_plane.router import split_host
from gateway_schema.plugins.datakit_ports import SOURCES

Output = Value | Mapping[str, Value]
"""What a node gives: one value, or one for each of its outputs."""


class Source(Protocol):
    def read(self, field: str | None) -> Value: ...


def read_output(output: Output, field: str | None) -> Value:
    """One output of a node, or all of them as an object."""
    if isinstance(output, Value):
        return output
    return object_of(output.items()) if field is None else output.get(field, NULL)


class RequestSource:
    """The node `request`. Fields are made when asked for; what was read stays readable after the service was called.

    `body` is what the exchange's body held before the first node ran, empty unless the plan reads it.
    """

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        request = exchange.request
        headers = request.headers.copy()
        self._known: dict[str, Value] = {}
        self._makers: Mapping[str, Callable[[], Value]] = {
            "body": lambda: read_body(body, headers.get("content-type")),
            "headers": lambda: read_headers(headers),
            "query": lambda target=request.target: read_query(target.partition("?")[2]),  # type: ignore[misc]
            "path": lambda path=request.path: Value(_text(normalise(path))),  # type: ignore[misc]
            "raw_path": lambda path=request.path: Value(path),  # type: ignore[misc]
            "port": lambda: Value(port_of(exchange)),
            "method": lambda: Value(request.method),
            "scheme": lambda: Value(request.scheme),
            "version": lambda: Value(float(request.http_version)),
        }

    def read(self, field: str | None) -> Value:
        """Raises NodeError for a body that is not what its type says."""
        if field is None:
            return object_of((name, self.read(name)) for name in SOURCES["request"].fields)
        if field not in self._known:
            self._known[field] = self._makers[field]()
        return self._known[field]


class ResponseSource:
    """The node `service_response`; `body` is None where no node reads it."""

    def __init__(self, response: Response, body: bytes | None) -> None:
        self._status = response.status
        self._headers = response.headers.copy()
        self._body = body or b""

    def read(self, field: str | None) -> Value:
        if field is None:
            return object_of((name, self.read(name)) for name in SOURCES["service_response"].fields)
        if field == "status":
            return Value(self._status)
        if field == "headers":
            return read_headers(self._headers)
        if field == "raw_body":
            return read_string(self._body)
        return read_body(self._body, self._headers.get("content-type"))


def port_of(exchange: Exchange) -> int:
    """The port that the client asked for: sockets are not known up here, and this is what a URL would say."""
    host = exchange.request.headers.get("host") or ""
    return split_host(host)[1] or (443 if exchange.request.scheme == "https" else 80)


def _text(path: str) -> str:
    """A normalised path as text: bytes that are none become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
