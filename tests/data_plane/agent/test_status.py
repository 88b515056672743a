from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from data_plane.agent.status import NodeView, StatusApplication, WorkerView
from data_plane.errors import BadRequest
from data_plane.messages import BufferedBody, Headers, Request, Response

HASH = "a" * 32
VIEW = NodeView(
    node_id="n",
    hostname="h",
    proxy="127.0.0.1:8000",
    control_plane="127.0.0.1:8005",
    control_plane_name="cp",
    control_plane_connected=True,
    version=3,
    hash=HASH,
    expected_workers=2,
    workers=(WorkerView(0, 10, 3, HASH, "ready"), WorkerView(1, 11, 3, HASH, "ready")),
    worker_restarts=4,
    spool_bytes=1000,
    spool_limit=2000,
    waiting_batches=2,
    unsent_events=5,
    last_sequence=9,
    dropped_events=1,
    requests={200: 7, 404: 2},
    certificate_expiry=1.7e9,
)


class Node:
    def __init__(self, view: NodeView = VIEW) -> None:
        self.draining = False
        self._view = view

    def view(self) -> NodeView:
        return self._view


async def ask(node: Node, path: str, method: str = "GET", body: bytes = b"") -> Response:
    response, _ = await StatusApplication(node).answer(Request(method, path, Headers(), BufferedBody(body)))
    return response


def message(response: Response) -> str:
    assert isinstance(response.body, bytes)
    return str(orjson.loads(response.body)["message"])


async def test_a_node_is_ready_when_all_workers_run_its_configuration() -> None:
    response = await ask(Node(), "/status/ready")
    assert (response.status, message(response)) == (200, "ready")


async def test_readiness_does_not_depend_on_the_control_plane() -> None:
    response = await ask(Node(replace(VIEW, control_plane_connected=False)), "/status/ready")
    assert response.status == 200


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (replace(VIEW, hash="", version=0), "no configuration available (empty configuration present)"),
        (replace(VIEW, workers=VIEW.workers[:1]), "1 of 2"),
        (replace(VIEW, workers=(VIEW.workers[0], WorkerView(1, 11, 2, "b" * 32, "ready"))), "1 of 2"),
        (replace(VIEW, workers=(VIEW.workers[0], WorkerView(1, 11, 0, "", "starting"))), "1 of 2"),
    ],
)
async def test_a_node_that_is_not_ready_says_why(view: NodeView, text: str) -> None:
    response = await ask(Node(view), "/status/ready")
    assert response.status == 503
    assert text in message(response)


async def test_a_node_can_be_told_to_look_unready() -> None:
    node = Node()
    assert (await ask(node, "/status/ready", "POST", b'{"status": "draining"}')).status == 204
    response = await ask(node, "/status/ready")
    assert (response.status, message(response)) == (503, "draining")
    assert (await ask(node, "/status")).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"status": "ready"}', b'{"status": "draining", "x": 1}'])
async def test_anything_else_that_is_posted_is_refused(body: bytes) -> None:
    node = Node()
    assert (await ask(node, "/status/ready", "POST", body)).status == 400
    assert not node.draining


async def test_the_status_tells_configuration_workers_and_analytics() -> None:
    response = await ask(Node(), "/status?unit=m")
    assert isinstance(response.body, bytes)
    status = orjson.loads(response.body)
    assert status["configuration_hash"] == HASH
    assert [worker["pid"] for worker in status["workers"]] == [10, 11]
    assert status["server"]["total_requests"] == 9
    assert status["analytics"]["unsent_events"] == 5
    assert status["control_plane"] == {"address": "127.0.0.1:8005", "name": "cp", "connected": True}


async def test_an_empty_node_has_kong_s_empty_hash() -> None:
    response = await ask(Node(replace(VIEW, hash="")), "/status")
    assert isinstance(response.body, bytes)
    assert orjson.loads(response.body)["configuration_hash"] == "0" * 32


async def test_the_metrics_are_prometheus_text() -> None:
    response = await ask(Node(replace(VIEW, node_id='we"ird\\\n')), "/metrics")
    assert response.headers.get("content-type") == "text/plain; charset=UTF-8"
    assert isinstance(response.body, bytes)
    lines = response.body.decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples["kong_control_plane_connected"] == "1"
    assert samples['tandem_http_requests_total{code="404"}'] == "2"
    assert samples['tandem_workers{state="ready"}'] == "2"
    assert samples["tandem_analytics_dropped_total"] == "1"
    assert samples["kong_data_plane_cluster_cert_expiry_timestamp"] == "1700000000"
    assert 'kong_node_info{node_id="we\\"ird\\\\\\n",version="3.15.0"}' in samples
    described = {line.split(" ")[2] for line in lines if line.startswith("# TYPE")}
    assert {name.partition("{")[0] for name in samples} <= described


@pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/status", "PUT", 405)])
async def test_what_is_not_there_is_said_as_json(path: str, method: str, status: int) -> None:
    assert (await ask(Node(), path, method)).status == status


def test_a_request_that_is_none_is_answered_as_json() -> None:
    response = StatusApplication(Node()).refused(BadRequest(), None, ("", 0))
    assert (response.status, message(response)) == (400, "Bad request")
