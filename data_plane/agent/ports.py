"""Whether the proxy's port is ours to take, and the agent's own hold on it.

Workers share a port (SO_REUSEPORT), which also means that two nodes could share one without either noticing, each
getting a part of the other's requests. So the agent first tries to have the port alone, then keeps it by a listener
that it never accepts from itself: workers inherit it and do. While all of them are dead, connections wait there for
the next one instead of being refused.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from data_plane.http1.server import BACKLOG
from data_plane.settings import SettingsError, where


class PortTaken(Exception):
    """Somebody else listens; the message says on which port, for what it is needed and what to do."""


def taken(host: str, port: int, what: str, setting: str) -> PortTaken:
    return PortTaken(
        f"port {port} on {host} is in use by another process and the {what} needs it: "
        f"stop that process, or give another port with {where(setting)}"
    )


def is_free(host: str, port: int) -> bool:
    """Whether nobody has the port. Raises PortTaken where it may not be used, SettingsError for an unknown host."""
    with _socket(host) as probe:
        # Connections of a former process that linger in TIME_WAIT are nobody.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno == errno.EACCES:
                raise PortTaken(f"port {port} may not be used by this user: give another with {_PROXY}") from None
            raise SettingsError(f"{where('proxy_host')}: cannot listen on {host}: {error.strerror}") from None
    return True


_PROXY = where("proxy_port")


def reserve(host: str, port: int, *, listening: bool) -> tuple[socket.socket | None, int]:
    """Hold the port by a socket for workers to accept from; with port 0, choose one. Close the socket to release it.

    Unless it is `listening` already, the first worker that accepts from it makes it so: where former workers still
    serve, connections should go to them rather than wait for the next ones.

    None where others (old workers, lingering connections) stand in the way of a reservation; workers can bind all the
    same.
    """
    holder = _socket(host)
    with suppress(OSError):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        # Connections inherit it, and only then are they nobody to `is_free` when they linger after us. Not before the
        # bind: the system could choose a port that somebody else has bound the same way.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listening:
            holder.listen(BACKLOG)
        return holder, int(holder.getsockname()[1])
    holder.close()
    return None, port


def _socket(host: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except OSError as error:
        raise SettingsError(f"{where('proxy_host')}: {host!r} is no address of this machine: {error}") from None
    return socket.socket(family, socket.SOCK_STREAM)
