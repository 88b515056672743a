"""Sending requests on: to a route's service, and to any URL for plugins' own calls.

Headers follow Kong's rules (`reference/gateway.md` §3.6, §3.7): what is between two hops stays between them, what tells
the service who called is written anew, and a client's own claims count only from a trusted address.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from data_plane.deadlines import Deadlines
from data_plane.errors import InvalidResponse, UpstreamError, UpstreamTimeout
from data_plane.exchange import Departure, Exchange
from data_plane.forwarding import forwarded_host
from data_plane.http1.client import Client, Origin, Pool
from data_plane.http1.framing import METHODS_WITH_BODY, arrived, request_head
from data_plane.http1.limits import Timeouts
from data_plane.loopback import Loopback
from data_plane.messages import BufferedBody, Head, Headers, Request, Response
from data_plane.paths import escape
from data_plane.settings import VERSION
from gateway_schema import defaults
from gateway_schema.entities import Service

SERVER: Final = f"kong/{VERSION}"
VIA: Final = f"1.1 {SERVER}"

_NOT_IDEMPOTENT: Final = frozenset({"POST", "PATCH", "LOCK"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_NEVER_AGAIN: Final = frozenset({"dns", "tls"})
"""Failures that another try at the same address would only repeat."""

_KEEP, _DROP, _HOST, _CONNECTION, _TE, _FOR, _VIA, _CLAIM, _SERVER = range(9)


class _Actions:
    """What happens to each header by its name, remembered for the spellings that were seen: names seldom vary."""

    _REMEMBERED = 2048

    def __init__(self, actions: Mapping[str, int]) -> None:
        self._actions = actions
        self._seen: dict[str, int] = {}
        self.seen = self._seen.get

    def look_up(self, name: str) -> int:
        action = self._actions.get(name.lower(), _KEEP)
        if len(self._seen) < self._REMEMBERED:
            self._seen[name] = action
        return action


_REQUEST: Final = _Actions(
    {
        "connection": _CONNECTION,
        "content-length": _DROP,
        "expect": _DROP,
        "host": _HOST,
        "keep-alive": _DROP,
        "proxy": _DROP,
        "proxy-connection": _DROP,
        "te": _TE,
        "trailer": _DROP,
        "transfer-encoding": _DROP,
        "upgrade": _DROP,
        "via": _VIA,
        "x-forwarded-for": _FOR,
        "x-forwarded-host": _CLAIM,
        "x-forwarded-path": _CLAIM,
        "x-forwarded-port": _CLAIM,
        "x-forwarded-prefix": _CLAIM,
        "x-forwarded-proto": _CLAIM,
        "x-kong-request-id": _DROP,
        "x-real-ip": _DROP,
    }
)
_RESPONSE: Final = _Actions(
    {
        "connection": _CONNECTION,
        "keep-alive": _DROP,
        "proxy-connection": _DROP,
        "server": _SERVER,
        "te": _DROP,
        "trailer": _DROP,
        "transfer-encoding": _DROP,
        "upgrade": _DROP,
        "via": _VIA,
        "x-kong-proxy-latency": _DROP,
        "x-kong-request-id": _DROP,
        "x-kong-upstream-latency": _DROP,
    }
)


@dataclass(slots=True, frozen=True)
class Template:
    """A service's head around what differs between exchanges: the request id, then, at the end, the body's length."""

    before: bytes
    after: bytes
    has_length: bool

    def fill(self, name: str, length: int) -> bytes:
        if self.has_length:
            return b"%b%b%b%d\r\n\r\n" % (self.before, name.encode(), self.after, length)
        return b"%b%b%b" % (self.before, name.encode(), self.after)


class ServiceUpstream:
    """A service behind the gateway, as `exchange.upstream`."""

    def __init__(self, service: Service, client: Client, loopback: Loopback, port: int) -> None:
        """`port` is the listener's, for X-Forwarded-Port."""
        scheme = _SCHEMES[service.protocol]
        verify = service.tls_verify if service.tls_verify is not None else defaults.TLS_VERIFY
        self._client = client
        self._loopback = loopback if loopback.names_us(service.host, service.port) else None
        self._origin = Origin(scheme, service.host.strip("[]"), service.port, verify=verify)
        self._host = service.host if service.port == _DEFAULT_PORTS[scheme] else f"{service.host}:{service.port}"
        self._port = str(port)
        self.timeouts = Timeouts(
            service.connect_timeout / 1000, service.write_timeout / 1000, service.read_timeout / 1000
        )
        self._retries = service.retries

    @property
    def is_remote(self) -> bool:
        """Whether it is somebody else, not this node itself."""
        return self._loopback is None

    def pool(self) -> Pool | None:
        """The service's connections, if there are any."""
        return self._client.pool(self._origin)

    def template(self, exchange: Exchange, head: Head) -> Template | None:
        """The service's head for an exchange, around its id; None where it cannot be told from one exchange.

        It is noted on `head`, the head that the exchange's request has. Raises InvalidHeader.
        """
        request = exchange.request
        key = (exchange.match, request.method, request.target, request.peer[0], exchange.scheme, exchange.client_ip)
        noted: tuple[object, Template | None] | None = head.notes.get(self)
        if noted is None or noted[0] != key:
            noted = (key, self._template(exchange))
            head.note(self, noted)
        return noted[1]

    def _template(self, exchange: Exchange) -> Template | None:
        """Made of the head that the ordinary way makes, which has a body of no bytes for this."""
        if exchange.request.method not in METHODS_WITH_BODY and exchange.request.body.length:
            return None
        name = exchange.id.encode()
        before, found, after = request_head(self._request(exchange), self._origin, 0).partition(name)
        if not found or name in after:
            return None
        ending = b"\r\nContent-Length: 0\r\n\r\n"
        has_length = after.endswith(ending)
        return Template(before, after[: -len(b"0\r\n\r\n")] if has_length else after, has_length)

    async def send(self, exchange: Exchange) -> Response:
        """Ask the service; raises UpstreamError when it gave no answer."""
        if exchange.chat is not None and exchange.chat.dirty:
            await exchange.body_bytes()
        if self._loopback is not None:
            response = await self._loopback.send(self._request(exchange), exchange, self.timeouts.read)
        else:
            response = await self._send(exchange)
        exchange.upstream_status = response.status
        response.source = "upstream"
        response.headers = _proxied(response.headers)
        return response

    # Without waiting (`exchange.QuickUpstream`).

    def depart(self, exchange: Exchange) -> Departure | None:
        if self._loopback is not None or exchange.chat is not None:
            return None
        body, pool = exchange.request.body, self.pool()
        assert isinstance(body, BufferedBody)
        head = self._familiar_head(exchange)
        if head is None:
            head = request_head(self._request(exchange), self._origin, len(body.data))
        behind = None if pool is None else pool.take()
        if behind is None:
            return None
        return behind, exchange.request.method, head + body.data, self.timeouts

    def land(self, exchange: Exchange, response: Response) -> Response | None:
        exchange.upstream_status = response.status
        headers = _proxied(response.headers)
        return Response(response.status, headers, response.body, source="upstream", reason=response.reason)

    def forsake(self, exchange: Exchange) -> None:
        pass

    async def _send(self, exchange: Exchange) -> Response:
        request, head = exchange.request, self._familiar_head(exchange)
        if (ride := request.ride) is not None:
            exchange.marks.first_attempt = exchange.marks.upstream_started = ride.sent_at
        if head is None:
            request = self._request(exchange)
            request.ride, exchange.request.ride = ride, None
        try:
            return await self._client.send(self._origin, request, self.timeouts, head)
        except UpstreamError as error:
            return await self._try_again(request, head, exchange, error)

    def _familiar_head(self, exchange: Exchange) -> bytes | None:
        """The head for the service, where one like it was made before and the body is all here."""
        request = exchange.request
        head = request.headers.origin
        if head is None or type(request.body) is not BufferedBody:
            return None
        template, length = self.template(exchange, head), len(request.body.data)
        if template is None or (length and not template.has_length):
            return None
        return template.fill(exchange.id, length)

    async def _try_again(
        self, request: Request, head: bytes | None, exchange: Exchange, error: UpstreamError
    ) -> Response:
        for _ in range(self._retries):
            if not _may_repeat(request, error):
                break
            exchange.marks.upstream_started = time.monotonic()
            try:
                return await self._client.send(self._origin, request, self.timeouts, head)
            except UpstreamError as another:
                error = another
        raise error

    def _request(self, exchange: Exchange) -> Request:
        match = exchange.match
        assert match is not None, "a service is asked for matched requests only"
        request = exchange.request
        _, mark, query = request.target.partition("?")
        return Request(
            request.method,
            match.upstream_path + mark + query,
            Headers.adopt(self._headers(exchange)),
            request.body,
            scheme=self._origin.scheme,
            peer=request.peer,
        )

    def _headers(self, exchange: Exchange) -> list[tuple[str, str]]:
        request, match = exchange.request, exchange.match
        assert match is not None
        route = match.route
        kept: list[tuple[str, str]] = []
        host, named, forwarded_for, via = self._host, "", "", ""
        claims: dict[str, str] = {}
        seen = _REQUEST.seen
        for pair in request.headers.raw:
            action = seen(pair[0])
            if action is None:
                action = _REQUEST.look_up(pair[0])
            if action == _KEEP:
                kept.append(pair)
            elif action == _DROP:
                continue
            elif action == _HOST:
                if route.preserve_host:
                    host = pair[1]
            elif action == _CONNECTION:
                if pair[1] != "keep-alive":  # What nearly all say, which names no field.
                    named = f"{named},{pair[1]}"
            elif action == _FOR:
                forwarded_for += pair[1] + ", "
            elif action == _VIA:
                via += pair[1] + ", "
            elif action == _CLAIM and exchange.trusted:
                claims[pair[0].lower()] = pair[1]
            elif action == _TE and pair[1].strip().lower() == "trailers":
                kept.append(pair)
        if named:
            kept = without_named(kept, named)
        prefix = match.prefix if route.strip_path and match.prefix != "/" else ""
        kept += (
            ("Host", host),
            ("X-Forwarded-For", forwarded_for + request.peer[0]),
            ("X-Forwarded-Proto", exchange.scheme),
            ("X-Forwarded-Host", forwarded_host(exchange)),
            ("X-Forwarded-Port", claims.get("x-forwarded-port") or self._port),
            ("X-Forwarded-Path", claims.get("x-forwarded-path") or request.path),
            ("X-Real-IP", exchange.client_ip),
            ("X-Kong-Request-Id", exchange.id),
            ("Via", via + VIA),
        )
        if prefix := claims.get("x-forwarded-prefix") or (escape(prefix) if prefix else ""):
            kept.append(("X-Forwarded-Prefix", prefix))
        return kept


