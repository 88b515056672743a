"""The `recipe` command: puts the commands together and turns every failure into one message and an exit code.

Exit codes: 0 it worked · 1 it failed · 2 changes were found and `--non-zero-exit-code` asked to be told so · 3 not
running everywhere (a node refused or stayed silent, a part of the stack is not up) · 4 the answer to a change was
lost, nobody knows whether it was made · 5 it was done, but its report could not be written · 130 interrupted · 141
nobody reads the output any more (0 after a change that was made).
TANDEM_DEBUG=1 shows the traceback of what nobody expected.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType

import click

from cli.commands.analytics import analytics
from cli.commands.declarative import apply, diff, dump, reset, sync, validate
from cli.commands.demo import demo
from cli.commands.history import history, rollback
from cli.commands.planes import control_plane, data_plane
from cli.commands.plans import apply_plan
from cli.commands.stack import down, env, list_recipes, logs, status, up
from cli.commands.tokens import audit, token
from cli.errors import (
    EXIT_CODES,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_NOBODY_READS,
    EXIT_OK,
    EXIT_UNREPORTED,
    CliError,
    Unwritten,
)
from cli.output import Output, standard_output


class Recipe(click.Group):
    """Lists its commands by subject, in the order in which a newcomer meets them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(80)) for command in commands])


@click.group(
    cls=Recipe, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=EXIT_CODES
)
@click.version_option(package_name="tandem-gateway", prog_name="recipe")
def recipe() -> None:
    """Run an API and LLM gateway from declarative files: a control plane, data plane nodes, and recipes for both."""


SECTIONS: Mapping[str, Sequence[click.Command]] = {
    "A local stack": (up, down, status, list_recipes, logs, env, demo),
    "Declarative files": (sync, apply, diff, apply_plan, dump, validate, reset),
    "What was before": (history, rollback),
    "Numbers": (analytics,),
    "Who may, and who did": (token, audit),
    "Either plane alone": (control_plane, data_plane),
}
for commands in SECTIONS.values():
    for command in commands:
        recipe.add_command(command)


def main() -> None:
    """Entry point of the `recipe` command."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:], standard_output()))


def run(arguments: list[str], output: Output) -> int:
    """Run one command and return its exit code. Every error ends as a message on stderr, masked like all output."""
    try:
        result = recipe.main(arguments, prog_name="recipe", standalone_mode=False, obj=output)
        return result if isinstance(result, int) else 0
    except CliError as error:
        output.error(error.message)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        output.raw(error.format_message() + "\n")
        return EXIT_ERROR
    except click.ClickException as error:
        hint = f"\n  try: {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        output.error(error.format_message() + hint)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        output.note(f"{output.done}; interrupted" if output.done else "interrupted")
        return EXIT_INTERRUPTED
    except Unwritten as error:
        return _unwritten(error, output)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        output.error(f"{where}{error.strerror or error}")
        return EXIT_ERROR
    except Exception as error:
        return _unexpected(error, output)


def _unwritten(error: Unwritten, output: Output) -> int:
    if error.nobody_reads:
        return EXIT_OK if output.done else EXIT_NOBODY_READS
    if not output.done:
        output.error(f"standard output: {error}")
        return EXIT_ERROR
    output.error(f"{output.done}, but its report could not be written: {error}")
    return EXIT_UNREPORTED


def _unexpected(error: Exception, output: Output) -> int:
    if os.environ.get("TANDEM_DEBUG") == "1":
        output.notes(traceback.format_exc().rstrip())
    output.error(f"{type(error).__name__}: {error} (unexpected; TANDEM_DEBUG=1 shows where it came from)")
    return EXIT_ERROR


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does, so that the processes that it started are stopped again."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
