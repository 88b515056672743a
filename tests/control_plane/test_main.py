"""`python -m control_plane`, as a process: what it says, how it stops, how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from control_plane.__main__ import _listen
from control_plane.settings import Settings


def environment(state: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TANDEM_", "DATABASE_URL"))}
    return {**kept, "TANDEM_STATE_DIR": str(state), "TANDEM_HTTP_PORT": "0", "TANDEM_GRPC_PORT": "0", **more}


@contextlib.asynccontextmanager
async def process(state: Path, *flags: str, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "control_plane",
        *flags,
        env=environment(state, **more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def failed(running: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, errors = await asyncio.wait_for(running.communicate(), 60)
    return running.returncode, errors.decode()


async def ready(running: asyncio.subprocess.Process) -> str:
    assert running.stdout is not None
    line = (await asyncio.wait_for(running.stdout.readline(), 60)).decode()
    matched = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert matched, line
    return matched[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal_and_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    async with process(tmp_path, TANDEM_ADMIN_TOKEN="kpat_of-the-operator") as running:
        base = await ready(running)
        async with httpx.AsyncClient(base_url=base) as http:
            response = await http.get("/health")
            assert response.json()["status"] == "ok"
            assert "server" not in response.headers
            headers = {"authorization": "Bearer kpat_of-the-operator"}
            assert (await http.get("/v2/control-planes", headers=headers)).status_code == 200
        running.send_signal(number)
        status, errors = await failed(running)
    assert status == 0, errors
    assert "kpat_of-the-operator" not in errors


async def test_the_first_start_without_a_token_leaves_one_for_its_owner(tmp_path: Path) -> None:
    async with process(tmp_path) as running:
        base = await ready(running)
        path = tmp_path / "admin.token"
        assert path.stat().st_mode & 0o777 == 0o600
        headers = {"authorization": f"Bearer {path.read_text()}"}
        async with httpx.AsyncClient(base_url=base, headers=headers) as http:
            assert (await http.get("/v3/users/me")).json()["full_name"] == "first admin"


@pytest.mark.parametrize("name", ["HTTP", "GRPC"])
async def test_a_port_that_is_taken_is_named_with_its_setting(tmp_path: Path, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with process(tmp_path, f"--{name.lower()}-port", str(port)) as running:
            status, errors = await failed(running)
    assert status == 3
    assert f"port {port}" in errors
    assert f"TANDEM_{name}_PORT" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("variable", "value", "status", "said"),
    [
        ("TANDEM_HTTP_PORT", "eight", 2, "TANDEM_HTTP_PORT must be a number"),
        ("DATABASE_URL", "mysql://u:hunter2@h/d", 4, "expected sqlite:///… or postgresql://…"),
        ("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/d", 4, "DATABASE_URL"),
        ("DATABASE_URL", "postgresql://u@127.0.0.1:1/d?password=hunter2&application_name=x", 4, "DATABASE_URL"),
        ("DATABASE_URL", "hunter2", 4, "DATABASE_URL: expected"),
        ("DATABASE_URL", "sqlite:////proc/x.db", 4, "the database file /proc/x.db (DATABASE_URL)"),
        ("TANDEM_GRPC_HOST", "192.0.2.1", 4, "TANDEM_GRPC_HOST"),
        ("TANDEM_GRPC_HOST", "..", 4, "TANDEM_GRPC_HOST"),
        ("TANDEM_HTTP_HOST", "192.0.2.1", 4, "TANDEM_HTTP_HOST"),
        ("TANDEM_HTTP_HOST", "..", 4, "TANDEM_HTTP_HOST"),
        ("TANDEM_STATE_DIR", "/proc/hunter3", 4, "TANDEM_STATE_DIR"),
        ("TANDEM_ADMIN_TOKEN", "hunter2 is not one word", 2, "TANDEM_ADMIN_TOKEN must"),
        ("TANDEM_ENCRYPTION_KEY", "hunter2", 4, "TANDEM_ENCRYPTION_KEY"),
        ("TANDEM_ENCRYPTION_KEY", ",", 4, "TANDEM_ENCRYPTION_KEY: holds no key"),
    ],
)
async def test_what_the_operator_can_mend_is_said_in_a_line(
    tmp_path: Path, variable: str, value: str, status: int, said: str
) -> None:
    async with process(tmp_path, **{variable: value}) as running:
        found, errors = await failed(running)
    assert found == status, errors
    assert said in errors
    assert "hunter2" not in errors
    assert "Traceback" not in errors


def test_a_token_from_a_file_goes_without_the_lines_end() -> None:
    assert Settings.read({"TANDEM_ADMIN_TOKEN": "kpat_mounted\n"}).admin_token == "kpat_mounted"


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    settings = Settings.read({"RECIPE_HOME": str(tmp_path), "TANDEM_GRPC_PORT": "9", "TANDEM_ADMIN_TOKEN": "t"})
    assert settings.state_dir == tmp_path / "control-plane"
    assert settings.database_url == f"sqlite:///{tmp_path / 'control-plane' / 'control-plane.db'}"
    assert (settings.http_port, settings.grpc_port) == (8001, 9)
    assert "'t'" not in repr(settings)


async def test_it_may_open_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    """Nodes would else be turned away at some three hundred, under the soft limit that shells start with."""
    script = 'import os, sys; os.execv(sys.executable, [sys.executable, "-m", "control_plane"])'
    lowered = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1])); {script}"
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", lowered, env=environment(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        await ready(running)
        soft, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
    finally:
        running.kill()
        await running.wait()
    assert soft == hard


async def test_connections_that_send_nothing_leave_it_its_files(tmp_path: Path) -> None:
    script = 'import os, sys; os.execv(sys.executable, [sys.executable, "-m", "control_plane"])'
    lowered = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, 256)); {script}"
    more = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", lowered, env=environment(tmp_path, TANDEM_ADMIN_TOKEN="kpat_of-the-operator"), **more
    )
    try:
        base = httpx.URL(await ready(running))
        silent = [await asyncio.open_connection(base.host, base.port) for _ in range(400)]
        headers = {"authorization": "Bearer kpat_of-the-operator"}
        async with httpx.AsyncClient(base_url=base, headers=headers) as http:
            assert (await http.get("/v2/control-planes")).status_code == 200
        for _, writer in silent:
            writer.close()
        running.terminate()
        status, errors = await failed(running)
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
    assert status == 0, errors
    assert "Too many open files" not in errors


async def test_its_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Without TCP_NODELAY each answer on a kept connection takes 40 ms longer than it should."""
    accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    listener = _listen(Settings(tmp_path, "sqlite://", http_port=0))
    async with await asyncio.start_server(answer, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await asyncio.wait_for(accepted, 20)
        writer.close()
