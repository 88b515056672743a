"""A worker's end of the socket to its agent; `fleet` is the agent's end, `framing` says what travels.

What a worker reports is kept here until the agent has written it down: batches get a number when they are first sent
and are sent again, unchanged, after every reconnection, so that the agent can tell a repetition. A worker whose agent
died goes on serving and knocks at the same path until the next agent opens; meanwhile up to `limit` events wait in
memory, and what exceeds them is folded, oldest first. A worker that dies with its agent leaves a journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from data_plane.agent import framing
from data_plane.agent.fold import Fold
from data_plane.agent.framing import BATCH_BYTES, BATCH_EVENTS, FrameError, Kind
from data_plane.agent.journal import Journal, path_of
from data_plane.errors import ConfigError

log = logging.getLogger(__name__)

OnSnapshot = Callable[[int, str, Path, Path | None], Awaitable[None]]
"""Awaited with (version, hash, path of the document's bytes, None or the path of the `config.Delta` that leads
there from what the worker runs; that file may be gone). Returning means applied; raising ConfigError means refused: the
worker runs what it ran before."""
OnDrain = Callable[[], None]
"""Called, at most once, when the worker is to finish its exchanges and exit. It must return at once."""

BATCH_DELAY = 0.02
"""Seconds that an event waits for company."""
WINDOW = 8
"""Batches that may be under way without acknowledgement."""
RECONNECT_FIRST = 0.05
RECONNECT_LAST = 1.0


class WorkerChannel:
    """Reports events to the agent and hears from it which snapshot to run.

    Start `run` as a task once the worker listens; `report` may be called from the beginning. To end: `await flush(…)`,
    cancel the task, `close`. `journals` is the folder for the worker's journal; None keeps none.
    """

    def __init__(
        self,
        path: Path,
        index: int,
        pid: int,
        on_snapshot: OnSnapshot,
        on_drain: OnDrain,
        *,
        limit: int = 20_000,
        journals: Path | None = None,
    ) -> None:
        self.version = 0
        """Of the snapshot in force; 0 when there is none."""
        self.hash = ""
        self.dropped = 0
        """Events that were neither delivered nor folded, since the worker's start."""
        self._path = path
        self._index = index
        self._pid = pid
        self._on_snapshot = on_snapshot
        self._on_drain = on_drain
        self._worker = os.urandom(16).hex()
        self._state = "starting"
        self._draining = False
        self._waiting: deque[bytes] = deque()
        self._limit = limit
        self._fold = Fold()
        self._deltas: deque[tuple[bytes, int]] = deque()
        self._unacknowledged: OrderedDict[int, bytes] = OrderedDict()
        self._last_number = 0
        self._dropped_sent = 0
        self._gone = 0
        """Events that no longer wait: they are in a batch, or folded."""
        self._journal = _journal(journals, self._worker)
        self._writer: asyncio.StreamWriter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = False
        """Whether something waits only because the window is full."""
        self._empty = asyncio.Event()
        self._empty.set()

    def report(self, event: bytes) -> None:
        """Hand over one serialised RequestEvent. Never blocks, never raises."""
        waiting = self._waiting
        waiting.append(event)
        if self._journal is not None:
            self._journal.add(event)
        self._empty.clear()
        if len(waiting) > self._limit:
            self._gone += 1
            if not self._fold.add_serialised(waiting.popleft()):
                self.dropped += 1
        if self._timer is None and self._writer is not None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_DELAY, self._send_waiting)

    async def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until the agent has written down all that was reported; says whether it has."""
        self._send_waiting()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Let go of the journal: it stays if it holds what no agent has written down."""
        if self._journal is not None:
            self._journal.close(remove=self._empty.is_set())
            self._journal = None

    async def run(self) -> None:
        """Stay connected, for ever: ends by cancellation only."""
        delay = RECONNECT_FIRST
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:  # no agent: it starts yet, or died, and the next one will open this path
                self._drain_if_abandoned()
            else:
                delay = RECONNECT_FIRST
                await self._converse(reader, writer)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RECONNECT_LAST)

    # One connection.

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        snapshots: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        applying = asyncio.create_task(self._apply_each(snapshots, writer), name="worker channel: snapshots")
        try:
            self._greet(writer)
            while (frame := await framing.read_frame(reader)) is not None:
                self._receive(*frame, snapshots)
            log.warning("the agent closed the channel; serving on and reconnecting")
        except (FrameError, OSError) as error:
            log.warning("the channel to the agent broke; serving on and reconnecting: %s", error)
        except asyncio.CancelledError:
            applying.cancel()
            raise
        finally:
            self._writer = None
            self._cancel_timer()
            writer.close()
            # When only the connection broke, a build under way ends by itself and its answer goes nowhere.
            snapshots.put_nowait({})
            await asyncio.wait({applying})

    def _greet(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            framing.encode_json(
                Kind.HELLO,
                worker=self._worker,
                index=self._index,
                pid=self._pid,
                version=self.version,
                hash=self.hash,
                state=self._state,
            )
        )
        for frame in self._unacknowledged.values():
            writer.write(frame)
        self._writer = writer
        self._send_waiting()

    def _receive(self, kind: Kind, payload: bytes, snapshots: asyncio.Queue[dict[str, Any]]) -> None:
        values = framing.decode_json(payload)
        if kind is Kind.ACK:
            self._acknowledged(_integer(values, "number"))
        elif kind is Kind.SNAPSHOT:
            snapshots.put_nowait(
                {
                    "offer": _integer(values, "offer"),
                    "version": _integer(values, "version"),
                    "hash": str(values.get("hash", "")),
                    "path": str(values.get("path", "")),
                    "base": str(values.get("base", "")),
                    "changes": str(values.get("changes", "")),
                }
            )
        elif kind is Kind.DRAIN:
            self._drain()
        else:
            raise FrameError(f"an agent does not send {kind.name}")

    def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._on_drain()

    def _drain_if_abandoned(self) -> None:
        """Without the node's state directory no agent can ever come back: the node was removed."""
        if not self._path.parent.exists() and not self._draining:
            log.warning("the node's state directory is gone: draining")
            self._drain()

    # Snapshots.

    async def _apply_each(self, snapshots: asyncio.Queue[dict[str, Any]], writer: asyncio.StreamWriter) -> None:
        while offer := await snapshots.get():
            answer = await self._apply(offer)
            if not writer.is_closing():
                writer.write(answer)

    async def _apply(self, offer: dict[str, Any]) -> bytes:
        number, version, hash_, path = offer["offer"], offer["version"], offer["hash"], Path(offer["path"])
        changes = Path(offer["changes"]) if offer["base"] and offer["base"] == self.hash else None
        try:
            await self._on_snapshot(version, hash_, path, changes)
        except ConfigError as error:
            return self._refused(
                number,
                error.message,
                entity_type=error.entity_type,
                entity_id=error.entity_id,
                entity_name=error.entity_name,
                field=error.field,
                unreadable=not error.entity_type,
            )
        except FileNotFoundError as error:
            # The snapshot was withdrawn before this worker, which was slow or stopped, came to it.
            log.warning("the snapshot of version %d is gone: %s", version, error)
            return self._refused(number, "the snapshot was gone when the worker came to build it")
        except Exception as error:
            # A fault of ours in the compiler must neither stop this worker nor pass for success: it is a refusal, and
            # only the log tells the details, because the message may hold values of the configuration.
            log.exception("building snapshot failed")
            return self._refused(number, f"the worker failed to build the snapshot: {type(error).__name__}")
        self.version, self.hash, self._state = version, hash_, "ready"
        return framing.encode_json(Kind.APPLIED, offer=number)

    def _refused(self, number: int, error: str, **where: str | bool) -> bytes:
        if self._state != "ready":
            self._state = "failed"
        return framing.encode_json(Kind.REFUSED, offer=number, error=error, **where)

    # Events.

    def _send_waiting(self) -> None:
        """Form batches of what waits, as far as the window allows, and send them."""
        self._cancel_timer()
        while self._writer is not None and self._has_waiting():
            self._stalled = len(self._unacknowledged) >= WINDOW
            if self._stalled:
                return
            self._last_number += 1
            first = self._gone + 1
            frame = self._next_batch(self._last_number)
            if self._journal is not None:
                self._journal.mark(self._last_number, first, self._gone)
            self._unacknowledged[self._last_number] = frame
            self._writer.write(frame)

    def _has_waiting(self) -> bool:
        return bool(self._waiting or self._fold or self._deltas or self.dropped > self._dropped_sent)

    def _next_batch(self, number: int) -> bytes:
        if self._fold and not self._deltas:
            self._deltas.extend((delta.SerializeToString(), delta.requests) for delta in self._fold.deltas())
            self._fold = Fold()
        room = BATCH_BYTES
        deltas: list[bytes] = []
        count = 0
        while self._deltas and (not deltas or len(self._deltas[0][0]) <= room):
            delta, requests = self._deltas.popleft()
            deltas.append(delta)
            count += requests
            room -= len(delta)
        events: list[bytes] = []
        waiting = self._waiting
        while waiting and len(events) < BATCH_EVENTS and (len(waiting[0]) <= room or not (events or deltas)):
            event = waiting.popleft()
            events.append(event)
            room -= len(event)
        self._gone += len(events)
        dropped = self.dropped - self._dropped_sent
        self._dropped_sent = self.dropped
        return framing.encode_events(number, count + len(events), dropped, framing.batch_of(events, deltas))

    def _acknowledged(self, number: int) -> None:
        while self._unacknowledged and next(iter(self._unacknowledged)) <= number:
            self._unacknowledged.popitem(last=False)
        if self._journal is not None:
            self._journal.acknowledged(number)
        if self._stalled:
            self._stalled = False
            self._send_waiting()
        if not self._unacknowledged and not self._has_waiting():
            self._empty.set()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _journal(folder: Path | None, worker: str) -> Journal | None:
    if folder is None:
        return None
    try:
        return Journal(path_of(folder, worker))
    except OSError as error:
        log.warning("no journal: a worker that dies together with its agent will lose events: %s", error.strerror)
        return None


def _integer(values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FrameError(f"a frame lacks the number {name!r}")
    return value
