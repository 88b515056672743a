"""An upstream that streams chat completions at a steady pace, cheaply: one timer writes to all open streams.

`python -m tests.benchmarks.paced PORT INTERVAL_MS CHUNKS`
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import orjson
import uvloop

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


class Stream(asyncio.Protocol):
    """One connection. Bodies are small here: a request is over when as many bytes came as it announced."""

    def __init__(self, streams: dict[Stream, int]) -> None:
        self._streams = streams
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
            self._streams[self] = 0

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.pop(self, None)


async def serve(port: int, interval: float, chunks: int) -> None:
    streams: dict[Stream, int] = {}
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Stream(streams), "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    due = loop.time()
    while True:
        due += interval
        await asyncio.sleep(max(0.0, due - loop.time()))
        for stream, sent in list(streams.items()):
            if sent + 1 >= chunks:
                del streams[stream]
                stream.transport.write(LAST)
            else:
                streams[stream] = sent + 1
                stream.transport.write(NEXT)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000, int(sys.argv[3])))
