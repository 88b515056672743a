"""How messages are written: heads, chunks, and the rule that says where a body ends.

Framing is decided here and nowhere else: whatever `Content-Length`, `Transfer-Encoding`, `Connection` and `Keep-Alive`
a plugin or an upstream left among the headers of a response is replaced by what we really do. A name or value that
would break out of its line raises InvalidHeader, so no header can end a head early or add another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from data_plane.messages import BufferedBody, Head, Headers, Request, Response

BY_LENGTH, CHUNKED, UNTIL_CLOSE, NO_BODY = range(4)
"""How the end of a body is told."""

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_PLAIN, _CONTENT_LENGTH, _DROPPED, _CONNECTION, _DATE, _HOST = range(6)
_REPLACED = (_CONTENT_LENGTH, _DROPPED)
_SPECIAL = {
    "content-length": _CONTENT_LENGTH,
    "transfer-encoding": _DROPPED,
    "keep-alive": _DROPPED,
    "connection": _CONNECTION,
    "date": _DATE,
    "host": _HOST,
}
_MAX_KNOWN = 2048
"""Names remembered; beyond it each is checked again, so that strangers cannot fill our memory."""
_kinds: dict[str, int] = {}
_FREE_OVERHEAD = 64 * 1024
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_TARGET = re.compile(r"[!-~\x80-\xff]+").fullmatch
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
"""Those whose requests tell a length even when it is 0."""
_WITHOUT_BODY = frozenset({204, 304})
_BLOCK = object()
"""Names the note on an answer's head that has its fields in wire form."""
_WIRE = object()
"""Names the note on a request's head that has its wire form, up to the body's length."""


class InvalidHeader(ValueError):
    """A header (or request line) that cannot be written as it is. Names the field, never its value."""


class _Names(dict[bytes, str]):
    """Header names as text; common ones are shared rather than made anew, which is also faster than decoding them."""

    def __missing__(self, name: bytes) -> str:
        text = name.decode("latin-1")
        if len(self) < _MAX_KNOWN:
            self[name] = text
        return text


_NAMES = _Names()


def decode_field(name: bytes, value: bytes) -> tuple[str, str]:
    """A header field as text, without the space that may follow its value, which llhttp leaves there."""
    return (_NAMES[name], value.rstrip().decode("latin-1"))


def size_of(fields: list[tuple[str, str]]) -> int:
    """Bytes that header fields take on the wire."""
    return sum([len(name) + len(value) for name, value in fields]) + 4 * len(fields)


def is_excessive(wire_size: int, body_size: int) -> bool:
    """Whether a chunked body costs too much reading beside its data: extensions and trailers must end somewhere."""
    return wire_size > _FREE_OVERHEAD + 16 * body_size


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Addressed(Protocol):
    """An origin, as far as a head names it."""

    @property
    def authority(self) -> str: ...


class ResponseHead:
    """A response's head in wire form, and how its body must follow."""

    __slots__ = ("data", "framing", "keep_alive", "length")

    def __init__(self, data: bytes, framing: int, length: int, keep_alive: bool) -> None:
        self.data = data
        self.framing = framing
        self.length = length
        """Bytes of body to write, where `framing` is BY_LENGTH."""
        self.keep_alive = keep_alive


def response_head(response: Response, method: str, http_1_0: bool, keep_alive: bool) -> ResponseHead:
    """Serialise a head. Raises InvalidHeader."""
    status, headers, body = response.status, response.headers, response.body
    base = headers.base
    if base is None or method == "HEAD" or status < 200 or status in _WITHOUT_BODY:
        return _response_head(response, method, http_1_0, keep_alive, _NOTHING, headers.raw, None)
    block: _Block = base.notes.get(_BLOCK) or _write_block(base)
    fields = headers.raw[len(base.fields) :]
    if block.dated and keep_alive and not (block.closes or http_1_0) and type(body) is bytes:
        # The commonest case: what was added are plain fields.
        lines = [f"{name}: {value}\r\n" for name, value in fields if _kinds.get(name) == _PLAIN]
        if len(lines) == len(fields):
            lines.append(f"Content-Length: {len(body)}\r\n")
            data = b"%b%b%b" % (_status_line(status, response.reason), block.data, _encode(lines))
            return ResponseHead(data, BY_LENGTH, len(body), True)
    declared = headers.get_all("content-length")[-1] if block.has_length else None
    return _response_head(response, method, http_1_0, keep_alive and not block.closes, block, fields, declared)


