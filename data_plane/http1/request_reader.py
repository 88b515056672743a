"""Bytes from a client become requests. No socket here: bytes go in, requests come out, refusals are raised.

llhttp, in its strict mode, refuses bare line feeds, folded header lines, control characters, spaces before colons, a
`Content-Length` that is repeated, malformed or beside `Transfer-Encoding`. What it lets through and two parties could
read differently is refused here: codings other than `chunked`, chunked HTTP/1.0, versions that are not 1.0 or 1.1, no
or several or odd `Host` fields, targets that are not a path. After a refusal nothing more is read from the connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from data_plane.errors import BadRequest, GatewayError, HeadTooLarge, PayloadTooLarge, UriTooLong
from data_plane.http1.body import Flow, IncomingBody
from data_plane.http1.framing import decode_name, is_chunked
from data_plane.http1.limits import ServerLimits
from data_plane.messages import BufferedBody, Headers, Request

_METHODS = {
    b"GET": "GET",
    b"HEAD": "HEAD",
    b"POST": "POST",
    b"PUT": "PUT",
    b"DELETE": "DELETE",
    b"PATCH": "PATCH",
    b"OPTIONS": "OPTIONS",
    b"TRACE": "TRACE",
    b"COPY": "COPY",
    b"LOCK": "LOCK",
    b"UNLOCK": "UNLOCK",
    b"MKCOL": "MKCOL",
    b"MOVE": "MOVE",
    b"PROPFIND": "PROPFIND",
    b"PROPPATCH": "PROPPATCH",
    b"SEARCH": "SEARCH",
    b"BIND": "BIND",
    b"REBIND": "REBIND",
    b"UNBIND": "UNBIND",
    b"ACL": "ACL",
    b"REPORT": "REPORT",
    b"MKACTIVITY": "MKACTIVITY",
    b"CHECKOUT": "CHECKOUT",
    b"MERGE": "MERGE",
    b"M-SEARCH": "M-SEARCH",
    b"NOTIFY": "NOTIFY",
    b"SUBSCRIBE": "SUBSCRIBE",
    b"UNSUBSCRIBE": "UNSUBSCRIBE",
    b"PURGE": "PURGE",
    b"MKCALENDAR": "MKCALENDAR",
    b"LINK": "LINK",
    b"UNLINK": "UNLINK",
    b"QUERY": "QUERY",
}
"""What llhttp knows, less CONNECT (we are no tunnel) and the methods of RTSP and ICE."""
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z\-._~!$&'()*+,;=%]*)(?::[0-9]{0,5})?").fullmatch
_ABSOLUTE = re.compile(r"https?://([^/?#]+)([^#]*)", re.IGNORECASE).fullmatch
_FREE_OVERHEAD = 64 * 1024
"""Bytes of chunk sizes, extensions and trailers that any body may cost beside its data."""


class Refused(Exception):
    """The connection must end. `request` is given when its head was sound.

    With `in_body`, the fault lies in the body of a request that has arrived already: reading that body raises the
    error, and the answer is up to whoever reads it. Else this error is the answer.
    """

    def __init__(self, error: GatewayError, request: Request | None = None) -> None:
        self.error = error
        self.request = request
        self.in_body = False
        super().__init__(error.message)


class Arrival:
    """A request whose head is here, and what its answer must know."""

    __slots__ = ("body", "expects_continue", "http_1_0", "keep_alive", "request")

    def __init__(self, request: Request, body: IncomingBody | None, keep_alive: bool, expects_continue: bool) -> None:
        self.request = request
        self.body = body
        self.keep_alive = keep_alive
        self.http_1_0 = request.http_version == "1.0"
        self.expects_continue = expects_continue


class RequestReader:
    """One connection's parser. `arrived` is called with each request when its head is complete."""

    def __init__(
        self, limits: ServerLimits, flow: Flow, arrived: Callable[[Arrival], None], peer: tuple[str, int] = ("", 0)
    ) -> None:
        self._limits = limits
        self._flow = flow
        self._arrived = arrived
        self._peer = peer
        self._parser = httptools.HttpRequestParser(self)
        self._refusal: Refused | None = None
        self._last = False
        self._host = ""
        self._target = b""
        self._fields: list[tuple[str, str]] = []
        self._head_size = 0
        self._unfinished_size = 0
        self._overhead = 0
        self._request: Request | None = None
        self._resuming = False
        self.in_head = False
        """Some but not all bytes of a head are here."""
        self.body: IncomingBody | None = None
        """The body that is arriving."""

    def feed(self, data: bytes) -> None:
        """Parse what arrived. Raises Refused; then, and after a request that closes the connection, no more is read."""
        if self._last and self.body is None:
            return
        unfinished = self.in_head
        body, seen = self.body, 0 if self.body is None else self.body.received
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if self._refusal is None and self._last and self.body is None:
                return  # Bytes after the last request of a connection: none of our business.
            raise self._refused() from None
        if unfinished and self.in_head:
            self._count_unfinished(len(data))
        elif body is not None and body.length is None and body is self.body:
            self._count_overhead(body, len(data) - (body.received - seen))

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # The client offers another protocol (h2c, websocket). We may decline by ignoring it, but llhttp has
                # already stopped, and skipped the request's body if there is one.
                self._decline_upgrade()
                data = data[upgrade.args[0] :]

    def _decline_upgrade(self) -> None:
        """Have what follows parsed as the body that the head announced: a parser is told of it by a head of our own."""
        body = self.body
        if body is None:
            return
        framing = b"Transfer-Encoding: chunked" if body.length is None else b"Content-Length: %d" % body.length
        self._parser = httptools.HttpRequestParser(self)
        self._resuming = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        self._resuming = False

    def _refused(self) -> Refused:
        refusal = self._refusal or Refused(BadRequest())
        if self.body is not None:
            refusal.in_body = True
            self.body.fail(refusal.error)
        self._last, self.body, self.in_head = True, None, False
        return refusal

    def _refuse(self, error: GatewayError, request: Request | None = None) -> Refused:
        """Remember why, since llhttp passes on no exception of ours; `feed` raises it."""
        self._refusal = Refused(error, request)
        return self._refusal

    def _count_unfinished(self, size: int) -> None:
        self._unfinished_size += size
        if self._unfinished_size > self._limits.max_head_size:
            self._refuse(HeadTooLarge())
            raise self._refused()

    def _count_overhead(self, body: IncomingBody, size: int) -> None:
        """Chunk extensions and trailers cost us reading but are no body: an endless one must end somewhere."""
        self._overhead += size
        if self._overhead > _FREE_OVERHEAD + 16 * body.received:
            self._refuse(BadRequest())
            raise self._refused()

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        self.in_head = True
        self._target = b""
        self._fields = []
        self._head_size = self._unfinished_size = self._overhead = 0

    def on_url(self, part: bytes) -> None:
        if self._resuming:
            return
        self._target += part
        if len(self._target) > self._limits.max_target_size:
            raise self._refuse(UriTooLong())

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:  # A trailer, which we may drop (RFC 9110 §6.5.1), or the head made by `_decline_upgrade`.
            return
        if value[-1:] in b"\t ":
            value = value.rstrip(b"\t ")
        self._fields.append((decode_name(name), value.decode("latin-1")))
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.max_head_size or len(self._fields) > self._limits.max_headers:
            raise self._refuse(HeadTooLarge())

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        parser = self._parser
        version = parser.get_http_version()
        method = _METHODS.get(parser.get_method())
        if method is None or version not in ("1.1", "1.0"):
            raise self._refuse(BadRequest())
        headers = Headers.adopt(self._fields)
        size = self._head_size + len(method) + len(self._target) + len(" HTTP/1.1\r\n") + 3
        target = self._checked_target(method, version, headers)
        request = Request(method, target, headers, BufferedBody(), http_version=version, peer=self._peer, size=size)
        body = self._open_body(request)
        if body is not None:
            self.body = request.body = body
        self.in_head = False
        keep_alive = parser.should_keep_alive()
        self._last = not keep_alive
        expects = body is not None and version == "1.1" and (headers.get("expect") or "").lower() == "100-continue"
        self._arrived(Arrival(request, body, keep_alive, expects))

    def on_body(self, piece: bytes) -> None:
        body = self.body
        if body is None:
            return
        body.feed(piece)
        limit = self._limits.max_body_size
        if limit and body.received > limit:
            # Only a chunked body can get here: the answer is up to whoever reads it.
            body.fail(PayloadTooLarge())
            self._last, self.body = True, None

    def on_message_complete(self) -> None:
        body = self.body
        # Where an upgrade was offered, llhttp takes the message for complete although its body is still to come.
        if body is not None and not self._parser.should_upgrade():
            self.body = None
            body.finish()

    # What a head must satisfy beyond llhttp's rules.

    def _checked_target(self, method: str, version: str, headers: Headers) -> str:
        """The target in origin form. Of an absolute target, the host goes to the Host field (RFC 9112 §3.2.2)."""
        hosts = headers.get_all("host")
        if len(hosts) != 1 and (hosts or version == "1.1"):
            raise self._refuse(BadRequest())
        if hosts:
            self._check_host(hosts[0])
        target = self._target.decode("latin-1")
        if target[:1] == "/" and "#" not in target:
            return target
        if target == "*" and method == "OPTIONS":
            return target
        absolute = _ABSOLUTE(target)
        if absolute is None:
            raise self._refuse(BadRequest())
        host, rest = absolute[1], absolute[2]
        self._check_host(host)
        headers.set("Host", host)
        return rest if rest[:1] == "/" else f"/{rest}"

    def _check_host(self, host: str) -> None:
        if host == self._host:
            return
        if _HOST(host) is None:
            raise self._refuse(BadRequest())
        self._host = host

    def _open_body(self, request: Request) -> IncomingBody | None:
        headers = request.headers
        chunked = is_chunked(headers)
        if chunked is None or (chunked and request.http_version == "1.0"):
            raise self._refuse(BadRequest())
        if chunked:
            return IncomingBody(self._flow, None)
        length = int(headers.get("content-length") or 0)
        limit = self._limits.max_body_size
        if limit and length > limit:
            raise self._refuse(PayloadTooLarge(), request)
        return IncomingBody(self._flow, length) if length else None
