"""The agent's end of the socket: the node's workers as the agent sees them.

Any process that reaches the socket (it lies in a directory of mode 0700) and says HELLO is a worker of this node,
also one that a former agent started. What it sends may be anything: a frame that makes no sense ends its connection,
and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.agent import framing
from data_plane.agent.framing import FrameError, Kind
from data_plane.agent.spool import SpoolError
from data_plane.agent.spool_state import Intake
from data_plane.agent.store import Snapshot
from data_plane.logs import facts

log = logging.getLogger(__name__)

HELLO_TIMEOUT = 5.0
SPOOL_PAUSE = 1.0
"""Seconds after which a worker whose batch could not be written down may try again."""
DEATHS = 2
"""So many workers that vanish over one snapshot are the snapshot's fault, not chance."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a snapshot cannot run on this node, and which entity and field are at fault, when one is.

    With neither an entity nor `unreadable` the node is at fault, and the same snapshot may run later.
    """

    error: str
    entity_type: str = ""
    entity_id: str = ""
    entity_name: str = ""
    field: str = ""
    unreadable: bool = False
    """The snapshot as a whole is at fault: damaged, no document, too large."""


@dataclass(slots=True, eq=False)
class Link:
    """One connected worker."""

    worker: str
    index: int
    pid: int
    version: int
    hash: str
    state: str
    writer: asyncio.StreamWriter
    draining: bool = False
    offer: int = 0
    """Number of the last offer that was made to it; `answered` says of which it has spoken."""
    answered: int = 0
    offered: Snapshot | None = None
    """What that offer was."""

    @property
    def busy(self) -> bool:
        return self.answered != self.offer

    def send(self, frame: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(frame)

    def drain(self) -> None:
        if not self.draining:
            self.draining = True
            self.send(framing.encode_json(Kind.DRAIN))


class Fleet:
    """`take_in` writes a worker's batch down, or raises SpoolError; `expected`: how many workers the node should have.

    `changed` is called after anything that a status would show.
    """

    def __init__(
        self, path: Path, expected: int, take_in: Callable[[Intake], None], changed: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._expected = expected
        self._take_in = take_in
        self._tell = changed
        self._links: dict[str, Link] = {}
        self._wanted: Snapshot | None = None
        self._offer = 0
        self._deaths = 0
        self._refusal: Refusal | None = None
        self._bell = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    @property
    def links(self) -> list[Link]:
        return sorted(self._links.values(), key=lambda link: (link.index, link.pid))

    @property
    def wanted(self) -> Snapshot | None:
        """What workers are given when they connect."""
        return self._wanted

    async def open(self) -> None:
        """Listen at the socket's path; a former agent's leftover is replaced. Raises OSError."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, str(self._path))
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server is None:
            return  # what lies at the path is not ours
        # Without its path nobody comes any more. Who has just come takes a few turns to reach `_accept`; an asyncio
        # server that is closed in between would forget that connection's socket.
        self._path.unlink(missing_ok=True)
        await _turns(5)
        self._server.close()
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        await _turns(2)  # the transports, closed by then, let go of their sockets

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition on the fleet holds; says whether it came to that within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._bell.wait()
        except TimeoutError:
            return False
        return True

    # Snapshots.

    async def boot(self, snapshot: Snapshot, timeout: float) -> Refusal | None:
        """Start workers with what was on disk: a refusal leaves them empty. Slow workers are not a refusal."""
        self._offer_to_all(snapshot)
        await self.until(lambda: self._refusal is not None or self._all_answered(), timeout)
        refusal = self._refusal
        if refusal is not None:
            await self._return_to(None, timeout)
        return refusal

    def _offer_to_all(self, snapshot: Snapshot) -> None:
        self._wanted = snapshot
        self._offer += 1
        self._refusal = None
        self._deaths = 0
        for link in self._links.values():
            self._send_wanted(link)

    async def apply(self, snapshot: Snapshot, timeout: float) -> Refusal | None:
        """Have every worker run a snapshot: None when all do. After a refusal all run, or return to, the former one.

        While one still owes an answer from last time, the others are not sent there and back again for nothing.
        """
        if not await self.until(lambda: not any(map(self._is_late, self._links.values())), timeout):
            return _overdue(timeout)
        former = self._wanted
        self._offer_to_all(snapshot)
        answered = await self.until(lambda: self._refusal is not None or self._all_answered(), timeout)
        refusal = self._refusal
        if refusal is None and not answered:
            refusal = _overdue(timeout)
        if refusal is not None:
            await self._return_to(former, timeout)
        return refusal

    def _all_answered(self) -> bool:
        serving = [link for link in self._links.values() if not link.draining]
        return len(serving) >= self._expected and all(link.answered == self._offer for link in serving)

    async def _return_to(self, former: Snapshot | None, timeout: float) -> None:
        self._wanted = former
        self._offer += 1
        self._refusal = None
        strays = [link for link in self._links.values() if not _runs(link, former)]
        for link in strays:
            if former is None:
                link.drain()  # a worker cannot forget what it runs: another one takes its place
            else:
                self._send_wanted(link)
        self._ring()
        if former is not None:
            back = await self.until(lambda: all(_runs(link, former) or self._left(link) for link in strays), timeout)
            if not back:
                log.error("some workers did not return to the former snapshot: %s", facts(version=former.version))

    def _is_late(self, link: Link) -> bool:
        """It has not spoken of an offer that was withdrawn meanwhile, and may yet take it."""
        return link.busy and link.offer != self._offer and not link.draining

    def _left(self, link: Link) -> bool:
        return self._links.get(link.worker) is not link or link.draining

    def _send_wanted(self, link: Link) -> None:
        wanted = self._wanted
        if wanted is None or link.draining:
            return
        settled = not link.busy and _runs(link, wanted)
        link.offer, link.offered = self._offer, wanted
        if settled:
            link.answered = self._offer
            self._ring()
            return
        link.send(
            framing.encode_json(
                Kind.SNAPSHOT,
                offer=self._offer,
                version=wanted.version,
                hash=wanted.hash,
                path=str(wanted.path),
                base=wanted.base,
                changes=str(wanted.changes),
            )
        )

    def _ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()
        self._tell()

    # Connections.

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="worker channel")
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)
        task.add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: Link | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                link = self._greeted(await framing.read_frame(reader), writer)
            await self._converse(reader, link)
        except (FrameError, OSError, TimeoutError) as error:
            log.warning("a worker's channel broke: %s", facts(pid=link.pid if link else "unknown", reason=error))
        except Exception:
            # A fault of ours over one worker's frame: it reconnects, and the others are not concerned.
            log.exception("a worker's channel failed")
        finally:
            self._forget(link)

    def _greeted(self, frame: tuple[Kind, bytes] | None, writer: asyncio.StreamWriter) -> Link:
        if frame is None or frame[0] is not Kind.HELLO:
            raise FrameError("a worker begins with HELLO")
        link = _link_of(framing.decode_json(frame[1]), writer)
        if (former := self._links.get(link.worker)) is not None:
            former.writer.close()
        self._links[link.worker] = link
        self._send_wanted(link)
        self._ring()
        return link

    async def _converse(self, reader: asyncio.StreamReader, link: Link) -> None:
        refusing = False
        while (frame := await framing.read_frame(reader)) is not None:
            kind, payload = frame
            if kind is Kind.EVENTS:
                refusing = refusing or not self._take_events(link, payload)
            elif kind is Kind.APPLIED:
                self._applied(link, _integer(framing.decode_json(payload), "offer"))
            elif kind is Kind.REFUSED:
                self._refused(link, framing.decode_json(payload))
            else:
                raise FrameError(f"a worker does not send {kind.name}")

    def _take_events(self, link: Link, payload: bytes) -> bool:
        number, count, dropped, body = framing.decode_events(payload)
        try:
            self._take_in(Intake(link.worker, number, count, dropped, body))
        except SpoolError as error:
            # Not acknowledged, the batch stays with the worker, which sends it again after reconnecting.
            log.error("analytics cannot be written down: %s", facts(reason=error))
            asyncio.get_running_loop().call_later(SPOOL_PAUSE, link.writer.close)
            return False
        link.send(framing.encode_json(Kind.ACK, number=number))
        return True

    def _applied(self, link: Link, offer: int) -> None:
        if offer != link.offer or link.offered is None:
            return
        link.version, link.hash, link.state = link.offered.version, link.offered.hash, "ready"
        link.answered = offer
        if offer != self._offer:
            self._call_back(link)
        self._ring()

    def _call_back(self, link: Link) -> None:
        """It came late, and runs now what was withdrawn: back to what the others run."""
        log.warning("a worker took a snapshot too late: %s", facts(worker=link.index, version=link.version))
        if self._wanted is None:
            link.drain()  # a worker cannot forget what it runs: another one takes its place
        else:
            self._send_wanted(link)

    def _refused(self, link: Link, values: dict[str, Any]) -> None:
        if (offer := _integer(values, "offer")) != link.offer:
            return
        link.answered = offer
        if link.state != "ready":
            link.state = "failed"
        if offer == self._offer:
            refusal = _refusal_of(values)
            log.warning("a worker refused a snapshot: %s", facts(worker=link.index, error=refusal.error))
            self._refusal = self._refusal or refusal
        self._ring()

    def _forget(self, link: Link | None) -> None:
        if link is None or self._links.get(link.worker) is not link:
            return
        del self._links[link.worker]
        if link.busy and not link.draining:
            self._deaths += 1
            if self._deaths >= DEATHS:
                self._refusal = self._refusal or Refusal(f"worker {link.index} died while building the snapshot")
        self._ring()


