"""Heads that come again: what was read once need not be read a second time.

Theory. On a kept connection a client sends nearly the same head with every request, and many upstreams answer with
nearly the same one. Bytes that are equal to those of a message that was found sound are as sound, and mean the same: so
the last message's head is kept, and the next is first compared with it, which costs a fiftieth of parsing. Only the
number in Content-Length may differ; it must be, digit for digit, the size of the rest of the bytes, so that a match is
exactly one message, whole. Whatever is not a match goes to the readers proper, which know nothing of this.
"""

from __future__ import annotations

import re
from typing import Any

from data_plane.http1.express import Line
from data_plane.messages import Head, Headers

_MAX_SIZE = 8 * 1024
"""Bytes of a head that are kept with a connection."""
_MAX_DIGITS = 20
"""Of the number in a Content-Length."""
_PATIENCE = 8
"""Strange heads in a row after which a connection counts as one that never says the same twice."""
_RETRY = 64
"""Of such a connection, every so manyeth head is given another chance."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)


class Familiar:
    """A head that was read, in wire form: what stands before the number in its Content-Length and what behind.

    `meaning` is whatever the reader wants to be told again.
    """

    __slots__ = (
        "_after",
        "_after_size",
        "_at",
        "_before",
        "_size",
        "_total",
        "_whole",
        "has_length",
        "head",
        "is_barred",
        "line",
        "meaning",
        "onward",
        "rest",
        "size",
    )

    def __init__(self, data: bytes, size: int, headers: Headers, meaning: Any) -> None:
        found = _LENGTH.search(data, 0, size)
        start, end = found.span(1) if found is not None else (size, size)
        self._before = data[:start]
        self._after = data[end:size]
        self._at = start
        self._after_size = size - end
        self._whole = data[:size]
        self._size, self._total = size, len(data)
        self.head = Head(headers.raw, headers.index)
        self.meaning = meaning
        self.has_length = found is not None
        self.size = size - (end - start)
        """Bytes, less those of the number."""
        self.line: Line | None = None
        """Of a request's head: the express way for it, where the application knows one."""
        self.is_barred = False
        """There is no express way for it."""
        self.rest = 0
        """Answers that shall go the ordinary way before the express way is tried again."""
        self.onward: Any = None
        """Of an answer's head: how it goes on to clients, as the application noted it."""

    def size_with(self, body: bytes) -> int:
        """Bytes of the head in front of this body."""
        return self.size + len(str(len(body))) if self.has_length else self.size

    def rest_of(self, data: bytes) -> bytes | None:
        """The body, if the bytes are one message with this head and a body as long as it says."""
        at = self._at
        if len(data) == self._total and data.startswith(self._whole):
            return data[self._size :]
        if not data.startswith(self._before):
            return None
        if not self._after_size:
            return b"" if len(data) == at else None
        end = data.find(b"\r", at, at + _MAX_DIGITS)
        if end < 0 or not data.startswith(self._after, end):
            return None
        rest = data[end + self._after_size :]
        return rest if data[at:end] == b"%d" % len(rest) else None


class Memory:
    """What one connection's reader remembers: the last head, unless heads there never come twice."""

    __slots__ = ("_max_size", "last", "strange")

    def __init__(self, max_head_size: int = _MAX_SIZE) -> None:
        """`max_head_size`: what the reader allows. What is remembered keeps to it whatever length it may tell."""
        self._max_size = min(_MAX_SIZE, max_head_size - _MAX_DIGITS)
        self.strange = 0
        """Heads that were not the last one, since one was."""
        self.last: Familiar | None = None

    def keep(self, data: bytes, size: int, headers: Headers, meaning: Any) -> Headers:
        """Remember a message that was read, whole and plain; its head takes `size` bytes of `data`.

        Returns the headers to go on with: the list of those given may be what is remembered, and must not be changed.
        """
        self.strange += 1
        if size > self._max_size or (self.strange > _PATIENCE and self.strange % _RETRY):
            return headers
        familiar = self.last = Familiar(data, size, headers, meaning)
        return familiar.head.headers(headers.get("content-length") or "")
