"""What the control plane learns about an exchange: exactly one event, made when the exchange has ended.

Times come from the exchange's marks (`reference/analytics.md` §2.2): total is the last byte minus the first; upstream
the last attempt's wait for its first byte; gateway what is left of the total without waiting for and receiving from
upstreams.

Making a protobuf message of thirty fields costs more than routing its request. Most fields, though, are the same for
most exchanges of a route: they are serialised once and remembered. A message's fields may be written in any order, so
an event is what is remembered, followed by what is its own; and those few, numbers but for the path, are written here
as protobuf would, without making a message of them.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from data_plane.exchange import Exchange, LlmCall
from data_plane.http1.server import Sent
from data_plane.messages import BufferedBody, Headers, Response
from data_plane.router import split_host
from gateway_schema.wire import analytics_pb2

CLIENT_CLOSED = 499
"""nginx's word for a client that left before its answer began."""

_METHOD, _SCHEME, _HOST, _PATH, _USER_AGENT = 16, 8, 255, 1024, 256
"""Longest texts, in characters."""
_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_NUMBER = 4096
_MAX_UPPERS = 64
_TEXTS = object()
"""Whose notes the texts of a head are."""


def _varint(value: int) -> bytes:
    """An integer as protobuf writes it; negative ones as 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


class _Numbers(dict[int, bytes]):
    """A field's integers as protobuf writes them, behind its tag; small ones are remembered as they come."""

    def __init__(self, tag: bytes = b"") -> None:
        super().__init__()
        self._tag = tag

    def __missing__(self, value: int) -> bytes:
        if 0x4000 <= value < 0x200000:
            return self._tag + bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
        data = self._tag + _varint(value)
        if 0 <= value < _MAX_REMEMBERED_NUMBER:
            self[value] = data
        return data


class _Uppers(dict[int, bytes]):
    """The upper bits of moments, which stay the same for two seconds."""

    def __missing__(self, value: int) -> bytes:
        if len(self) >= _MAX_UPPERS:
            self.clear()
        data = self[value] = _varint(value)
        return data


_VARINTS = _Numbers()
_LOWS = [bytes((value & 0x7F | 0x80, value >> 7 | 0x80)) for value in range(1 << 14)]
_MIDDLES = [bytes((value | 0x80,)) for value in range(1 << 7)]
"""Two bytes, and one, of a varint that goes on."""
_UPPERS = _Uppers()
_commons: dict[Any, bytes] = {}
_commons_of_calls: dict[Any, bytes] = {}


def _moment(us: int) -> bytes:
    """A moment as a varint of eight bytes, of which only the first three are new."""
    if us < 0x200000:
        return _varint(us)
    return _LOWS[us & 0x3FFF] + _MIDDLES[us >> 14 & 0x7F] + _UPPERS[us >> 21]


def _tag(message: Any, name: str) -> bytes:
    """What stands before a field's value: its number, and whether a varint or a length follows."""
    field = message.DESCRIPTOR.fields_by_name[name]
    is_number = field.type in (field.TYPE_INT64, field.TYPE_UINT64)
    return _varint(field.number << 3 | (0 if is_number else 2))


def _numbers(message: Any, name: str) -> _Numbers:
    return _Numbers(_tag(message, name))