def _proxied(headers: Headers) -> Headers:
    """An upstream's response headers as they go on; for a head that came before, as it went on then."""
    head = headers.origin
    if head is None:
        return Headers.adopt(proxied(headers.raw))
    onward: Head | None = head.notes.get(proxied)
    if onward is None:
        onward = Head(proxied(head.fields))
        head.note(proxied, onward)
    return onward.headers(headers.get("content-length") or "")


def proxied(raw: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """An upstream's response headers as they go on: without those of the connection, with our Via and a Server."""
    kept: list[tuple[str, str]] = []
    named, via, server = "", "", False
    seen = _RESPONSE.seen
    for pair in raw:
        action = seen(pair[0])
        if action is None:
            action = _RESPONSE.look_up(pair[0])
        if action == _KEEP:
            kept.append(pair)
        elif action == _SERVER:
            kept.append(pair)
            server = True
        elif action == _VIA:
            via += pair[1] + ", "
        elif action == _CONNECTION and pair[1] != "keep-alive":  # What nearly all say, which names no field.
            named = f"{named},{pair[1]}"
    if named:
        kept = without_named(kept, named)
    kept.append(("Via", via + VIA))
    if not server:
        kept.append(("Server", SERVER))
    return kept


def without_named(headers: list[tuple[str, str]], connection: str) -> list[tuple[str, str]]:
    """Drop the fields that a Connection header names: they were meant for this hop only."""
    names = {name.strip().lower() for name in connection.split(",")} - {"", "close", "keep-alive"}
    return [pair for pair in headers if pair[0].lower() not in names] if names else headers


def _may_repeat(request: Request, error: UpstreamError) -> bool:
    """nginx's rule: what may have been done already is only done again where that is harmless, and possible."""
    if error.kind in _NEVER_AGAIN:
        return False
    if not error.sent:
        return True
    return request.method not in _NOT_IDEMPOTENT and arrived(request) is not None


class CallHeaders(dict[str, str | list[str]]):
    """Headers that may be given for many calls: what becomes of them is kept with them, by the URL's authority.

    It is forgotten when the configuration changes: handlers of old ones may have left notes there.
    """

    __slots__ = ("_heads", "_version")

    _REMEMBERED = 16

    def __init__(self, headers: Mapping[str, str | list[str]] = MappingProxyType({})) -> None:
        super().__init__(headers)
        self._heads: dict[str, tuple[Head, str]] = {}
        self._version: int | None = None

    def towards(self, authority: str, version: int | None) -> Headers:
        """Once asked, these headers must not be changed. `version`: of the configuration."""
        known = self._heads.get(authority) if version == self._version else None
        if known is None:
            if version != self._version or len(self._heads) >= self._REMEMBERED:
                self._heads.clear()
                self._version = version
            fields = _given(self, authority)
            known = self._heads[authority] = Head(fields.raw, fields.index), fields.get("content-length") or ""
        head, length = known
        return head.headers(length)


class Sender:
    """Implements `exchange.HttpSender`: plugins' own calls, over the network or to ourselves."""

    def __init__(self, client: Client, loopback: Loopback) -> None:
        self._client = client
        self._loopback = loopback
        self._deadlines = Deadlines()

    async def fetch(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str | list[str]],
        body: bytes,
        *,
        parent: Exchange,
        timeout: float,
        verify: bool = True,
        server_name: str | None = None,
    ) -> Response:
        """See `HttpSender.fetch`. Raises UpstreamError. The response's body keeps to the same deadline."""
        scheme, host, port, authority, target = split_url(url)
        if isinstance(headers, CallHeaders):
            fields = headers.towards(authority, getattr(parent.runtime, "version", None))
        else:
            fields = _given(headers, authority)
        request = Request(method, target, fields, BufferedBody(body), scheme=scheme)
        due = time.monotonic() + timeout
        if parent.deadline is not None:
            due = min(due, parent.deadline)
        if scheme == "http" and self._loopback.names_us(host, port):
            request.peer = ("127.0.0.1", 0)
            response = await self._loopback.send(request, parent, due - time.monotonic())
        else:
            origin = Origin(scheme, host, port, server_name=server_name, verify=verify)
            response = await self._send(origin, request, due)
        if not isinstance(response.body, bytes):
            response.body = _until(response.body, due, self._deadlines)
        return response

    async def _send(self, origin: Origin, request: Request, due: float) -> Response:
        left = max(due - time.monotonic(), 0.001)
        try:
            with self._deadlines.within(left):
                return await self._client.send(origin, request, Timeouts(left, left, left))
        except TimeoutError:
            raise UpstreamTimeout("timeout_read", "the whole call took too long", sent=True) from None


@lru_cache(maxsize=1024)
def split_url(url: str) -> tuple[str, str, int, str, str]:
    """Scheme, host, port, authority and request target of an absolute URL. Raises InvalidResponse for no such URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidResponse("protocol", "a call to something that is not a URL") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise InvalidResponse("protocol", "a call to something that is not an absolute http or https URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority = parts.netloc.rpartition("@")[2]
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], authority, target


def _given(headers: Mapping[str, str | list[str]], authority: str) -> Headers:
    pairs: list[tuple[str, str]] = []
    for name, value in headers.items():
        pairs.extend((name, one) for one in ([value] if isinstance(value, str) else value))
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", authority))
    return Headers(pairs)


async def _until(body: AsyncIterator[bytes], due: float, deadlines: Deadlines) -> AsyncIterator[bytes]:
    """The pieces of a body, none of them later than `due` on the monotonic clock."""
    pieces = aiter(body)
    while True:
        try:
            with deadlines.within(due - time.monotonic()):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UpstreamTimeout("timeout_read", "the whole call took too long", sent=True) from None
        yield piece
