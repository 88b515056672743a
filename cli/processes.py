"""Starting processes that outlive the command, knowing them again, and ending them for certain.

A process is known by its pid and its start time, so a pid that was given to another process is never killed. Whatever
it starts itself inherits a mark in its environment: workers that outlived their node are found by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.errors import CliError
from cli.state import ProcessRecord

MARK = "TANDEM_STACK_PROCESS"
GRACE = 15.0
"""Seconds between asking a process to end and killing it: a node may drain for ten."""

_LOG_BYTES = 10 * 1024 * 1024
_LOGS_KEPT = 3
_HIDDEN = ("DECK_", "KONNECT_")
"""Prefixes of variables that the command reads and that processes have no business to know."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A process to run."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    mark: str
    ports: Mapping[str, int]
    """What it listens on: the setting that says so (`--proxy-port`) → port."""

    @property
    def fingerprint(self) -> str:
        parts = [*self.argv, *(f"{key}={self.environment[key]}" for key in sorted(self.environment))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def start(spec: Spec) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to its log."""
    _rotate(spec.log)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_HIDDEN)}
    descriptor = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            env={**inherited, **spec.environment, MARK: spec.mark},
        )
    except OSError as error:
        raise CliError(f"{spec.name} cannot be started: {error}") from None
    finally:
        os.close(descriptor)
    _CHILDREN[process.pid] = process
    return ProcessRecord(process.pid, start_time(process.pid) or "", spec.fingerprint)


_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Processes of this run, so that they are reaped when they end before it does."""


def is_running(record: ProcessRecord) -> bool:
    child = _CHILDREN.get(record.pid)
    if child is not None and child.poll() is not None:
        return False
    return bool(record.started) and start_time(record.pid) == record.started


def stop(records: Iterable[ProcessRecord], mark: str | None = None, grace: float = GRACE) -> None:
    """End processes, and all that carries `mark`: ask, wait, kill what is left, wait until it is gone."""
    alive = {record.pid: record.started for record in records if is_running(record)}
    for pid in marked(mark) if mark else ():
        alive.setdefault(pid, start_time(pid) or "")
    _signal(alive, signal.SIGTERM)
    if not _gone(alive, grace):
        for pid in marked(mark) if mark else ():
            alive.setdefault(pid, start_time(pid) or "")
        _signal(alive, signal.SIGKILL)
        if not _gone(alive, 5.0):
            raise CliError(f"processes {', '.join(map(str, alive))} do not end, not even when killed")
    if mark and (rest := marked(mark)):
        # Started by one of those that just ended, too late to be asked with them.
        stop([ProcessRecord(pid, start_time(pid) or "", "") for pid in rest], None, grace)


def _signal(alive: Mapping[int, str], number: signal.Signals) -> None:
    for pid, started in alive.items():
        if started and start_time(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _gone(alive: Mapping[int, str], timeout: float) -> bool:
    def all_ended() -> bool:
        return not any(is_running(ProcessRecord(pid, started, "")) for pid, started in alive.items())

    return wait_for(all_ended, timeout)


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether `condition` became true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def start_time(pid: int) -> str | None:
    """When a process started, as the system tells it; None when there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _start_time_by_ps(pid)
    except (ProcessLookupError, PermissionError):
        return None
    # The command's name stands in parentheses and may hold anything; fields are counted from behind it.
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started


def _start_time_by_ps(pid: int) -> str | None:
    """The same on systems without /proc."""
    answer = subprocess.run(  # noqa: S603 - a fixed command and a number
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607 - ps stands elsewhere on each system
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    state, _, started = answer.stdout.strip().partition(" ")
    return started.strip() or None if state and not state.startswith("Z") else None


def marked(mark: str) -> list[int]:
    """The processes whose environment carries the mark. Empty on systems that do not show environments."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        try:
            carries = wanted in path.read_bytes().split(b"\0")
        except OSError:
            continue  # It ended meanwhile, or belongs to somebody else; either way it is not ours.
        if carries and pid != os.getpid() and start_time(pid):
            found.append(pid)
    return found


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 64 * 1024, 0))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _rotate(log: Path) -> None:
    """Keep a few old logs; a log is put aside at a start, when it has grown large."""
    if not log.exists() or log.stat().st_size < _LOG_BYTES:
        return
    for number in range(_LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    log.replace(log.with_name(f"{log.name}.1"))
