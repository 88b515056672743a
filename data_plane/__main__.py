"""The data plane's commands: `python -m data_plane agent` runs a node, `… worker` and `… spare` are what a node spawns.

Exit codes: 0 stopped as asked · 1 failed · 2 wrong flag, variable or file · 3 a port is in use · 4 the state directory
cannot be used, or another node uses it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_plane import logs
from data_plane.settings import Settings, SettingsError, flag, variable

STOPPED, USAGE = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        settings = Settings.read({name: getattr(given, name) for name in _names()}, os.environ)
    except SettingsError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    if given.command in ("worker", "spare"):
        from data_plane.app import run_worker

        index = given.index if given.command == "worker" else _told_index()
        if index is None:
            return STOPPED
        logs.configure(f"worker-{index}")
        return run_worker(settings, index, given.channel, given.listener)
    logs.configure("agent")
    from data_plane.agent.app import run_agent  # here, not above: workers must not load gRPC

    return run_agent(settings)


def _told_index() -> int | None:
    """Which worker a spare one becomes, once the agent says so; None when the agent is gone."""
    word = sys.stdin.readline().strip()
    return int(word) if word.isdecimal() else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_plane", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="agent|worker|spare")
    _add_settings(commands.add_parser("agent", help="run a data plane node"))
    worker = commands.add_parser("worker", help="run one worker of a node (the agent starts it)")
    worker.add_argument("--index", type=int, required=True, help="which worker of its node, from 0")
    spare = commands.add_parser("spare", help="become a worker when its index comes on standard input")
    for each in (worker, spare):
        each.add_argument("--channel", type=Path, required=True, help="the agent's Unix socket")
        each.add_argument("--listener", type=int, help="inherited descriptor of the node's listener, beside its own")
        _add_settings(each)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Values stay text here: flags and variables are read, and refused, in one place (`Settings.read`)."""
    for entry in fields(Settings):
        about = f"{entry.metadata['about']} [{variable(entry.name)}]".replace("%", "%%")
        if str(entry.type) == "bool":
            parser.add_argument(flag(entry.name), dest=entry.name, nargs="?", const="on", metavar="on|off", help=about)
        else:
            parser.add_argument(flag(entry.name), dest=entry.name, metavar=_metavar(str(entry.type)), help=about)


def _metavar(annotation: str) -> str:
    return {"int": "N", "float": "SECONDS", "str": "TEXT"}.get(annotation, "PATH" if "Path" in annotation else "LIST")


def _names() -> list[str]:
    return [entry.name for entry in fields(Settings)]


if __name__ == "__main__":
    sys.exit(main())
