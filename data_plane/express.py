"""The express way: requests that are whole and plain, on routes whose plugins need not wait for anything.

What one with a head that came before needs is worked out once, from what the ordinary way did with one like it, and by
the same functions. Where there are no plugins and a service behind (`ServiceLine`), that is nearly all: the service's
head around the request id, the client's head around what differs from answer to answer, the analytics event around its
measures. Where there are plugins (`ChainLine`), each exchange is a full one; only routing, waiting and resuming is
saved. Where the head is new (`OpenLine`), routing is not.

`http1.express` tells how a request rides, and what happens when it cannot: it goes the ordinary way from its beginning.
So nothing here may have consequences outside of its exchange before the answer is delivered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, cast

from data_plane.analytics import event_of, own_fields, shared_fields
from data_plane.exchange import Departure, Exchange, QuickUpstream, new_id
from data_plane.http1.express import MAX_BODY, Line, Ride, Steps
from data_plane.http1.familiar import Familiar
from data_plane.http1.framing import METHODS_WITH_BODY, NO_BODY, InvalidHeader, response_head
from data_plane.http1.response_writer import Sent
from data_plane.messages import Headers, Request, Response
from data_plane.upstream import ServiceUpstream, Template, proxied

if TYPE_CHECKING:
    from data_plane.chain import Bound, Plan
    from data_plane.pipeline import Pipeline

log = logging.getLogger(__name__)

_STRIKES: Final = 4
"""Rides in a row that did not begin, or derailed, after which a line is closed: it is not made for what comes. An open
line then rests."""
_REST: Final = 256
"""Answers after which another line is tried: what was in its way (a service that failed, many clients at once) may be
over, and connections live for long. A try that fails costs less than half of a request."""
_AROUND: Final = object()
"""Names the note on an answer's first fields that has what stands in its head around the exchange's own."""
_ANSWER: Final = (
    b"%b%bX-Kong-Upstream-Latency: %d\r\nX-Kong-Proxy-Latency: %d\r\nX-Kong-Request-Id: %b\r\n%b%d\r\n\r\n%b"
)
"""What comes again, lines added to it, this exchange's own, what comes again as far as the length, the body."""


