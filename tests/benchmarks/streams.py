"""A client of many streams at once, cheap enough to share a core with the upstream: it counts frames, parses nothing.

`python -m tests.benchmarks.streams PORT STREAMS SECONDS PATH` prints JSON: streams finished, frames, failures and the
times to first token in milliseconds.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import orjson
import uvloop

STARTS_SECONDS = 0.5
"""The time within which all streams begin, on average."""

BODY = orjson.dumps(
    {
        "model": "fast",
        "stream": True,
        "messages": [{"role": "user", "content": "Tell me about the history of gateways, please, in a few words."}],
    }
)


def request(path: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\napikey: bench-key\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY


@dataclass
class Tally:
    finished: int = 0
    frames: int = 0
    failures: int = 0
    first_token_ms: list[float] = field(default_factory=list)


class Caller(asyncio.Protocol):
    """Asks again on the same connection as soon as a stream is over, until it is told to stop."""

    def __init__(self, tally: Tally, message: bytes) -> None:
        self._tally = tally
        self._message = message
        self._first = True
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._first = True
        self.transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        frames = data.count(b"data: ")
        if self._first and frames:
            self._first = False
            self._tally.first_token_ms.append((time.perf_counter() - self._asked) * 1000)
        if self._first and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self._tally.failures += 1
        self._tally.frames += frames
        if data.endswith(b"0\r\n\r\n"):
            self._tally.finished += 1
            if not self.stopped:
                self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.stopped:
            self._tally.failures += 1


async def call(port: int, streams: int, seconds: float, path: str) -> Tally:
    tally = Tally()
    loop = asyncio.get_running_loop()
    callers: list[Caller] = []
    chance = random.Random(streams)
    for _ in range(streams):
        _, caller = await loop.create_connection(lambda: Caller(tally, request(path)), "127.0.0.1", port)
        callers.append(caller)
        # Independent callers: a crowd that arrives in one instant, and returns in one, measures its own queue.
        await asyncio.sleep(chance.expovariate(streams / STARTS_SECONDS))
    await asyncio.sleep(seconds)
    for caller in callers:
        caller.stopped = True
        caller.transport.abort()
    return tally


if __name__ == "__main__":
    result = uvloop.run(call(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
    print(orjson.dumps(result).decode())