def _response_head(
    response: Response,
    method: str,
    http_1_0: bool,
    keep_alive: bool,
    block: _Block,
    fields: Sequence[tuple[str, str]],
    declared: str | None,
) -> ResponseHead:
    """`block` is what is written already, `fields` are the rest, `declared` the length that the block's fields tell."""
    lines: list[str] = []
    dated = block.dated
    known = _kinds.get
    for name, value in fields:
        kind = known(name)
        if kind is None:
            kind = _classify(name)
        if kind == _PLAIN:
            lines.append(f"{name}: {value}\r\n")
        elif kind == _CONTENT_LENGTH:
            declared = value
        elif kind == _CONNECTION:
            keep_alive = keep_alive and "close" not in value.lower()
        elif kind not in _REPLACED:
            dated = dated or kind == _DATE
            lines.append(f"{name}: {value}\r\n")
    status, body = response.status, response.body
    size = len(body) if isinstance(body, bytes) else _declared_length(declared)
    framing = _framing(status, method, size, http_1_0)
    if framing == NO_BODY:
        _describe_absent_body(lines, status, body, size, declared)
    elif framing == BY_LENGTH:
        lines.append(f"Content-Length: {size}\r\n")
    elif framing == CHUNKED:
        lines.append("Transfer-Encoding: chunked\r\n")
    else:
        keep_alive = False
    if not dated:
        lines.append(_date_line())
    if not keep_alive:
        lines.append("Connection: close\r\n")
    elif http_1_0:
        lines.append("Connection: keep-alive\r\n")
    data = b"%b%b%b" % (_status_line(status, response.reason), block.data, _encode(lines))
    return ResponseHead(data, framing, size or 0, keep_alive)


class _Block:
    """The fields of a head that comes again, in wire form, without those that are replaced."""

    __slots__ = ("closes", "data", "dated", "has_length")

    def __init__(self, data: bytes, dated: bool, closes: bool, has_length: bool) -> None:
        self.data = data
        self.dated = dated
        self.closes = closes
        self.has_length = has_length


_NOTHING = _Block(b"", False, False, False)


def _write_block(head: Head) -> _Block:
    """Write the fields and note them. Raises InvalidHeader."""
    lines: list[str] = []
    dated = closes = False
    for name, value in head.fields:
        kind = _kinds.get(name)
        if kind is None:
            kind = _classify(name)
        if kind == _CONNECTION:
            closes = closes or "close" in value.lower()
        elif kind not in _REPLACED:
            dated = dated or kind == _DATE
            lines.append(f"{name}: {value}\r\n")
    block = _Block(_encode(lines)[:-2], dated, closes, "content-length" in head.index)
    head.note(_BLOCK, block)
    return block


def request_head(request: Request, origin: Addressed, length: int | None) -> bytes:
    """Serialise a head whose body has `length` bytes (None: chunked). Adds Host and framing only. InvalidHeader."""
    head = request.headers.origin
    if head is None or length is None or request.method not in METHODS_WITH_BODY:
        return _request_head(request, origin, length)
    key = (request.method, request.target, origin)
    noted = head.notes.get(_WIRE)
    if noted is None or noted[0] != key:
        noted = (key, _request_head(request, origin, 0)[: -len(b"0\r\n\r\n")])
        head.note(_WIRE, noted)
    return b"%b%d\r\n\r\n" % (noted[1], length)


