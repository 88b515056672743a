"""A node as its own processes: what is left when one of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from data_plane.agent.store import Store
from data_plane.settings import Settings
from gateway_schema.document import canonical, hash_of
from gateway_schema.wire import config_pb2 as pb
from tests.data_plane.agent.control_plane import PATIENCE, ControlPlane, eventually
from tests.data_plane.agent.node_process import NodeProcess, is_ours

DOCUMENT = canonical("11111111-1111-4111-8111-111111111111", {})
"""No route: every request is answered 404, and counted."""


@pytest.fixture
async def node(control_plane: ControlPlane, state_dir: Path) -> AsyncIterator[NodeProcess]:
    made = NodeProcess(control_plane.settings(state_dir))
    await made.start()
    yield made
    await made.close()


async def with_configuration(control_plane: ControlPlane, node: NodeProcess) -> None:
    await control_plane.connected()
    answer = await control_plane.answer_to(control_plane.push(1, DOCUMENT))
    assert isinstance(answer, pb.Ack), answer
    await node.ready()


async def ask(port: int, times: int = 1) -> None:
    """Requests, each on a connection of its own, so that any worker may get it."""
    for _ in range(times):
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE)
        assert answer.status_code == 404


async def test_a_killed_worker_is_replaced_and_runs_the_same_configuration(
    control_plane: ControlPlane, node: NodeProcess
) -> None:
    await with_configuration(control_plane, node)
    (worker,) = await node.workers()
    os.kill(worker, signal.SIGKILL)
    await eventually(lambda: not is_ours(worker), "it is dead")
    await eventually(
        lambda: any(
            [(w.state, w.version) for w in status.workers] == [("ready", 1)] and status.workers[0].pid != worker
            for status in control_plane.statuses
        ),
        "the control plane hears of the new one",
    )
    await node.ready()
    await ask(node.facts["proxy_port"])
    assert (await node.status())["workers"][0]["version"] == 1


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system's scheduler has no batches")
async def test_the_agent_s_waking_up_interrupts_no_worker(control_plane: ControlPlane, node: NodeProcess) -> None:
    await with_configuration(control_plane, node)
    (worker,) = await node.workers()
    assert node.process is not None
    assert os.sched_getscheduler(node.process.pid) == os.SCHED_BATCH
    assert os.sched_getscheduler(worker) == os.SCHED_OTHER


async def test_while_the_only_worker_is_dead_connections_wait_for_the_next(
    control_plane: ControlPlane, node: NodeProcess
) -> None:
    await with_configuration(control_plane, node)
    (worker,) = await node.workers()
    os.kill(worker, signal.SIGKILL)
    await eventually(lambda: not is_ours(worker), "it is dead")
    await ask(node.facts["proxy_port"], times=5)


async def test_a_killed_agent_leaves_workers_serving_and_the_next_one_counts_everything_once(
    control_plane: ControlPlane, node: NodeProcess
) -> None:
    await with_configuration(control_plane, node)
    port, (orphan,) = node.facts["proxy_port"], await node.workers()
    await ask(port, 5)
    await node.kill()
    await ask(port, 20)
    again = node.on_port(port)
    await again.start()
    asking = asyncio.create_task(ask(port, 40))
    await again.ready()
    await eventually(lambda: not is_ours(orphan), "the former worker finishes")
    await asking
    assert orphan not in await again.workers()
    # Until its own worker runs, nobody may take the node for complete, whatever the former one runs.
    assert "starting" in {worker.state for worker in control_plane.hellos[-1].workers}
    await ask(port, 5)
    await eventually(lambda: len(control_plane.events) >= 70, "all is counted")
    assert await again.stop() == 0
    ids = [event.request_id for event in control_plane.events]
    assert len(ids) == len(set(ids)) == 70
    assert {hello.node_id for hello in control_plane.hellos} == {Store(node.settings.state_dir).node_id()}


async def test_a_node_told_to_stop_delivers_everything_and_frees_its_port(
    control_plane: ControlPlane, node: NodeProcess
) -> None:
    await with_configuration(control_plane, node)
    port, workers = node.facts["proxy_port"], await node.workers()
    await ask(port, 7)
    assert await node.stop() == 0
    assert len(control_plane.events) == 7
    assert len(control_plane.byes) == 1
    assert not any(is_ours(worker) for worker in workers)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    assert not (node.settings.state_dir / "agent.json").exists()


async def test_a_node_serves_without_a_control_plane_and_delivers_when_it_is_back(
    control_plane: ControlPlane, node: NodeProcess
) -> None:
    await with_configuration(control_plane, node)
    await control_plane.stop()
    await node.stop()
    again = node.on_port(0)
    await again.start()
    await again.ready()
    await ask(again.facts["proxy_port"], 6)
    await control_plane.start()
    await eventually(lambda: len(control_plane.events) == 6, "what happened meanwhile is counted")
    await again.close()


async def test_a_configuration_that_cannot_be_built_is_refused_and_the_former_one_serves_on(
    control_plane: ControlPlane, node: NodeProcess
) -> None:
    await with_configuration(control_plane, node)
    nack = await control_plane.answer_to(control_plane.push(2, b'{"entities": {"services": [{"port": "x"}]}}'))
    assert isinstance(nack, pb.Nack)
    assert nack.error
    assert nack.kept_version == 1
    await ask(node.facts["proxy_port"])


async def test_state_is_for_its_owner_only(control_plane: ControlPlane, node: NodeProcess) -> None:
    await with_configuration(control_plane, node)
    await ask(node.facts["proxy_port"])
    for path in [node.settings.state_dir, *node.settings.state_dir.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


# Starts that fail.


async def started(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Run an agent that is to give up by itself; its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "data_plane", "agent", *arguments),
        env={**os.environ, **settings.environment()},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("shared", [False, True])
async def test_a_port_that_somebody_else_uses_is_named_and_nothing_is_started(
    state_dir: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as stranger:
        if shared:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        settings = Settings(state_dir, control_plane="", proxy_port=port, status_port=0)
        code, said = await started(settings)
    assert code == 3
    assert f"port {port} on 127.0.0.1 is in use" in said
    assert "--proxy-port (TANDEM_PROXY_PORT)" in said
    assert "worker started" not in said


async def test_a_taken_status_port_names_its_own_flag(state_dir: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        settings = Settings(state_dir, control_plane="", proxy_port=0, status_port=stranger.getsockname()[1])
        code, said = await started(settings)
    assert code == 3
    assert "--status-port (TANDEM_STATUS_PORT)" in said
    assert "worker started" not in said


async def test_a_second_agent_on_the_same_state_is_refused(control_plane: ControlPlane, node: NodeProcess) -> None:
    await eventually(lambda: node.facts, "the first one runs")
    code, said = await started(node.settings)
    assert code == 4
    assert "another node runs with" in said


async def test_a_missing_certificate_is_named_by_its_flag_and_variable(state_dir: Path) -> None:
    code, said = await started(Settings(state_dir, proxy_port=0, status_port=0))
    assert code == 2
    assert "--certificate (TANDEM_CERTIFICATE)" in said
    assert "Traceback" not in said


async def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = await started(Settings(tmp_path / "file" / "state", control_plane="", proxy_port=0, status_port=0))
    assert code == 4
    assert "--state-dir (TANDEM_STATE_DIR)" in said
    assert "Traceback" not in said


async def test_a_broken_node_id_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.node_id()
    assert store.node_id() == first
    for broken in (b"", b"{", b"[]", b'{"id": 7}', b'{"id": "x"}'):
        (tmp_path / "node.json").write_bytes(broken)
        made = store.node_id()
        assert made != first
        assert Store(tmp_path).node_id() == made


async def test_a_socket_that_cannot_be_made_is_named(state_dir: Path) -> None:
    (state_dir / "channel.sock").mkdir(parents=True)
    code, said = await started(Settings(state_dir, control_plane="", proxy_port=0, status_port=0))
    assert code == 4
    assert "cannot listen at" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "broken",
    [{"version": -5}, {"version": 1 << 64}, {"file": ".."}, {"file": ""}, {"file": "."}, {"file": "folder"}, None],
    ids=str,
)
async def test_a_snapshot_that_cannot_be_read_is_set_aside(tmp_path: Path, broken: dict[str, Any] | None) -> None:
    payload = b"{}"
    store = Store(tmp_path)
    snapshot = store.stage(3, hash_of(payload), [payload])
    store.sync(snapshot)
    store.commit(snapshot)
    assert store.load() == replace(snapshot, current=True)
    (tmp_path / "snapshots" / "folder").mkdir()
    pointer = tmp_path / "snapshot.json"
    values = json.loads(pointer.read_text())
    pointer.unlink()
    if broken is None:
        pointer.mkdir()
    else:
        pointer.write_text(json.dumps(values | broken))
    assert store.load() is None
    assert not pointer.exists()
    assert (tmp_path / "snapshots").is_dir()
    again = store.stage(4, hash_of(payload), [payload])
    store.sync(again)
    store.commit(again)
    assert Store(tmp_path).load() == replace(again, current=True)
