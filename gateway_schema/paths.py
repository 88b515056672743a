"""The normal form of a path: what a route's path must be written in, and what a request's is brought into.

Source: Kong's router (`reference/gateway.md` §2.3).
"""

from __future__ import annotations

import re

_SEGMENT = r"[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*"
is_plain = re.compile(f"/(?:{_SEGMENT}/)*(?:{_SEGMENT})?").fullmatch
"""Paths that normalising leaves as they are: no escapes, no empty or dotted segments. Most paths are such."""

_RESERVED = frozenset(b"!*'();:@&=+$,/?%#[]")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_BYTE = re.compile("[\udc80-\udcff]")


def normalise(raw: bytes) -> str:
    """Escapes of everything but reserved characters are undone, those that stay are written in capitals, dot segments
    are resolved and repeated slashes merged. The result is UTF-8 text (bytes that are none survive as surrogates)."""
    return _without_dots(_ESCAPED.sub(_decode, raw).decode("utf-8", "surrogateescape"))


def written_normally(path: str) -> str:
    """The same for a path that a person wrote: what cannot be written as text stays escaped."""
    return path if is_plain(path) else _BYTE.sub(_escape, normalise(path.encode()))


def _decode(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    return match[0].upper() if value in _RESERVED else bytes((value,))


def _escape(match: re.Match[str]) -> str:
    return f"%{ord(match[0]) - 0xDC00:02X}"


def _without_dots(path: str) -> str:
    segments: list[str] = []
    parts = path.split("/")
    for part in parts[1:]:
        if part == "..":
            if segments:
                segments.pop()
        elif part not in ("", "."):
            segments.append(part)
    trailing = "/" if segments and parts[-1] in ("", ".", "..") else ""
    return "/" + "/".join(segments) + trailing
