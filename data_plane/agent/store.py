"""What a node keeps across restarts beside its spool: its id, and the last snapshot that all its workers ran.

    node.json                  {"id": …}
    snapshot.json              {"version", "hash", "file", "software"}: which file counts
    snapshots/<version>-<hash> canonical bytes of a document
    snapshots/….changes        the Delta that led to it, for workers that run what was before
    snapshots/….pointer        what will be `snapshot.json` once all workers run it

A snapshot's file is written whole before any worker hears of it, and `snapshot.json` names it only when all run it and
the disk has it: a snapshot that was refused, or half written when the power went, is never what a restart loads.
Everything is readable by its owner only: documents hold keys.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_plane.logs import facts
from data_plane.settings import VERSION
from gateway_schema.document import hash_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A document on disk. `path` holds its canonical bytes, uncompressed."""

    version: int
    hash: str
    path: Path
    current: bool = True
    """Whether this very software version took it from the control plane: another one might be sent other content."""
    base: str = ""
    """Hash of the document from which `changes` leads to this one; empty when there is no such way."""

    @property
    def changes(self) -> Path:
        """A serialised `config.Delta`, until all workers run this snapshot."""
        return self.path.with_name(f"{self.path.name}.changes")

    @property
    def pointer(self) -> Path:
        return self.path.with_name(f"{self.path.name}.pointer")


class Store:
    def __init__(self, folder: Path) -> None:
        """Makes the directories. Raises OSError."""
        self._folder = folder
        self._snapshots = folder / "snapshots"
        for each in (folder, self._snapshots):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            each.chmod(0o700)

    def node_id(self) -> str:
        """The node's UUID: made once, kept; made anew when the file is broken. Raises OSError."""
        path = self._folder / "node.json"
        try:
            return str(uuid.UUID(_read_object(path)["id"]))
        except FileNotFoundError:
            pass  # The first start: the id is made below.
        except (KeyError, ValueError, AttributeError, TypeError):
            log.warning("the node's id cannot be read: it gets a new one: %s", facts(file=path))
        made = str(uuid.uuid4())
        write_file(path, orjson.dumps({"id": made}))
        return made

    def load(self) -> Snapshot | None:
        """The snapshot to start with; None when there is none. A damaged one is set aside."""
        pointer = self._folder / "snapshot.json"
        try:
            values = _read_object(pointer)
            path = self._snapshots / Path(str(values["file"])).name
            version = int(values["version"])
            if not 0 <= version < 1 << 64:
                raise ValueError(f"no version can be {version}")
            snapshot = Snapshot(version, str(values["hash"]), path, values.get("software") == VERSION)
            found = hash_of(path.read_bytes())
        except FileNotFoundError:
            if pointer.exists():
                log.warning("the snapshot on disk is missing: starting empty: %s", facts(file=pointer))
            return None
        except (KeyError, ValueError, TypeError, OSError) as error:
            log.warning("the snapshot on disk cannot be read: starting empty: %s", facts(file=pointer, reason=error))
            self.set_aside()
            return None
        if found != snapshot.hash:
            log.warning("the snapshot on disk is damaged: starting empty: %s", facts(file=path))
            self.set_aside()
            return None
        return snapshot

    def set_aside(self) -> None:
        """Keep what cannot be used for whoever wants to look at it, out of the way of restarts."""
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        pointer = self._folder / "snapshot.json"
        with suppress(KeyError, ValueError, TypeError, OSError):  # the pointer itself may be what is damaged
            file = self._snapshots / Path(str(_read_object(pointer)["file"])).name
            if file.parent == self._snapshots and file.name != "..":
                os.replace(file, self._folder / f"snapshot.{stamp}.damaged")
        with suppress(OSError):  # gone, or not ours to move: then the next snapshot says so when it is committed
            os.replace(pointer, self._folder / f"snapshot.json.{stamp}.damaged")

    def stage(
        self, version: int, hash_: str, payload: Iterable[bytes], base: str = "", changes: bytes = b""
    ) -> Snapshot:
        """Write a candidate, for the workers to read; a restart does not see it yet. Raises OSError.

        `payload`: the document's bytes, in pieces.
        """
        snapshot = Snapshot(version, hash_, self._snapshots / f"{version}-{hash_}", base=base)
        # One that lies there already may be what a restart loads: it must not be at risk in the meantime.
        _write(snapshot.path, payload, synced=snapshot.path.exists())
        if base:
            _write(snapshot.changes, (changes,), synced=False)  # nobody needs it after a restart
        return snapshot

    def sync(self, snapshot: Snapshot) -> None:
        """Have the disk take what a staged snapshot's commit needs; workers may read it meanwhile. Raises OSError."""
        descriptor = os.open(snapshot.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        values = {
            "version": snapshot.version,
            "hash": snapshot.hash,
            "file": snapshot.path.name,
            "software": VERSION,
        }
        write_file(snapshot.pointer, orjson.dumps(values))

    def read(self, snapshot: Snapshot) -> bytes:
        """Raises OSError."""
        return snapshot.path.read_bytes()

    def commit(self, snapshot: Snapshot) -> None:
        """Make a synced snapshot the one that restarts load. Raises OSError."""
        os.replace(snapshot.pointer, self._folder / "snapshot.json")

    def tidy(self, snapshot: Snapshot) -> None:
        """Remove all others than the one that restarts load. Raises OSError."""
        for path in self._snapshots.iterdir():
            if path != snapshot.path:
                path.unlink(missing_ok=True)

    def discard(self, snapshot: Snapshot) -> None:
        for path in (snapshot.path, snapshot.changes, snapshot.pointer):
            path.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, and ValueError for anything that is no JSON object."""
    value = orjson.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that its name means the old content or the new, whatever happens in between. Raises OSError."""
    _write(path, (data,), synced=True)


def _write(path: Path, pieces: Iterable[bytes], *, synced: bool) -> None:
    """The same; without `synced` it holds when the process is killed, not when the machine loses its power."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
