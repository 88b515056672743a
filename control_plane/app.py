"""The HTTP application of a control plane: its routers, its errors, its outermost layer."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from control_plane.api import (
    admin,
    admin_errors,
    analytics,
    apply,
    audit,
    config_stores,
    entities,
    extras,
    groups,
    kinds,
    konnect,
    memberships,
    nodes,
    openapi,
    plans,
    receipts,
    schemas,
    segments,
    snapshots,
    tokens,
)
from control_plane.api.answers import Health
from control_plane.api.openapi import shows
from control_plane.auth import path_of, tell_denied
from control_plane.database import is_away
from control_plane.errors import (
    BodyTooLarge,
    ControlPlaneError,
    InvalidParameters,
    MethodNotAllowed,
    NotFound,
    Unavailable,
    Unexpected,
    new_trace,
    problem,
    without_values,
)
from control_plane.plane import ControlPlane
from control_plane.settings import MAX_BODY_BYTES, VERSION

_log = logging.getLogger(__name__)


_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Asgi = Callable[[_Message, _Receive, _Send], Awaitable[None]]


def create_app(plane: ControlPlane) -> FastAPI:
    """The HTTP application of a control plane that is, or will be, open."""
    # Its pages come with their own scripts: nothing is fetched from elsewhere.
    app = FastAPIOffline(
        title="Tandem control plane",
        version=VERSION,
        description="Konnect's control-plane paths, core entities, the atomic apply, nodes and analytics.",
        openapi_url="/openapi.json",
    )
    app.state.plane = plane
    bearer = [Depends(HTTPBearer(auto_error=False, description="A token of this control plane (kpat_…)"))]
    routers = _routers()
    for router in routers:
        app.include_router(router, dependencies=bearer)
    app.router.routes.append(admin.route())
    app.include_router(konnect.open_to_all)
    app.add_api_route("/health", _health, tags=["health"], responses=shows(Health))
    app.add_exception_handler(ControlPlaneError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_middleware(Edge, limit=MAX_BODY_BYTES)
    _serve_document(app)
    own = [route for route in app.router.routes if isinstance(route, Route)]
    app.state.routes = [*own, *(route for router in (*routers, konnect.open_to_all) for route in router.routes)]
    return app


def _serve_document(app: FastAPI) -> None:
    """Our OpenAPI document in place of FastAPI's own. It takes a second to make: when first asked for, off the loop."""
    app.openapi = functools.cache(lambda: openapi.document(app))  # type: ignore[method-assign]
    made = functools.cache(lambda: orjson.dumps(app.openapi()))

    async def answer_document() -> Response:
        return Response(await asyncio.to_thread(made), media_type="application/json")

    own = [route for route in app.router.routes if getattr(route, "path", None) != app.openapi_url]
    app.router.routes[:] = own
    app.add_api_route(str(app.openapi_url), answer_document, include_in_schema=False)


def _routers() -> list[APIRouter]:
    """In the order in which they are tried."""
    return [
        konnect.router,
        memberships.router,
        config_stores.router,
        extras.router,
        apply.router,
        plans.router,
        snapshots.router,
        receipts.router,
        nodes.router,
        *entities.routers(kinds.collection),
        groups.router(),
        schemas.router,
        analytics.router,
        tokens.router,
        audit.router,
    ]


async def _health() -> dict[str, str]:
    """Whether the process answers; needs no token."""
    return {"status": "ok", "version": VERSION}


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ControlPlaneError)
    await tell_denied(request, error)
    return _problem_response(error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself finds: no such path, another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _problem_response(MethodNotAllowed({"Allow": ", ".join(sorted(_allowed(request)))}))
    return _problem_response(NotFound(f"there is nothing at {request.url.path}"))


def _allowed(request: Request) -> set[str]:
    """The methods of a path. Each is a route of its own, and the framework names those of the first."""
    allowed: set[str] = set()
    for route in request.app.state.routes:
        matched, _ = route.matches(request.scope)
        if matched is not Match.NONE:
            allowed |= getattr(route, "methods", None) or set()
    return allowed | {"HEAD"} if "GET" in allowed else allowed


async def _answer_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        {
            "field": str(detail["loc"][-1]),
            "rule": "invalid",
            "reason": str(detail["msg"]),
            "source": str(detail["loc"][0]),
        }
        for detail in error.errors()
    ]
    return _problem_response(InvalidParameters(found))


def _problem_response(error: ControlPlaneError, trace: str | None = None) -> Response:
    return Response(orjson.dumps(problem(error, trace), default=str), error.status, error.headers, openapi.PROBLEM)


class Edge:
    """The outermost layer: bodies of limited size, and an answer also for faults of ours, with a trace to the log."""

    def __init__(self, app: _Asgi, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, is_head = False, scope["method"] == "HEAD"
        scope.setdefault("state", {})  # one for all copies of the scope that are made on the way in

        async def watch(message: _Message) -> None:
            nonlocal started
            started = True
            await send({**message, "body": b""} if is_head and message["type"] == "http.response.body" else message)

        try:
            self._check_announced(scope)
            # HEAD is a GET whose answer ends with its head, on every path of either face.
            asked = {**scope, "method": "GET"} if is_head else scope
            await self._app(segments.split(asked), self._counted(receive), watch)
        except ClientDisconnect:
            return  # nobody is left to answer, and nothing of ours failed
        except Exception as error:
            if started:
                raise
            await self._refuse(error, scope, receive, send)

    def _check_announced(self, scope: _Message) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > self._limit:
                raise BodyTooLarge(self._limit)

    def _counted(self, receive: _Receive) -> _Receive:
        received = 0

        async def count() -> _Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise BodyTooLarge(self._limit)
            return message

        return count

    @staticmethod
    async def _refuse(error: Exception, scope: _Message, receive: _Receive, send: _Send) -> None:
        trace = new_trace()
        if not isinstance(error, ControlPlaneError):
            path, cause = path_of(scope) or admin.PREFIX, without_values(error)
            _log.error("%s %s failed (%s)", scope["method"], path, trace, exc_info=cause)
            error = Unavailable() if is_away(error) else Unexpected()
        on_admin = scope["path"].startswith(admin.PREFIX)
        response = admin_errors.error_response(error) if on_admin else _problem_response(error, trace)
        await response(scope, receive, send)
