"""Configuration for data plane nodes, in xDS's words: snapshots down, ACK or NACK up (`proto/config.proto`).

A stream belongs to one node, and the node to the control plane with which its client certificate is registered. After
Hello and Welcome the stream sends the current snapshot when the node's hash is another, then waits for the next change.
One snapshot is under way at a time: while a node is busy with one, later ones only replace each other in the cache, so
a slow node gets the newest, skips those between, and delays no other. Each send has a nonce; an answer with an older
nonce is about something that no longer matters and changes nothing.

A refusal is about the snapshot when it names an entity or says that the whole cannot be read: that snapshot is not sent
again, the next change is. Any other is about the node (a full disk, a worker that did not answer) and may pass: the
same snapshot is sent again, after pauses that grow. Until one is taken the node counts as rejected, with the cause.

What a node is known to run decides how the next one is sent: as a delta from there, when the cache knows the way and it
is short, or else whole. A node that can do nothing with a delta (it runs something else by now, or the result has
another hash) says so in its NACK and gets the whole at once; that is no rejection. One that says it again and again
gets no more deltas on this stream.

What is withheld: everything from a node of another major version or a newer minor one (the stream ends with a Refusal),
and a configuration that uses a plugin the node does not have (the stream stays, the next change is judged anew).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from control_plane.cache import Parcel, SnapshotCache, Way
from control_plane.gate import Credentials
from control_plane.pins import Pin
from control_plane.roster import NodeId, Roster, SyncState, worker_rows
from control_plane.rpc_faults import kept_here
from control_plane.settings import VERSION
from control_plane.texts import clean
from gateway_schema.delta import WHOLE_WANTED
from gateway_schema.wire import config_pb2, config_pb2_grpc

_log = logging.getLogger(__name__)


_DELTAS_REFUSED = 3
"""So many deltas in a row that were of no use to a node are its nature, not chance."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the control plane waits, in seconds."""

    hello: float = 10.0
    heartbeat: float = 10.0
    """Between two Status messages of a node; after three silent ones its stream ends."""
    answer: float = 30.0
    """For ACK or NACK; after that a newer snapshot is sent all the same."""
    again: tuple[float, float] = (2.0, 60.0)
    """Before a snapshot is sent again that a node could not take: the first pause, doubled up to the longest."""

    def pause(self, refusals: int) -> float:
        """After so many refusals in a row; shorter at random, for nodes with one cause must not come back in step."""
        first, longest = self.again
        return min(first * 2.0 ** min(refusals - 1, 32), longest) * random.uniform(0.5, 1.0)  # noqa: S311


