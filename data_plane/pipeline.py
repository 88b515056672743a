"""What happens to a request between the server and the wire behind: one exchange, from head to last byte.

The pipeline takes the current runtime once per exchange, routes, walks the chain, and when the last byte is out runs
the log phase and reports exactly one event. Calls that this node makes to itself take the same way, without a socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from data_plane import chain
from data_plane.analytics import Reporter, event_of
from data_plane.error_bodies import error_page
from data_plane.errors import BadRequest, GatewayError, HttpsRequired, InternalError, RouteNotFound
from data_plane.exchange import Exchange, new_id
from data_plane.express import OpenLine, latencies, line_for
from data_plane.forwarding import TrustedPeers, forwarded_host
from data_plane.http1.express import Ride
from data_plane.http1.server import Sent
from data_plane.log_record import log_record
from data_plane.messages import Headers, Request, Response
from data_plane.router import Match
from data_plane.runtime import Runtime, Workshop, close_handlers
from data_plane.upstream import SERVER, VIA

log = logging.getLogger(__name__)


class Pipeline:
    """Implements the HTTP server's Application, and answers calls to ourselves (`parent` is the caller's exchange)."""

    def __init__(self, workshop: Workshop, reporter: Reporter) -> None:
        settings = workshop.settings
        self.runtime = Runtime.empty()
        self.epoch = 0
        """How many runtimes came before: what was concluded in another epoch may not hold."""
        self._workshop = workshop
        self.reporter = reporter
        self._trusted = TrustedPeers(settings.trusted_ips)
        self._shows_debug = settings.allow_debug_header
        self._retired: set[Runtime] = set()
        self._holders: Counter[chain.Bound] = Counter()
        """How many runtimes, in force or with exchanges under way, a plugin serves in."""
        self._closing: set[asyncio.Task[None]] = set()
        workshop.loopback.attach(self)

    # The server's Application.

    async def answer(self, request: Request, parent: Exchange | None = None) -> tuple[Response, Exchange]:
        """Never raises but CancelledError; whoever is cancelled here gets no `finished`."""
        ride = request.ride
        if ride is not None:
            runtime = ride.runtime
            exchange = _resumed(ride, request)
        else:
            runtime = self.runtime
            runtime.exchanges += 1
            exchange = Exchange(request, runtime, parent=parent)
        response = self.route(exchange, runtime)
        try:
            if response is None:
                response = await chain.run(exchange.plan or runtime.unrouted, exchange)
        except asyncio.CancelledError:
            self.finished(exchange, Response(0, source="gateway_error"), Sent())
            raise
        if request.ride is not None:
            request.ride.drop()  # It never came to where its answer would have been waited for.
        exchange.response = response
        self.complete_head(exchange, response)
        return response, exchange

    def finished(self, token: Exchange, response: Response, sent: Sent) -> None:
        """The exchange is over: log phase, event, and perhaps the end of its runtime. Never raises."""
        try:
            plan = token.plan or token.runtime.unrouted
            if plan.log_slots:
                chain.run_log_phase(plan, token, log_record(token, response, sent))
            self.reporter.report(event_of(token, response, sent))
            if plan.is_prompt and response.source == "upstream" and sent.outcome == "complete":
                self._open_line(token)
        except Exception:
            log.exception("exchange %s could not be reported", token.id)
        # A stream's body knows its exchange. Without this the two would hold each other until the collector comes, and
        # it stops everything for 10 ms when many have gathered.
        token.response = None
        self.left(token.runtime)

    def refused(self, error: GatewayError, request: Request | None, peer: tuple[str, int]) -> Response:
        """What goes out before the connection is closed; counted where it is known what was asked for."""
        if request is None:
            response = error_page(error, new_id(), None)
            response.headers.add("Server", SERVER)
            return response
        exchange = Exchange(request, self.runtime)
        response = exchange.response = chain.error_response(error, exchange)
        self.complete_head(exchange, response)
        if not isinstance(error, InternalError):
            # An internal error here replaces an answer that could not be written, and that exchange counts already.
            self.runtime.exchanges += 1
            body_size = len(response.body) if isinstance(response.body, bytes) else 0
            self.finished(exchange, response, Sent(True, body_size, "complete"))
        return response

    # The express way (`express`).

    def open_line(self) -> OpenLine:
        return OpenLine(self)

    def _open_line(self, exchange: Exchange) -> None:
        """Requests like this one may go faster from now on."""
        familiar = getattr(exchange.request, "familiar", None)
        if familiar is None or familiar.line is not None or familiar.is_barred:
            return
        if familiar.rest:
            familiar.rest -= 1
        elif exchange.runtime is self.runtime:
            familiar.line = line_for(self, exchange, familiar)
            familiar.is_barred = familiar.line is None

    def is_debugged(self, exchange: Exchange) -> bool:
        """Whether its answer may tell more than others do."""
        return self._shows_debug and "kong-debug" in exchange.request.headers

    def exchange_of(self, ride: Ride) -> Exchange:
        """A ride as the exchange that it is."""
        exchange = _resumed(ride, ride.platform.request_of(ride))
        self._match(exchange, ride.runtime)
        exchange.marks.first_attempt = exchange.marks.upstream_started = ride.sent_at
        return exchange

    # Runtimes.

    def swap(self, runtime: Runtime) -> None:
        """From now on, exchanges begin on `runtime`; the old one ends with its last."""
        old, self.runtime = self.runtime, runtime
        self.epoch += 1
        self._holders.update(runtime.plugins)
        self._retired.add(old)
        if not old.exchanges:
            self._close(old)

    async def close(self) -> None:
        """Close the runtime in force and wait until all replaced ones are."""
        self._close(self.runtime)
        await asyncio.wait(self._closing)

    def left(self, runtime: Runtime) -> None:
        """An exchange on it is over."""
        runtime.exchanges -= 1
        if not runtime.exchanges and runtime in self._retired:
            self._close(runtime)

    def _close(self, runtime: Runtime) -> None:
        self._retired.discard(runtime)
        self._holders.subtract(runtime.plugins)
        orphans = [bound for bound in runtime.plugins if not self._holders[bound]]
        for bound in orphans:
            del self._holders[bound]
        closing = close_handlers(orphans)
        task = asyncio.get_running_loop().create_task(closing, name=f"close runtime {runtime.version}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # One exchange.

    def route(self, exchange: Exchange, runtime: Runtime) -> Response | None:
        """Find the route and what happens there; an answer when there is none or it wants another protocol."""
        try:
            match = self._match(exchange, runtime)
        except GatewayError as error:
            return chain.error_response(error, exchange)
        except Exception:
            log.exception("exchange %s could not be routed", exchange.id)
            return chain.error_response(InternalError(), exchange)
        return _diversion(match, exchange) if exchange.scheme == "http" else None

    def _match(self, exchange: Exchange, runtime: Runtime) -> Match:
        request = exchange.request
        if self._trusted:
            self._trusted.introduce(exchange)
        if not request.target.startswith("/"):
            _reduce_target(request)
        match = runtime.router.match(request, scheme=exchange.scheme, port=self._workshop.port)
        if match is None:
            raise RouteNotFound
        exchange.match = match
        exchange.route = match.route
        exchange.service = match.service
        plan = exchange.plan = runtime.plans[match.route.id or ""]
        exchange.upstream = plan.upstream
        return match

    def complete_head(self, exchange: Exchange, response: Response) -> None:
        """The headers that every answer carries (`reference/gateway.md` §3.7)."""
        headers, marks = response.headers, exchange.marks
        if response.source == "upstream" and marks.first_attempt is not None:
            started, first_byte = marks.upstream_started or 0.0, marks.first_byte or 0.0
            fields = latencies(first_byte - started, marks.first_attempt - marks.received, exchange.id)
            if exchange.plan is None or exchange.upstream is not exchange.plan.upstream:
                # Not a service of ours, whose headers have been seen to.
                if "via" not in headers:
                    fields.append(("Via", VIA))
                if "server" not in headers:
                    fields.append(("Server", SERVER))
            headers.extend(fields)
        else:
            headers.add("X-Kong-Response-Latency", str(int((time.monotonic() - marks.received) * 1000)))
            headers.add("X-Kong-Request-Id", exchange.id)
            if "server" not in headers:
                headers.add("Server", SERVER)
        if self._shows_debug and exchange.request.headers.get("kong-debug") == "1":
            _add_debug_headers(exchange, headers)


def _resumed(ride: Ride, request: Request) -> Exchange:
    exchange = Exchange(request, ride.runtime)
    exchange.id = ride.id
    exchange.started_at = ride.started_at
    exchange.marks.received = ride.received
    return exchange


def _reduce_target(request: Request) -> None:
    """A target in absolute form becomes path and query; its authority is the Host (RFC 9112 §3.2.2)."""
    scheme, separator, rest = request.target.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise BadRequest
    end = min((position for mark in "/?" if (position := rest.find(mark)) >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    request.target = path if path.startswith("/") else "/" + path
    request.headers.set("Host", authority.rpartition("@")[2])


def _diversion(match: Match, exchange: Exchange) -> Response | None:
    """What a request gets that came over plain HTTP/1 to a route that wants TLS or HTTP/2; None when all is well."""
    protocols = match.route.protocols
    if "http" in protocols or "ws" in protocols:
        return None
    if "grpc" in protocols or "grpcs" in protocols:
        headers = {"Connection": "Upgrade", "Upgrade": "HTTP/2"}
        return chain.error_response(HttpsRequired("Please use HTTP2 protocol", headers=headers), exchange)
    status = match.route.https_redirect_status_code
    if status == 426:
        headers = {"Connection": "Upgrade", "Upgrade": "TLS/1.2, HTTP/1.1"}
        return chain.error_response(HttpsRequired(headers=headers), exchange)
    location = f"https://{forwarded_host(exchange)}{exchange.request.target}"
    return Response(status, Headers([("Location", location)]), source="gateway_error")


def _add_debug_headers(exchange: Exchange, headers: Headers) -> None:
    for kind, entity in (("Route", exchange.route), ("Service", exchange.service)):
        if entity is not None:
            headers.add(f"Kong-{kind}-Id", entity.id or "")
            if entity.name:
                headers.add(f"Kong-{kind}-Name", entity.name)