async def _turns(count: int) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


def _runs(link: Link, snapshot: Snapshot | None) -> bool:
    version, hash_ = (0, "") if snapshot is None else (snapshot.version, snapshot.hash)
    return link.version == version and link.hash == hash_


def _overdue(timeout: float) -> Refusal:
    return Refusal(f"not all workers answered within {timeout:g} seconds")


def _refusal_of(values: dict[str, Any]) -> Refusal:
    texts = {name: str(values.get(name, "")) for name in ("error", "entity_type", "entity_id", "entity_name", "field")}
    return Refusal(**texts, unreadable=values.get("unreadable") is True)


def _link_of(values: dict[str, Any], writer: asyncio.StreamWriter) -> Link:
    worker = str(values.get("worker", ""))
    if len(worker) != 32 or any(character not in "0123456789abcdef" for character in worker):
        raise FrameError("a worker names itself by 32 hex digits")
    state = str(values.get("state", ""))
    return Link(
        worker,
        _integer(values, "index", 2**32),
        _integer(values, "pid", 2**32),
        _integer(values, "version"),
        str(values.get("hash", "")),
        state if state in ("starting", "ready", "failed") else "starting",
        writer,
    )


def _integer(values: dict[str, Any], name: str, limit: int = 2**63) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise FrameError(f"a frame lacks the number {name!r}")
    return value


MAX_SOCKET_PATH = 100
"""Bytes; the kernels' limits are 104 and 108."""


def socket_path(state_dir: Path) -> Path:
    """Where a node's socket lies: in its state directory, unless that has too long a name for a socket.

    Then it is a directory of our own under the system's temporary one, the same for the same state directory, so that
    workers of a dead agent find the next. Raises OSError when that directory is somebody else's.
    """
    path = state_dir / "channel.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.blake2b(os.fsencode(state_dir), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"tandem-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a directory of ours alone")
    return folder / "channel.sock"
