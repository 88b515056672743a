"""Bytes from an upstream become responses. No socket here: bytes go in, one response at a time comes out.

The same strictness as towards clients: what two parties could frame differently is a fault, and ends the connection.
"""

from __future__ import annotations

import httptools

from data_plane.http1.body import Flow, IncomingBody
from data_plane.http1.framing import decode_name, is_chunked
from data_plane.http1.limits import ClientLimits
from data_plane.messages import Headers, Response

_MAX_INTERIM = 16
_FREE_OVERHEAD = 64 * 1024
"""Bytes of chunk sizes, extensions and trailers that any body may cost beside its data."""


class ProtocolFault(Exception):
    """What came is not a response to what was asked."""


class ResponseReader:
    """One connection's parser. Use: `expect`, then `feed` until `response` is there and `complete`."""

    def __init__(self, limits: ClientLimits, flow: Flow) -> None:
        self._limits = limits
        self._flow = flow
        self._parser = httptools.HttpResponseParser(self)
        self._fault = ""
        self._head_only = False
        self._until_close = False
        self._interim = False
        self._in_head = False
        self._interim_count = 0
        self._length: int | None = None
        self._fields: list[tuple[str, str]] = []
        self._head_size = 0
        self._unfinished_size = 0
        self._overhead = 0
        self._pieces: list[bytes] = []
        self._response: Response | None = None
        self.body: IncomingBody | None = None
        """Where pieces go once the response was handed over without its whole body."""
        self.began = False
        """Bytes of an answer have come."""
        self.complete = True
        self.keep_alive = True

    def expect(self, method: str) -> None:
        """The next bytes answer a request of this method."""
        self._head_only = method == "HEAD"
        self._interim_count = 0
        self._pieces = []
        self._response = self.body = None
        self.began = self.complete = False

    def feed(self, data: bytes) -> None:
        """Parse what arrived. Raises ProtocolFault."""
        self.began = True
        unfinished = self._in_head
        body = self.body
        seen = 0 if body is None else body.received
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ProtocolFault("the upstream switched protocols unasked") from None
        except httptools.HttpParserError as error:
            if self.complete:
                self.keep_alive = False  # A sound answer with something behind it: it counts, the connection does not.
                return
            raise ProtocolFault(self._fault or str(error)) from None
        if unfinished and self._in_head:
            self._unfinished_size += len(data)
            if self._unfinished_size > self._limits.max_head_size:
                raise ProtocolFault("the head is too large")
        elif body is not None and body.length is None and not self._until_close:
            self._overhead += len(data) - (body.received - seen)
            if self._overhead > _FREE_OVERHEAD + 16 * body.received:
                raise ProtocolFault("endless chunk extensions or trailers")

    def ends_with_connection(self) -> bool:
        """The connection was closed in good order: is that where this body ends? If so, it is complete."""
        if self._response is None or self.complete or not self._until_close:
            return False
        self._complete()
        return True

    def take_response(self) -> Response | None:
        """The response, once its head is here, and its body too if it is all here or small; else None."""
        response = self._response
        if response is None:
            return None
        if self.complete:
            pieces = self._pieces
            response.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        elif self._length is not None and self._length <= self._limits.whole_body_size:
            return None
        else:
            body = response.body = self.body = IncomingBody(self._flow, self._length)
            for piece in self._pieces:
                body.feed(piece)
            self._pieces = []
        return response

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False
            raise ProtocolFault("more than was asked for")
        self._in_head = True
        self._fields = []
        self._head_size = self._unfinished_size = self._overhead = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # A trailer, which we may drop (RFC 9110 §6.5.1).
            return
        if value[-1:] in b"\t ":
            value = value.rstrip(b"\t ")
        self._fields.append((decode_name(name), value.decode("latin-1")))
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.max_head_size or len(self._fields) > self._limits.max_headers:
            raise self._faulty("the head is too large")

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        status = parser.get_status_code()
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise self._faulty(f"HTTP version {version}")
        if status < 200:
            self._interim = True
            self._interim_count += 1
            if self._interim_count > _MAX_INTERIM:
                raise self._faulty("endless interim answers")
            return
        headers = Headers.adopt(self._fields)
        self.keep_alive = parser.should_keep_alive()
        self._frame(status, version, headers)
        self._response = Response(status, headers, source="upstream")
        if self._head_only:
            # llhttp cannot be told that no body follows; a new parser reads the next answer.
            self._complete()
            self.keep_alive = self.keep_alive and not self._until_close
            self._parser = httptools.HttpResponseParser(self)

    def on_body(self, piece: bytes) -> None:
        if self.complete:
            self.keep_alive = False
        elif self.body is not None:
            self.body.feed(piece)
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif not self.complete:
            self._complete()

    def _frame(self, status: int, version: str, headers: Headers) -> None:
        chunked = is_chunked(headers)
        if chunked is None or (chunked and version == "1.0"):
            raise self._faulty("unknown transfer coding")
        declared = headers.get("content-length")
        self._length = None if declared is None else int(declared)
        self._until_close = not chunked and declared is None and status not in (204, 304)

    def _complete(self) -> None:
        self.complete = True
        if self.body is not None:
            self.body.finish()

    def _faulty(self, detail: str) -> ProtocolFault:
        self._fault = detail
        return ProtocolFault(detail)
