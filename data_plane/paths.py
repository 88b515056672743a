"""Request paths: how they are normalised before matching, joined with a service's path, escaped when sent.

Source: Kong's router (`reference/gateway.md` §2.3, §2.6), path handling v0.
"""

from __future__ import annotations

import re

from gateway_schema.paths import is_plain
from gateway_schema.paths import normalise as normal_form

_UNSAFE = re.compile(rb"[^!#$&'()*+,/:;=?@\[\]A-Za-z0-9._~%-]")


def normalise(path: str) -> str:
    """The path that routes are matched against and that goes upstream. `path` is latin-1 text as on the wire."""
    return path if is_plain(path) else normal_form(path.encode("latin-1", "replace"))


def normalise_configured(path: str) -> str:
    """The same for a path that stands in a configuration, which is text rather than wire bytes."""
    return path if is_plain(path) else normal_form(path.encode())


def escape(path: str) -> str:
    """A normalised path as it goes on the wire."""
    if is_plain(path):
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


def _sane(rest: str) -> str:
    """A match may end in the middle of a segment: what is left must not begin with a dot segment of its own."""
    if rest in (".", ".."):
        return ""
    if rest.startswith("./"):
        return rest[2:]
    return rest[3:] if rest.startswith("../") else rest
