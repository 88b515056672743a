"""An upstream that streams chat completions at a steady pace, cheaply: one timer writes to the open streams in turn.

`python -m tests.benchmarks.paced PORT INTERVAL_MS CHUNKS`

The streams are spread over the interval, as those of independent callers are. Were all of them written at one instant,
they would also end at one instant and be asked again at one: what was measured would be the queue of that crowd.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import orjson
import uvloop

STEP = 0.001
"""Seconds between two groups of streams."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def frame(payload: bytes) -> bytes:
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return frame(
        orjson.dumps(
            {
                "id": "chatcmpl-bench",
                "object": "chat.completion.chunk",
                "created": 1_700_000_000,
                "model": "gpt-4o-mini",
                "system_fingerprint": "fp_bench",
                "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
                "usage": None,
            }
        )
    )


FIRST = chunk({"role": "assistant", "content": "Hello"})
NEXT = chunk({"content": " and one more token"})
LAST = (
    chunk({}, "stop")
    + frame(
        orjson.dumps(
            {
                "id": "chatcmpl-bench",
                "object": "chat.completion.chunk",
                "created": 1_700_000_000,
                "model": "gpt-4o-mini",
                "choices": [],
                "usage": {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60},
            }
        )
    )
    + frame(b"[DONE]")
    + b"0\r\n\r\n"
)


class Turns:
    """The open streams, each with the chunks it was sent, in groups that are written to one after another."""

    def __init__(self, count: int) -> None:
        self._groups: list[dict[Stream, int]] = [{} for _ in range(count)]
        self._next = 0

    def join(self, stream: Stream) -> None:
        """A stream begins, in the group that waits longest for its turn: a whole interval passes before its chunk."""
        self._groups[self._next - 1][stream] = 0

    def leave(self, stream: Stream) -> None:
        for group in self._groups:
            group.pop(stream, None)

    def take(self, chunks: int) -> None:
        """Write to the next group; a stream that has had `chunks` ends."""
        group = self._groups[self._next]
        self._next = (self._next + 1) % len(self._groups)
        for stream, sent in list(group.items()):
            if sent + 1 >= chunks:
                del group[stream]
                stream.transport.write(LAST)
            else:
                group[stream] = sent + 1
                stream.transport.write(NEXT)


class Stream(asyncio.Protocol):
    """One connection. Bodies are small here: a request is over when as many bytes came as it announced."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        if found and len(body) >= int(length.partition(b":")[2]):
            self._received = b""
            self.transport.write(HEAD + FIRST)
            self._turns.join(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._turns.leave(self)


async def serve(port: int, interval: float, chunks: int) -> None:
    groups = max(1, round(interval / STEP))
    turns = Turns(groups)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Stream(turns), "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    due = loop.time()
    while True:
        due += interval / groups
        await asyncio.sleep(max(0.0, due - loop.time()))
        turns.take(chunks)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000, int(sys.argv[3])))