_REQUEST_ID = _tag(analytics_pb2.RequestEvent, "request_id") + b"\x10"  # its length: always 16 bytes
_STARTED = _tag(analytics_pb2.RequestEvent, "started_us")
_FINISHED = _tag(analytics_pb2.RequestEvent, "finished_us")
_PATH_TAG = _tag(analytics_pb2.RequestEvent, "path")
_PARENT = _tag(analytics_pb2.RequestEvent, "parent_request_id")
_LLM_CALLS = _tag(analytics_pb2.RequestEvent, "llm_calls")
_DECISION = _tag(analytics_pb2.RequestEvent, "decision_id")
_REQUEST_SIZES = _numbers(analytics_pb2.RequestEvent, "request_size")
_RESPONSE_SIZES = _numbers(analytics_pb2.RequestEvent, "response_size")
_TOTALS = _numbers(analytics_pb2.RequestEvent, "total_us")
_UPSTREAMS = _numbers(analytics_pb2.RequestEvent, "upstream_us")
_GATEWAYS = _numbers(analytics_pb2.RequestEvent, "gateway_us")
_CALLOUTS = _numbers(analytics_pb2.RequestEvent, "callout_us")
_RECEIVES = _numbers(analytics_pb2.RequestEvent, "receive_us")
_DURATIONS = _numbers(analytics_pb2.LlmCall, "duration_us")
_TTFTS = _numbers(analytics_pb2.LlmCall, "ttft_us")
_PROMPTS = _numbers(analytics_pb2.LlmCall, "prompt_tokens")
_COMPLETIONS = _numbers(analytics_pb2.LlmCall, "completion_tokens")
_CACHED = _numbers(analytics_pb2.LlmCall, "cached_tokens")
_CACHE_WRITES = _numbers(analytics_pb2.LlmCall, "cache_write_tokens")
_REASONING = _numbers(analytics_pb2.LlmCall, "reasoning_tokens")
_COSTS = _numbers(analytics_pb2.LlmCall, "cost_nano_usd")


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


def event_of(exchange: Exchange, response: Response, sent: Sent, shared: bytes = b"") -> bytes:
    """The serialised RequestEvent of an exchange that ended just now. `shared`: its `shared_fields`, where at hand."""
    now = time.monotonic()
    marks = exchange.marks
    total = now - marks.received
    body = exchange.received_body
    upstream, receive, gateway = None, None, total
    if marks.first_attempt is not None and marks.upstream_started is not None:
        first_byte = now if marks.first_byte is None else marks.first_byte
        done = now if marks.upstream_done is None else marks.upstream_done
        upstream, receive = first_byte - marks.upstream_started, done - first_byte
        gateway = total - (done - marks.first_attempt)
    parts = [
        shared or shared_fields(exchange, response, sent),
        own_fields(
            exchange.id,
            exchange.started_at,
            exchange.request.size + (len(body.data) if type(body) is BufferedBody else _received(body)),
            sent.bytes_sent,
            total,
            upstream,
            receive,
            gateway,
        ),
    ]
    if marks.callouts:
        parts.append(_CALLOUTS[_us(marks.callouts)])
    if exchange.parent_id:
        parts += (_PARENT, _VARINTS[len(exchange.parent_id)], exchange.parent_id.encode())
    decision = exchange.decision
    if decision is not None:
        parts += (_DECISION, _VARINTS[len(decision.id)], decision.id.encode())
    for call in exchange.llm_calls:
        parts.append(_llm_call(call))
    return b"".join(parts)


def own_fields(
    request_id: str,
    started_at: float,
    request_size: int,
    response_size: int,
    total: float,
    upstream: float | None,
    receive: float | None,
    gateway: float,
) -> bytes:
    """The measures of one exchange, serialised. Times in seconds, sizes in bytes; None where no upstream was called."""
    started = int(started_at * 1_000_000)
    total_us = int(total * 1_000_000) if total > 0 else 0
    own = (
        _REQUEST_ID,
        bytes.fromhex(request_id),
        _STARTED,
        _moment(started),
        _FINISHED,
        _moment(started + total_us),
        _REQUEST_SIZES[request_size],
        _RESPONSE_SIZES[response_size],
        _TOTALS[total_us],
        _GATEWAYS[int(gateway * 1_000_000) if gateway > 0 else 0],
    )
    if upstream is None or receive is None:
        return b"".join(own)
    upstream_us = int(upstream * 1_000_000) if upstream > 0 else 0
    receive_us = int(receive * 1_000_000) if receive > 0 else 0
    return b"".join((*own, _UPSTREAMS[upstream_us], _RECEIVES[receive_us]))


