"""A worker: the process that answers requests, assembled.

`Worker` holds one of everything: client, pipeline, server. It builds runtimes aside, in a thread, and swaps them by one
assignment. `run_worker` is the process around it: event loop, signals, channel to the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop
from google.protobuf.message import DecodeError

from data_plane.agent.channel import WorkerChannel
from data_plane.agent.deltas import delta_from
from data_plane.agent.journal import journals_of
from data_plane.agent.store import Store
from data_plane.analytics import Reporter
from data_plane.errors import ConfigError
from data_plane.http1.client import Client
from data_plane.http1.limits import ServerLimits
from data_plane.http1.server import Server
from data_plane.loopback import Loopback
from data_plane.pipeline import Pipeline
from data_plane.runtime import Runtime, Workshop
from data_plane.settings import Settings
from gateway_schema.delta import Delta
from gateway_schema.document import Document
from gateway_schema.violations import SchemaViolation, render_path
from gateway_schema.wire import config_pb2

__all__ = ["Pipeline", "Worker", "run_worker"]

log = logging.getLogger(__name__)

STOPPED, FAILED, PORT_IN_USE = 0, 1, 3
"""Exit codes."""
FIRST_SNAPSHOT_TIMEOUT = 5.0
"""Seconds for the agent to hand over the snapshot that it is known to have."""
FLUSH_TIMEOUT = 5.0
"""Seconds for the agent to take the last events at the end."""


class Worker:
    """Everything that answers requests, in one event loop."""

    def __init__(
        self, settings: Settings, reporter: Reporter, *, node_id: str = "", client: Client | None = None
    ) -> None:
        self._settings = settings
        self._client = client if client is not None else Client(ca_bundle=settings.tls_ca_bundle)
        loopback = Loopback(settings.own_ports)
        self._workshop = Workshop(settings, self._client, loopback, port=settings.proxy_port, node_id=node_id)
        self.pipeline = Pipeline(self._workshop, reporter)
        limits = ServerLimits(
            max_head_size=settings.max_head_size,
            max_body_size=settings.max_body_size,
            head_timeout=settings.head_timeout,
            keepalive_timeout=settings.keepalive_timeout,
        )
        self._server = Server(self.pipeline, limits)

    async def listen(self, *, reuse_port: bool = True, shared: socket.socket | None = None) -> int:
        """Accept connections; until a configuration is applied every request gets 404. Raises OSError.

        `shared`: a listener of the same port from which other workers accept too.
        """
        port = await self._server.listen(self._settings.proxy_host, self._settings.proxy_port, reuse_port)
        self._workshop.port = port
        self._workshop.loopback.own_ports |= {port}
        if shared is not None:
            await self._server.accept_from(shared)
        return port

    async def apply(self, payload: bytes, version: int) -> None:
        """Build a document's canonical bytes aside and swap it in. Raises ConfigError; then the old one stays."""
        self._swap(await asyncio.to_thread(build, payload, self._workshop), version)

    async def change(self, delta: Delta, version: int) -> None:
        """Build aside what a delta makes of the configuration in force, and swap it in.

        Raises ConfigError, and ValueError when the delta is about another configuration; then the old one stays.
        """
        self._swap(await asyncio.to_thread(rebuild, delta, self._workshop, self.pipeline.runtime), version)

    def _swap(self, runtime: Runtime, version: int) -> None:
        runtime.version = version
        self.pipeline.swap(runtime)

    async def stop(self, timeout: float) -> None:
        """Accept no more, let exchanges finish for `timeout` seconds, close everything."""
        await self._server.drain(timeout)
        await self.pipeline.close()
        await self._client.close()


def build(payload: bytes, workshop: Workshop) -> Runtime:
    """Compile canonical bytes. Raises ConfigError."""
    try:
        document = Document.load(payload)
    except SchemaViolation as error:
        raise _config_error(error, 1) from None
    return Runtime.build(document, workshop)


def rebuild(delta: Delta, workshop: Workshop, former: Runtime) -> Runtime:
    """Compile what a delta makes of a runtime's document. Raises ConfigError, ValueError."""
    try:
        document = former.document.after(delta)
    except SchemaViolation as error:
        raise _config_error(error, 2) from None
    return Runtime.build(document, workshop, former)


def _config_error(error: SchemaViolation, depth: int) -> ConfigError:
    """The first violation, whose path begins with the kind, and at depth 2 with the entity's id."""
    first = error.violations[0]
    kind, entity_id = ([str(part) for part in first.path[:depth]] + ["", ""])[:2]
    where = {"entity_id": entity_id} if depth == 2 else {}
    kind = kind if first.path and isinstance(first.path[0], str) else ""
    return ConfigError(first.message, entity_type=kind, field=render_path(first.path[depth:]), **where)


