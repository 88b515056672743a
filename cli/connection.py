"""Which control plane is meant: what the flags say, else the environment, else the local stack that is running."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from cli.client import Connection
from cli.errors import CliError
from cli.seconds import Seconds
from cli.state import StackState, stacks, state_home

DEFAULT_ADDRESS = "http://127.0.0.1:8001"
DEFAULT_NAME = "default"

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Asked:
    """What the flags say about the control plane; None where they say nothing."""

    address: str | None = None
    token: str | None = None
    token_file: str | None = None
    control_plane_name: str | None = None
    timeout: float = 30.0


def connection_options(command: CommandT) -> CommandT:
    """decK's flags for a Konnect control plane. The command gets them as one value, `asked`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        asked = Asked(
            kwargs.pop("konnect_addr"),
            kwargs.pop("konnect_token"),
            kwargs.pop("konnect_token_file"),
            kwargs.pop("konnect_control_plane_name"),
            kwargs.pop("timeout"),
        )
        return command(*args, asked=asked, **kwargs)

    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


_OPTIONS = (
    click.option("--konnect-addr", metavar="URL", help="Control plane's address [env: DECK_KONNECT_ADDR]."),
    click.option("--konnect-token", metavar="TOKEN", help="Access token [env: DECK_KONNECT_TOKEN]."),
    click.option("--konnect-token-file", metavar="FILE", help="File that holds the access token."),
    click.option(
        "--konnect-control-plane-name", metavar="NAME", help="Control plane [env: DECK_KONNECT_CONTROL_PLANE_NAME]."
    ),
    click.option("--timeout", type=Seconds(min=0.1), default=30.0, help="Seconds that one request may take."),
)


def resolve(asked: Asked, named_in_file: str | None = None, environment: Mapping[str, str] | None = None) -> Connection:
    """Flags, then DECK_ variables, then the running local stack. Raises CliError where they contradict one another."""
    environment = os.environ if environment is None else environment
    name = asked.control_plane_name or environment.get("DECK_KONNECT_CONTROL_PLANE_NAME") or None
    if name and named_in_file and name != named_in_file:
        raise CliError(
            f"the file is for control plane '{named_in_file}' (_konnect.control_plane_name), "
            f"but the command or the environment says '{name}': make them the same, or leave one out"
        )
    name = name or named_in_file
    address, address_source = _first(
        (asked.address, "--konnect-addr"), (environment.get("DECK_KONNECT_ADDR"), "DECK_KONNECT_ADDR")
    )
    token, token_source = _token(asked, environment)
    if address and token and name:
        return Connection(address.rstrip("/"), token, address_source, token_source, name, asked.timeout)
    stack = _local_stack(address, name)
    if stack is not None:
        address, address_source = (address, address_source) if address else (stack.address, "the local stack")
        token, token_source = (token, token_source) if token else (stack.token, "the local stack")
        name = name or stack.control_plane_name
    if not address:
        address, address_source = DEFAULT_ADDRESS, "the default, as no local stack is up"
    return Connection(
        address.rstrip("/"), token or "", address_source, token_source, name or DEFAULT_NAME, asked.timeout
    )


def _first(*candidates: tuple[str | None, str]) -> tuple[str | None, str]:
    return next(((value, source) for value, source in candidates if value), (None, ""))


def _token(asked: Asked, environment: Mapping[str, str]) -> tuple[str | None, str]:
    if asked.token and asked.token_file:
        raise CliError("--konnect-token and --konnect-token-file exclude one another: give one of them")
    if asked.token_file:
        return _token_from(Path(asked.token_file)), f"the file {asked.token_file}"
    return _first((asked.token, "--konnect-token"), (environment.get("DECK_KONNECT_TOKEN"), "DECK_KONNECT_TOKEN"))


def _token_from(path: Path) -> str:
    try:
        token = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--konnect-token-file {path}: cannot be read ({error})") from None
    if not token:
        raise CliError(f"--konnect-token-file {path}: the file is empty")
    return token


def _local_stack(address: str | None, name: str | None) -> StackState | None:
    """The stack whose address was given, else the one of that name, else the only one.

    A stack's token is never offered to another address than its own.
    """
    running = [state for _, state in stacks(state_home()) if "control-plane" in state.processes]
    if address:
        port = address.rstrip("/").rpartition(":")[2]
        own = {f"http://{host}:{port}" for host in ("127.0.0.1", "localhost")}
        return next((s for s in running if address.rstrip("/") in own and s.address.endswith(f":{port}")), None)
    if named := [state for state in running if state.control_plane_name == name]:
        return named[0]
    if len(running) > 1:
        names = ", ".join(sorted(state.control_plane_name for state in running))
        raise CliError(f"several local stacks are up ({names}): choose one with --konnect-control-plane-name")
    return running[0] if running else None