def shared_fields(exchange: Exchange, response: Response, sent: Sent) -> bytes:
    """The part of an event that all exchanges have that are like this one, serialised."""
    target = exchange.request.target
    path = _path_field(target.partition("?")[0] if "?" in target else target)
    return _common_fields(exchange, response, sent) + path


def _path_field(path: str) -> bytes:
    wire = path.encode() if len(path) <= _PATH and path.isascii() else _text(path, _PATH).encode()
    return _PATH_TAG + _VARINTS[len(wire)] + wire


def _common_fields(exchange: Exchange, response: Response, sent: Sent) -> bytes:
    """The fields that this event shares with many others."""
    request = exchange.request
    origin = request.headers.origin
    texts = None if origin is None else origin.notes.get(_TEXTS)
    if texts is None:
        texts = _texts(request.headers)
    route, service, consumer, credential = exchange.route, exchange.service, exchange.consumer, exchange.credential
    key = (
        exchange.runtime.version,
        None if service is None else service.id,
        None if route is None else route.id,
        None if consumer is None else consumer.id,
        None if credential is None else credential.id,
        request.method,
        exchange.scheme,
        texts,
        exchange.client_ip,
        status_of(response, sent),
        exchange.upstream_status,
        response.source,
        exchange.error_kind,
        exchange.plugin_name,
        sent.outcome,
    )
    common = _commons.get(key)
    if common is None:
        common = _remember(_commons, key, _common(*key))
    return common


def _texts(headers: Headers) -> tuple[str, str]:
    """Host and User-Agent, cut. A client that says the same again has them looked up once."""
    texts = ((headers.get("host") or "")[: _HOST + 8], (headers.get("user-agent") or "")[:_USER_AGENT])
    if headers.origin is not None:
        headers.origin.note(_TEXTS, texts)
    return texts


def _common(
    config_version: int,
    service_id: str | None,
    route_id: str | None,
    consumer_id: str | None,
    credential_id: str | None,
    method: str,
    scheme: str,
    texts: tuple[str, str],
    client_ip: str,
    status: int,
    upstream_status: int,
    source: str,
    error_kind: str,
    plugin_name: str,
    outcome: str,
) -> bytes:
    """The fields that many events share, serialised. Texts of clients come cut: what is remembered has its bounds."""
    host, user_agent = texts
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


def _llm_call(call: LlmCall) -> bytes:
    """A call as the field of an event that it is."""
    key = (
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
    common = _commons_of_calls.get(key)
    if common is None:
        common = _remember(_commons_of_calls, key, _common_of_call(*key))
    own = _DURATIONS[_us(call.duration)] + _PROMPTS[call.prompt_tokens] + _COMPLETIONS[call.completion_tokens]
    if call.ttft is not None:
        own += _TTFTS[_us(call.ttft)]
    if call.cached_tokens:
        own += _CACHED[call.cached_tokens]
    if call.cache_write_tokens:
        own += _CACHE_WRITES[call.cache_write_tokens]
    if call.reasoning_tokens:
        own += _REASONING[call.reasoning_tokens]
    if call.cost_nano_usd is not None:
        own += _COSTS[call.cost_nano_usd]
    return b"%b%b%b%b" % (_LLM_CALLS, _VARINTS[len(common) + len(own)], common, own)


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


def _remember(memory: dict[Any, bytes], key: object, serialised: bytes) -> bytes:
    if len(memory) >= _MAX_REMEMBERED:
        memory.clear()
    memory[key] = serialised
    return serialised


def _received(body: Any) -> int:
    """Bytes of a request's body that arrived."""
    received: int | None = getattr(body, "received", None)
    return received if received is not None else (body.length or 0)


def _text(value: str, longest: int) -> str:
    """Wire text (latin-1) as Unicode that protobuf accepts, cut."""
    value = value[:longest]
    return value if value.isascii() else value.encode("latin-1", "replace").decode("utf-8", "replace")


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000) if seconds > 0 else 0
