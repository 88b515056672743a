"""The agent: a node's one process beside its workers, assembled, run and taken down here.

Order of a start: state directory (locked) → spool → channel → ports → status API → workers → control plane. Workers of
a former agent that still serve knock at the channel meanwhile; they are told to drain when this agent's own workers
are ready. Order of a stop: not ready → workers drain and deliver → analytics are sent → goodbye.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from cryptography import x509

from data_plane.agent import ports
from data_plane.agent.changes import Applier
from data_plane.agent.fleet import Fleet, socket_path
from data_plane.agent.intake import Counts, EventIntake
from data_plane.agent.journal import journals_of
from data_plane.agent.link import open_channel
from data_plane.agent.ports import PortTaken
from data_plane.agent.recovery import Recovery
from data_plane.agent.report import Reporter
from data_plane.agent.spool import Spool
from data_plane.agent.status import NodeView, StatusApplication, WorkerView
from data_plane.agent.store import Store, write_file
from data_plane.agent.supervisor import Supervisor, worker_command
from data_plane.agent.sync import Sync
from data_plane.http1.server import Server
from data_plane.logs import facts
from data_plane.settings import Settings, SettingsError, where
from gateway_schema.wire import config_pb2 as pb

log = logging.getLogger(__name__)

STOPPED, FAILED, USAGE, PORT_IN_USE, STATE_UNUSABLE = range(5)
ADOPTION_TIMEOUT = 3.0
"""Seconds in which a former agent's workers, which hold the port, must have reported here."""
DELIVERY_TIMEOUT = 5.0
"""Seconds for the last analytics to be acknowledged when the node stops; the rest stays in the spool."""


class StateUnusable(Exception):
    """The state directory cannot be written, or another node runs with it."""


def run_agent(settings: Settings) -> int:
    """Run a node until it is told to stop; the process's exit code."""
    _give_way()
    try:
        return asyncio.run(_run(settings))
    except SettingsError as error:
        return _complain(error, USAGE)
    except PortTaken as error:
        return _complain(error, PORT_IN_USE)
    except StateUnusable as error:
        return _complain(error, STATE_UNUSABLE)


