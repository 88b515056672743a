"""Bytes from an upstream become responses. No socket here: bytes go in, one response at a time comes out.

The same strictness as towards clients: what two parties could frame differently is a fault, and ends the connection.
"""

from __future__ import annotations

import httptools

from data_plane.http1.body import Flow, IncomingBody
from data_plane.http1.familiar import Familiar, Memory
from data_plane.http1.framing import decode_field, is_chunked, is_excessive, size_of
from data_plane.http1.limits import ClientLimits
from data_plane.http1.whole import WholeReader
from data_plane.messages import Headers, Response

_MAX_INTERIM = 16
_BODILESS = frozenset({204, 304})
"""Answers that have no body, whatever length their head tells: the bytes behind that are no part of it."""
_VERSIONS = frozenset({"1.0", "1.1"})


class ProtocolFault(Exception):
    """What came is not a response to what was asked."""


class ResponseReader:
    """One connection's parser. Use: `expect`, then `feed` until `response` is there and `complete`."""

    __slots__ = (
        "_chunked",
        "_fault",
        "_fields",
        "_flow",
        "_head_ended",
        "_head_only",
        "_in_head",
        "_interim_count",
        "_length",
        "_limits",
        "_memory",
        "_parser",
        "_pieces",
        "_response",
        "_unfinished_size",
        "_until_close",
        "_whole",
        "_wire_size",
        "began",
        "body",
        "complete",
        "keep_alive",
        "on_body",
    )

    def __init__(self, limits: ClientLimits, flow: Flow) -> None:
        self._limits = limits
        self._flow = flow
        self._fault = ""
        self._head_only = False
        self._until_close = False
        self._chunked = False
        self._in_head = False
        self._head_ended = False
        self._interim_count = 0
        self._length: int | None = None
        self._unfinished_size = 0
        self._wire_size = 0
        self._response: Response | None = None
        self.body: IncomingBody | None = None
        """Where pieces go once the response was handed over without its whole body."""
        self.began = False
        """Bytes of an answer have come."""
        self.complete = True
        self.keep_alive = True
        self._fields: list[tuple[str, str]] = []
        """Of the head; after it, those of trailers, which nobody reads (RFC 9110 §6.5.1)."""
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        self._whole = WholeReader(httptools.HttpResponseParser)
        self._memory = Memory(limits.max_head_size)

    def expect(self, method: str) -> None:
        """The next bytes answer a request of this method."""
        self._head_only = method == "HEAD"
        self._interim_count = 0
        self._response = self.body = None
        self._pieces.clear()
        self.began = self.complete = False

    def close(self) -> None:
        """Nothing more will be fed. See `RequestReader.close`."""
        self._whole.close()
        del self._parser, self._flow
        self._response = self.body = None

    def feed(self, data: bytes) -> None:
        """Parse what arrived. Raises ProtocolFault."""
        if not (self.began or self.complete or self._head_only) and self._read_whole(data):
            return
        self.began = True
        unfinished = self._in_head
        self._head_ended = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ProtocolFault("the upstream switched protocols unasked") from None
        except httptools.HttpParserError as error:
            if not self.complete:
                raise ProtocolFault(self._fault or str(error)) from None
            self.keep_alive = False  # A sound answer with something behind it: it counts, the connection does not.
        if self.body is not None:
            self._pass_on(self.body, len(data))
        elif self._head_only and self._pieces:
            self._pieces.clear()
            self.keep_alive = False
        if unfinished and self._in_head and not self._head_ended:
            self._unfinished_size += len(data)
            if self._unfinished_size > self._limits.max_head_size:
                raise ProtocolFault("the head is too large")

    def recall(self, data: bytes) -> tuple[Familiar, bytes] | None:
        """A whole answer with a head that came before, and its body: then it is complete. Else nothing was read."""
        familiar = self._memory.last
        if familiar is None or self.began or self.complete or self._head_only:
            return None
        body = familiar.rest_of(data)
        if body is None:
            return None
        self._memory.strange = 0
        self.began = self.complete = self.keep_alive = True
        return familiar, body

    def _read_whole(self, data: bytes) -> bool:
        """Read an answer that is all here and plain; says whether it was one."""
        recalled = self.recall(data)
        if recalled is not None:
            familiar, body = recalled
            headers = familiar.head.headers(str(len(body)))
            self._response = Response(familiar.meaning, headers, body, source="upstream")
            self._pieces.append(body)
            return True
        whole = self._whole.read(data)
        if whole is None:
            return False
        first, headers, body, size = whole
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if version != "HTTP/1.1" or not code.isdigit() or int(code) < 200 or "content-length" not in headers:
            return False
        if len(headers) > self._limits.max_headers or size > self._limits.max_head_size:
            return False
        if int(code) in _BODILESS:
            return False
        headers = self._memory.keep(data, size, headers, int(code))
        self.began = self.complete = self.keep_alive = True
        self._response = Response(int(code), headers, body, source="upstream")
        self._pieces.append(body)
        return True

    def end(self) -> bool:
        """The connection was closed in good order: is that where this body ends? If so, it is complete."""
        if self._response is None or self.complete or not self._until_close:
            return False
        self.complete = True
        if self.body is not None:
            self.body.finish()
        return True

    def take_response(self) -> Response | None:
        """The response, once its head is here, and its body too if it is all here or small; else None."""
        response = self._response
        if response is None:
            return None
        pieces = self._pieces
        if self.complete:
            response.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
        elif self._length is not None and self._length <= self._limits.whole_body_size:
            return None
        else:
            body = response.body = self.body = IncomingBody(self._flow, self._length)
            self._wire_size = 0
            self._pass_on(body, 0)
        return response

    def _pass_on(self, body: IncomingBody, size: int) -> None:
        pieces = self._pieces
        if pieces:
            body.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            pieces.clear()
        if self.complete:
            body.finish()
        elif self._chunked:
            self._fields.clear()
            self._wire_size += size
            if is_excessive(self._wire_size, body.received):
                raise ProtocolFault("endless chunk extensions or trailers")

    # What httptools calls, beside `on_body`.

    def on_message_begin(self) -> None:
        if self.complete:
            raise self._faulty("more than was asked for")
        self._in_head = True
        self._unfinished_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append(decode_field(name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_ended = True
        parser = self._parser
        limits = self._limits
        fields, self._fields = self._fields, []
        if len(fields) > limits.max_headers or size_of(fields) > limits.max_head_size:
            raise self._faulty("the head is too large")
        version = parser.get_http_version()
        if version not in _VERSIONS:
            raise self._faulty(f"HTTP version {version}")
        status = parser.get_status_code()
        if status < 200:
            self._interim_count += 1
            if self._interim_count > _MAX_INTERIM:
                raise self._faulty("endless interim answers")
            return
        headers = Headers.adopt(fields)
        self.keep_alive = parser.should_keep_alive()
        self._frame(status, version, headers)
        self._response = Response(status, headers, source="upstream")
        if self._head_only:
            # llhttp cannot be told that no body follows; a new parser reads the next answer.
            self.complete = True
            self.keep_alive = self.keep_alive and not self._until_close
            self._parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        if self._response is not None:  # Else it was an interim answer.
            self.complete = True
        self._fields.clear()

    def _frame(self, status: int, version: str, headers: Headers) -> None:
        chunked = is_chunked(headers)
        if chunked is None or (chunked and version == "1.0"):
            raise self._faulty("unknown transfer coding")
        declared = headers.get("content-length")
        self._chunked = chunked
        self._length = None if declared is None else int(declared)
        self._until_close = not chunked and declared is None and status != 204 and status != 304

    def _faulty(self, detail: str) -> ProtocolFault:
        """Remember what is wrong, since llhttp passes on no exception of ours."""
        self._fault = detail
        return ProtocolFault(detail)
