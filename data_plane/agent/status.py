"""The status API of a node: whether it lives, whether it is ready, and its figures for Prometheus.

    GET  /status         always 200: what runs here
    GET  /status/ready   200, or 503 with the reason, also after POST {"status": "draining"}
    GET  /metrics        Prometheus text

Readiness depends on there being a configuration that all workers run, never on the control plane being there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from data_plane.errors import GatewayError
from data_plane.messages import Headers, Request, Response
from data_plane.settings import VERSION

EMPTY_HASH = "0" * 32
MAX_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class WorkerView:
    index: int
    pid: int
    version: int
    hash: str
    state: str
    """starting, ready or failed."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is known about the node at one moment."""

    node_id: str
    hostname: str
    proxy: str
    control_plane: str
    control_plane_name: str
    control_plane_connected: bool
    version: int
    hash: str
    expected_workers: int
    workers: tuple[WorkerView, ...]
    worker_restarts: int
    spool_bytes: int
    spool_limit: int
    waiting_batches: int
    unsent_events: int
    last_sequence: int
    dropped_events: int
    requests: dict[int, int] = field(default_factory=dict)
    """By status, since the agent started."""
    certificate_expiry: float | None = None
    """Unix seconds."""


class Node(Protocol):
    """The process that the status is about."""

    draining: bool

    def view(self) -> NodeView: ...


class StatusApplication:
    """Implements the HTTP server's Application."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def answer(self, request: Request) -> tuple[Response, None]:
        try:
            return await self._route(request), None
        except GatewayError as error:
            return _json(error.status, {"message": error.message}), None

    def finished(self, token: None, response: Response, sent: object) -> None:
        """Nothing is kept about a status request."""

    def open_line(self) -> None:
        return None

    def refused(self, error: GatewayError, request: Request | None, peer: tuple[str, int]) -> Response:
        return _json(error.status, {"message": error.message})

    async def _route(self, request: Request) -> Response:
        reading = request.method in ("GET", "HEAD")
        if request.path == "/status/ready" and request.method == "POST":
            return await self._set_draining(request)
        if request.path not in ("/status", "/status/ready", "/metrics"):
            return _json(404, {"message": "Not found"})
        if not reading:
            return _json(405, {"message": "Method not allowed"})
        if request.path == "/status":
            return _json(200, _status(self._node.view()))
        if request.path == "/metrics":
            text = "".join(_metrics(self._node.view()))
            return Response(200, Headers([("Content-Type", "text/plain; charset=UTF-8")]), text.encode())
        problem = self._problem()
        return _json(503, {"message": problem}) if problem else _json(200, {"message": "ready"})

    async def _set_draining(self, request: Request) -> Response:
        try:
            body = orjson.loads(await request.body.read(MAX_BODY))
        except orjson.JSONDecodeError:
            body = None
        if body != {"status": "draining"}:
            return _json(400, {"message": 'expected {"status": "draining"}'})
        self._node.draining = True
        return Response(204)

    def _problem(self) -> str | None:
        """Why the node is not ready."""
        view = self._node.view()
        if self._node.draining:
            return "draining"
        if not view.hash:
            return "no configuration available (empty configuration present)"
        ready = [worker for worker in view.workers if worker.state == "ready" and worker.hash == view.hash]
        if len(ready) < view.expected_workers:
            return f"configuration is not built on all workers ({len(ready)} of {view.expected_workers})"
        return None


def _json(status: int, value: Any) -> Response:
    return Response(status, Headers([("Content-Type", "application/json; charset=utf-8")]), orjson.dumps(value))


def _status(view: NodeView) -> dict[str, Any]:
    return {
        "configuration_hash": view.hash or EMPTY_HASH,
        "configuration_version": view.version,
        "node": {"id": view.node_id, "hostname": view.hostname, "version": VERSION, "pid": os.getpid()},
        "proxy": view.proxy,
        "server": {"total_requests": sum(view.requests.values())},
        "workers": [
            {
                "index": worker.index,
                "pid": worker.pid,
                "version": worker.version,
                "hash": worker.hash,
                "state": worker.state,
            }
            for worker in view.workers
        ],
        "control_plane": {
            "address": view.control_plane,
            "name": view.control_plane_name,
            "connected": view.control_plane_connected,
        },
        "analytics": {
            "spool_bytes": view.spool_bytes,
            "waiting_batches": view.waiting_batches,
            "unsent_events": view.unsent_events,
            "last_sequence": view.last_sequence,
            "dropped_events": view.dropped_events,
        },
    }


# Prometheus text format.


def _metrics(view: NodeView) -> Iterator[str]:
    node = {"node_id": view.node_id}
    yield from _family("kong_node_info", "gauge", "The node.", [({**node, "version": VERSION}, 1)])
    connected = int(view.control_plane_connected)
    yield from _family(
        "kong_control_plane_connected", "gauge", "Whether the control plane is there.", [({}, connected)]
    )
    if view.certificate_expiry is not None:
        name = "kong_data_plane_cluster_cert_expiry_timestamp"
        yield from _family(name, "gauge", "When the node's certificate expires.", [({}, view.certificate_expiry)])
    labels = {"version": str(view.version), "hash": view.hash or EMPTY_HASH}
    yield from _family("tandem_configuration_info", "gauge", "What the node runs.", [(labels, 1)])
    yield from _family("tandem_configuration_version", "gauge", "Its version.", [({}, view.version)])
    states = ("starting", "ready", "failed")
    counted = [({"state": state}, sum(w.state == state for w in view.workers)) for state in states]
    yield from _family("tandem_workers", "gauge", "Workers by state.", counted)
    restarts = view.worker_restarts
    yield from _family("tandem_worker_restarts_total", "counter", "Workers that were replaced.", [({}, restarts)])
    requests = [({"code": str(code)}, count) for code, count in sorted(view.requests.items())]
    yield from _family("tandem_http_requests_total", "counter", "Requests by status, all workers.", requests)
    total = sum(view.requests.values())
    yield from _family("tandem_analytics_events_total", "counter", "Events taken in from workers.", [({}, total)])
    for name, kind, about, value in (
        ("dropped_total", "counter", "Events that were lost, since the spool's epoch began.", view.dropped_events),
        ("unsent_events", "gauge", "Events that were never sent yet.", view.unsent_events),
        ("waiting_batches", "gauge", "Batches that are not acknowledged.", view.waiting_batches),
        ("spool_bytes", "gauge", "Size of the spool on disk.", view.spool_bytes),
        ("spool_limit_bytes", "gauge", "Size beyond which events are folded.", view.spool_limit),
    ):
        yield from _family(f"tandem_analytics_{name}", kind, about, [({}, value)])


def _family(name: str, kind: str, about: str, samples: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {name} {about}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inner}}} {value:.15g}\n" if inner else f"{name} {value:.15g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
