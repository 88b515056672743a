"""Request paths: how they are normalised before matching, joined with a service's path, escaped when sent.

Source: Kong's router (`reference/gateway.md` §2.3, §2.6), path handling v0.
"""

from __future__ import annotations

import re

_SEGMENT = r"[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*"
_PLAIN = re.compile(f"/(?:{_SEGMENT}/)*(?:{_SEGMENT})?").fullmatch
"""Paths that normalising leaves as they are: no escapes, no empty or dotted segments. Most paths are such."""

_RESERVED = frozenset(b"!*'();:@&=+$,/?%#[]")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(rb"[^!#$&'()*+,/:;=?@\[\]A-Za-z0-9._~%-]")


def normalise(path: str) -> str:
    """The path that routes are matched against and that goes upstream.

    Escapes of everything but reserved characters are undone, those that stay are written in capitals, dot segments
    are resolved and repeated slashes merged. `path` is latin-1 text as on the wire; the result is UTF-8 text (bytes
    that are none survive as surrogates).
    """
    if _PLAIN(path):
        return path
    raw = _ESCAPED.sub(_decode, path.encode("latin-1", "replace"))
    return _without_dots(raw.decode("utf-8", "surrogateescape"))


def normalise_configured(path: str) -> str:
    """The same for a path that stands in a configuration, which is text rather than wire bytes."""
    if _PLAIN(path):
        return path
    raw = _ESCAPED.sub(_decode, path.encode())
    return _without_dots(raw.decode("utf-8", "surrogateescape"))


def escape(path: str) -> str:
    """A normalised path as it goes on the wire."""
    if _PLAIN(path):
        return path
    raw = path.encode("utf-8", "surrogateescape")
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")


def join(service_path: str, path: str, rest: str, *, strip: bool) -> str:
    """The upstream's path: `path` is the normalised request path, `rest` what is left of it behind the match.

    Follows the table of `reference/gateway.md` §2.6 row by row.
    """
    rest = _sane(rest)
    slash = service_path.endswith("/")
    if not strip:
        if slash:
            return service_path + path[1:]
        return service_path if path == "/" else service_path + path
    if rest == "":
        if slash:
            return service_path if path.endswith("/") or service_path == "/" else service_path[:-1]
        return service_path + "/" if len(path) > 1 and path.endswith("/") else service_path
    if rest.startswith("/"):
        return (service_path[:-1] if slash else service_path) + rest
    return service_path + rest if slash else f"{service_path}/{rest}"


def _decode(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    return match[0].upper() if value in _RESERVED else bytes((value,))


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


def _sane(rest: str) -> str:
    """A match may end in the middle of a segment: what is left must not begin with a dot segment of its own."""
    if rest in (".", ".."):
        return ""
    if rest.startswith("./"):
        return rest[2:]
    return rest[3:] if rest.startswith("../") else rest
