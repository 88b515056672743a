"""What a local stack remembers between two runs of the command.

One folder per stack under the state home: `state.json` (ports, token, processes; readable by its owner only), `logs/`,
`control-plane/` and `node/`. Nothing here starts or stops anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cli.errors import CliError

LOCK_TIMEOUT = 300.0
"""Seconds to wait for another `up` or `down` of the same home."""


def state_home() -> Path:
    """Where all stacks keep their state: RECIPE_HOME, else the XDG state directory."""
    if home := os.environ.get("RECIPE_HOME"):
        return Path(home).absolute()
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base).absolute() / "tandem"


@dataclass(slots=True)
class ProcessRecord:
    """A process that was started. Its start time tells it from a later one that got the same pid."""

    pid: int
    started: str
    fingerprint: str
    """Of its command and environment: another one means that it must be restarted."""


@dataclass(slots=True)
class StackState:
    name: str
    control_plane_name: str = ""
    control_plane_id: str = ""
    select_tags: list[str] = field(default_factory=list)
    applied: bool = False
    """Whether `up` applied a file. One without tags governs what nobody owns; without any, nothing is ours."""
    simulated: bool = True
    workers: int = 1
    ports: dict[str, int] = field(default_factory=dict)
    token: str = ""
    values: dict[str, str] = field(default_factory=dict)
    """Made-up credentials for the simulated providers."""
    processes: dict[str, ProcessRecord] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"StackState({self.name}, processes {sorted(self.processes)})"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports.get('control-plane', 8001)}"

    @property
    def proxy_url(self) -> str:
        return f"http://localhost:{self.ports.get('proxy', 8000)}"


class StackFolder:
    """The folder of one stack."""

    def __init__(self, home: Path, name: str) -> None:
        self.path = home / "stacks" / name
        self.state_file = self.path / "state.json"
        self.logs = self.path / "logs"
        self.control_plane = self.path / "control-plane"
        self.node = self.path / "node"

    def make(self) -> None:
        for folder in (self.path, self.logs, self.control_plane, self.node):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> StackState | None:
        """The state, or None where no stack is. Raises CliError for a file that cannot be read."""
        try:
            data = json.loads(self.state_file.read_text())
            processes = {name: ProcessRecord(**record) for name, record in data.pop("processes").items()}
            known = {entry.name for entry in fields(StackState)}  # Another version may have written more.
            return StackState(**{key: value for key, value in data.items() if key in known}, processes=processes)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CliError(
                f"{self.state_file}: cannot be read ({type(error).__name__}); "
                "end the stack's processes and remove this file"
            ) from None

    def save(self, state: StackState) -> None:
        """Write the state whole: a reader sees the old one or the new one."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self.state_file, json.dumps(asdict(state), indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable and writable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def stacks(home: Path) -> list[tuple[StackFolder, StackState]]:
    """All stacks of a home that have a state, by name."""
    found = []
    for path in sorted((home / "stacks").glob("*/state.json")):
        folder = StackFolder(home, path.parent.name)
        state = folder.load()
        if state is not None:
            found.append((folder, state))
    return found


@contextlib.contextmanager
def locked(home: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """One `up` or `down` of a home at a time. `waiting` is told once when another one is in the way.

    Raises CliError for a home that cannot be had.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CliError(
            f"{home}: cannot hold the stacks' state ({error.strerror}); name another folder with RECIPE_HOME"
        ) from None
    try:
        _lock(descriptor, waiting)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


def _lock(descriptor: int, waiting: Callable[[str], None]) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
        if not told:
            waiting(f"another recipe command (pid {holder}) is starting or stopping a stack: waiting for it")
            told = True
        if time.monotonic() > deadline:
            raise CliError(f"another recipe command (pid {holder}) has been busy for {LOCK_TIMEOUT:.0f} s: gave up")
        time.sleep(0.1)
