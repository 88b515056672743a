"""Bytes from a client become requests. No socket here: bytes go in, requests come out, refusals are raised.

llhttp, in its strict mode, refuses bare line feeds, folded header lines, control characters, spaces before colons, a
`Content-Length` that is repeated, malformed or beside `Transfer-Encoding`. What it lets through and two parties could
read differently is refused here: codings other than `chunked`, chunked HTTP/1.0, versions that are not 1.0 or 1.1, no
or several or odd `Host` fields, targets that are not a path. After a refusal nothing more is read from the connection.

This is the hottest code of the data plane: a request that arrives whole and plain is read by `whole`, and only the rest
comes further. llhttp's callbacks are bound to `list.append` where they can be, and a body that arrives with its head
never becomes an IncomingBody.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from data_plane.errors import BadRequest, GatewayError, HeadTooLarge, PayloadTooLarge, UriTooLong
from data_plane.http1.body import Flow, IncomingBody
from data_plane.http1.familiar import Familiar, Memory
from data_plane.http1.framing import decode_field, is_chunked, is_excessive, size_of
from data_plane.http1.limits import ServerLimits
from data_plane.http1.whole import WholeReader
from data_plane.messages import BufferedBody, Headers, Request

_METHODS = {
    name.encode(): name
    for names in (
        ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "SEARCH", "PURGE", "REPORT"),
        ("COPY", "LOCK", "UNLOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "ACL", "MERGE", "MKCALENDAR", "CHECKOUT"),
        ("BIND", "REBIND", "UNBIND", "LINK", "UNLINK", "MKACTIVITY", "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE"),
    )
    for name in names
}
"""What llhttp knows, less CONNECT (we are no tunnel) and the methods of RTSP and ICE."""
_METHOD_NAMES = frozenset(_METHODS.values())
_VERSIONS = frozenset({"1.0", "1.1"})
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z\-._~!$&'()*+,;=%]*)(?::[0-9]{0,5})?").fullmatch
_ABSOLUTE = re.compile(r"https?://([^/?#]+)([^#]*)", re.IGNORECASE).fullmatch
_FIXED = len(" HTTP/1.1\r\n") + len(" ") + len("\r\n")


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


class Arrival(Request):
    """A request as it arrived, with what its answer must know."""

    __slots__ = ("data", "expects_continue", "familiar", "incoming", "keep_alive")

    data: bytes | None
    """All of it as it came, where it is whole and its head is new."""
    familiar: Familiar | None
    """The head it was read from, where that came before."""
    expects_continue: bool
    incoming: IncomingBody | None
    """The body, where it was not all here when the request was; `body` may have been replaced since."""
    keep_alive: bool


class RequestReader:
    """One connection's parser. `arrived` is called with each request: when it is complete or, if that takes more than
    one read, when its head is."""

    __slots__ = (
        "_arrived",
        "_chunked",
        "_fields",
        "_flow",
        "_head_ended",
        "_host",
        "_last",
        "_length",
        "_limits",
        "_parser",
        "_peer",
        "_pending",
        "_pieces",
        "_refusal",
        "_resuming",
        "_target",
        "_unfinished_size",
        "_whole",
        "_wire_size",
        "body",
        "is_between",
        "memory",
        "on_body",
        "on_url",
    )

    def __init__(
        self, limits: ServerLimits, flow: Flow, arrived: Callable[[Arrival], None], peer: tuple[str, int] = ("", 0)
    ) -> None:
        self._limits = limits
        self._flow = flow
        self._arrived = arrived
        self._peer = peer
        self._refusal: Refused | None = None
        self._last = False
        self._resuming = False
        self._host = ""
        self._unfinished_size = 0
        self._wire_size = 0
        self._head_ended = False
        self._length = 0
        self._chunked = False
        self._pending: Arrival | None = None
        """The request whose head is complete but whose body was not yet seen to be."""
        self.body: IncomingBody | None = None
        """The body that is arriving."""
        self._target: list[bytes] = []
        self._fields: list[tuple[str, str]] = []
        """Of the head; after it, those of trailers, which nobody reads (RFC 9110 §6.5.1)."""
        self._pieces: list[bytes] = []
        self.on_url = self._target.append
        self.on_body = self._pieces.append
        self._parser = httptools.HttpRequestParser(self)
        self.is_between = True
        """Whether the parser has seen no byte of a request that it has not seen the end of."""
        self._whole = WholeReader(httptools.HttpRequestParser)
        self.memory = Memory(limits.max_head_size)

    def close(self) -> None:
        """Nothing more will be fed: let go of what holds on to this reader, or is held in a circle through it.

        Such circles wait for the garbage collector, and a collection that finds the remains of a few hundred
        connections stops the event loop for tens of milliseconds.
        """
        self._whole.close()
        del self._parser, self._arrived, self._flow
        self.body = self._pending = self._refusal = None

    @property
    def in_head(self) -> bool:
        """Whether some but not all of a head is here."""
        return bool(self._target)

    def feed(self, data: bytes) -> None:
        """Parse what arrived. Raises Refused; then, and after a request that closes the connection, no more is read."""
        if self._last and self.body is None:
            return
        arrival = self.whole(data) if self.is_between else None
        if arrival is not None:
            self._arrived(arrival)
            return
        unfinished = bool(self._target)
        self._head_ended = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data, upgrade.args[0])
        except httptools.HttpParserError:
            self._stop()
        if self._pending is not None:
            self._open_body(self._pending)
        elif self._pieces and self.body is not None:
            self._pass_on(self.body)
        if self._target:
            self._count_unfinished(len(data) if unfinished and not self._head_ended else 0)
        elif self.body is not None and self._chunked:
            self._count_overhead(self.body, len(data))

    def arrival_of(self, familiar: Familiar, body: bytes) -> Arrival:
        """The request with a head that came before and this body."""
        length = str(len(body))
        arrival = Arrival.__new__(Arrival)  # `__init__`, written out: this is done for most requests
        arrival.method, arrival.target = familiar.meaning
        arrival.headers = familiar.head.headers(length)
        arrival.body = BufferedBody(body)
        arrival.scheme = "http"
        arrival.http_version = "1.1"
        arrival.peer = self._peer
        arrival.size = familiar.size + len(length) if familiar.has_length else familiar.size
        arrival.ride = arrival.incoming = arrival.data = None
        arrival.familiar = familiar
        arrival.expects_continue = False
        arrival.keep_alive = True
        return arrival

    def whole(self, data: bytes) -> Arrival | None:
        """The request that the bytes are, if it is whole, and like the one before or at least for its host."""
        limits = self._limits
        familiar = self.memory.last
        body = familiar.rest_of(data) if familiar is not None else None
        if familiar is not None and body is not None:
            if limits.max_body_size and len(body) > limits.max_body_size:
                return None
            self.memory.strange = 0
            return self.arrival_of(familiar, body)
        whole = self._whole.read(data)
        if whole is None:
            return None
        first, headers, body, size = whole
        method, _, rest = first.partition(" ")
        target, _, version = rest.partition(" ")
        if version != "HTTP/1.1" or method not in _METHOD_NAMES or target[:1] != "/" or "#" in target:
            return None
        if headers.get("host") != self._host or not self._host:
            return None
        if len(target) > limits.max_target_size or size > limits.max_head_size or len(headers.raw) > limits.max_headers:
            return None
        if limits.max_body_size and len(body) > limits.max_body_size:
            return None
        headers = self.memory.keep(data, size, headers, (method, target))
        arrival = Arrival(method, target, headers, BufferedBody(body), peer=self._peer, size=size)
        arrival.data = data
        arrival.familiar = arrival.incoming = None
        arrival.expects_continue = False
        arrival.keep_alive = True
        return arrival

    # Rare turns.

    def _decline_upgrade(self, data: bytes, offset: int) -> None:
        """Go on after a request that offers another protocol (h2c, websocket), which we decline by ignoring the offer.

        llhttp has stopped there. If the request has a body it has skipped it, too: then a new parser is told of the
        body by a head of our own.
        """
        try:
            while True:
                if self._pending is not None:
                    body = b"Transfer-Encoding: chunked" if self._chunked else b"Content-Length: %d" % self._length
                    self._parser = httptools.HttpRequestParser(self)
                    self._resuming = True
                    self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % body)
                    self._resuming = False
                    self._target.clear()
                    self._fields.clear()
                data = data[offset:]
                try:
                    self._parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    offset = upgrade.args[0]
        except httptools.HttpParserError:
            self._stop()

    def _stop(self) -> None:
        """llhttp or one of our callbacks found fault. Raises Refused, unless it lies behind the last request."""
        refusal = self._refusal
        if refusal is None:
            if self._last and self.body is None and self._pending is None:
                return
            refusal = Refused(BadRequest())
        if self._pending is not None:
            self._open_body(self._pending)
        self._fail(refusal)

    def _fail(self, refusal: Refused) -> None:
        if self.body is not None:
            refusal.in_body = True
            self.body.fail(refusal.error)
        self._last, self.body = True, None
        self._target.clear()
        raise refusal

    def _refuse(self, error: GatewayError, request: Request | None = None) -> Refused:
        """Remember why, since llhttp passes on no exception of ours; `_stop` raises it."""
        self._refusal = Refused(error, request)
        return self._refusal

    def _count_unfinished(self, size: int) -> None:
        """Bound a head that does not end. Its first part is bounded by the size of one read."""
        self._unfinished_size = self._unfinished_size + size if size else 0
        if not self._fields and sum(map(len, self._target)) > self._limits.max_target_size:
            self._fail(Refused(UriTooLong()))
        if self._unfinished_size > self._limits.max_head_size or len(self._fields) > self._limits.max_headers:
            self._fail(Refused(HeadTooLarge()))

    def _count_overhead(self, body: IncomingBody, size: int) -> None:
        self._fields.clear()
        self._wire_size += size
        if is_excessive(self._wire_size, body.received):
            self._fail(Refused(BadRequest()))

    def _open_body(self, arrival: Arrival) -> None:
        """The head is here and the body is not, or not all of it: let the request go ahead of it."""
        self._pending = None
        self._wire_size = 0
        self.body = arrival.incoming = arrival.body = IncomingBody(self._flow, None if self._chunked else self._length)
        expectation = arrival.headers.get("expect")
        arrival.expects_continue = (
            expectation is not None and expectation.lower() == "100-continue" and arrival.http_version == "1.1"
        )
        self._arrived(arrival)
        self._pass_on(self.body)

    def _pass_on(self, body: IncomingBody) -> None:
        pieces = self._pieces
        if not pieces:
            return
        body.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        pieces.clear()
        limit = self._limits.max_body_size
        if limit and body.received > limit:
            # Only a chunked body can get here. The answer is up to whoever reads it.
            body.fail(PayloadTooLarge())
            self._last, self.body = True, None

    # What httptools calls, beside `on_url` and `on_body`.

    def on_message_begin(self) -> None:
        self.is_between = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append(decode_field(name, value))

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        parser = self._parser
        limits = self._limits
        target = self._target[0] if len(self._target) == 1 else b"".join(self._target)
        fields, self._fields = self._fields, []
        method = _METHODS.get(parser.get_method())
        version = parser.get_http_version()
        if method is None or version not in _VERSIONS:
            raise self._refuse(BadRequest())
        size = size_of(fields) + len(method) + len(target) + _FIXED
        if len(target) > limits.max_target_size:
            raise self._refuse(UriTooLong())
        if size > limits.max_head_size or len(fields) > limits.max_headers:
            raise self._refuse(HeadTooLarge())
        self._target.clear()
        self._head_ended = True
        headers = Headers.adopt(fields)
        arrival = Arrival(
            method,
            self._checked_target(target.decode("latin-1"), method, version, headers),
            headers,
            BufferedBody(),
            http_version=version,
            peer=self._peer,
            size=size,
        )
        arrival.data = arrival.familiar = arrival.incoming = None
        arrival.expects_continue = False
        arrival.keep_alive = parser.should_keep_alive()
        self._last = not arrival.keep_alive
        self._frame(arrival, headers, version)
        self._pending = arrival

    def on_message_complete(self) -> None:
        arrival, body, pieces = self._pending, self.body, self._pieces
        if arrival is not None:
            if (self._length or self._chunked) and self._parser.should_upgrade():
                return  # llhttp takes it for complete, but its body is still to come.
            self._pending = None
            if pieces:
                self._fill(arrival, pieces)
            self._arrived(arrival)
        elif body is not None:
            self._pass_on(body)
            self.body = None
            body.finish()
        if self._fields:
            self._fields.clear()
        self.is_between = True

    def _fill(self, arrival: Arrival, pieces: list[bytes]) -> None:
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        limit = self._limits.max_body_size
        if limit and len(data) > limit:
            raise self._refuse(PayloadTooLarge(), arrival)
        arrival.body = BufferedBody(data)

    # What a head must satisfy beyond llhttp's rules.

    def _checked_target(self, target: str, method: str, version: str, headers: Headers) -> str:
        """The target in origin form. Of an absolute target, the host goes to the Host field (RFC 9112 §3.2.2)."""
        host = headers.get("host")
        if host != self._host:
            if host is not None:
                self._check_host(host)
            elif version == "1.1":
                raise self._refuse(BadRequest())
        if headers.has_repeats and len(headers.get_all("host")) > 1:
            raise self._refuse(BadRequest())
        if target[0] == "/" and "#" not in target:
            return target
        if target == "*" and method == "OPTIONS":
            return target
        absolute = _ABSOLUTE(target)
        if absolute is None:
            raise self._refuse(BadRequest())
        authority, rest = absolute[1], absolute[2]
        self._check_host(authority)
        headers.set("Host", authority)
        return rest if rest[:1] == "/" else f"/{rest}"

    def _check_host(self, host: str) -> None:
        if _HOST(host) is None:
            raise self._refuse(BadRequest())
        self._host = host

    def _frame(self, request: Request, headers: Headers, version: str) -> None:
        """Note how the body's end is told."""
        self._length = 0
        chunked = is_chunked(headers)
        self._chunked = chunked is not False
        if chunked is not False:
            if chunked is None or version == "1.0":
                raise self._refuse(BadRequest())
            return
        declared = headers.get("content-length")
        if declared is not None:
            length = self._length = int(declared)
            limit = self._limits.max_body_size
            if limit and length > limit:
                raise self._refuse(PayloadTooLarge(), request)
