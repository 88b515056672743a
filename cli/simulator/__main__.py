"""Run the simulator: `python -m cli.simulator --port 9000`.

Credentials that it accepts come from SIMULATOR_OPENAI_TOKEN (the whole Authorization header), and
SIMULATOR_AWS_ACCESS_KEY_ID, SIMULATOR_AWS_SECRET_ACCESS_KEY and SIMULATOR_AWS_REGION; where they are not set, any will
do.
Exit codes: 0 stopped, 1 the port could not be had.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys

import uvicorn

from cli.simulator.app import BrokenOff, SimulatorSettings, create_app
from cli.simulator.signature import Secret


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cli.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=9000, help="port to listen on; 0 picks a free one (default 9000)")
    arguments = parser.parse_args()
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # said, so that asyncio turns Nagle's algorithm off
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((arguments.host, arguments.port))
    except OSError as error:
        print(
            f"simulator: port {arguments.port} cannot be had ({error.strerror}): choose another with --port",
            file=sys.stderr,
        )
        return 1
    print(f"simulator: listening on http://{arguments.host}:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(create_app(settings_from(os.environ)), log_level="error", access_log=False)
    logging.getLogger("uvicorn.error").addFilter(not_on_purpose)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def not_on_purpose(record: logging.LogRecord) -> bool:
    """Keeps the tracebacks of answers that were to be broken off out of the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], BrokenOff))


def settings_from(environment: os._Environ[str] | dict[str, str]) -> SimulatorSettings:
    key_id = environment.get("SIMULATOR_AWS_ACCESS_KEY_ID")
    secret = environment.get("SIMULATOR_AWS_SECRET_ACCESS_KEY")
    aws = None
    if key_id and secret:
        aws = Secret(key_id, secret, environment.get("SIMULATOR_AWS_REGION") or "us-east-1")
    return SimulatorSettings(environment.get("SIMULATOR_OPENAI_TOKEN") or None, aws)


if __name__ == "__main__":
    sys.exit(main())
