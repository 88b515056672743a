"""The express way of plain proxying: requests to a route without plugins, with a head that came before.

What such a request needs is worked out once, from what the ordinary way did with one like it, and by the same
functions: the service's head around the request id, the client's head around what differs from answer to answer, the
analytics event around its measures. `http1.express` tells how a request rides, and what happens when it cannot.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from data_plane.analytics import common_fields, own_fields
from data_plane.exchange import Exchange, new_id
from data_plane.http1.express import MAX_BODY, Platform, Ride
from data_plane.http1.familiar import Familiar
from data_plane.http1.framing import METHODS_WITH_BODY, response_head
from data_plane.http1.response_writer import Outcome, Sent
from data_plane.messages import Headers, Response
from data_plane.upstream import ServiceUpstream, Template, proxied

if TYPE_CHECKING:
    from data_plane.pipeline import Pipeline

_STRIKES: Final = 4
"""Derailments in a row after which a line is closed: this service's answers are not made for it."""
_UPSTREAM_LATENCY: Final = b"X-Kong-Upstream-Latency: "


class ServiceLine:
    """Implements `http1.express.Line`: from one client's connection to a service, for one familiar head."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: Exchange,
        service: ServiceUpstream,
        template: Template,
    ) -> None:
        self._pipeline = pipeline
        self._epoch = pipeline.epoch
        self._service = service
        self._pool = service.pool()
        self._before = template.before
        self._after = template.after
        self._has_length = template.has_length
        self._method = model.request.method
        self._path = model.request.path
        self._common: dict[int, bytes] = {}
        """By status: what the events of exchanges that ended well have in common."""
        self._strikes = 0

    def board(self, platform: Platform, familiar: Familiar, body: bytes) -> Ride | None:
        received = time.monotonic()
        pipeline = self._pipeline
        if pipeline.epoch != self._epoch:
            familiar.line = None
            return None
        pool = self._pool
        behind = None if pool is None else pool.take()
        if behind is None:
            self._pool = self._service.pool()
            return None
        ride = Ride(self, platform, behind, familiar, body)
        ride.runtime = runtime = pipeline.runtime
        runtime.exchanges += 1
        ride.id = new_id()
        ride.started_at = time.time()
        ride.received = received
        if self._has_length:
            data = b"%b%b%b%d\r\n\r\n%b" % (self._before, ride.id.encode(), self._after, len(body), body)
        else:
            data = b"%b%b%b%b" % (self._before, ride.id.encode(), self._after, body)
        ride.sent_at = time.monotonic()
        behind.carry(ride, self._method, data, self._service.timeouts)
        return ride

    def arrive(self, ride: Ride, familiar: Familiar, body: bytes) -> bool:
        onward = familiar.onward
        if onward is None:
            onward = familiar.onward = _onward(familiar)
        platform = ride.platform
        if not onward or platform.is_draining or len(body) > MAX_BODY:
            return False
        self._strikes = 0
        first_byte = time.monotonic()
        before, after = onward
        data = b"%b%d\r\nX-Kong-Proxy-Latency: %d\r\nX-Kong-Request-Id: %b\r\n%b%d\r\n\r\n%b" % (
            before,
            (first_byte - ride.sent_at) * 1000,
            (ride.sent_at - ride.received) * 1000,
            ride.id.encode(),
            after,
            len(body),
            body,
        )
        platform.deliver(data)
        self._report(ride, familiar.meaning, first_byte, len(data))
        return True

    def derailed(self, ride: Ride) -> None:
        self._strikes += 1
        if self._strikes >= _STRIKES:
            ride.familiar.line = None
            ride.familiar.is_barred = True

    def abandon(self, ride: Ride, outcome: Outcome) -> None:
        ride.drop()
        exchange = self._pipeline.exchange_of(ride, ride.platform.request_of(ride))
        exchange.marks.first_byte = exchange.marks.upstream_done = time.monotonic()
        self._pipeline.finished(exchange, Response(0, source="gateway_error"), Sent(outcome=outcome))

    def _report(self, ride: Ride, status: int, first_byte: float, size: int) -> None:
        common = self._common.get(status)
        if common is None:
            exchange = self._pipeline.exchange_of(ride, ride.platform.request_of(ride))
            exchange.upstream_status = status
            common = common_fields(exchange, Response(status, source="upstream"), Sent(True, size, "complete"))
            self._common[status] = common
        now = time.monotonic()
        waited = first_byte - ride.sent_at
        total = now - ride.received
        own = own_fields(
            ride.id,
            ride.started_at,
            self._path,
            ride.familiar.size_with(ride.body) + len(ride.body),
            size,
            total,
            waited,
            0.0,
            now - first_byte + ride.sent_at - ride.received,
        )
        self._pipeline.report(ride.runtime, common + own)


def line_for(pipeline: Pipeline, exchange: Exchange, familiar: Familiar) -> ServiceLine | None:
    """A line for requests like one that was passed on just now; None when they need the ordinary way."""
    request, plan = exchange.request, exchange.plan
    assert plan is not None
    service = plan.upstream
    if not isinstance(service, ServiceUpstream) or not service.is_remote or request.headers.origin is None:
        return None
    if request.method == "HEAD" or (familiar.has_length and request.method not in METHODS_WITH_BODY):
        return None
    if pipeline.shows_debug and "kong-debug" in request.headers:
        return None
    template = service.template(exchange, request.headers.origin)
    return None if template is None else ServiceLine(pipeline, exchange, service, template)


def _onward(familiar: Familiar) -> tuple[bytes, bytes] | tuple[()]:
    """A client's head around what differs: up to the upstream latency's value, and from behind the request id to the
    body's length. Empty where there is more to it: no body, or a Date to be made."""
    marker = new_id()
    latencies = [("X-Kong-Upstream-Latency", "0"), ("X-Kong-Proxy-Latency", "0"), ("X-Kong-Request-Id", marker)]
    fields = proxied(familiar.head.fields) + latencies
    head = response_head(Response(familiar.meaning, Headers(fields), source="upstream"), "GET", False, True)
    mark = b"%b0\r\nX-Kong-Proxy-Latency: 0\r\nX-Kong-Request-Id: %b\r\n" % (_UPSTREAM_LATENCY, marker.encode())
    before, found, after = head.data.partition(mark)
    ending = b"Content-Length: 0\r\n\r\n"
    if not found or not head.keep_alive or not after.endswith(ending):
        return ()
    return before + _UPSTREAM_LATENCY, after[: -len(b"0\r\n\r\n")]
