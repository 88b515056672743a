"""A worker as a process, led by a scripted agent over the real socket."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from data_plane.agent import framing
from data_plane.agent.framing import Kind
from data_plane.http1.client import Client, Origin, Timeouts
from data_plane.messages import BufferedBody, Headers, Request
from gateway_schema.delta import Catalogue
from gateway_schema.document import hash_of
from gateway_schema.wire import analytics_pb2, config_pb2
from tests.data_plane.builders import document, service


class Agent:
    """The agent's end of the channel: sends what a test tells it to, acknowledges events, keeps what it hears."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "channel.sock"
        self.heard: asyncio.Queue[tuple[Kind, dict[str, Any]]] = asyncio.Queue()
        self.events: list[analytics_pb2.RequestEvent] = []
        self._writer: asyncio.StreamWriter | None = None
        self._offers = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        while (frame := await framing.read_frame(reader)) is not None:
            kind, payload = frame
            if kind is Kind.EVENTS:
                number, _, _, batch = framing.decode_events(payload)
                self.events.extend(analytics_pb2.Batch.FromString(batch).events)
                writer.write(framing.encode_json(Kind.ACK, number=number))
            else:
                self.heard.put_nowait((kind, framing.decode_json(payload)))
        writer.close()

    async def hear(self, kind: Kind) -> dict[str, Any]:
        async with asyncio.timeout(20):
            heard, values = await self.heard.get()
        assert heard is kind, values
        return values

    def offer(self, payload: bytes, version: int, base: bytes = b"", changes: bytes = b"") -> None:
        self._offers += 1
        path = self.folder / f"{version}"
        path.write_bytes(payload)
        values = {"offer": self._offers, "version": version, "hash": hash_of(payload), "path": str(path)}
        if base:
            way = self.folder / f"{version}.changes"
            way.write_bytes(changes)
            values |= {"base": hash_of(base), "changes": str(way)}
        assert self._writer is not None
        self._writer.write(framing.encode_json(Kind.SNAPSHOT, **values))

    def drain(self) -> None:
        assert self._writer is not None
        self._writer.write(framing.encode_json(Kind.DRAIN))


class Process:
    """The worker's process; its log is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []

    async def port(self) -> int:
        """The port, once it listens."""
        return int((await self.line(r"listening .*port=(\d+)"))[1])

    async def line(self, pattern: str) -> re.Match[str]:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while line := (await self.process.stderr.readline()).decode():
                self.log.append(line)
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"the worker ended without {pattern}: {self.log}")

    async def end(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[tuple[Agent, Process]]:
    agent = Agent(folder)
    server = await asyncio.start_unix_server(agent.serve, str(agent.path))
    command = ["-m", "data_plane", "worker", "--index", "0", "--channel", str(agent.path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        *("--state-dir", str(folder), "--proxy-port", "0", "--drain-timeout", "5"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    try:
        yield agent, Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        server.close()


async def status_of(port: int, target: str) -> int:
    client = Client()
    request = Request("GET", target, Headers(), BufferedBody())
    try:
        response = await client.send(Origin("http", "127.0.0.1", port), request, Timeouts(5, 5, 5))
        await response.close()
        return response.status
    finally:
        await client.close()


def proxy(url: str, path: str = "/a") -> bytes:
    routes = [{"name": "r", "paths": [path], "service": "s"}]
    return document(services=[{"name": "s", "url": url}], routes=routes)


async def test_a_life_from_hello_to_drain(tmp_path: Path) -> None:
    async with service() as backend, started(tmp_path) as (agent, worker):
        port = await worker.port()
        assert (await agent.hear(Kind.HELLO))["state"] == "starting"
        assert await status_of(port, "/a") == 404

        agent.offer(proxy(backend.url), 7)
        await agent.hear(Kind.APPLIED)
        assert await status_of(port, "/a") == 200

        agent.offer(document(plugins=[{"name": "key-auth", "config": {"key_names": "apikey"}}]), 8)
        refusal = await agent.hear(Kind.REFUSED)
        assert (refusal["entity_type"], refusal["field"]) == ("plugins", "config.key_names")
        assert await status_of(port, "/a") == 200

        agent.drain()
        assert await worker.end() == 0
    assert [(event.status, event.config_version) for event in agent.events] == [(404, 0), (200, 7), (200, 7)]


async def test_a_delta_is_enough_and_one_that_is_none_leads_to_the_whole(tmp_path: Path) -> None:
    async with service() as backend, started(tmp_path) as (agent, worker):
        port = await worker.port()
        await agent.hear(Kind.HELLO)
        first = proxy(backend.url)
        agent.offer(first, 1)
        await agent.hear(Kind.APPLIED)

        # Nothing but the delta knows the new path.
        change = Catalogue.read(proxy(backend.url, "/b")).entities["routes"]
        puts = [config_pb2.EntityPut(type="routes", entity=body) for body in change.values()]
        agent.offer(b"not read", 2, base=first, changes=config_pb2.Delta(puts=puts).SerializeToString())
        await agent.hear(Kind.APPLIED)
        assert [await status_of(port, path) for path in ("/a", "/b")] == [404, 200]

        agent.offer(proxy(backend.url, "/c"), 3, base=b"not read", changes=b"\xff\xff no delta")
        await agent.hear(Kind.APPLIED)
        assert [await status_of(port, path) for path in ("/b", "/c")] == [404, 200]
        agent.drain()
        assert await worker.end() == 0


async def test_on_a_configured_node_it_does_not_listen_before_it_knows_the_routes(tmp_path: Path) -> None:
    (tmp_path / "snapshot.json").write_text("{}")
    async with service() as backend, started(tmp_path) as (agent, worker):
        await agent.hear(Kind.HELLO)
        agent.offer(proxy(backend.url), 3)
        await agent.hear(Kind.APPLIED)
        assert await status_of(await worker.port(), "/a") == 200
        assert not any("without a configuration" in line for line in worker.log)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_a_signal_lets_the_request_in_flight_finish(tmp_path: Path, name: str) -> None:
    import signal

    from data_plane.messages import Response

    asked, gate = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        asked.set()
        await gate.wait()
        return Response(200)

    async with service(slow) as backend, started(tmp_path) as (agent, worker):
        port = await worker.port()
        await agent.hear(Kind.HELLO)
        agent.offer(proxy(backend.url), 1)
        await agent.hear(Kind.APPLIED)
        waiting = asyncio.create_task(status_of(port, "/a"))
        await asked.wait()
        worker.process.send_signal(getattr(signal, name))
        gate.set()
        assert await waiting == 200
        assert await worker.end() == 0
    assert [event.status for event in agent.events] == [200]


async def test_a_port_in_use_is_its_own_exit_code(tmp_path: Path) -> None:
    async with service() as backend:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "data_plane", "worker", "--index", "0", "--channel", str(tmp_path / "nobody")),
            *("--state-dir", str(tmp_path), "--proxy-port", str(backend.port)),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        async with asyncio.timeout(20):
            _, log = await process.communicate()
    assert process.returncode == 3
    assert f"{backend.port} is in use" in log.decode()
