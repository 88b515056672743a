"""Runs jq programs in a process of its own, which its owner kills when one takes too long.

Started as a plain script in an empty environment (`$ENV` is `{}`), so it imports nothing of ours. It reads frames from
standard input and answers each on standard output, one at a time. A frame is a four-byte length and that many bytes:
a request is the program's length (four bytes), the program, the input; an answer `+` and the JSON text of the first
result (nothing when there is none), or `-` and the reason of a failure.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

import jq

MEMORY = 1024 * 1024 * 1024
"""Bytes of address space, the interpreter's own included."""
MAX_OUTPUT = 32 * 1024 * 1024
ORPHANED = 30
"""Seconds after which an evaluation ends the process by itself: its owner, which would have, must be dead."""


def main() -> None:
    os.environ.clear()  # Python itself adds its locale
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    programs: dict[str, Any] = {}
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (frame := _read(source)) is not None:
        (size,) = struct.unpack_from("!I", frame)
        signal.alarm(ORPHANED)
        answer = _evaluate(programs, frame[4 : 4 + size].decode(), frame[4 + size :].decode())
        signal.alarm(0)
        sink.write(struct.pack("!I", len(answer)))
        sink.write(answer)
        sink.flush()


def _evaluate(programs: dict[str, Any], program: str, text: str) -> bytes:
    try:
        if program not in programs:
            programs[program] = jq.compile(program)
        result = next(iter(programs[program].input_text(text)), "")
    except (ValueError, MemoryError, RecursionError) as error:
        return b"-" + (str(error) or type(error).__name__).encode("utf-8", "replace")
    answer = str(result).encode("utf-8", "replace")
    return b"+" + answer if len(answer) <= MAX_OUTPUT else b"-the result is too long"


def _read(source: BinaryIO) -> bytes | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("!I", head)
    body = source.read(size)
    return body if len(body) == size else None


if __name__ == "__main__":
    main()
