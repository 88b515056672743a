"""What the control plane learns about an exchange: exactly one event, made when the exchange has ended.

Times come from the exchange's marks (`reference/analytics.md` §2.2): total is the last byte minus the first; upstream
the last attempt's wait for its first byte; gateway what is left of the total without waiting for and receiving from
upstreams.

Making a protobuf message of thirty fields costs more than routing its request. Most fields, though, are the same for
most exchanges of a route: they are serialised once and remembered. A message's fields may be written in any order, so
an event is what is remembered, followed by what is its own.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Protocol

from data_plane.exchange import Exchange, LlmCall, Marks
from data_plane.http1.server import Sent
from data_plane.messages import BufferedBody, Response
from data_plane.router import split_host
from gateway_schema.wire import analytics_pb2

CLIENT_CLOSED = 499
"""nginx's word for a client that left before its answer began."""

_METHOD, _SCHEME, _HOST, _PATH, _USER_AGENT = 16, 8, 255, 1024, 256
"""Longest texts, in characters."""
_LLM_CALLS_TAG = b"\xea\x01"  # field 29 of RequestEvent, length-delimited


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
    marks, request = exchange.marks, exchange.request
    total = now - marks.received
    upstream, receive, gateway = _upstream_times(marks, now, total)
    serialised = common_fields(exchange, response, sent) + own_fields(
        exchange.id,
        exchange.started_at,
        request.target.partition("?")[0],
        request.size + _received(exchange),
        sent.bytes_sent,
        total,
        upstream,
        receive,
        gateway,
    )
    if marks.callouts or exchange.parent_id or exchange.decision is not None:
        rare = analytics_pb2.RequestEvent()
        if marks.callouts:
            rare.callout_us = _us(marks.callouts)
        if exchange.parent_id:
            rare.parent_request_id = exchange.parent_id
        if exchange.decision is not None:
            rare.decision_id = exchange.decision.id
        serialised += rare.SerializeToString()
    for call in exchange.llm_calls:
        serialised += _llm_call(call)
    return serialised


def common_fields(exchange: Exchange, response: Response, sent: Sent) -> bytes:
    """The part of an event that many exchanges share, serialised."""
    headers = exchange.request.headers
    route, service, consumer, credential = exchange.route, exchange.service, exchange.consumer, exchange.credential
    return _common(
        exchange.runtime.version,
        service.id if service is not None else None,
        route.id if route is not None else None,
        consumer.id if consumer is not None else None,
        credential.id if credential is not None else None,
        exchange.request.method,
        exchange.scheme,
        (headers.get("host") or "")[: _HOST + 8],
        (headers.get("user-agent") or "")[:_USER_AGENT],
        exchange.client_ip,
        status_of(response, sent),
        exchange.upstream_status,
        response.source,
        exchange.error_kind,
        exchange.plugin_name,
        sent.outcome,
    )


def own_fields(
    request_id: str,
    started_at: float,
    path: str,
    request_size: int,
    response_size: int,
    total: float,
    upstream: float | None,
    receive: float | None,
    gateway: float,
) -> bytes:
    """The part of an event that is its own, serialised. Times in seconds, sizes in bytes."""
    started = int(started_at * 1_000_000)
    own = analytics_pb2.RequestEvent(
        request_id=bytes.fromhex(request_id),
        started_us=started,
        finished_us=started + _us(total),
        path=_text(path, _PATH),
        request_size=request_size,
        response_size=response_size,
        total_us=_us(total),
        upstream_us=None if upstream is None else _us(upstream),
        gateway_us=_us(gateway),
        receive_us=None if receive is None else _us(receive),
    )
    return own.SerializeToString()


@lru_cache(maxsize=1024)
def _common(
    config_version: int,
    service_id: str | None,
    route_id: str | None,
    consumer_id: str | None,
    credential_id: str | None,
    method: str,
    scheme: str,
    host: str,
    user_agent: str,
    client_ip: str,
    status: int,
    upstream_status: int,
    source: str,
    error_kind: str,
    plugin_name: str,
    outcome: str,
) -> bytes:
    """The fields that many events share, serialised. Texts of clients come cut: what is remembered has its bounds."""
    event = analytics_pb2.RequestEvent(
        config_version=config_version,
        service_id=service_id or "",
        route_id=route_id or "",
        consumer_id=consumer_id or "",
        credential_id=credential_id or "",
        method=method[:_METHOD],
        scheme=scheme[:_SCHEME],
        host=_text(split_host(host)[0], _HOST),
        user_agent=_text(user_agent, _USER_AGENT),
        client_ip=_text(client_ip, 64),
        status=status,
        upstream_status=upstream_status,
        source=source,
        error_kind=error_kind,
        plugin_name=plugin_name,
        outcome=outcome,
    )
    return event.SerializeToString()


def _upstream_times(marks: Marks, now: float, total: float) -> tuple[float | None, float | None, float]:
    """Seconds upstream, receiving and in the gateway; None where no upstream was called."""
    if marks.first_attempt is None or marks.upstream_started is None:
        return None, None, total
    first_byte = marks.first_byte if marks.first_byte is not None else now
    done = marks.upstream_done if marks.upstream_done is not None else now
    return first_byte - marks.upstream_started, done - first_byte, total - (done - marks.first_attempt)


def _llm_call(call: LlmCall) -> bytes:
    """A call as the field of an event that it is."""
    own = analytics_pb2.LlmCall(
        duration_us=_us(call.duration),
        ttft_us=None if call.ttft is None else _us(call.ttft),
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        cached_tokens=call.cached_tokens,
        cache_write_tokens=call.cache_write_tokens,
        reasoning_tokens=call.reasoning_tokens,
        cost_nano_usd=call.cost_nano_usd,
    )
    common = _common_of_call(
        call.plugin_id,
        call.provider,
        call.request_model,
        call.response_model,
        call.model_alias,
        call.stream,
        call.status,
        call.error_kind,
        call.role,
        call.token_source,
        call.finish_reason,
    )
    return _embedded(_LLM_CALLS_TAG, common + own.SerializeToString())


@lru_cache(maxsize=1024)
def _common_of_call(
    plugin_id: str,
    provider: str,
    request_model: str,
    response_model: str,
    model_alias: str,
    stream: bool,
    status: int,
    error_kind: str,
    role: str,
    token_source: str,
    finish_reason: str,
) -> bytes:
    call = analytics_pb2.LlmCall(
        plugin_id=plugin_id,
        provider=provider,
        request_model=request_model,
        response_model=response_model,
        model_alias=model_alias,
        stream=stream,
        status=status,
        error_kind=error_kind,
        role=role,
        token_source=token_source,
        finish_reason=finish_reason,
    )
    return call.SerializeToString()


def _received(exchange: Exchange) -> int:
    """Bytes of the request's body that arrived."""
    body = exchange.received_body
    if type(body) is BufferedBody:
        return len(body.data)
    received = getattr(body, "received", None)
    return received if received is not None else (body.length or 0)


def _text(value: str, longest: int) -> str:
    """Wire text (latin-1) as Unicode that protobuf accepts, cut."""
    value = value[:longest]
    return value if value.isascii() else value.encode("latin-1", "replace").decode("utf-8", "replace")


def _embedded(tag: bytes, message: bytes) -> bytes:
    """A serialised message as a field of another."""
    size = bytearray()
    left = len(message)
    while left > 0x7F:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return tag + bytes(size) + message


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000) if seconds > 0 else 0
