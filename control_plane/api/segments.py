"""Paths, split before they are decoded: a name with `/` in it is one segment, written `%2F`.

Servers decode a path whole, and then `consumers/alice%2Fplugins` looks like `consumers/alice/plugins`. So the
outermost layer decodes it anew, segment by segment, and leaves two characters of a segment encoded: `/` and `%`. In
this form routes match it; what they take from it as a parameter is decoded to the end where it is taken. Paths without
any `%` are in this form as they come.

The framework's tables of convertors are the one place that all routes, of both faces, take their parameters from.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from control_plane.errors import BadRequest, NotFound

_IN_LINKS = "/%:@!$&'()*+,;=~"
"""What may stand in a path as it is; `%` because the path has its own encoded already."""


def split(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The same request with its path in the form that routes match. Raises BadRequest, and NotFound for a path with a
    NUL, which nothing has in its name."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%" not in raw:
        return scope
    try:
        segments = [unquote_to_bytes(segment).decode() for segment in raw.split(b"/")]
    except UnicodeDecodeError:
        raise BadRequest("the path is not UTF-8: encode its names as UTF-8, then as %XX") from None
    path = "/".join(segment.replace("%", "%25").replace("/", "%2F") for segment in segments)
    if "\0" in path:
        raise NotFound(f"there is nothing at {raw.decode()}: no name has a NUL (%00) in it")
    return {**scope, "path": path}


def own_path(request: Request) -> str:
    """The path of a request for a link to it."""
    return quote(request.url.path, safe=_IN_LINKS)


class _Segment(Convertor[str]):
    """A parameter that is one segment."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value) if "%" in value else value

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


class _Rest(_Segment):
    """A parameter that is all the rest, slashes included."""

    regex = ".*"

    def to_string(self, value: str) -> str:
        return quote(value)


def register() -> None:
    """In place of the framework's convertors for parameters that are texts."""
    register_url_convertor("str", _Segment())
    register_url_convertor("path", _Rest())