def run_worker(settings: Settings, index: int, channel_path: Path, listener: int | None = None) -> int:
    """Serve until told to stop; the process's exit code. `listener`: a descriptor to accept from beside the own one."""
    # The agent, which started this process, interrupts nobody; who serves traffic waits for nobody.
    with contextlib.suppress(AttributeError, OSError):  # not every system knows this, or allows it
        if os.sched_getscheduler(0) == os.SCHED_BATCH:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    # Requests leave no circles behind, so there is little to find. The first figure bounds how long looking among new
    # objects may hold the event loop, about a millisecond; looking among those that live longer, as streams do, is for
    # what failures leave, and can wait.
    gc.set_threshold(5_000, 50, 20)
    # While a configuration is built in a thread, the event loop waits this long, at most, for its turn.
    sys.setswitchinterval(0.001)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_Process(settings, index, channel_path, listener).run())
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        log.error("%s:%d is in use", settings.proxy_host, settings.proxy_port)
        return PORT_IN_USE
    return STOPPED


class _Process:
    """A worker's process: from its first snapshot to the last event delivered.

    Workers share their port, so one that listened before it knew the routes would answer 404 in the place of others
    that know them. Where the node has a configuration, a worker therefore applies that first; only on a node that never
    had one does it listen at once, and answers 404 as Kong does.
    """

    def __init__(self, settings: Settings, index: int, channel_path: Path, listener: int | None) -> None:
        self._settings = settings
        self._shared = socket.socket(fileno=listener) if listener is not None else None
        self._stop = asyncio.Event()
        self._configured = asyncio.Event()
        self._listening = asyncio.Event()
        journals = journals_of(settings.state_dir)
        self._channel = WorkerChannel(
            channel_path, index, os.getpid(), self._on_snapshot, self._stop.set, journals=journals
        )
        self._worker = Worker(settings, self._channel, node_id=Store(settings.state_dir).node_id())

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        channel = loop.create_task(self._channel.run(), name="worker channel")
        serving = loop.create_task(self._serve(), name="worker")
        try:
            await asyncio.wait((channel, serving), return_when=asyncio.FIRST_COMPLETED)
            if channel.done():
                channel.result()  # it never ends but by a fault of ours, which must end the process
            serving.result()
        finally:
            channel.cancel()
            serving.cancel()
            await asyncio.gather(channel, serving, return_exceptions=True)
            self._channel.close()

    async def _serve(self) -> None:
        await self._await_first_snapshot()
        port = await self._worker.listen(shared=self._shared)
        self._listening.set()
        log.info("listening host=%s port=%d", self._settings.proxy_host, port)
        await self._stop.wait()
        await self._worker.stop(self._settings.drain_timeout)
        if not await self._channel.flush(FLUSH_TIMEOUT):
            log.warning("the agent did not take the last events in time")

    async def _await_first_snapshot(self) -> None:
        if not (self._settings.state_dir / "snapshot.json").exists():
            return
        stopping = asyncio.create_task(self._stop.wait(), name="stop before the first snapshot")
        configured = asyncio.create_task(self._configured.wait(), name="first snapshot")
        waiting = (stopping, configured)
        await asyncio.wait(waiting, timeout=FIRST_SNAPSHOT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if not configured.done() and not stopping.done():
            log.warning("no snapshot from the agent: listening without a configuration")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _on_snapshot(self, version: int, hash_: str, path: Path, changes: Path | None) -> None:
        if changes is None or not await self._changed(version, changes):
            payload = await asyncio.to_thread(path.read_bytes)
            await self._worker.apply(payload, version)
        # A configuration lives long: without this, every full collection would walk all of it.
        gc.freeze()
        self._configured.set()
        # Whoever waits for a receipt may send a request the moment it has it.
        await self._listening.wait()
        log.info("applied version=%d hash=%s", version, hash_)

    async def _changed(self, version: int, changes: Path) -> bool:
        """Whether the shorter way led there. Raises ConfigError."""
        try:
            message = await asyncio.to_thread(changes.read_bytes)
            await self._worker.change(delta_from(config_pb2.Delta.FromString(message)), version)
        except FileNotFoundError:
            return False  # all others run it already: this worker comes late
        except (OSError, ValueError, DecodeError) as error:
            log.warning("the changes to version %d cannot be applied: reading it whole: %s", version, error)
            return False
        return True
