from __future__ import annotations

import orjson
import pytest

from data_plane.error_bodies import error_page, negotiate
from data_plane.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    HeadTooLarge,
    HttpsRequired,
    InternalError,
    InvalidResponse,
    LlmError,
    LoopDetected,
    NoService,
    PayloadTooLarge,
    RequestTimeout,
    RouteNotFound,
    Unauthorized,
    UpstreamTimeout,
    UpstreamUnavailable,
    UriTooLong,
)
from data_plane.messages import Headers

ID = "0123456789abcdef0123456789abcdef"

ALL: list[tuple[GatewayError, int, str]] = [
    (BadRequest(), 400, "Bad request"),
    (Unauthorized("No API key found in request", challenge="Key"), 401, "No API key found in request"),
    (Forbidden(), 403, "You cannot consume this service"),
    (RouteNotFound(), 404, "no Route matched with those values"),
    (RequestTimeout(), 408, "Request timeout"),
    (PayloadTooLarge(), 413, "Payload too large"),
    (UriTooLong(), 414, "URI too long"),
    (HeadTooLarge(), 400, "Request header or cookie too large"),
    (HttpsRequired(), 426, "Please use HTTPS protocol"),
    (InternalError(), 500, "An unexpected error occurred"),
    (InvalidResponse("reset"), 502, "An invalid response was received from the upstream server"),
    (NoService(), 503, "no Service found with those values"),
    (UpstreamUnavailable("dns"), 503, "name resolution failed"),
    (UpstreamTimeout("timeout_read"), 504, "The upstream server is timing out"),
    (LoopDetected(), 508, "Loop detected: this gateway called itself too many times"),
]


@pytest.mark.parametrize(("error", "status", "message"), ALL)
def test_every_error_in_every_format(error: GatewayError, status: int, message: str) -> None:
    expected = {
        "application/json": f'{{\n  "message":"{message}",\n  "request_id":"{ID}"\n}}',
        "text/plain": f"{message}\nrequest_id: {ID}\n",
    }
    for kind in ("application/json", "text/plain", "text/html", "application/xml"):
        response = error_page(error, ID, Headers([("Accept", kind)]))
        assert response.status == status
        assert response.headers.get("Content-Type") == f"{kind}; charset=utf-8"
        assert isinstance(response.body, bytes)
        assert message in response.body.decode()
        assert ID in response.body.decode()
        assert response.body.decode() == expected.get(kind, response.body.decode())
    headers = error_page(error, ID, None).headers
    assert all(headers.get(name) == value for name, value in error.headers.items())


@pytest.mark.parametrize("error", [error for error, _, _ in ALL])
def test_head_requests_get_no_body(error: GatewayError) -> None:
    assert error_page(error, ID, Headers(), "HEAD").body == b""


@pytest.mark.parametrize(
    ("error", "content_type", "kind"),
    [
        (RouteNotFound(), "", "application/json"),
        (RouteNotFound(), "text/plain", "application/json"),
        (UpstreamTimeout("timeout_read"), "", "text/plain"),
        (UpstreamTimeout("timeout_read"), "application/json; charset=utf-8", "application/json"),
        (InvalidResponse("reset"), "text/html", "text/html"),
        (InvalidResponse("reset"), "image/png", "text/plain"),
        (PayloadTooLarge(), "application/json", "application/json"),
    ],
)
def test_without_accept_the_server_layers_errors_follow_the_requests_type(
    error: GatewayError, content_type: str, kind: str
) -> None:
    headers = Headers([("Content-Type", content_type)] if content_type else [])
    assert error_page(error, ID, headers).headers.get("Content-Type") == f"{kind}; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", "text/plain"),
        ("application/*", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("text/html;q=0.2, application/json;q=0.8", "application/json"),
        ("application/json;q=0, text/html;q=0.1", "text/html"),
        ("image/png", "text/plain"),
        ("application/json;q=nonsense, text/html;q=0.1", "text/html"),
        ("APPLICATION/JSON", "application/json"),
        (",;,", "text/plain"),
    ],
)
def test_negotiation(accept: str, chosen: str) -> None:
    assert negotiate(accept, "text/plain") == chosen


def test_markup_in_a_message_is_escaped() -> None:
    error = BadRequest('<script>"x"</script>')
    for kind in ("text/html", "application/xml"):
        body = error_page(error, ID, Headers([("Accept", kind)])).body
        assert isinstance(body, bytes)
        assert b"<script>" not in body
    body = error_page(error, ID, Headers([("Accept", "application/json")])).body
    assert isinstance(body, bytes)
    assert orjson.loads(body)["message"] == error.message


def test_chat_errors_have_the_providers_shape_whatever_is_accepted() -> None:
    response = error_page(LlmError(400, "no such model"), ID, Headers([("Accept", "text/html")]))
    assert (response.status, response.body) == (400, b'{"error":{"message":"no such model"}}')
    assert response.headers.get("Content-Type") == "application/json; charset=utf-8"


@pytest.mark.parametrize(("error", "grpc"), [(Unauthorized(challenge="Key"), "16"), (InvalidResponse("reset"), "14")])
def test_grpc_clients_get_trailers_only(error: GatewayError, grpc: str) -> None:
    response = error_page(error, ID, Headers([("Content-Type", "application/grpc")]))
    assert (response.status, response.body, response.headers.get("grpc-status")) == (error.status, b"", grpc)
