"""The HTTP/1.1 client: connections to upstreams, kept alive in pools by origin."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
import ssl
from collections import deque
from typing import NamedTuple

from data_plane.errors import InvalidResponse, UpstreamTimeout, UpstreamUnavailable
from data_plane.http1.body import IncomingBody
from data_plane.http1.client_connection import ClientConnection, StaleConnection
from data_plane.http1.framing import arrived, request_head
from data_plane.http1.limits import ClientLimits, Timeouts
from data_plane.http1.tls import Contexts
from data_plane.messages import Request, Response

__all__ = ["Client", "ClientLimits", "Origin", "Timeouts"]

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
_RACE = 1.0
"""Seconds within which a kept connection that the upstream had already closed shows itself as such."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where to connect and whom to trust there. Connections are shared within one origin only."""

    scheme: str
    host: str
    port: int
    server_name: str | None = None
    """Name for SNI and the certificate's check, where it is not `host`."""
    verify: bool = True
    ca: str | None = None
    """PEM file or PEM text of the authorities to trust instead of the client's bundle."""

    @property
    def authority(self) -> str:
        """The Host field's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"


class Pool:
    """The connections to one origin: all of them, and those kept for the next request."""

    __slots__ = ("_limit", "connecting", "connections", "kept")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.connections: set[ClientConnection] = set()
        self.connecting = 0
        self.kept: deque[ClientConnection] = deque()

    def take(self) -> ClientConnection | None:
        """The connection used last, which is the least likely to have been closed meanwhile."""
        kept = self.kept
        while kept:
            connection = kept.pop()
            if connection.is_usable:
                return connection
        return None

    def keep(self, connection: ClientConnection) -> bool:
        """Take a connection back; False when it is not wanted."""
        kept = self.kept
        if len(kept) >= self._limit or connection not in self.connections:
            return False
        kept.append(connection)
        return True

    def forget(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        with contextlib.suppress(ValueError):  # It may be in use, not among the kept.
            self.kept.remove(connection)


class Client:
    """Sends requests. One per worker; `ca_bundle` is the PEM file trusted by default (empty: the system's store)."""

    def __init__(self, limits: ClientLimits | None = None, *, ca_bundle: str = "") -> None:
        self._limits = limits or ClientLimits()
        self._contexts = Contexts(ca_bundle)
        self._pools: dict[Origin, Pool] = {}
        self._is_closed = False

    async def send(self, origin: Origin, request: Request, timeouts: Timeouts, head: bytes | None = None) -> Response:
        """Send a request and receive its response, whose body may still be streaming: `close` it.

        Raises InvalidResponse, UpstreamTimeout, UpstreamUnavailable; InvalidHeader where the head cannot be written;
        and whatever the request's own body raises when it is read. The request's headers go out as they are, with
        only Host (if missing) and the body's framing added. One that has been sent on already (`request.ride`) is not
        sent again. `head` is its head in wire form, where the caller has made it already.
        """
        body = request.body
        data = arrived(request)
        ride = request.ride
        connection: ClientConnection | None
        waiter: asyncio.Future[Response] | None
        if ride is not None:
            request.ride = None
            connection, waiter = ride.behind, ride.waiter
        else:
            connection, waiter = self._pool(origin).take(), None
        if head is None:
            head = request_head(request, origin, body.length if data is None else len(data))
        while True:
            if connection is None:
                connection = await self._connect(origin, self._pool(origin), timeouts.connect)
            if waiter is None:
                waiter = connection.start(request.method, head, data, body, timeouts)
            try:
                response = await waiter
                break
            except StaleConnection as stale:
                # The upstream may close a kept connection just as we use it. Whether it took the request then cannot
                # be told for sure; soon after sending it is all but certain that it did not, later it may have worked
                # on it and died, and what is not idempotent must not be done twice. A new connection is never stale.
                if data is None or (stale.age > _RACE and request.method not in _IDEMPOTENT):
                    raise
                connection = waiter = None
            except BaseException:
                connection.give_up(waiter)
                raise
        streamed = response.body
        if type(streamed) is IncomingBody:
            whole = streamed.arrived()  # The rest may have come before we woke.
            if whole is not None:
                response.body = whole
        return response

    def pool(self, origin: Origin) -> Pool | None:
        """The connections to an origin, if there are any."""
        return self._pools.get(origin)

    async def close(self) -> None:
        """Close every connection; exchanges in flight fail."""
        self._is_closed = True
        connections = [connection for pool in self._pools.values() for connection in pool.connections]
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.closed()

    @property
    def kept_count(self) -> int:
        """Connections that wait to be used again."""
        return sum(len(pool.kept) for pool in self._pools.values())

    # Connecting.

    async def _connect(self, origin: Origin, pool: Pool, timeout: float) -> ClientConnection:
        pool.connecting += 1
        try:
            async with asyncio.timeout(timeout):
                return await self._open(origin, pool, timeout)
        except TimeoutError:
            raise UpstreamTimeout("timeout_connect", f"no connection to {origin.authority}") from None
        except socket.gaierror as error:
            raise UpstreamUnavailable("dns", f"{origin.host}: {error}") from None
        except ssl.SSLError as error:
            raise InvalidResponse("tls", f"{origin.authority}: {error}") from None
        except OSError as error:
            # During the handshake a peer that hangs up shows as a reset or an abort, never as a refusal.
            cut = origin.scheme == "https" and isinstance(error, (ConnectionResetError, ConnectionAbortedError))
            raise InvalidResponse("tls" if cut else "refused", f"{origin.authority}: {error}") from None
        finally:
            pool.connecting -= 1
            self._tidy(origin, pool)

    async def _open(self, origin: Origin, pool: Pool, timeout: float) -> ClientConnection:
        """Try each address of the host in turn, none for longer than its share of the time."""
        context = await self._context(origin)
        addresses = await _addresses(origin.host, origin.port)
        for number, address in enumerate(addresses, 1):
            try:
                async with asyncio.timeout(timeout / len(addresses)):
                    return await self._open_address(origin, pool, address, context)
            except (TimeoutError, OSError) as error:
                if number == len(addresses) or isinstance(error, ssl.SSLError):
                    raise
        raise socket.gaierror(f"{origin.host} has no address")

    async def _open_address(
        self, origin: Origin, pool: Pool, address: str, context: ssl.SSLContext | None
    ) -> ClientConnection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: ClientConnection(self._limits, pool.keep, functools.partial(self._forget, origin, pool)),
            address,
            origin.port,
            ssl=context,
            server_hostname=None if context is None else origin.server_name or origin.host,
        )
        if connection.is_usable and not self._is_closed:
            pool.connections.add(connection)
        return connection

    async def _context(self, origin: Origin) -> ssl.SSLContext | None:
        if origin.scheme != "https":
            return None
        try:
            return await self._contexts.get(origin.verify, origin.ca)
        except OSError as error:
            raise InvalidResponse("tls", f"{origin.authority}: no usable CA bundle ({error})") from None

    def _pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(self._limits.max_idle_per_origin)
        return pool

    def _forget(self, origin: Origin, pool: Pool, connection: ClientConnection) -> None:
        pool.forget(connection)
        self._tidy(origin, pool)

    def _tidy(self, origin: Origin, pool: Pool) -> None:
        """Keep no pool for an origin to which there is no connection."""
        if not pool.connections and not pool.connecting and self._pools.get(origin) is pool:
            del self._pools[origin]


async def _addresses(host: str, port: int) -> list[str]:
    """The host's IP addresses, each once. Raises socket.gaierror."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return [host]
