"""The implicit nodes that can be read: the request as it stands, and the service's response."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from data_plane.exchange import Exchange
from data_plane.messages import Headers, Response
from data_plane.paths import normalise
from data_plane.plugins.datakit.values import (
    NULL,
    Constant,
    Value,
    object_of,
    read_body,
    read_headers,
    read_query,
    read_string,
)
from data_plane.router import split_host
from gateway_schema.plugins.datakit_ports import SOURCES


class Answer:
    """What a call gives. Most workflows read the body only, so the rest is made when somebody does."""

    __slots__ = ("_made", "_raw", "_response")

    def __init__(self, body: Value, raw: bytes, response: Response) -> None:
        self._made = {"body": body}
        self._raw = raw
        self._response = response

    def get(self, field: str, default: Value) -> Value:
        made = self._made.get(field)
        if made is None:
            made = self._made[field] = self._make(field, default)
        return made

    def _make(self, field: str, default: Value) -> Value:
        if field == "headers":
            return read_headers(self._response.headers)
        if field == "status":
            return Value(self._response.status)
        return read_string(self._raw) if field == "raw_body" else default

    def items(self) -> list[tuple[str, Value]]:
        return [(field, self.get(field, NULL)) for field in ("body", "headers", "status", "raw_body")]


class Fixed(dict[str, Value]):
    """What a node gives that always gives the same."""

    __slots__ = ("whole",)

    def __init__(self, members: Iterable[tuple[str, Value]]) -> None:
        super().__init__(members)
        self.whole = Constant.of_text(object_of(self.items()).text)


Output = Value | Mapping[str, Value] | Answer
"""What a node gives: one value, or one for each of its outputs."""


class Source(Protocol):
    def read(self, field: str | None) -> Value: ...


def read_output(output: Output, field: str | None) -> Value:
    """One output of a node, or all of them as an object."""
    if isinstance(output, Value):
        return output
    if field is not None:
        return output.get(field, NULL)
    return output.whole if isinstance(output, Fixed) else object_of(output.items())


class RequestSource:
    """The node `request`. Fields are made when asked for; what was read stays readable after the service was called.

    `body` is what the exchange's body held before the first node ran, empty unless the plan reads it.
    """

    __slots__ = ("_body", "_content_type", "_exchange", "_headers", "_known", "_target")

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        request = exchange.request
        self._exchange = exchange
        self._body = body
        headers = request.headers
        self._content_type = headers.get("content-type") if body else None
        # The list of a familiar head is never changed, only left for another.
        self._headers = headers.raw.copy() if headers.origin is None else headers.raw
        self._target = request.target
        self._known: dict[str, Value] = {}

    def read(self, field: str | None) -> Value:
        """Raises NodeError for a body that is not what its type says."""
        if field is None:
            return object_of((name, self.read(name)) for name in SOURCES["request"].fields)
        known = self._known.get(field)
        if known is None:
            known = self._known[field] = self._make(field)
        return known

    def _make(self, field: str) -> Value:
        if field == "body":
            return read_body(self._body, self._content_type)
        path, _, query = self._target.partition("?")
        request = self._exchange.request
        match field:
            case "headers":
                return read_headers(Headers.adopt(self._headers))
            case "query":
                return read_query(query)
            case "path":
                return Value(_text(normalise(path)))
            case "raw_path":
                return Value(path)
            case "port":
                return Value(port_of(self._exchange))
            case "method":
                return Value(request.method)
            case "scheme":
                return Value(request.scheme)
            case _:
                return Value(float(request.http_version))


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