class _Line:
    """What all lines share. One for a familiar head holds for one configuration only, and keeps nothing of it alive but
    what its own route has."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._epoch = pipeline.epoch
        self._strikes = 0

    def derailed(self, ride: Ride) -> None:
        self._strike(ride)

    def _strike(self, ride: Ride) -> None:
        self._strikes += 1
        if self._strikes >= _STRIKES:
            self._close(ride, _REST)

    def _close(self, ride: Ride, rest: int) -> None:
        """No more rides on this line; another is opened after so many answers."""
        familiar = ride.familiar
        if familiar is not None:
            familiar.line = None
            familiar.rest = rest

    def _holds(self, ride: Ride) -> bool:
        """Whether the configuration is still the one that this line was opened under."""
        if self._pipeline.epoch == self._epoch:
            return True
        self._close(ride, 0)
        return False


class ServiceLine(_Line):
    """Implements `http1.express.Line`: from one client's connection to a service, with nothing between."""

    def __init__(self, pipeline: Pipeline, model: Exchange, service: ServiceUpstream, template: Template) -> None:
        super().__init__(pipeline)
        self._method = model.request.method
        self._service = service
        self._pool = service.pool()
        self._before = template.before
        self._after = template.after
        self._has_length = template.has_length
        self._shared: dict[int, bytes] = {}
        """By status: what the events of exchanges that ended well have in common."""

    def board(self, ride: Ride) -> Steps:
        if not self._holds(ride):
            return
        pool = self._pool
        behind = None if pool is None else pool.take()
        if behind is None:
            self._pool = self._service.pool()
            return
        body = ride.body
        ride.runtime = runtime = self._pipeline.runtime
        runtime.exchanges += 1
        ride.id = new_id()
        ride.started_at = time.time()
        if self._has_length:
            data = b"%b%b%b%d\r\n\r\n%b" % (self._before, ride.id.encode(), self._after, len(body), body)
        else:
            data = b"%b%b%b" % (self._before, ride.id.encode(), self._after)
        yield
        ride.sent_at = time.monotonic()
        ride.begin(behind, self._method, data, self._service.timeouts)

    def arrive(self, ride: Ride) -> Steps:
        if ride.platform.is_draining:
            return
        again = ride.answered_with
        if again is None:
            response = ride.response()
            status, data = response.status, self._written(ride, response)
        else:
            status, data = again[0].meaning, self._written_again(ride, *again)
        if data is None:
            return
        ride.platform.deliver(data)
        ride.has_arrived = True
        yield
        self._report(ride, status, ride.first_byte, len(data))

    def _written_again(self, ride: Ride, familiar: Familiar, body: bytes) -> bytes | None:
        """The answer for the client; None where the ordinary way must see to it."""
        onward = familiar.onward
        if onward is None:
            onward = familiar.onward = _onward(familiar)
        if not onward or len(body) > MAX_BODY:
            return None
        before, after = onward
        return _ANSWER % (
            before,
            b"",
            (ride.first_byte - ride.sent_at) * 1000,
            (ride.sent_at - ride.received) * 1000,
            ride.id.encode(),
            after,
            len(body),
            body,
        )

    def _written(self, ride: Ride, response: Response) -> bytes | None:
        """The same for an answer whose head is new."""
        body = response.body
        if not isinstance(body, bytes) or len(body) > MAX_BODY:
            return None
        fields = proxied(response.headers.raw)
        fields += latencies(ride.first_byte - ride.sent_at, ride.sent_at - ride.received, ride.id)
        answer = Response(response.status, Headers(fields), body, source="upstream", reason=response.reason)
        try:
            head = response_head(answer, self._method, False, True)
        except InvalidHeader:
            return None
        return head.data if head.framing == NO_BODY else head.data + body

    def abandon(self, ride: Ride) -> None:
        ride.drop()
        exchange = self._pipeline.exchange_of(ride)
        exchange.marks.first_byte = exchange.marks.upstream_done = time.monotonic()
        self._pipeline.finished(exchange, Response(0, source="gateway_error"), Sent())

    def _report(self, ride: Ride, status: int, first_byte: float, size: int) -> None:
        self._strikes = 0
        pipeline = self._pipeline
        try:
            pipeline.reporter.report(self._event_of(ride, status, first_byte, size))
        except Exception:
            log.exception("exchange %s could not be reported", ride.id)
        pipeline.left(ride.runtime)

    def _event_of(self, ride: Ride, status: int, first_byte: float, size: int) -> bytes:
        shared = self._shared.get(status)
        if shared is None:
            exchange = self._pipeline.exchange_of(ride)
            exchange.upstream_status = status
            shared = shared_fields(exchange, Response(status, source="upstream"), Sent(True, size, "complete"))
            self._shared[status] = shared
        now, familiar = time.monotonic(), ride.familiar
        assert familiar is not None, "only such requests are let on this line"
        return shared + own_fields(
            ride.id,
            ride.started_at,
            familiar.size_with(ride.body) + len(ride.body),
            size,
            now - ride.received,
            first_byte - ride.sent_at,
            0.0,
            now - first_byte + ride.sent_at - ride.received,
        )


