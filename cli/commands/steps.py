"""What the commands that read or write a configuration share: their options, and the steps from asking to showing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from cli.client import Connection, Consent, ControlPlane
from cli.connection import Asked, resolve
from cli.declarative import Outcome, control_plane_name
from cli.errors import EXIT_OK, CliError, Interrupted, NotLive, Unreachable, Unwritten
from cli.files import Declared, read_files
from cli.masking import environment_values
from cli.output import Output
from cli.render import plan_json, plan_lines
from cli.seconds import Seconds
from cli.waiting import wait_for_receipts
from gateway_schema.entities import check_tags


def _checked_tags(_context: click.Context, _option: click.Parameter, tags: tuple[str, ...]) -> tuple[str, ...]:
    """What no entity can carry selects nothing, and a file that says it could not be read again."""
    try:
        check_tags(list(tags))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return tags


files_argument = click.argument("files", nargs=-1, metavar="[FILE|FOLDER|-]...")
select_tag_option = click.option(
    "--select-tag",
    "select_tags",
    multiple=True,
    metavar="TAG",
    callback=_checked_tags,
    help="Only entities with this tag; repeatable.",
)
json_output_option = click.option("--json-output", is_flag=True, help="The plan as JSON, in decK's shape.")
never_asks_option = click.option("--yes", "-y", is_flag=True, help="Accepted as decK does; nothing is asked anyway.")
wait_option = click.option("--wait", is_flag=True, help="Return when every worker of every connected node runs it.")
wait_timeout_option = click.option(
    "--wait-timeout", type=Seconds(min=0), default=30.0, help="Seconds after which --wait gives up."
)
adopt_option = click.option("--adopt", is_flag=True, help="Take over what other sets of select tags own.")
force_option = click.option("--force", is_flag=True, help="Delete also an alarming share of what is governed.")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags of a command say beside where the control plane is."""

    select_tags: tuple[str, ...] = ()
    json_output: bool = False
    wait: bool = False
    wait_timeout: float = 30.0
    adopt: bool = False
    force: bool = False

    @property
    def consent(self) -> Consent:
        return Consent(self.adopt, self.force)


def wishes_of(flags: dict[str, Any]) -> Wishes:
    return Wishes(**{**flags, "select_tags": tuple(flags.get("select_tags", ()))})


def inputs(output: Output, files: Sequence[str], asked: Asked) -> tuple[Declared, Connection]:
    """The files and where they shall go; from here on, nothing of the environment is shown."""
    output.mask.add(*environment_values(os.environ))
    declared = read_files(files)
    output.mask.add(*declared.used.values())
    return declared, connection_of(output, asked, control_plane_name(declared))


def connection_of(output: Output, asked: Asked, named_in_file: str | None) -> Connection:
    connection = resolve(asked, named_in_file)
    if connection.token:
        output.mask.add(connection.token)
    return connection


def show(output: Output, outcome: Outcome, json_output: bool) -> None:
    if json_output:
        output.json(plan_json(outcome.plan, output.mask))
        return
    for text, style in plan_lines(outcome.plan, output.mask):
        output.line(text, style)
    for line in remarks(outcome.plan):
        output.note(line, "yellow")


def remarks(plan: dict[str, Any]) -> Iterator[str]:
    """What decK's form has no place for: whose entities are taken over, and what should make one stop."""
    for entity in plan.get("adopting") or []:
        owner = ", ".join(entity["owner"]) or "nobody"
        yield f"adopting {entity['kind']} {entity['name']}, which was owned by {owner}"
    for warning in plan.get("warnings") or []:
        yield f"warning: {warning}"


def finish(output: Output, plane: ControlPlane, control_plane_id: str, outcome: Outcome, wishes: Wishes) -> None:
    """Show what was written and, if asked to, wait until it is live. JSON is printed once, with what went wrong.

    That nobody can be shown what was written is no reason not to wait for it.
    """
    output.done = f"written as version {outcome.target.version}"
    unwritten = None if wishes.json_output else _unwritten(lambda: show(output, outcome, False))
    errors: list[str] = []
    exit_code = EXIT_OK
    try:
        _await(output, plane, control_plane_id, outcome, wishes)
    except (NotLive, Interrupted) as error:
        if not wishes.json_output:
            raise
        errors, exit_code = error.lines(), error.exit_code
    if wishes.json_output:
        unwritten = _unwritten(lambda: output.json(plan_json(outcome.plan, output.mask, errors)))
    if unwritten and errors:
        output.error("\n".join(errors))
    if exit_code:
        raise click.exceptions.Exit(exit_code)
    if unwritten:
        raise unwritten


def _unwritten(write: Callable[[], None]) -> Unwritten | None:
    try:
        write()
    except Unwritten as error:
        return error
    return None


def _await(output: Output, plane: ControlPlane, control_plane_id: str, outcome: Outcome, wishes: Wishes) -> None:
    if not wishes.wait:
        return
    version = outcome.target.version
    try:
        with output.working("waiting until every worker runs it"):
            receipts = wait_for_receipts(plane, control_plane_id, outcome.target, wishes.wait_timeout)
    except KeyboardInterrupt:
        raise Interrupted(f"written as version {version}, but interrupted before it was live everywhere") from None
    except Unreachable as error:
        raise NotLive(f"written as version {version}, but it is not known whether it is live: {error}") from None
    output.note(f"version {version}: {receipts}")


@contextlib.contextmanager
def reported(output: Output, json_output: bool) -> Iterator[None]:
    """With --json-output a failure is JSON too, as decK has it; unlike decK's, the exit code tells the truth."""
    try:
        yield
    except CliError as error:
        if not json_output:
            raise
        output.json(plan_json({}, output.mask, error.lines()))
        raise click.exceptions.Exit(error.exit_code) from None


def confirm(output: Output, count: int, name: str, select_tags: Sequence[str]) -> None:
    what = f"what carries the tags {', '.join(select_tags)}" if select_tags else "everything"
    question = f"this deletes {what} in control plane {name}: {count} entities"
    if not sys.stdin.isatty():
        raise CliError(f"{question}; say --yes to do it without a terminal to ask at")
    if not click.confirm(output.mask.text(f"{question}. Go on?"), err=True):
        raise CliError("nothing was deleted")