def _request_head(request: Request, origin: Addressed, length: int | None) -> bytes:
    method, target = request.method, request.target
    if method not in METHODS_WITH_BODY and _TOKEN(method) is None:
        raise InvalidHeader("invalid request method")
    if _TARGET(target) is None:
        raise InvalidHeader("invalid request target")
    lines = [f"{method} {target} HTTP/1.1\r\n"]
    has_host = False
    known = _kinds.get
    for name, value in request.headers.raw:
        kind = known(name)
        if kind is None:
            kind = _classify(name)
        if kind == _PLAIN:
            lines.append(f"{name}: {value}\r\n")
        elif kind not in _REPLACED:
            has_host = has_host or kind == _HOST
            lines.append(f"{name}: {value}\r\n")
    if not has_host:
        lines.insert(1, f"Host: {origin.authority}\r\n")
    if length is None:
        lines.append("Transfer-Encoding: chunked\r\n")
    elif length or method in METHODS_WITH_BODY:
        lines.append(f"Content-Length: {length}\r\n")
    return _encode(lines)


def arrived(request: Request) -> bytes | None:
    """The whole body of a request if it is all here, else None."""
    body = request.body
    if type(body) is BufferedBody:
        return body.data
    probe = getattr(body, "arrived", None)
    data: bytes | None = probe() if probe is not None else None
    return data


def is_chunked(headers: Headers) -> bool | None:
    """Whether `Transfer-Encoding` says chunked; None when it names anything else, which nobody here can decode."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        return False
    alone = not headers.has_repeats or len(headers.get_all("transfer-encoding")) == 1
    return True if alone and coding.lower() == "chunked" else None


def _classify(name: str) -> int:
    if _TOKEN(name) is None:
        raise InvalidHeader("invalid header name")
    kind = _SPECIAL.get(name.lower(), _PLAIN)
    if len(_kinds) < _MAX_KNOWN:
        _kinds[name] = kind
    return kind


def _encode(lines: list[str]) -> bytes:
    """Join a head's lines. Each has exactly one CR and one LF of its own; one more was smuggled in by a value."""
    text = "".join(lines)
    count = len(lines)
    if text.count("\n") != count or text.count("\r") != count or "\0" in text:
        culprit = next((line for line in lines if re.search(r"[\0\r\n]", line[:-2])), lines[0])
        raise InvalidHeader(f"line break or NUL in {culprit.partition(':')[0][:64]!r}")
    try:
        return (text + "\r\n").encode("latin-1")
    except UnicodeEncodeError:
        raise InvalidHeader("a header is not latin-1 text") from None


def _framing(status: int, method: str, size: int | None, http_1_0: bool) -> int:
    if method == "HEAD" or status == 204 or status == 304 or status < 200:
        return NO_BODY
    if size is not None:
        return BY_LENGTH
    return UNTIL_CLOSE if http_1_0 else CHUNKED


def _describe_absent_body(lines: list[str], status: int, body: object, size: int | None, declared: str | None) -> None:
    """The answer to HEAD, and 304, tell the length that the body would have; 204 must not."""
    if status == 204 or status < 200:
        return
    told = _declared_length(declared)
    if told is None and status != 304 and isinstance(body, bytes):
        told = size
    if told is not None:
        lines.append(f"Content-Length: {told}\r\n")


def _declared_length(value: str | None) -> int | None:
    return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 19 else None


def _status_line(status: int, reason: str) -> bytes:
    """Raises InvalidHeader."""
    if reason:
        return _encode([f"HTTP/1.1 {status:03d} {reason}\r\n"])[:-2]
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %03d \r\n" % status


_date_cache: tuple[int, str] = (0, "")


def _date_line() -> str:
    global _date_cache
    now = int(time.time())
    if _date_cache[0] != now:
        _date_cache = (now, f"Date: {formatdate(now, usegmt=True)}\r\n")
    return _date_cache[1]
