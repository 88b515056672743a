"""`deck gateway ping` in Konnect mode, without Konnect.

decK asks a "global" host for the organisation and computes its name from the address by splitting it at `api.konghq`.
An address without that gives `https://global.api.konghqhttp://127.0.0.1:8001/v2/organizations/me`: a host that nobody
has and a path that starts with ours. A proxy (HTTPS_PROXY) is asked for that host before any name is looked up, so it
can lead the call home: it accepts the CONNECT, speaks TLS itself and passes on what it hears.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

_TIMEOUT_SECONDS = 20
_CHUNK = 65_536


@contextlib.asynccontextmanager
async def shim(port: int, tls: ssl.SSLContext) -> AsyncIterator[str]:
    """The address of a proxy whose every tunnel ends at 127.0.0.1:port."""

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                assert request.startswith(b"CONNECT global.api.konghqhttp:443 "), request
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await writer.start_tls(tls)
                await _pass_on(reader, writer, port)

    server = await asyncio.start_server(tunnel, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there, back = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(back):
        await asyncio.wait(
            [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))],
            return_when=asyncio.FIRST_COMPLETED,
        )


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
