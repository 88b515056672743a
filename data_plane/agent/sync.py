"""The node's side of ConfigSync (`proto/config.proto`): one stream to the control plane, opened again for ever.

Hello → Welcome → snapshots and deltas, each answered by ACK when every worker runs it, or by NACK with the entity and
field at fault and the version that stays. One that failed for a cause of this node's own (no entity is named, and it
could be read) is sent again by the control plane. Status goes up with every heartbeat and whenever a worker changes.
What a snapshot means is not known here (`changes`). The control plane's absence is one line in the log, however long it
lasts.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

from data_plane.agent.changes import Applier, Arrival, Assembly, Outcome
from data_plane.agent.link import STREAM_ERRORS, Backoff, Disconnected, first_to_end, greet, read, reason_of
from data_plane.agent.store import Snapshot
from data_plane.logs import facts
from data_plane.settings import VERSION
from gateway_schema.plugins import PLUGINS
from gateway_schema.wire import config_pb2 as pb
from gateway_schema.wire.config_pb2_grpc import ConfigSyncStub

log = logging.getLogger(__name__)

WELCOME_TIMEOUT = 15.0
"""Seconds for connecting, Hello and Welcome together."""
DEFAULT_HEARTBEAT = 10.0
CHANGE_PAUSE = 0.1
"""Seconds in which several changes of workers become one Status."""


class Sync:
    """`status` makes the node's Status message."""

    def __init__(self, channel: Any, node_id: str, applier: Applier, status: Callable[[], pb.Status]) -> None:
        self._stub: Any = ConfigSyncStub(channel)  # type: ignore[no-untyped-call]
        self._node_id = node_id
        self._applier = applier
        self._status = status
        self._changed = asyncio.Event()
        self._backoff = Backoff()
        self._silent = False
        """Whether the log knows already that the control plane is away."""
        self._refusal = ""
        self._restart = asyncio.Event()
        self.connected = False
        self.control_plane_name = ""

    def restart(self) -> None:
        """End the stream and greet anew: what this node runs is no longer what it said."""
        self._restart.set()

    def worker_changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """For ever: ends by cancellation only."""
        while True:
            try:
                await self._converse()
            except STREAM_ERRORS as error:
                self._lost(reason_of(error))
            except Exception:
                # A fault of ours in one conversation; giving up for ever would cost the node its configuration.
                log.exception("the configuration stream failed")
            finally:
                self.connected = False
            await asyncio.sleep(self._backoff.next())

    def _lost(self, reason: str) -> None:
        if not self._silent:
            log.warning("no control plane; serving on and reconnecting: %s", facts(reason=reason))
        self._silent = True

    # One stream.

    async def _converse(self) -> None:
        call = self._stub.Stream()
        self._restart.clear()
        try:
            await first_to_end(talk=_Conversation(self, call).hold(), restart=self._restart.wait())
        finally:
            call.cancel()

    def hello(self) -> pb.Hello:
        current = self._applier.current
        status = self._status()
        return pb.Hello(
            node_id=self._node_id,
            hostname=socket.gethostname(),
            version=VERSION,
            plugins=sorted(PLUGINS),
            # Another version of this software may have taken other content under the same hash: ask for it anew.
            hash=current.hash if current is not None and current.current else "",
            config_version=current.version if current is not None else 0,
            workers=status.workers,
        )

    def welcomed(self, welcome: pb.Welcome) -> None:
        self.connected = True
        self.control_plane_name = welcome.control_plane_name
        self._silent, self._refusal = False, ""
        self._backoff.reset()
        log.info("connected to the control plane: %s", facts(name=welcome.control_plane_name))

    def refused(self, refusal: pb.Refusal) -> None:
        reason = f"{refusal.code}: {refusal.message}"
        if reason != self._refusal:
            log.error("the control plane refuses this node; serving on: %s", facts(reason=reason))
        self._refusal, self._silent = reason, True
        raise Disconnected(reason)

    @property
    def current(self) -> Snapshot | None:
        return self._applier.current

    @property
    def applier(self) -> Applier:
        return self._applier

    def status(self) -> pb.Status:
        return self._status()

    async def change(self) -> None:
        """Returns after a worker changed."""
        await self._changed.wait()
        await asyncio.sleep(CHANGE_PAUSE)
        self._changed.clear()