class ConfigSync(config_pb2_grpc.ConfigSyncServicer):
    """The service. Streams share the cache; a node has one stream, of which the newest wins."""

    def __init__(
        self, cache: SnapshotCache, roster: Roster, credentials: Credentials, pace: Pace | None = None
    ) -> None:
        self._cache = cache
        self._roster = roster
        self._credentials = credentials
        self._pace = pace or Pace()
        self._streams: dict[NodeId, _NodeStream] = {}

    async def Stream(self, request_iterator: AsyncIterator[config_pb2.NodeMessage], context: Any) -> None:
        address = self._credentials.address(context.peer())
        async with kept_here(context, f"the configuration stream of {address}"):
            await self._admit(request_iterator, context, address)

    async def _admit(self, request_iterator: AsyncIterator[config_pb2.NodeMessage], context: Any, address: str) -> None:
        pin, refusal = self._credentials.judge(context.peer())
        if pin is None or refusal is not None:
            await self._refuse(context, address, *(refusal or ("", "")))
            return
        hello = await self._hello(request_iterator)
        if hello is None:
            await self._refuse(context, address, "invalid_hello", "the first message must be a Hello with a node id")
            return
        node_id = str(uuid.UUID(hello.node_id))
        if problem := version_problem(hello.version, VERSION):
            who = NodeId(pin.control_plane_id, node_id)
            await self._roster.arrived(who, hello, "rejected", _fault("kong_version_incompatible", problem))
            await self._refuse(
                context, f"{address} ({clean(hello.hostname, 256)})", "kong_version_incompatible", problem
            )
            return
        who = NodeId(pin.control_plane_id, node_id, secrets.token_hex(8))
        await self._serve(_NodeStream(self, who, pin, hello, context), request_iterator)

    async def _hello(self, messages: AsyncIterator[config_pb2.NodeMessage]) -> config_pb2.Hello | None:
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            message = await asyncio.wait_for(anext(aiter(messages)), self._pace.hello)
            if message.WhichOneof("message") == "hello":
                with contextlib.suppress(ValueError):  # not a UUID: the same answer as for no Hello at all
                    uuid.UUID(message.hello.node_id)
                    return message.hello
        return None

    async def _refuse(self, context: Any, address: str, code: str, message: str) -> None:
        _log.warning("node connection from %s refused: %s", address, message)
        await context.write(config_pb2.ControlMessage(refusal=config_pb2.Refusal(code=code, message=message)))

    async def _serve(self, stream: _NodeStream, messages: AsyncIterator[config_pb2.NodeMessage]) -> None:
        older = self._streams.get(stream.who)
        if older is not None:
            _log.info("node %s connected again: its older stream ends", stream.who.node_id)
            older.end()
        self._streams[stream.who] = stream
        try:
            await stream.run(messages)
        finally:
            if self._streams.get(stream.who) is stream:
                del self._streams[stream.who]
                await self._roster.left(stream.who)

    def end_stream(self, control_plane_id: str, node_id: str) -> None:
        """The node was deleted from the list: one that is still there says hello again, and is listed again."""
        if (stream := self._streams.get(NodeId(control_plane_id, node_id))) is not None:
            stream.end()

    def end_streams(self) -> None:
        """The server stops: every stream ends, and its node reconnects elsewhere or later."""
        for stream in list(self._streams.values()):
            stream.end()

    # What the streams need:

    @property
    def cache(self) -> SnapshotCache:
        return self._cache

    @property
    def roster(self) -> Roster:
        return self._roster

    @property
    def pace(self) -> Pace:
        return self._pace

    def still_welcome(self, peer: str) -> bool:
        """Whether the certificate is still good; a stream may outlive it."""
        return self._credentials.judge(peer)[1] is None


