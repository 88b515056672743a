"""Kong's log record: what logging plugins are given when an exchange is over."""

from __future__ import annotations

import time
from typing import Any

from data_plane.exchange import Exchange
from data_plane.http1.server import Sent
from data_plane.messages import Response


def log_record(exchange: Exchange, response: Response, sent: Sent) -> dict[str, Any]:
    """Kong's log record (`reference/gateway.md` §4.7), as far as this version knows it. Times in milliseconds."""
    marks, request = exchange.marks, exchange.request
    total = time.monotonic() - marks.received
    waited = None
    if marks.first_byte is not None and marks.upstream_started is not None:
        waited = marks.first_byte - marks.upstream_started
    headers: dict[str, Any] = {}
    for name, value in request.headers:
        hidden = name.lower() in ("authorization", "proxy-authorization")
        headers[name.lower()] = "REDACTED" if hidden else value
    gateway = (marks.first_attempt - marks.received) if marks.first_attempt is not None else total
    return {
        "request": {
            "id": exchange.id,
            "method": request.method,
            "uri": request.target,
            "headers": headers,
            "size": request.size,
        },
        "response": {
            "status": response.status,
            "headers": {name.lower(): value for name, value in response.headers},
            "size": sent.bytes_sent,
        },
        "latencies": {
            "request": int(total * 1000),
            "kong": int(gateway * 1000),
            "proxy": -1 if waited is None else int(waited * 1000),
        },
        "upstream_status": str(exchange.upstream_status or ""),
        "route": exchange.route.model_dump() if exchange.route is not None else None,
        "service": exchange.service.model_dump() if exchange.service is not None else None,
        "consumer": exchange.consumer.model_dump() if exchange.consumer is not None else None,
        "authenticated_entity": _credential_of(exchange),
        "client_ip": exchange.client_ip,
        "started_at": int(exchange.started_at * 1000),
        "source": "upstream" if response.source == "upstream" else "kong",
    }


def _credential_of(exchange: Exchange) -> dict[str, Any] | None:
    credential = exchange.credential
    return {"id": credential.id, "consumer_id": credential.consumer.id} if credential is not None else None
