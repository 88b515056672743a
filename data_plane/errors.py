"""What can go wrong with an exchange, each with its status and Kong's text.

GatewayError                      answered by the gateway; one handler (`chain.error_response`) makes the body
├── BadRequest 400 · Unauthorized 401 · Forbidden 403 · RouteNotFound 404 · NoService 503
├── PayloadTooLarge 413 · UriTooLong 414 · HeadTooLarge 494 (shown as 400) · HttpsRequired 426
├── InternalError 500
├── LlmError                      any status; body {"error": {"message": …}}, as on chat routes
├── LoopDetected 508              calls to ourselves that go too deep
└── UpstreamError                 nothing usable came from behind
    ├── InvalidResponse 502 (refused, reset, not HTTP; `kind` says which)
    ├── UpstreamUnavailable 503 (name not resolved, no healthy target)
    └── UpstreamTimeout 504
ClientDisconnected                the peer left: nothing can be answered any more
ConfigError                       a configuration that cannot be built; names entity and field
"""

from __future__ import annotations

from collections.abc import Mapping


class GatewayError(Exception):
    """An answer that the gateway makes itself. `headers` are added to it; nothing secret may stand in `message`."""

    status = 500
    message = "An unexpected error occurred"
    kind = "gateway"
    fallback_type = "application/json"
    """Type of the body for clients that did not say what they accept. Kong answers errors of its plugins in JSON, and
    those of its server layer, where the request's own type does not tell, in plain text."""

    def __init__(self, message: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        if message is not None:
            self.message = message
        self.headers: Mapping[str, str] = headers or {}
        super().__init__(self.message)


class BadRequest(GatewayError):
    status = 400
    message = "Bad request"
    kind = "bad_request"
    fallback_type = "text/plain"


class Unauthorized(GatewayError):
    """No or wrong credentials; `challenge` is the WWW-Authenticate header."""

    status = 401
    message = "Unauthorized"
    kind = "unauthorized"

    def __init__(self, message: str | None = None, *, challenge: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": challenge})


class Forbidden(GatewayError):
    status = 403
    message = "You cannot consume this service"
    kind = "forbidden"


class RouteNotFound(GatewayError):
    status = 404
    message = "no Route matched with those values"
    kind = "no_route"


class NoService(GatewayError):
    status = 503
    message = "no Service found with those values"
    kind = "no_service"


class PayloadTooLarge(GatewayError):
    status = 413
    message = "Payload too large"
    kind = "payload_too_large"
    fallback_type = "text/plain"


class UriTooLong(GatewayError):
    status = 414
    message = "URI too long"
    kind = "uri_too_long"
    fallback_type = "text/plain"


class HeadTooLarge(GatewayError):
    status = 400
    message = "Request header or cookie too large"
    kind = "head_too_large"
    fallback_type = "text/plain"


class RequestTimeout(GatewayError):
    status = 408
    message = "Request timeout"
    kind = "request_timeout"
    fallback_type = "text/plain"


class HttpsRequired(GatewayError):
    status = 426
    message = "Please use HTTPS protocol"
    kind = "https_required"


class LoopDetected(GatewayError):
    status = 508
    message = "Loop detected: this gateway called itself too many times"
    kind = "loop"


class InternalError(GatewayError):
    """The closed door: a plugin or we ourselves failed. The cause goes to the log, never to the client."""

    kind = "internal"


class LlmError(GatewayError):
    """An error of a chat route, in the providers' shape `{"error": {"message": …}}`."""

    kind = "llm"

    def __init__(self, status: int, message: str, *, kind: str = "llm") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class UpstreamError(GatewayError):
    """`kind` is `refused`, `reset`, `tls`, `dns`, `timeout_connect`, `timeout_read`, `timeout_write`, `protocol`.

    `sent` tells whether bytes of the request may have reached the upstream, which decides whether a request that is
    not idempotent may be tried again. `detail` is for the log.
    """

    def __init__(self, kind: str, detail: str = "", *, sent: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.detail = detail
        self.sent = sent


class InvalidResponse(UpstreamError):
    status = 502
    message = "An invalid response was received from the upstream server"
    fallback_type = "text/plain"


class UpstreamUnavailable(UpstreamError):
    status = 503
    message = "name resolution failed"


class UpstreamTimeout(UpstreamError):
    status = 504
    message = "The upstream server is timing out"
    fallback_type = "text/plain"


class ClientDisconnected(Exception):
    """The client went away before its answer was complete."""


class ConfigError(Exception):
    """A configuration that cannot run: which entity, which field, why, and what would be right."""

    def __init__(
        self, message: str, *, entity_type: str = "", entity_id: str = "", entity_name: str = "", field: str = ""
    ) -> None:
        self.message = message
        self.entity_type = entity_type
        self.entity_id = entity_id
        self.entity_name = entity_name
        self.field = field
        where = " ".join(part for part in (entity_type, entity_name or entity_id) if part)
        super().__init__(": ".join(part for part in (where, field, message) if part))