class _NodeStream:
    """One node's stream, from Welcome to its end."""

    def __init__(self, service: ConfigSync, who: NodeId, pin: Pin, hello: config_pb2.Hello, context: Any) -> None:
        self.who = who
        self._service = service
        self._pin = pin
        self._hello = hello
        self._context = context
        self._plugins = frozenset(hello.plugins)
        self._running = hello.hash
        self._workers = worker_rows(hello.workers)
        self._refused: str | None = None
        """Hash of the snapshot that the node would not or could not take, while it is the newest."""
        self._recorded: SyncState = "pending"
        """What the node's row says."""
        self._nonce = ""
        self._sent: Parcel | None = None
        self._way: Way | None = None
        """The delta that `_sent` was sent as."""
        self._whole_wanted = False
        self._deltas_refused = 0
        self._again = asyncio.Event()
        """The current snapshot is due once more, after `_pause` seconds."""
        self._pause = 0.0
        self._node_refusals = 0
        """So many in a row that were about the node, not about the snapshot."""
        self._answered = asyncio.Event()
        self._ended = asyncio.Event()

    def end(self) -> None:
        """A newer stream of the same node took over, here or on another replica, or the server stops."""
        self._ended.set()

    async def run(self, messages: AsyncIterator[config_pb2.NodeMessage]) -> None:
        await self._welcome()
        tasks = [
            asyncio.create_task(self._send_changes(), name=f"send to node {self.who.node_id}"),
            asyncio.create_task(self._listen(messages), name=f"listen to node {self.who.node_id}"),
            asyncio.create_task(self._ended.wait(), name=f"end of node {self.who.node_id}"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _welcome(self) -> None:
        pin = self._pin
        parcel = await self._service.cache.get(self.who.control_plane_id)
        if self._hello.config_version > parcel.snapshot.version and self._running != parcel.snapshot.hash:
            # Another replica gave it what this one has not heard of yet: it must not be sent back in time.
            await self._service.cache.refresh(self.who.control_plane_id)
        state = await self._state(self._workers)
        await self._service.roster.arrived(self.who, self._hello, state, None)
        self._recorded = state
        welcome = config_pb2.Welcome(
            control_plane_id=pin.control_plane_id,
            control_plane_name=pin.control_plane_name,
            heartbeat_seconds=max(1, round(self._service.pace.heartbeat)),
        )
        await self._context.write(config_pb2.ControlMessage(welcome=welcome))

    # -- down

    async def _send_changes(self) -> None:
        known = self._running
        while True:
            parcel = await self._due(known)
            self._again.clear()
            known = parcel.snapshot.hash
            if known != self._refused:
                self._refused = None
            if missing := sorted(parcel.plugins - self._plugins):
                await self._withhold(parcel, missing)
            elif self._running == known and not self._nonce and not self._whole_wanted:
                # What it would not or could not take was taken back; it runs what it should, and ran it all the time.
                await self._record(await self._state(self._workers), last_error=None)
            else:
                await self._send(parcel)

    async def _due(self, known: str) -> Parcel:
        """Wait for a snapshot other than the last one, or until the current one is due once more."""
        cache, control_plane_id = self._service.cache, self.who.control_plane_id
        watching = asyncio.create_task(cache.watch(control_plane_id, known), name="watch for a snapshot")
        repeating = asyncio.create_task(self._repeat(), name=f"send again to node {self.who.node_id}")
        try:
            await asyncio.wait({watching, repeating}, return_when=asyncio.FIRST_COMPLETED)
            return await (cache.get(control_plane_id) if repeating.done() else watching)
        finally:
            watching.cancel()
            repeating.cancel()
            await asyncio.gather(watching, repeating, return_exceptions=True)

    async def _repeat(self) -> None:
        await self._again.wait()
        await asyncio.sleep(self._pause)

    async def _withhold(self, parcel: Parcel, missing: list[str]) -> None:
        self._refused = parcel.snapshot.hash
        problem = f"configuration withheld: the node lacks plugins that it uses: {', '.join(missing)}"
        _log.warning("node %s (%s): %s", self.who.node_id, clean(self._hello.hostname, 256), problem)
        fault = _fault("plugin_set_incompatible", problem, version=parcel.snapshot.version)
        await self._record("rejected", last_error=fault)

    async def _send(self, parcel: Parcel) -> None:
        usable = not self._whole_wanted and self._deltas_refused < _DELTAS_REFUSED
        self._way = parcel.way_from(self._running) if usable else None
        self._nonce, self._sent = secrets.token_hex(8), parcel
        self._whole_wanted = False
        self._answered.clear()
        if self._recorded == "rejected" and self._refused is None:
            await self._record("pending")
        # Otherwise nothing need be written first: a row that says in_sync also says with which hash.
        if self._way is not None:
            await self._context.write(config_pb2.ControlMessage(delta=_delta(self._nonce, parcel, self._way)))
        else:
            await self._send_parts(parcel)
        try:
            await asyncio.wait_for(self._answered.wait(), self._service.pace.answer)
        except TimeoutError:
            _log.warning(
                "node %s has not answered version %d for %.0f s",
                self.who.node_id,
                parcel.snapshot.version,
                self._service.pace.answer,
            )

    async def _send_parts(self, parcel: Parcel) -> None:
        parts = await parcel.parts()
        for part, chunk in enumerate(parts):
            snapshot = config_pb2.Snapshot(
                version=parcel.snapshot.version,
                hash=parcel.snapshot.hash,
                nonce=self._nonce,
                part=part,
                parts=len(parts),
                chunk=chunk,
            )
            await self._context.write(config_pb2.ControlMessage(snapshot=snapshot))

    # -- up

    async def _listen(self, messages: AsyncIterator[config_pb2.NodeMessage]) -> None:
        """Until the node says no more, or nothing for three heartbeats."""
        received = aiter(messages)
        while True:
            try:
                message = await asyncio.wait_for(anext(received), 3 * self._service.pace.heartbeat)
            except StopAsyncIteration:
                return
            except TimeoutError:
                _log.warning("node %s is silent: its stream ends", self.who.node_id)
                return
            if not self._service.still_welcome(self._context.peer()):
                _log.warning("node %s: its client certificate is no longer good: its stream ends", self.who.node_id)
                return
            await self._take(message)

    async def _take(self, message: config_pb2.NodeMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "ack" and message.ack.nonce == self._nonce:
            await self._acknowledged(message.ack)
        elif kind == "nack" and message.nack.nonce == self._nonce:
            useless = self._way is not None and message.nack.error.startswith(WHOLE_WANTED)
            await (self._of_no_use if useless else self._rejected)(message.nack)
        elif kind == "status":
            status = message.status
            await self._heard(status.config_version, status.hash, worker_rows(status.workers))

    async def _acknowledged(self, ack: config_pb2.Ack) -> None:
        self._nonce = ""
        self._refused = None
        self._node_refusals = 0
        if self._way is not None:
            self._deltas_refused = 0
        await self._heard(ack.version, ack.hash, worker_rows(ack.workers), last_error=None)
        self._answered.set()

    async def _of_no_use(self, nack: config_pb2.Nack) -> None:
        """The node refuses the delta, not what it leads to."""
        self._nonce = ""
        self._whole_wanted = True
        self._deltas_refused += 1
        self._pause = 0.0
        self._again.set()
        reason = clean(nack.error, 512)
        _log.info("node %s gets version %d whole: %s", self.who.node_id, nack.version, reason)
        await self._heard(nack.kept_version, nack.kept_hash, worker_rows(nack.workers))
        self._answered.set()

    async def _rejected(self, nack: config_pb2.Nack) -> None:
        self._nonce = ""
        self._refused = self._sent.snapshot.hash if self._sent else None
        fault = _fault(
            "rejected",
            clean(nack.error, 4096),
            version=min(nack.version, (1 << 63) - 1),
            entity_type=clean(nack.entity_type, 64) or None,
            entity_id=clean(nack.entity_id, 64) or None,
            entity_name=clean(nack.entity_name, 256) or None,
            field=clean(nack.field, 512) or None,
        )
        _log.warning(
            "node %s refused version %d: %s %s: %s",
            *(self.who.node_id, nack.version, fault["entity_type"] or "", fault["entity_name"] or "", fault["message"]),
        )
        if nack.entity_type or nack.unreadable:
            self._node_refusals = 0
        else:
            self._node_refusals += 1
            self._pause = self._service.pace.pause(self._node_refusals)
            self._again.set()
            _log.info("node %s gets version %d again in %.1f s", self.who.node_id, nack.version, self._pause)
        await self._heard(nack.kept_version, nack.kept_hash, worker_rows(nack.workers), last_error=fault)
        self._answered.set()

    async def _heard(self, version: int, hash_: str, workers: list[dict[str, Any]], **more: Any) -> None:
        self._running = clean(hash_, 32)
        self._workers = workers
        ours = await self._record(
            await self._state(workers),
            config_version=min(version, (1 << 63) - 1),
            config_hash=self._running,
            workers=workers,
            **more,
        )
        if not ours and not self._ended.is_set():
            _log.info(
                "the stream of node %s ends here: it has a newer one elsewhere, or was deleted from the list",
                self.who.node_id,
            )
            self.end()

    async def _record(self, state: SyncState, **values: Any) -> bool:
        self._recorded = state
        return await self._service.roster.record(self.who, state, **values)

    async def _state(self, workers: list[dict[str, Any]]) -> SyncState:
        """In sync is a node of which every worker runs the current snapshot; one that just starts does not yet."""
        current = (await self._service.cache.get(self.who.control_plane_id)).snapshot.hash
        if self._running == current and all(worker["hash"] == current for worker in workers):
            return "in_sync"
        return "rejected" if self._refused == current else "pending"


def _delta(nonce: str, parcel: Parcel, way: Way) -> config_pb2.Delta:
    return config_pb2.Delta(
        from_version=way.version,
        to_version=parcel.snapshot.version,
        from_hash=way.hash,
        hash=parcel.snapshot.hash,
        nonce=nonce,
        puts=[config_pb2.EntityPut(type=name, entity=entity) for name, _, entity in way.delta.puts],
        deletes=[config_pb2.EntityDelete(type=name, id=entity_id) for name, entity_id in way.delta.deletes],
    )


def version_problem(node: str, ours: str) -> str | None:
    """Why a node of that version cannot be served; None when it can: same major, its minor no newer than ours."""
    theirs, mine = re.match(r"(\d{1,9})\.(\d{1,9})", node), re.match(r"(\d+)\.(\d+)", ours)
    if theirs is None or mine is None:
        return f"version '{clean(node, 64)}' of the data plane is not understood (expected X.Y.Z)"
    if int(theirs[1]) != int(mine[1]) or int(theirs[2]) > int(mine[2]):
        return f"data plane version {clean(node, 64)} is incompatible with control plane version {ours}"
    return None


def _fault(code: str, message: str, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("version", "entity_type", "entity_id", "entity_name", "field"))
    return {"code": code, "message": message, **empty, **more}
