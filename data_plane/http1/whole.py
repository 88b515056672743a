"""Messages that came whole, in one read, and hold nothing unusual: nearly all of them, read the quick way.

Most of what parsing costs is llhttp's calls back, one for each header field. Here llhttp is only asked whether the
bytes are exactly one message; then the head is cut at its line ends. That is sound because llhttp, in its strict mode,
lets pass no line end but CR LF, no folded line and no name with a colon or a blank: cutting finds what it found.

None is always a safe answer: the readers proper then read the same bytes from their start, and what is to be refused,
they refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httptools

from data_plane.messages import Headers

_MAX_KNOWN = 2048
_UNUSUAL = frozenset({"expect", "proxy-connection", "trailer", "transfer-encoding", "upgrade"})
"""Fields that have a say in framing, or in what becomes of the connection, beside the two that are understood here."""


Whole = tuple[str, Headers, bytes, int]
"""A message: its first line, its fields, its body, and the size of its head on the wire."""


class _Lowered(dict[str, str]):
    """Header names in lower case; common ones are looked up rather than made anew."""

    def __missing__(self, name: str) -> str:
        lowered = name.lower()
        if len(self) < _MAX_KNOWN:
            self[name] = lowered
        return lowered


_LOWERED = _Lowered()


class WholeReader:
    """One connection's quick reader. `parser` is llhttp's for requests, or the one for responses."""

    __slots__ = ("_count", "_judge", "_parser")

    def __init__(self, parser: Callable[[object], Any]) -> None:
        self._parser = parser
        self._judge: Any = None
        self._count = 0

    def read(self, data: bytes) -> Whole | None:
        """The message that the bytes are, if they are exactly one, whole and plain, that keeps the connection alive."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = data[:end].decode("latin-1").split("\r\n")
        fields: list[tuple[str, str]] = []
        index: dict[str, Any] = {}
        lowered = _LOWERED
        for line in lines[1:]:
            name, _, value = line.partition(":")
            index[lowered[name]] = len(fields)
            fields.append((name, value.strip(" \t")))
        if len(index) != len(fields) or not _UNUSUAL.isdisjoint(index):
            return None
        if "connection" in index and fields[index["connection"]][1] != "keep-alive":
            return None
        body = data[end + 4 :]
        declared = fields[index["content-length"]][1] if "content-length" in index else "0"
        if declared != str(len(body)) or not self._is_one(data):
            return None
        return lines[0], Headers.adopt(fields, index), body, end + 4

    def close(self) -> None:
        """Nothing more will be read: let go of the parser, which holds on to this reader."""
        self._judge = None

    def _is_one(self, data: bytes) -> bool:
        judge = self._judge
        if judge is None:
            judge = self._judge = self._parser(self)
        self._count = 0
        try:
            judge.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._judge = None
            return False
        if self._count != 1:
            self._judge = None  # It is in the middle of something.
            return False
        return True

    def on_message_complete(self) -> None:
        self._count += 1
