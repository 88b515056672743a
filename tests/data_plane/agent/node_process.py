"""A whole node as its own processes, for tests that kill some of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from data_plane.settings import Settings
from tests.data_plane.agent.control_plane import PATIENCE, eventually


class NodeProcess:
    """`python -m data_plane agent` with these settings. Everything it spawned is gone after `close`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process: asyncio.subprocess.Process | None = None
        self._pids: set[int] = set()

    async def start(self) -> None:
        environment = {**os.environ, **self.settings.environment(), "GRPC_VERBOSITY": "ERROR"}
        # A file, not a pipe: workers outlive an agent that is killed, and would keep a pipe open.
        with open(self.log, "ab") as log:  # noqa: ASYNC230 (opened, not read)
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "data_plane",
                "agent",
                env=environment,
                stderr=log,
                stdin=asyncio.subprocess.DEVNULL,
            )
        self._pids.add(self.process.pid)

    @property
    def log(self) -> Path:
        return self.settings.state_dir.parent / f"{self.settings.state_dir.name}.log"

    @property
    def facts(self) -> dict[str, Any]:
        """agent.json; empty before there is one of this agent."""
        with contextlib.suppress(OSError, ValueError):
            facts: dict[str, Any] = json.loads((self.settings.state_dir / "agent.json").read_text())
            if self.process is not None and facts["pid"] == self.process.pid:
                self._pids.update(facts["workers"])
                return facts
        return {}

    async def get(self, path: str, port: str = "status_port") -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{self.facts[port]}{path}", timeout=PATIENCE)

    async def status(self) -> dict[str, Any]:
        value: dict[str, Any] = (await self.get("/status")).json()
        return value

    async def ready(self) -> None:
        """Returns once all workers of this agent run a configuration."""
        await eventually(lambda: self.facts.get("workers"), f"workers start; log: {self.tail()}")
        async with asyncio.timeout(PATIENCE):
            while (await self.get("/status/ready")).status_code != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        assert self.facts

    async def workers(self) -> list[int]:
        return [worker["pid"] for worker in (await self.status())["workers"]]

    async def kill(self) -> None:
        """The agent alone, with no time for anything."""
        assert self.process is not None
        _ = self.facts
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        assert self.process is not None
        _ = self.facts
        self.process.terminate()
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def on_port(self, port: int) -> NodeProcess:
        """The next agent of the same node, on the same port."""
        again = NodeProcess(replace(self.settings, proxy_port=port))
        again._pids = self._pids
        return again

    def tail(self) -> str:
        return self.log.read_text()[-2000:] if self.log.exists() else ""

    async def close(self) -> None:
        _ = self.facts
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        for pid in self._pids:
            if is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        self.log.unlink(missing_ok=True)


def is_ours(pid: int) -> bool:
    """Whether a process lives and is a node's: pids are used again."""
    with contextlib.suppress(OSError):
        words: Sequence[bytes] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"data_plane" in words
    return False
