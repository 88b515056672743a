"""What the control plane learns about an exchange: exactly one event, made when the exchange has ended.

Times come from the exchange's marks (`reference/analytics.md` §2.2): total is the last byte minus the first; upstream
the last attempt's wait for its first byte; gateway what is left of the total without waiting for and receiving from
upstreams.
"""

from __future__ import annotations

import time
from typing import Protocol

from data_plane.exchange import Exchange, LlmCall, Marks
from data_plane.http1.server import Sent
from data_plane.messages import Response
from data_plane.router import split_host
from gateway_schema.wire import analytics_pb2

CLIENT_CLOSED = 499
"""nginx's word for a client that left before its answer began."""

_METHOD, _SCHEME, _HOST, _PATH, _USER_AGENT = 16, 8, 255, 1024, 256
"""Longest texts, in characters."""


class Reporter(Protocol):
    def report(self, event: bytes) -> None:
        """Take a serialised RequestEvent. Never blocks."""


def status_of(response: Response, sent: Sent) -> int:
    """The status that the client saw; CLIENT_CLOSED when it left before it saw one."""
    if not sent.head_sent:
        return CLIENT_CLOSED
    if sent.outcome == "gateway_abort" and not sent.bytes_sent:
        return 500  # the answer's head could not be written, and an error went out in its place
    return response.status


def event_of(exchange: Exchange, response: Response, sent: Sent) -> bytes:
    """The serialised RequestEvent of an exchange that ended just now."""
    now = time.monotonic()
    marks = exchange.marks
    request = exchange.request
    headers = request.headers
    total = now - marks.received
    started = int(exchange.started_at * 1_000_000)
    route, service, consumer, credential = exchange.route, exchange.service, exchange.consumer, exchange.credential
    event = analytics_pb2.RequestEvent(
        request_id=bytes.fromhex(exchange.id),
        started_us=started,
        finished_us=started + _us(total),
        config_version=exchange.runtime.version,
        service_id=(service.id or "") if service is not None else "",
        route_id=(route.id or "") if route is not None else "",
        consumer_id=(consumer.id or "") if consumer is not None else "",
        credential_id=(credential.id or "") if credential is not None else "",
        method=request.method[:_METHOD],
        scheme=exchange.scheme[:_SCHEME],
        host=_text(split_host(headers.get("host") or "")[0], _HOST),
        path=_text(request.target.partition("?")[0], _PATH),
        user_agent=_text(headers.get("user-agent") or "", _USER_AGENT),
        client_ip=_text(exchange.client_ip, 64),
        status=status_of(response, sent),
        upstream_status=exchange.upstream_status,
        source=response.source,
        error_kind=exchange.error_kind,
        plugin_name=exchange.plugin_name,
        request_size=request.size + _received(exchange),
        response_size=sent.bytes_sent,
        total_us=_us(total),
        callout_us=_us(marks.callouts),
        outcome=sent.outcome,
        parent_request_id=exchange.parent_id,
        decision_id=exchange.decision.id if exchange.decision is not None else "",
    )
    _add_upstream_times(event, marks, now, total)
    if exchange.llm_calls:
        event.llm_calls.extend(_llm_call(call) for call in exchange.llm_calls)
    return event.SerializeToString()


def _add_upstream_times(event: analytics_pb2.RequestEvent, marks: Marks, now: float, total: float) -> None:
    if marks.first_attempt is None or marks.upstream_started is None:
        event.gateway_us = _us(total)
        return
    first_byte = marks.first_byte if marks.first_byte is not None else now
    done = marks.upstream_done if marks.upstream_done is not None else now
    event.upstream_us = _us(first_byte - marks.upstream_started)
    event.receive_us = _us(done - first_byte)
    event.gateway_us = _us(total - (done - marks.first_attempt))


def _llm_call(call: LlmCall) -> analytics_pb2.LlmCall:
    return analytics_pb2.LlmCall(
        plugin_id=call.plugin_id,
        provider=call.provider,
        request_model=call.request_model,
        response_model=call.response_model,
        model_alias=call.model_alias,
        stream=call.stream,
        status=call.status,
        error_kind=call.error_kind,
        role=call.role,
        duration_us=_us(call.duration),
        ttft_us=None if call.ttft is None else _us(call.ttft),
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        cached_tokens=call.cached_tokens,
        cache_write_tokens=call.cache_write_tokens,
        reasoning_tokens=call.reasoning_tokens,
        token_source=call.token_source,
        cost_nano_usd=call.cost_nano_usd,
        finish_reason=call.finish_reason,
    )


def _received(exchange: Exchange) -> int:
    """Bytes of the request's body that arrived."""
    body = exchange.received_body
    received = getattr(body, "received", None)
    return received if received is not None else (body.length or 0)


def _text(value: str, longest: int) -> str:
    """Wire text (latin-1) as Unicode that protobuf accepts, cut."""
    value = value[:longest]
    return value if value.isascii() else value.encode("latin-1", "replace").decode("utf-8", "replace")


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000) if seconds > 0 else 0