class _ExchangeLine(_Line):
    """Implements `http1.express.Line`: through a route's plugins to an upstream that can be asked without waiting."""

    def _exchange(self, ride: Ride) -> Exchange | None:
        """The ride's exchange, on its route; None when it must go the ordinary way."""
        raise NotImplementedError

    def _shared_fields(self, exchange: Exchange, answer: Response, sent: Sent) -> bytes:
        """What an event has in common with others like it."""
        return shared_fields(exchange, answer, sent)

    def board(self, ride: Ride) -> Steps:
        exchange = self._exchange(ride)
        if exchange is None:
            return
        ride.exchange = exchange
        yield
        departure: Departure | None = None
        try:
            for bound in self._bounds(exchange):
                if bound.prelude is None or not bound.prelude(exchange):
                    break
                yield
            else:
                depart = getattr(exchange.upstream, "depart", None)
                departure = None if depart is None else depart(exchange)
        except Exception:
            departure = None  # The ordinary way will meet the same, and answer.
        if departure is None:
            return self._strike(ride)
        yield
        exchange.runtime.exchanges += 1
        marks = exchange.marks
        marks.first_attempt = marks.upstream_started = time.monotonic()
        ride.begin(*departure)

    def derailed(self, ride: Ride) -> None:
        exchange: Exchange = ride.exchange
        marks = exchange.marks
        ride.id, ride.runtime, ride.started_at = exchange.id, exchange.runtime, exchange.started_at
        ride.received, ride.sent_at = marks.received, marks.first_attempt or 0.0
        super().derailed(ride)

    def _bounds(self, exchange: Exchange) -> Iterable[Bound]:
        plan = exchange.plan
        assert plan is not None
        if plan.everybodys is None:
            return _chosen(plan, exchange)
        exchange.plugins = plan.everybodys.copy()
        return plan.everybodys

    def arrive(self, ride: Ride) -> Steps:
        platform, response = ride.platform, ride.response()
        if platform.is_draining or not isinstance(response.body, bytes) or len(response.body) > MAX_BODY:
            return
        exchange: Exchange = ride.exchange
        marks = exchange.marks
        marks.first_byte = marks.upstream_done = ride.first_byte
        try:
            answer = cast(QuickUpstream, exchange.upstream).land(exchange, response)
        except Exception:
            return  # The ordinary way will meet the same, and answer.
        if answer is None or not isinstance(answer.body, bytes):
            return
        yield
        exchange.response = answer
        plan = exchange.plan
        is_logged = plan is not None and bool(plan.log_slots)
        try:
            # Who logs is shown the head as it went out; for others it need not be made, only written.
            write = self._written_anew if is_logged else self._written
            data = write(exchange, answer, answer.body)
        except InvalidHeader:
            return
        self._strikes = 0
        platform.deliver(data)
        ride.has_arrived = True
        yield
        sent = Sent(True, len(data), "complete")
        if is_logged:
            self._pipeline.finished(exchange, answer, sent)
        else:
            self._report(exchange, answer, sent)

    def _report(self, exchange: Exchange, answer: Response, sent: Sent) -> None:
        """What `Pipeline.finished` does, where nobody else is to hear of it."""
        pipeline = self._pipeline
        try:
            shared = self._shared_fields(exchange, answer, sent)
            pipeline.reporter.report(event_of(exchange, answer, sent, shared))
        except Exception:
            log.exception("exchange %s could not be reported", exchange.id)
        exchange.response = None
        pipeline.left(exchange.runtime)

    def _written(self, exchange: Exchange, answer: Response, body: bytes) -> bytes:
        """The answer in wire form. Where its first fields come again, so does what stands around its own."""
        base = answer.headers.base
        if base is None:
            return self._written_anew(exchange, answer, body)
        added = _plain_lines(answer.headers.raw[len(base.fields) :])
        if added is None:
            return self._written_anew(exchange, answer, body)
        marks = exchange.marks
        upstream = ((marks.first_byte or 0.0) - (marks.upstream_started or 0.0)) * 1000
        proxy = ((marks.first_attempt or 0.0) - marks.received) * 1000
        noted: tuple[bytes, bytes] | None = base.notes.get(_AROUND)
        if noted is not None:
            before, after = noted
            return _ANSWER % (before, added, upstream, proxy, exchange.id.encode(), after, len(body), body)
        data = self._written_anew(exchange, answer, body)
        ending = b"%d\r\n\r\n" % len(body)
        own = _ANSWER % (b"", added, upstream, proxy, exchange.id.encode(), b"", 0, b"")
        before, found, after = data[: len(data) - len(body)].partition(own[: -len(b"0\r\n\r\n")])
        if found and after.endswith(b"Content-Length: " + ending):
            base.note(_AROUND, (before, after[: -len(ending)]))
        return data

    def _written_anew(self, exchange: Exchange, answer: Response, body: bytes) -> bytes:
        self._pipeline.complete_head(exchange, answer)
        head = response_head(answer, exchange.request.method, False, True)
        return head.data if head.framing == NO_BODY else head.data + body

    def abandon(self, ride: Ride) -> None:
        ride.drop()
        exchange: Exchange = ride.exchange
        exchange.marks.first_byte = exchange.marks.upstream_done = time.monotonic()
        cast(QuickUpstream, exchange.upstream).forsake(exchange)
        self._pipeline.finished(exchange, Response(0, source="gateway_error"), Sent())


