"""Which ports are free and, where one is not, who holds it."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
_LISTENING = "0A"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who listens on a port, as far as the system tells."""

    pid: int | None = None
    command: str = ""
    user: str = ""

    def __str__(self) -> str:
        if self.pid is not None:
            return f"pid {self.pid} ({self.command})" if self.command else f"pid {self.pid}"
        return f"a process of user {self.user}" if self.user else "another process"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def conflicts(wanted: Mapping[str, int], ours: Collection[int] = ()) -> list[str]:
    """A message for each port that is taken, or wanted twice. `ours` are pids that may hold one: they will yield."""
    messages: list[str] = []
    first: dict[int, str] = {}
    for setting, port in wanted.items():
        if port in first:
            messages.append(f"port {port} is wanted twice: by {first[port]} and by {setting}")
            continue
        first[port] = setting
        if is_free(port):
            continue
        holder = holder_of(port)
        if holder.pid is not None and holder.pid in ours:
            continue
        messages.append(
            f"port {port} is taken by {holder}; it is needed for {setting}. "
            f"Stop that process, or choose another port: {_flag(setting, _free_near(port, wanted.values()))}"
        )
    return messages


def _flag(setting: str, port: int) -> str:
    """As it is written where the command was called: `make` takes no flags for us."""
    return f'make up ARGS="{setting} {port}"' if "MAKELEVEL" in os.environ else f"{setting} {port}"


def _free_near(port: int, taken: Collection[int]) -> int:
    candidates = (number for number in range(port + 10, min(port + 2000, 65_536)) if number not in taken)
    return next((number for number in candidates if is_free(number)), 0)


def holder_of(port: int) -> Holder:
    """Who listens on the port; an empty Holder where the system does not say."""
    inodes: set[str] = set()
    user = ""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(table):
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
                user = _user_name(int(fields[7]))
    pid = _owner(inodes) if inodes else None
    return Holder(pid, _command(pid) if pid else "", user)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()[1:]
    except OSError:
        return []


def _owner(inodes: set[str]) -> int | None:
    """The process that has one of the sockets open; others' processes cannot be looked into."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(entry) in inodes for entry in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    return None


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    text = " ".join(word.decode(errors="replace") for word in words if word)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
