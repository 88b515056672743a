"""The node's own workers: spawned, and spawned again when they die.

The first death of a worker is answered at once; one that keeps dying soon after its start waits longer each time, up
to ten seconds. Python takes the better part of a second to load what a worker needs, so beside workers that have shown
to be steady a spare one waits, loaded: it takes a dead one's place the moment it hears its index on standard input, and
ends when that closes, as it does when the agent dies. Workers stand in a process group of their own, so that a Ctrl-C
in a terminal reaches the agent only, which then lets them finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress

from data_plane.logs import facts

log = logging.getLogger(__name__)

STEADY = 3.0
"""Seconds that a worker must have lived for its death to count as the first one."""
FIRST_DELAY = 0.25
LAST_DELAY = 10.0
KILL_GRACE = 2.0


def worker_command(index: int | None, channel: str, state_dir: str, listener: int | None = None) -> list[str]:
    """What starts worker `index`, or a spare one for None.

    The state directory is named for whoever reads a list of processes; settings travel in the environment.
    """
    which = ["spare"] if index is None else ["worker", f"--index={index}"]
    inherited = [] if listener is None else [f"--listener={listener}"]
    return [
        sys.executable,
        "-m",
        "data_plane",
        *which,
        f"--channel={channel}",
        f"--state-dir={state_dir}",
        *inherited,
    ]


class Supervisor:
    """Keeps `count` workers alive while `run` runs. `command(index)` is what to start; it inherits `descriptors`.

    `command(None)` starts a spare; an empty one means that there is none.
    """

    def __init__(
        self,
        count: int,
        command: Callable[[int | None], Sequence[str]],
        environment: Mapping[str, str],
        changed: Callable[[], None] = lambda: None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self._descriptors = descriptors
        self._count = count
        self._command = command
        self._environment = {**os.environ, **environment}
        self._tell = changed
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._spare: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.restarts = 0

    @property
    def pids(self) -> dict[int, int]:
        """Process id by worker index, of those that are alive."""
        return {index: process.pid for index, process in sorted(self._processes.items())}

    async def run(self) -> None:
        """Ends when `stop` was called and all workers are gone."""
        slots = [asyncio.create_task(self._keep_alive(index), name=f"worker {index}") for index in range(self._count)]
        try:
            await asyncio.gather(*slots)
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
            await self._dismiss_spare()

    def kill(self) -> None:
        """End all workers at once, whatever they are doing."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace: float, told: Set[int] = frozenset()) -> None:
        """Wait `grace` seconds for workers to finish, then make them. Those not `told` (pids) to drain are told so."""
        self._stopping = True
        self._signal(signal.SIGTERM, spare=told)
        if await self._gone(grace):
            return
        log.warning("workers did not finish in time: %s", facts(pids=list(self.pids.values())))
        self._signal(signal.SIGTERM)
        if not await self._gone(KILL_GRACE):
            self._signal(signal.SIGKILL)
            await self._gone(KILL_GRACE)

    async def _gone(self, timeout: float) -> bool:
        waits = [asyncio.create_task(process.wait(), name="worker exit") for process in self._processes.values()]
        if not waits:
            return True
        _, pending = await asyncio.wait(waits, timeout=timeout)
        for wait in pending:
            wait.cancel()
        return not pending

    def _signal(self, number: int, spare: Set[int] = frozenset()) -> None:
        for process in self._processes.values():
            if process.pid in spare:
                continue
            with suppress(ProcessLookupError):  # it died by itself in this moment
                process.send_signal(number)

    async def _keep_alive(self, index: int) -> None:
        delay = 0.0
        while not self._stopping:
            started = time.monotonic()
            try:
                code = await self._live(index)
            except OSError as error:
                log.error("a worker cannot be started: %s", facts(worker=index, reason=error))
                code = -1
            if self._stopping:
                return
            steady = time.monotonic() - started >= STEADY
            delay = 0.0 if steady else delay
            self.restarts += 1
            log.error("a worker died: %s", facts(worker=index, exit=_exit(code), restart_in=f"{delay:g}s"))
            await asyncio.sleep(delay)
            delay = min(delay * 2 or FIRST_DELAY, LAST_DELAY)

    async def _live(self, index: int) -> int:
        """One worker's life; its exit code. Raises OSError when it cannot be started."""
        process = await self._start(index)
        self._processes[index] = process
        log.info("worker started: %s", facts(worker=index, pid=process.pid))
        self._tell()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(STEADY):
                    return await process.wait()
            await self._keep_spare()
            return await process.wait()
        finally:
            del self._processes[index]
            self._tell()

    async def _start(self, index: int) -> asyncio.subprocess.Process:
        spare, self._spare = self._spare, None
        if spare is None or spare.returncode is not None or spare.stdin is None:
            return await self._spawn(self._command(index), asyncio.subprocess.DEVNULL)
        spare.stdin.write(f"{index}\n".encode())
        spare.stdin.close()
        return spare

    async def _keep_spare(self) -> None:
        command = self._command(None)
        if not command or self._stopping or (self._spare is not None and self._spare.returncode is None):
            return
        try:
            self._spare = await self._spawn(command, asyncio.subprocess.PIPE)
        except OSError as error:
            log.warning("no spare worker: %s", facts(reason=error))

    async def _dismiss_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.returncode is None:
            spare.kill()  # it has nothing to finish
            await spare.wait()

    async def _spawn(self, command: Sequence[str], stdin: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command,
            env=self._environment,
            stdin=stdin,
            stdout=sys.stderr.fileno(),  # a stray print of a library belongs to the log
            process_group=0,
            pass_fds=self._descriptors,
        )


def _exit(code: int) -> str:
    """An exit code, or the signal's name."""
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return str(code)
