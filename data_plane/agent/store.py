"""What a node keeps across restarts beside its spool: its id, and the last snapshot that all its workers ran.

    node.json                  {"id": …}
    snapshot.json              {"version", "hash", "file", "software"}: which file counts
    snapshots/<version>-<hash> canonical bytes of a document
    snapshots/….changes        the Delta that led to it, for workers that run what was before

A snapshot's file is written whole before any worker hears of it, and `snapshot.json` names it only when all run it: a
snapshot that was refused is never what a restart loads. Everything is readable by its owner only: documents hold keys.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
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
            snapshot = Snapshot(int(values["version"]), str(values["hash"]), path, values.get("software") == VERSION)
            found = hash_of(path.read_bytes())
        except FileNotFoundError:
            if pointer.exists():
                log.warning("the snapshot on disk is missing: starting empty: %s", facts(file=pointer))
            return None
        except (KeyError, ValueError, TypeError) as error:
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
            os.replace(file, self._folder / f"snapshot.{stamp}.damaged")
        with suppress(FileNotFoundError):
            os.replace(pointer, self._folder / f"snapshot.json.{stamp}.damaged")

    def stage(self, version: int, hash_: str, payload: bytes, base: str = "", changes: bytes = b"") -> Snapshot:
        """Put a candidate on disk, for the workers to read; a restart does not see it yet. Raises OSError."""
        snapshot = Snapshot(version, hash_, self._snapshots / f"{version}-{hash_}", base=base)
        write_file(snapshot.path, payload)
        if base:
            write_file(snapshot.changes, changes)
        return snapshot

    def read(self, snapshot: Snapshot) -> bytes:
        """Raises OSError."""
        return snapshot.path.read_bytes()

    def commit(self, snapshot: Snapshot) -> None:
        """Make a staged snapshot the one that restarts load, and remove all others. Raises OSError."""
        values = {
            "version": snapshot.version,
            "hash": snapshot.hash,
            "file": snapshot.path.name,
            "software": VERSION,
        }
        write_file(self._folder / "snapshot.json", orjson.dumps(values))
        for path in self._snapshots.iterdir():
            if path != snapshot.path:
                path.unlink(missing_ok=True)

    def discard(self, snapshot: Snapshot) -> None:
        snapshot.path.unlink(missing_ok=True)
        snapshot.changes.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, and ValueError for anything that is no JSON object."""
    value = orjson.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that its name means the old content or the new, whatever happens in between. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
