"""The HTTP/1.1 server: listens, keeps its connections, and drains them.

How a connection works stands in `server_connection`, how bytes become requests in `request_reader`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from data_plane.http1.limits import ServerLimits
from data_plane.http1.response_writer import Sent
from data_plane.http1.server_connection import Application, ServerConnection

__all__ = ["Application", "Sent", "Server", "ServerLimits"]

BACKLOG = 2048
"""Connections that wait to be accepted."""


class Server:
    """Answers requests with an application. One per worker; several workers may share a port (`reuse_port`)."""

    def __init__(self, application: Application, limits: ServerLimits | None = None) -> None:
        self._application = application
        self._limits = limits or ServerLimits()
        self._connections: set[ServerConnection] = set()
        self._listeners: list[asyncio.AbstractServer] = []

    async def listen(self, host: str, port: int, reuse_port: bool = True) -> int:
        """Accept connections; the bound port (of interest when `port` is 0). Raises OSError."""
        listener = await asyncio.get_running_loop().create_server(
            self._connection, host, port, reuse_port=reuse_port, backlog=BACKLOG
        )
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def accept_from(self, listener: socket.socket) -> None:
        """Accept connections from a socket that listens already, beside others that do. It is closed when draining."""
        self._listeners.append(
            await asyncio.get_running_loop().create_server(self._connection, sock=listener, backlog=BACKLOG)
        )

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    async def drain(self, timeout: float) -> None:
        """Accept nothing more, let requests in flight finish for `timeout` seconds, then break what is left."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        grace = min(self._limits.drain_grace, timeout / 2)
        for connection in list(self._connections):
            connection.drain(grace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._closed(list(self._connections))
        leftover = list(self._connections)
        for connection in leftover:
            connection.abort()
        await self._closed(leftover)

    @staticmethod
    async def _closed(connections: list[ServerConnection]) -> None:
        for connection in connections:
            await connection.closed()

    def _connection(self) -> ServerConnection:
        return ServerConnection(self._application, self._limits, self._connections)