def _give_way() -> None:
    """Workers serve traffic, this process does not: where both want one core, its waking up interrupts none of them.

    Workers inherit it, and put themselves right (`data_plane.app.run_worker`). A policy that an operator chose stays.
    """
    with suppress(AttributeError, OSError):  # not every system knows this, or allows it
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _complain(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


async def _run(settings: Settings) -> int:
    with _Lock(settings.state_dir):
        agent = Agent(settings)
        try:
            await agent.start()
            return await agent.serve()
        finally:
            await agent.close()


class _Lock:
    """One agent per state directory; a dead one's lock is gone with it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "agent.lock"
        self._descriptor = -1

    def __enter__(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise StateUnusable(f"another node runs with {folder}: stop it, or give {where('state_dir')}") from None
        except OSError as error:
            raise StateUnusable(f"cannot use {folder}: {error.strerror}: give another {where('state_dir')}") from None

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class Agent:
    """`start`, then `serve` until a signal; `close` whatever happened in between."""

    def __init__(self, settings: Settings) -> None:
        self.draining = False
        self._settings = settings
        try:
            self._store = Store(settings.state_dir)
            self._node_id = self._store.node_id()
            self._spool = Spool(settings.state_dir / "spool", settings.spool_bytes)
            self._socket = socket_path(settings.state_dir)
        except OSError as error:
            raise StateUnusable(
                f"cannot use {settings.state_dir}: {error}: give another {where('state_dir')}"
            ) from None
        self._hostname = socket.gethostname()
        self._counts = Counts()
        self._stop = asyncio.Event()
        intake = EventIntake(self._spool, self._counts, self._arrived)
        self._fleet = Fleet(self._socket, settings.workers, intake.take, self._changed)
        self._recovery = Recovery(journals_of(settings.state_dir), intake.take, self._connected_workers)
        self._applier = Applier(self._store, self._fleet, self._store.load(), self._emptied)
        self._server = Server(StatusApplication(self))
        self._supervisor: Supervisor | None = None
        self._channel: Any = None
        self._sync: Sync | None = None
        self._reporter: Reporter | None = None
        self._listener: socket.socket | None = None
        self._proxy_port = settings.proxy_port
        self._status_port = settings.status_port
        self._certificate_expiry = _expiry(settings.certificate)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._written: dict[str, Any] = {}

    async def start(self) -> None:
        """Raises SettingsError, PortTaken, StateUnusable; nothing was spawned then."""
        settings = self._settings
        if settings.control_plane:
            self._channel = open_channel(settings)
            self._sync = Sync(self._channel, self._node_id, self._applier, self._status_message)
            self._reporter = Reporter(self._channel, self._node_id, self._spool)
        try:
            await self._fleet.open()
        except OSError as error:
            raise StateUnusable(f"cannot listen at {self._socket}: {error.strerror}") from None
        await self._take_port()
        await self._open_status()
        own = replace(settings, proxy_port=self._proxy_port)
        listener = self._listener.fileno() if self._listener is not None else None
        self._supervisor = Supervisor(
            settings.workers,
            lambda index: worker_command(index, str(self._socket), str(settings.state_dir), listener),
            own.environment(),
            self._changed,
            [] if listener is None else [listener],
        )
        log.info(
            "node started: %s",
            facts(node=self._node_id, proxy=f"{settings.proxy_host}:{self._proxy_port}", status=self._status_port),
        )

    async def _take_port(self) -> None:
        host, port = self._settings.proxy_host, self._settings.proxy_port
        alone = not port or ports.is_free(host, port)
        if not alone:
            # Either a stranger has it, or workers that a dead agent of this node left: these come to our channel.
            if not await self._fleet.until(lambda: bool(self._fleet.links), ADOPTION_TIMEOUT):
                raise ports.taken(host, port, "proxy", "proxy_port")
            log.info("workers of a former agent still serve: %s", facts(pids=[w.pid for w in self._fleet.links]))
        self._listener, self._proxy_port = ports.reserve(host, port, listening=alone)

    async def _open_status(self) -> None:
        host, port = self._settings.status_host, self._settings.status_port
        try:
            self._status_port = await self._server.listen(host, port, reuse_port=False)
        except OSError:
            raise ports.taken(host, port, "status API", "status_port") from None

    async def serve(self) -> int:
        """Until SIGTERM, SIGINT or SIGHUP, then drain; the exit code."""
        assert self._supervisor is not None
        self._listen_to_signals()
        self._begin("workers", self._supervisor.run())
        self._begin("snapshots", self._applier.run())
        self._begin("journals", self._recovery.run())
        if self._sync is not None and self._reporter is not None:
            self._begin("config stream", self._sync.run())
            self._begin("telemetry stream", self._reporter.run())
        stop = asyncio.create_task(self._stop.wait(), name="stop signal")
        done, _ = await asyncio.wait({stop, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        broken = [task for task in done if task is not stop]
        for task in broken:
            log.critical("the agent failed: %s", facts(task=task.get_name()), exc_info=task.exception())
        await self._drain()
        return FAILED if broken else STOPPED

    def _begin(self, name: str, work: Any) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish counts
                loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        """The first signal drains; a second one is impatience."""
        if self._stop.is_set() and self._supervisor is not None:
            self._supervisor.kill()
        self._stop.set()

    # Stopping.

    async def _drain(self) -> None:
        assert self._supervisor is not None
        log.info("draining: %s", facts(workers=len(self._fleet.links)))
        self.draining = True
        self._release_port()
        for link in self._fleet.links:
            link.drain()
        await self._supervisor.stop(self._settings.drain_timeout + 2, {link.pid for link in self._fleet.links})
        await self._fleet.until(lambda: not self._fleet.links, self._settings.drain_timeout)
        await self._recovery.sweep()
        await self._deliver()
        log.info("stopped: %s", facts(unsent_events=self._spool.unsent_events))

    async def _deliver(self) -> None:
        """Send what the workers handed over last, if the control plane is there; else it waits in the spool."""
        task = self._tasks.get("telemetry stream")
        if task is None or self._reporter is None:
            return
        connected = self._reporter.connected
        self._reporter.close()
        await asyncio.wait({task}, timeout=DELIVERY_TIMEOUT if connected else 0)

    def _release_port(self) -> None:
        """Without this, connections would wait for workers that never come."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
        await self._server.drain(0)
        await self._fleet.close()
        self._release_port()
        self._spool.close()
        with suppress(OSError):
            (self._settings.state_dir / "agent.json").unlink()

    # What happens meanwhile.

    def _arrived(self) -> None:
        if self._reporter is not None:
            self._reporter.arrived()

    def _emptied(self) -> None:
        if self._sync is not None:
            self._sync.restart()

    def _changed(self) -> None:
        """A worker came, went, or runs something else."""
        self._recovery.ring()
        if self._sync is not None:
            self._sync.worker_changed()
        if self._supervisor is None or self.draining:
            return
        own = set(self._supervisor.pids.values())
        self._retire_strangers(own)
        self._write_pids(own)

    def _retire_strangers(self, own: set[int]) -> None:
        """Former workers serve until ours do, so that no request meets a closed port."""
        links = self._fleet.links
        wanted = self._fleet.wanted
        ready = [link for link in links if link.pid in own and (wanted is None or link.state == "ready")]
        if len(ready) < self._settings.workers:
            return
        for link in links:
            if link.pid not in own and not link.draining:
                log.info("a former agent's worker is told to finish: %s", facts(pid=link.pid))
                link.drain()

    def _write_pids(self, own: set[int]) -> None:
        """For whoever has to end a node whose agent was killed, or wants to know its ports."""
        values = {
            "pid": os.getpid(),
            "workers": sorted(own | {link.pid for link in self._fleet.links}),
            "proxy_port": self._proxy_port,
            "status_port": self._status_port,
        }
        if values == self._written:
            return
        self._written = values
        try:
            write_file(self._settings.state_dir / "agent.json", orjson.dumps(values))
        except OSError as error:
            log.warning("cannot write agent.json: %s", facts(reason=error.strerror))

    # Views.

    def _connected_workers(self) -> set[str]:
        return {link.worker for link in self._fleet.links}

    def _workers(self) -> tuple[WorkerView, ...]:
        """Those that are connected, and those of ours that should be; not those that only finish what they began.

        A worker of ours that is yet to be spawned has pid 0: nobody may take the node for complete without it.
        """
        links = self._fleet.links
        connected = [WorkerView(w.index, w.pid, w.version, w.hash, w.state) for w in links if not w.draining]
        known = {link.pid for link in links}
        pids = self._supervisor.pids if self._supervisor is not None else {}
        own = {index: pids.get(index, 0) for index in range(self._settings.workers)}
        starting = [WorkerView(index, pid, 0, "", "starting") for index, pid in own.items() if pid not in known]
        return tuple(sorted([*connected, *starting], key=lambda worker: (worker.index, worker.pid)))

    def _status_message(self) -> pb.Status:
        current = self._applier.current
        return pb.Status(
            config_version=current.version if current is not None else 0,
            hash=current.hash if current is not None else "",
            workers=[
                pb.Worker(
                    index=worker.index, pid=worker.pid, version=worker.version, hash=worker.hash, state=worker.state
                )
                for worker in self._workers()
            ],
            spooled_batches=self._spool.waiting_batches,
            dropped_events=self._spool.dropped,
        )

    def view(self) -> NodeView:
        current, settings = self._applier.current, self._settings
        return NodeView(
            node_id=self._node_id,
            hostname=self._hostname,
            proxy=f"{settings.proxy_host}:{self._proxy_port}",
            control_plane=settings.control_plane,
            control_plane_name=self._sync.control_plane_name if self._sync is not None else "",
            control_plane_connected=self._sync is not None and self._sync.connected,
            version=current.version if current is not None else 0,
            hash=current.hash if current is not None else "",
            expected_workers=settings.workers,
            workers=self._workers(),
            worker_restarts=self._supervisor.restarts if self._supervisor is not None else 0,
            spool_bytes=self._spool.size,
            spool_limit=settings.spool_bytes,
            waiting_batches=self._spool.waiting_batches,
            unsent_events=self._spool.unsent_events,
            last_sequence=self._spool.last_sequence,
            dropped_events=self._spool.dropped,
            requests=dict(self._counts.requests),
            certificate_expiry=self._certificate_expiry,
        )


def _expiry(certificate: Path | None) -> float | None:
    """Unix seconds; None for no certificate, or one whose fault `open_channel` will tell."""
    if certificate is None:
        return None
    with suppress(OSError, ValueError):
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
    return None
