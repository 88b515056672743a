"""A control plane behind a real socket, and decK as a program that talks to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from control_plane.app import create_app
from tests.control_plane.client import TOKEN, Client

_TIMEOUT_SECONDS = 240


@contextlib.asynccontextmanager
async def served(client: Client) -> AsyncIterator[int]:
    """The port on which a running control plane answers."""
    config = uvicorn.Config(create_app(client.plane), lifespan="off", log_config=None, server_header=False)
    server = uvicorn.Server(config)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]), name="control plane")
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    errors: str

    @property
    def counts(self) -> tuple[int, int, int]:
        """Created, updated, deleted, as the summary says."""
        found = dict(line.strip().split(": ") for line in self.output.split("Summary:")[1].strip().splitlines())
        return int(found["Created"]), int(found["Updated"]), int(found["Deleted"])

    @property
    def said(self) -> str:
        return self.output + self.errors


class Deck:
    """`deck gateway …` against one control plane resource."""

    def __init__(self, program: str, port: int, name: str, directory: Path) -> None:
        self.port = port
        self.directory = directory
        self.program = program
        self.name = name

    def file(self, name: str, document: Mapping[str, Any] | str) -> str:
        path = self.directory / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    async def run(
        self, command: str, *arguments: str, expect: int = 0, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Raises AssertionError, with all that decK said, when it ends otherwise than expected."""
        process = await asyncio.create_subprocess_exec(
            *(self.program, "gateway", command, *arguments, *self.address()),
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory), "DECK_ANALYTICS": "off", **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        outcome = Outcome(process.returncode or 0, output.decode(), errors.decode())
        assert outcome.status == expect, f"deck gateway {command}: exit code {outcome.status}\n{outcome.said}"
        return outcome

    def address(self) -> tuple[str, ...]:
        """The flags that say which control plane is meant, and who asks."""
        url = f"http://127.0.0.1:{self.port}"
        return ("--konnect-addr", url, "--konnect-token", TOKEN, "--konnect-control-plane-name", self.name)

    async def dump(self, name: str, *arguments: str) -> str:
        path = self.directory / name
        await self.run("dump", "-o", str(path), "--yes", *arguments)
        return path.read_text()
