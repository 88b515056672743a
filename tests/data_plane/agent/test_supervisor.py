from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from data_plane.agent import supervisor as module
from data_plane.agent.supervisor import Supervisor
from tests.data_plane.agent.control_plane import PATIENCE, eventually

SLEEPER = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); open({0!r}, 'w').close(); time.sleep(60)"


@asynccontextmanager
async def running(
    count: int, command: Callable[[int], Sequence[str]], spare: Sequence[str] = ()
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(count, lambda index: spare if index is None else command(index), {"WHO": "worker"})
    task = asyncio.create_task(supervisor.run())
    yield supervisor
    supervisor.kill()
    await supervisor.stop(PATIENCE)
    await task


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


async def test_a_worker_that_dies_is_replaced_and_the_others_are_left_alone() -> None:
    async with running(2, lambda index: python(SLEEPER)) as supervisor:
        await eventually(lambda: len(supervisor.pids) == 2)
        first, second = supervisor.pids[0], supervisor.pids[1]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.pids.get(0) not in (None, first))
        assert supervisor.pids[1] == second
        assert supervisor.restarts == 1


async def test_a_worker_that_dies_at_once_again_and_again_waits_longer_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(module, "LAST_DELAY", 0.04)
    async with running(1, lambda index: python("raise SystemExit(7)")) as supervisor:
        await eventually(lambda: supervisor.restarts >= 5)
    delays = [record.message.partition("restart_in=")[2] for record in caplog.records if "died" in record.message]
    assert delays[:5] == ["0s", "0.01s", "0.02s", "0.04s", "0.04s"]
    assert "exit=7" in caplog.text


async def test_a_worker_that_lived_is_replaced_at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY", 0.0)
    async with running(1, lambda index: python("")) as supervisor:
        await eventually(lambda: supervisor.restarts >= 4)


async def test_a_command_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)
    async with running(1, lambda index: ["/nowhere/python"]) as supervisor:
        await eventually(lambda: supervisor.restarts >= 2)
    assert "cannot be started" in caplog.text


async def test_settings_and_index_reach_the_worker(tmp_path: Path) -> None:
    code = "import os, sys, time; open(sys.argv[1], 'w').write(os.environ['WHO']); time.sleep(60)"
    async with running(2, lambda index: [*python(code), str(tmp_path / str(index))]):
        paths = [tmp_path / "0", tmp_path / "1"]
        await eventually(lambda: [path.read_text() for path in paths if path.exists()] == ["worker", "worker"])


async def test_workers_that_do_not_finish_in_time_are_made_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KILL_GRACE", 0.1)
    marker = tmp_path / "ignoring"
    stubborn = python(STUBBORN.format(str(marker)))
    supervisor = Supervisor(1, lambda index: [] if index is None else stubborn, {})
    task = asyncio.create_task(supervisor.run())
    await eventually(marker.exists)
    await supervisor.stop(0.05)
    async with asyncio.timeout(PATIENCE):
        await task
    assert supervisor.pids == {}


async def test_workers_are_out_of_the_terminal_s_reach() -> None:
    """A Ctrl-C goes to the agent's process group; its workers drain when the agent says so."""
    async with running(1, lambda index: python(SLEEPER)) as supervisor:
        await eventually(lambda: supervisor.pids)
        assert os.getpgid(supervisor.pids[0]) != os.getpgid(0)


SPARE = """
import os, sys
folder = sys.argv[1]
open(os.path.join(folder, f"loaded-{os.getpid()}"), "w").close()
index = sys.stdin.readline().strip()
if index:
    open(os.path.join(folder, f"index-{index}-{os.getpid()}"), "w").close()
    import time; time.sleep(60)
"""


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_steady_worker_s_place_is_taken_by_a_spare_one_that_was_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEADY", 0.01)
    async with running(1, lambda index: python(SLEEPER), [*python(SPARE), str(tmp_path)]) as supervisor:
        (loaded,) = await eventually(lambda: list(tmp_path.glob("loaded-*")))
        spare = int(loaded.name.partition("-")[2])
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await eventually(lambda: supervisor.pids.get(0) == spare)
        await eventually((tmp_path / f"index-0-{spare}").exists)
        await eventually(lambda: len(list(tmp_path.glob("loaded-*"))) == 2, "the next spare one waits")


async def test_a_spare_one_that_died_is_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY", 0.01)
    async with running(1, lambda index: python(SLEEPER), [*python(SPARE), str(tmp_path)]) as supervisor:
        (loaded,) = await eventually(lambda: list(tmp_path.glob("loaded-*")))
        spare, first = int(loaded.name.partition("-")[2]), supervisor.pids[0]
        os.kill(spare, signal.SIGKILL)
        await eventually(lambda: not exists(spare))
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.pids.get(0) not in (None, first, spare))


async def test_no_spare_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY", 0.01)
    async with running(1, lambda index: python(SLEEPER), [*python(SPARE), str(tmp_path)]):
        (loaded,) = await eventually(lambda: list(tmp_path.glob("loaded-*")))
    assert not exists(int(loaded.name.partition("-")[2]))
