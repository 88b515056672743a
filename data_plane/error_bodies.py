"""How an error is written for the client: JSON, HTML, XML or plain text, as it accepts. Shapes follow Kong's
(`reference/gateway.md` §3.8)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from html import escape
from typing import Final

import orjson

from data_plane.errors import GatewayError, LlmError
from data_plane.messages import Headers, Response

_TYPES: Final = ("application/json", "text/html", "application/xml", "text/plain")
_WILDCARDS: Final = {"*/*": None, "application/*": "application/json", "text/*": "text/plain"}

_GRPC_STATUS: Final[Mapping[int, int]] = {
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    409: 6,
    413: 8,
    429: 8,
    499: 1,
    500: 13,
    502: 14,
    503: 14,
    504: 4,
}
_GRPC_UNKNOWN: Final = 2


def error_page(error: GatewayError, request_id: str, request_headers: Headers | None, method: str = "GET") -> Response:
    """The answer to a request that failed; its headers other than those of every answer are added by the caller."""
    source = "no_route" if error.kind == "no_route" else "gateway_error"
    accept = content_type = ""
    if request_headers is not None:
        accept = request_headers.get("accept") or ""
        content_type = request_headers.get("content-type") or ""
    if content_type.startswith("application/grpc"):
        return _grpc(error, source)
    if isinstance(error, LlmError):
        kind, body = "application/json", orjson.dumps({"error": {"message": error.message}})
    else:
        kind = negotiate(accept, error.fallback_type if accept else _fallback(error, content_type))
        body = _render(kind, error.message, request_id)
    headers = Headers([("Content-Type", f"{kind}; charset=utf-8")])
    for name, value in error.headers.items():
        headers.add(name, value)
    return Response(error.status, headers, b"" if method == "HEAD" else body, source=source)


@lru_cache(maxsize=256)
def negotiate(accept: str, fallback: str) -> str:
    """The type, among those we can write, that an Accept header prefers; `fallback` when it says nothing of use."""
    best, best_quality = fallback, 0.0
    for part in accept.split(","):
        name, _, parameters = part.partition(";")
        name = name.strip().lower()
        offered = name if name in _TYPES else (_WILDCARDS.get(name) or fallback) if name in _WILDCARDS else None
        quality = _quality(parameters)
        if offered is not None and quality > best_quality:
            best, best_quality = offered, quality
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _fallback(error: GatewayError, content_type: str) -> str:
    """Without Accept, errors of the server layer take the type of the request's own body."""
    if error.fallback_type == "text/plain":
        given = content_type.partition(";")[0].strip().lower()
        if given in _TYPES:
            return given
    return error.fallback_type


def _render(kind: str, message: str, request_id: str) -> bytes:
    if kind == "application/json":
        return b'{\n  "message":%b,\n  "request_id":"%b"\n}' % (orjson.dumps(message), request_id.encode())
    if kind == "text/html":
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Error</title></head>\n'
            f"<body><h1>Error</h1><p>{escape(message)}.</p><p>request_id: {request_id}</p></body></html>\n"
        ).encode()
    if kind == "application/xml":
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<error>\n'
            f"  <message>{escape(message)}</message>\n  <requestid>{request_id}</requestid>\n</error>"
        ).encode()
    return f"{message}\nrequest_id: {request_id}\n".encode()


def _grpc(error: GatewayError, source: str) -> Response:
    """gRPC clients read trailers-only answers: the HTTP status stays, the reason stands in headers, without a body."""
    status = _GRPC_STATUS.get(error.status, _GRPC_UNKNOWN)
    headers = Headers([("Content-Type", "application/grpc"), ("grpc-status", str(status))])
    headers.add("grpc-message", "gateway error")
    return Response(error.status, headers, b"", source=source)
