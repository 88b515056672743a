"""control-plane, data-plane: either half alone, in the foreground, with its own options."""

from __future__ import annotations

import os
import sys

import click

from cli.output import Output

_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command("control-plane", context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def control_plane(_output: Output, /, arguments: tuple[str, ...]) -> None:
    """Run a control plane in the foreground.

    Its options are passed on; --help shows them.
    """
    _become(["control_plane", *arguments])


@click.command("data-plane", context_settings=_PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def data_plane(_output: Output, /, arguments: tuple[str, ...]) -> None:
    """Run a data plane node in the foreground.

    Its options are passed on; --help shows them.
    """
    _become(["data_plane", "agent", *arguments])


def _become(module: list[str]) -> None:
    """Replace this process, so that signals and the exit code are the plane's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", *module])  # noqa: S606 - no shell, our own interpreter
