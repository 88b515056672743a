"""Errors as Kong's Admin API answers them: `message`, and for entities `code`, `name` and `fields`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response
from starlette.exceptions import HTTPException

from control_plane.errors import ControlPlaneError

_KONG_MEMBERS = ("code", "name", "fields", "options")
"""The members of an error that Kong's clients know; Konnect's own stay on Konnect's face."""


def body_of(error: ControlPlaneError) -> dict[str, Any]:
    shown = {key: error.members[key] for key in _KONG_MEMBERS if key in error.members}
    return {**shown, "message": error.message}


def error_response(error: ControlPlaneError) -> Response:
    return _response(body_of(error), error.status, error.headers)


def routing_response(error: HTTPException, method: str) -> Response:
    """No such path, or another method. OPTIONS is answered on every path that exists, with what is allowed there."""
    if error.status_code != 405:
        return _response({"message": "Not found"}, 404, {})
    methods = (error.headers or {}).get("Allow", "").split(", ")
    allowed = {"Allow": ", ".join(sorted(methods))}
    if method == "OPTIONS":
        return Response(status_code=204, headers=allowed)
    return _response({"message": "Method not allowed"}, 405, allowed)


def _response(body: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> Response:
    return Response(orjson.dumps(body, default=str), status, dict(headers), media_type="application/json")