class _Conversation:
    """A stream from Hello to its end. Answers of an applier that come later than that go nowhere."""

    def __init__(self, sync: Sync, call: Any) -> None:
        self._sync = sync
        self._call = call
        self._out: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()
        self._assembly = Assembly()
        self._heartbeat = DEFAULT_HEARTBEAT
        self._told: _Said | None = None
        """What the control plane knows of the workers."""

    async def hold(self) -> None:
        """Raises one of STREAM_ERRORS, whatever ends the stream."""
        hello = self._sync.hello()
        welcome = await greet(self._call, pb.NodeMessage(hello=hello), WELCOME_TIMEOUT)
        self._told = _said(hello.config_version, hello.hash, hello.workers)
        self._welcomed(welcome)
        await first_to_end(read=self._read(), write=self._write(), heartbeat=self._beat(), changes=self._tell_changes())

    def _welcomed(self, message: pb.ControlMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "refusal":
            self._sync.refused(message.refusal)
        if kind != "welcome":
            raise Disconnected("the control plane did not welcome this node")
        if message.welcome.heartbeat_seconds:
            self._heartbeat = float(min(message.welcome.heartbeat_seconds, 300))
        self._sync.welcomed(message.welcome)

    async def _read(self) -> None:
        while True:
            self._take(await read(self._call))

    async def _write(self) -> None:
        while True:
            await self._call.write(await self._out.get())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat)
            self._tell(self._sync.status())

    async def _tell_changes(self) -> None:
        while True:
            await self._sync.change()
            status = self._sync.status()
            # Most changes are snapshots, of which the answer says it all.
            if _said(status.config_version, status.hash, status.workers) != self._told:
                self._tell(status)

    def _tell(self, status: pb.Status) -> None:
        self._told = _said(status.config_version, status.hash, status.workers)
        self._out.put_nowait(pb.NodeMessage(status=status))

    def _take(self, message: pb.ControlMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "snapshot":
            arrival = self._assembly.add(message.snapshot)
            if arrival is not None:
                self._sync.applier.submit(arrival, self._answer)
        elif kind == "delta":
            self._sync.applier.submit(Arrival.of_delta(message.delta), self._answer)
        elif kind == "refusal":
            self._sync.refused(message.refusal)

    def _answer(self, outcome: Outcome) -> None:
        arrival, refusal = outcome.arrival, outcome.refusal
        workers = self._sync.status().workers
        if refusal is None:
            ack = pb.Ack(nonce=arrival.nonce, version=arrival.version, hash=arrival.hash, workers=workers)
            self._told = _said(ack.version, ack.hash, workers)
            self._out.put_nowait(pb.NodeMessage(ack=ack))
            return
        nack = self._nack(arrival.nonce, arrival.version, refusal.error)
        nack.entity_type, nack.entity_id = refusal.entity_type, refusal.entity_id
        nack.entity_name, nack.field = refusal.entity_name, refusal.field
        nack.unreadable = refusal.unreadable
        self._out.put_nowait(pb.NodeMessage(nack=nack))

    def _nack(self, nonce: str, version: int, error: str) -> pb.Nack:
        kept = self._sync.current
        return pb.Nack(
            nonce=nonce,
            version=version,
            kept_version=kept.version if kept is not None else 0,
            kept_hash=kept.hash if kept is not None else "",
            error=error,
            workers=self._sync.status().workers,
        )


_Said = tuple[int, str, tuple[bytes, ...]]


def _said(version: int, hash_: str, workers: Iterable[pb.Worker]) -> _Said:
    """What a message says of the node's configuration, to be compared."""
    return version, hash_, tuple(worker.SerializeToString(deterministic=True) for worker in workers)
