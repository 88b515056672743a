"""jq programs at work, where `simple` does not know what they give: small ones where the request is handled, all others
in processes that can be killed.

A program that does not end would otherwise stop every request of the worker (or, in a thread, hold a core and its
memory for ever: libjq cannot be interrupted). `gateway_schema.plugins.datakit_jq` says which programs are which.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

from data_plane.plugins.datakit.values import NULL, NodeError, Value
from gateway_schema.plugins.datakit_jq import Program, as_text

TIMEOUT: Final = 2.0
"""Seconds that one evaluation may take in a process, from the moment it is handed over."""
PROCESSES: Final = 2
"""Evaluators of one plugin instance at the most; they are started when first needed."""
MAX_ANSWER: Final = 33 * 1024 * 1024
_SCRIPT: Final = Path(__file__).with_name("evaluator.py")
_SHOWN: Final = re.compile(r"(?<!with )\b(object|array|string) \(.*\)", re.DOTALL)
"""Values in libjq's messages; the key in `Cannot index array with string ("messages")` is none."""
_MAX_MESSAGE: Final = 300


def evaluate(program: Program, value: Value, pool: EvaluatorPool) -> Value | Awaitable[Value]:
    """The first result, null when there is none. Raises NodeError; larger work is given back as an awaitable."""
    text = value.text
    if not program.runs_inline(text):
        return pool.evaluate(program, text)
    try:
        result = next(iter(program.compiled.input_text(text)), None)
    except ValueError as error:
        raise NodeError(message_of(str(error))) from None
    return NULL if result is None else Value.of_text(result)


def message_of(text: str) -> str:
    """libjq's message without the values that it quotes (`object ({"key":"s…})`): they may be secrets."""
    return _SHOWN.sub(r"\1 (…)", text)[:_MAX_MESSAGE]


class EvaluatorPool:
    """The evaluator processes of one plugin instance."""

    def __init__(self, timeout: float = TIMEOUT, processes: int = PROCESSES) -> None:
        self._timeout = timeout
        self._permits = asyncio.Semaphore(processes)
        self._idle: list[_Evaluator] = []
        self._busy: set[_Evaluator] = set()
        self._closed = False

    async def evaluate(self, program: Program, text: str) -> Value:
        """Raises NodeError, also when the time is up. Cancelling kills the process, for its work cannot be stopped."""
        async with self._permits:
            evaluator = self._idle.pop() if self._idle else await _Evaluator.start()
            self._busy.add(evaluator)
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await evaluator.ask(as_text(program.source), text)
            except TimeoutError:
                raise NodeError(f"the jq program took more than {self._timeout:g} s") from None
            except (OSError, asyncio.IncompleteReadError):
                raise NodeError("the jq program used up its memory, or its process was ended") from None
            else:
                if not self._closed:
                    self._idle.append(evaluator)
            finally:
                self._busy.discard(evaluator)
                if evaluator not in self._idle:
                    await asyncio.shield(evaluator.kill())
        if answer[:1] == b"-":
            raise NodeError(message_of(answer[1:].decode("utf-8", "replace")))
        return Value.of_text(answer[1:].decode()) if len(answer) > 1 else NULL

    async def close(self) -> None:
        """End the idle processes now, and the busy ones when they have answered."""
        self._closed = True
        while self._idle:
            await self._idle.pop().kill()


class _Evaluator:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> _Evaluator:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_SCRIPT),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
            )
        except OSError as error:
            raise NodeError(f"no process for the jq program: {error.strerror}") from None
        return cls(process)

    async def ask(self, program: str, text: str) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        source, given = program.encode(), text.encode("utf-8", "replace")
        stdin.write(struct.pack("!II", 4 + len(source) + len(given), len(source)) + source + given)
        await stdin.drain()
        (size,) = struct.unpack("!I", await stdout.readexactly(4))
        if size > MAX_ANSWER:
            raise NodeError("the jq program's result is too long")
        return await stdout.readexactly(size)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            self._process.kill()
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
        await self._process.wait()
