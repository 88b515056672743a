"""`python -m control_plane`: run the control plane; `python -m control_plane rotate-key`: see `rotation`.

Exit codes: 0 stopped by a signal; 1 an unexpected fault; 2 wrong flags or settings; 3 a port is taken; 4 it cannot
start for a reason that is printed (database, keys, state directory).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from control_plane.app import create_app
from control_plane.connections import Limits, Server
from control_plane.errors import StartError
from control_plane.plane import ControlPlane
from control_plane.rotation import STEPS, rotate_key
from control_plane.settings import Settings

EXIT_SETTINGS = 2
EXIT_PORT_TAKEN = 3
EXIT_CANNOT_START = 4
_GRACE_SECONDS = 10
_GC_THRESHOLDS = (50_000, 20, 50)
"""A large document is hundreds of thousands of dicts without cycles: with Python's own thresholds the collector would
take half of the time that reading and planning it needs, and find nothing."""


class PortTaken(Exception):
    """A listener's port is in use; the text names the port and how to choose another."""


def main(arguments: list[str] | None = None) -> int:
    flags = _flags().parse_args(arguments)
    logging.basicConfig(level=flags.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = _settings(flags)
    except ValueError as error:
        return _fail(str(error), EXIT_SETTINGS)
    gc.set_threshold(*_GC_THRESHOLDS)
    _raise_file_limit()
    work = rotate_key(settings, finish=flags.finish, say=_say) if flags.command == "rotate-key" else _run(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except PortTaken as error:
        return _fail(str(error), EXIT_PORT_TAKEN)
    except (StartError, ValueError) as error:
        return _fail(str(error), EXIT_CANNOT_START)
    except PermissionError as error:
        return _fail(f"{error.filename}: {error.strerror} (--state-dir, TANDEM_STATE_DIR)", EXIT_CANNOT_START)
    return 0


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m control_plane", description="Run the control plane.", epilog=STEPS)
    parser.add_argument(
        "command", nargs="?", choices=["run", "rotate-key"], default="run", help="rotate-key: encrypt under a new key"
    )
    parser.add_argument("--finish", action="store_true", help="rotate-key: and forget the old keys of the key file")
    parser.add_argument("--http-port", type=int, help="port of the API and the console (TANDEM_HTTP_PORT, 8001)")
    parser.add_argument("--grpc-port", type=int, help="port for data planes (TANDEM_GRPC_PORT, 8005)")
    parser.add_argument("--state-dir", type=Path, help="database, keys, TLS identity (TANDEM_STATE_DIR)")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def _settings(flags: argparse.Namespace) -> Settings:
    environment = dict(os.environ)
    if flags.state_dir is not None:
        environment["TANDEM_STATE_DIR"] = str(flags.state_dir)
    if flags.http_port is not None:
        environment["TANDEM_HTTP_PORT"] = str(flags.http_port)
    if flags.grpc_port is not None:
        environment["TANDEM_GRPC_PORT"] = str(flags.grpc_port)
    return Settings.read(environment)


async def _run(settings: Settings) -> None:
    plane = ControlPlane(settings)
    listener = _listen(settings)
    try:
        async with _opened(plane):
            await _serve(plane, listener)
    finally:
        listener.close()


def _raise_file_limit() -> None:
    """A node takes three files, and the usual soft limit of 1,024 dates from programs that wait with `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems promise more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets that say they are TCP, and only for those. With it, every answer
    # to a client that keeps its connection would wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.http_host, settings.http_port))
    except (OSError, UnicodeError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise PortTaken(_taken(settings.http_port, "the API", "--http-port or TANDEM_HTTP_PORT")) from None
        where, said = f"{settings.http_host}:{settings.http_port}", getattr(error, "strerror", None) or error
        raise StartError(f"cannot listen on {where} for the API (TANDEM_HTTP_HOST): {said}") from None
    return listener


@contextlib.asynccontextmanager
async def _opened(plane: ControlPlane) -> AsyncIterator[None]:
    try:
        await _open(plane)
        yield
    finally:
        await plane.close()


async def _open(plane: ControlPlane) -> None:
    try:
        await plane.open()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        text = _taken(plane.settings.grpc_port, "data planes", "--grpc-port or TANDEM_GRPC_PORT")
        raise PortTaken(text) from None


async def _serve(plane: ControlPlane, listener: socket.socket) -> None:
    server = Server(
        create_app(plane),
        Limits.within(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    # uvicorn takes the signals, finishes what is under way and then raises them again for whoever had them before:
    # that is here, where nothing is left to do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _settle_memory()
    listener.listen()  # whoever reads the next line may connect at once, before uvicorn has begun
    host, port = listener.getsockname()[:2]
    sys.stdout.write(f"control plane ready: http://{host}:{port}, data planes at {plane.grpc_address}\n")
    sys.stdout.flush()
    await server.serve(sockets=[listener])


def _settle_memory() -> None:
    """What the process begins with stays: two hundred thousand objects, twice as many as ten thousand entities have.
    Each full pass of the collector would look at them all, and everything would stand still meanwhile."""
    gc.collect()
    gc.freeze()


def _taken(port: int, purpose: str, setting: str) -> str:
    return f"port {port}, for {purpose}, is taken by another process: free it, or choose another with {setting}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"control plane: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