class ChainLine(_ExchangeLine):
    """For requests with one familiar head, which have one route."""

    def __init__(self, pipeline: Pipeline, model: Exchange) -> None:
        super().__init__(pipeline)
        self._trusted, self._client_ip, self._scheme = model.trusted, model.client_ip, model.scheme
        assert model.match is not None
        self._match = model.match
        self._route, self._service = model.route, model.service
        self._route_id = model.match.route.id or ""
        """Not the route's plan: its plugins know all consumers, and connections may be idle for long."""
        self._shared_key: object = None
        self._shared = b""
        """Of the last event."""

    def _exchange(self, ride: Ride) -> Exchange | None:
        if not self._holds(ride):
            return None
        runtime = self._pipeline.runtime
        exchange = Exchange(ride.platform.request_of(ride), runtime)
        exchange.marks.received = ride.received
        if self._trusted:
            exchange.trusted, exchange.client_ip, exchange.scheme = True, self._client_ip, self._scheme
        exchange.match = self._match
        exchange.route = self._route
        exchange.service = self._service
        plan = exchange.plan = runtime.plans[self._route_id]
        exchange.upstream = plan.upstream
        return exchange

    def _shared_fields(self, exchange: Exchange, answer: Response, sent: Sent) -> bytes:
        key = (answer.status, exchange.consumer, exchange.credential, exchange.request.target)
        if key != self._shared_key:
            self._shared_key, self._shared = key, shared_fields(exchange, answer, sent)
        return self._shared


class OpenLine(_ExchangeLine):
    """Implements `http1.express.OpenLine`: each request is routed for itself."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._rest = 0

    def takes(self, request: Request) -> bool:
        if self._rest:
            self._rest -= 1
            return False
        method = request.method
        return method in METHODS_WITH_BODY or (method != "HEAD" and not request.body.length)

    def _close(self, ride: Ride, rest: int) -> None:
        self._strikes, self._rest = 0, rest

    def _exchange(self, ride: Ride) -> Exchange | None:
        pipeline = self._pipeline
        runtime = pipeline.runtime
        exchange = Exchange(ride.platform.request_of(ride), runtime)
        exchange.marks.received = ride.received
        answer = pipeline.route(exchange, runtime)
        plan = exchange.plan
        if answer is None and plan is not None and plan.is_prompt and not pipeline.is_debugged(exchange):
            return exchange
        self._strike(ride)
        return None


def line_for(pipeline: Pipeline, exchange: Exchange, familiar: Familiar) -> Line | None:
    """A line for requests like one that was answered by its upstream just now; None when they need the ordinary way."""
    request, plan = exchange.request, exchange.plan
    if request.method == "HEAD" or (familiar.has_length and request.method not in METHODS_WITH_BODY):
        return None
    if plan is None or pipeline.is_debugged(exchange):
        return None
    if plan.slots:
        return ChainLine(pipeline, exchange) if hasattr(exchange.upstream, "depart") else None
    service, head = plan.upstream, request.headers.origin
    if not isinstance(service, ServiceUpstream) or not service.is_remote or head is None:
        return None
    template = service.template(exchange, head)
    return None if template is None else ServiceLine(pipeline, exchange, service, template)


def _chosen(plan: Plan, exchange: Exchange) -> Iterator[Bound]:
    """The plugins in their order: which one of a name it is may depend on what those before it found out."""
    for slot in plan.slots:
        bound = slot.choose(exchange)
        if bound is not None:
            exchange.plugins.append(bound)
            yield bound


def _plain_lines(fields: Sequence[tuple[str, str]]) -> bytes | None:
    """Fields in wire form; None where they would break out of their lines, or are not plain text."""
    if len(fields) == 1:
        text = f"{fields[0][0]}: {fields[0][1]}\r\n"
    else:
        text = "".join([f"{name}: {value}\r\n" for name, value in fields])
    if text.count("\n") != len(fields) or text.count("\r") != len(fields) or not text.isascii():
        return None
    return text.encode()


def latencies(upstream: float, proxy: float, name: str) -> list[tuple[str, str]]:
    """An exchange's own fields on an answer of its upstream (`_ANSWER` in fields). Times in seconds, `name` its id."""
    return [
        ("X-Kong-Upstream-Latency", str(int(upstream * 1000))),
        ("X-Kong-Proxy-Latency", str(int(proxy * 1000))),
        ("X-Kong-Request-Id", name),
    ]


def _onward(familiar: Familiar) -> tuple[bytes, bytes] | tuple[()]:
    """A client's head around an exchange's own lines, as far as the body's length. Empty where there is more to it: no
    body, or a Date to be made."""
    marker = new_id()
    fields = [*proxied(familiar.head.fields), *latencies(0, 0, marker)]
    head = response_head(Response(familiar.meaning, Headers(fields), source="upstream"), "GET", False, True)
    own = _ANSWER % (b"", b"", 0, 0, marker.encode(), b"", 0, b"")
    before, found, after = head.data.partition(own[: -len(b"0\r\n\r\n")])
    ending = b"0\r\n\r\n"
    if not found or not head.keep_alive or not after.endswith(b"Content-Length: " + ending):
        return ()
    return before, after[: -len(ending)]
