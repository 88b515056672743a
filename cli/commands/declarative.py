"""sync, apply, diff, reset, dump, validate: declarative files, with decK's flags."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.client import Connection, ControlPlane
from cli.connection import Asked, connection_options, resolve
from cli.declarative import Mode, Outcome, apply_declared, check, control_plane_name, reset_entities
from cli.documents import write_yaml
from cli.errors import EXIT_CHANGES, EXIT_OK, CliError, Faults, NotLive
from cli.files import Declared, read_files
from cli.masking import environment_values
from cli.output import Output
from cli.render import plan_json, plan_lines
from cli.state import write_private
from cli.waiting import wait_until_live

_files = click.argument("files", nargs=-1, metavar="[FILE|FOLDER|-]...")
_select_tag = click.option(
    "--select-tag", "select_tags", multiple=True, metavar="TAG", help="Only entities with this tag; repeatable."
)
_json_output = click.option("--json-output", is_flag=True, help="The plan as JSON, in decK's shape.")
_yes = click.option("--yes", "-y", "--force", "-f", "yes", is_flag=True, help="Do not ask.")
_never_asks = click.option("--yes", "-y", is_flag=True, help="Accepted as decK does; nothing is asked anyway.")
_wait = click.option("--wait", is_flag=True, help="Return when every worker of every connected node runs it.")
_wait_timeout = click.option(
    "--wait-timeout", type=click.FloatRange(min=0), default=30.0, help="Seconds after which --wait gives up."
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags of a command say beside where the control plane is."""

    select_tags: tuple[str, ...]
    json_output: bool = False
    wait: bool = False
    wait_timeout: float = 30.0


@click.command()
@_files
@_select_tag
@_json_output
@_never_asks
@_wait
@_wait_timeout
@connection_options
@click.pass_obj
def sync(output: Output, /, files: Sequence[str], yes: bool, asked: Asked, **flags: Any) -> None:
    """Make the control plane hold what files say.

    Creates, updates and deletes, all at once or not at all.
    """
    _write(output, files, asked, _wishes(flags), "sync")


@click.command()
@_files
@_select_tag
@_json_output
@_never_asks
@_wait
@_wait_timeout
@connection_options
@click.pass_obj
def apply(output: Output, /, files: Sequence[str], yes: bool, asked: Asked, **flags: Any) -> None:
    """Create and update what the files say; delete nothing."""
    _write(output, files, asked, _wishes(flags), "apply")


@click.command()
@_files
@_select_tag
@_json_output
@click.option("--non-zero-exit-code", is_flag=True, help="Exit with 2 when something would change.")
@connection_options
@click.pass_obj
def diff(output: Output, /, files: Sequence[str], asked: Asked, non_zero_exit_code: bool, **flags: Any) -> None:
    """Show what sync would do."""
    wishes = _wishes(flags)
    with _reported(output, wishes.json_output):
        declared, connection = _inputs(output, files, asked)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            outcome = apply_declared(plane, row["id"], declared, wishes.select_tags, "sync", commit=False)
        _show(output, outcome, wishes.json_output)
    if outcome.changes and non_zero_exit_code:
        raise click.exceptions.Exit(EXIT_CHANGES)


@click.command()
@_select_tag
@_json_output
@_yes
@_wait
@_wait_timeout
@connection_options
@click.pass_obj
def reset(output: Output, /, yes: bool, asked: Asked, **flags: Any) -> None:
    """Delete everything, or everything that carries the tags."""
    wishes = _wishes(flags)
    output.mask.add(*environment_values(os.environ))
    with _reported(output, wishes.json_output):
        connection = _connection(output, asked, None)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            if not yes:
                outcome = reset_entities(plane, row["id"], wishes.select_tags, commit=False)
                _confirm(output, outcome.changes, connection.control_plane_name, wishes.select_tags)
            outcome = reset_entities(plane, row["id"], wishes.select_tags, commit=True)
            _finish(output, plane, row["id"], outcome, wishes)


@click.command()
@_select_tag
@click.option("--output-file", "-o", default="-", metavar="FILE", help="Where to write; - is standard output.")
@click.option("--format", "form", type=click.Choice(["yaml", "json"]), default="yaml")
@click.option("--yes", "-y", is_flag=True, help="Overwrite the file without asking.")
@connection_options
@click.pass_obj
def dump(output: Output, /, select_tags: tuple[str, ...], output_file: str, form: str, yes: bool, asked: Asked) -> None:
    """Write what the control plane holds to a file.

    The file syncs to nothing. It holds secrets in clear.
    """
    connection = _connection(output, asked, None)
    with ControlPlane(connection) as plane:
        row = plane.require(connection.control_plane_name)
        document = plane.document(row["id"], select_tags)
    text = write_yaml(document) if form == "yaml" else json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output_file == "-":
        output.raw(text)
    else:
        _write_file(Path(output_file), text, yes)
        output.note(f"written to {output_file}")


@click.command()
@_files
@_select_tag
@click.option("--online", is_flag=True, help="Also ask the control plane: references, uniqueness, other owners.")
@connection_options
@click.pass_obj
def validate(output: Output, /, files: Sequence[str], select_tags: tuple[str, ...], online: bool, asked: Asked) -> None:
    """Check files, and name file and line of every fault."""
    output.mask.add(*environment_values(os.environ))
    declared = read_files(files)
    output.mask.add(*declared.used.values())
    if faults := check(declared, select_tags):
        raise Faults(faults)
    if online:
        connection = _connection(output, asked, control_plane_name(declared))
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            apply_declared(plane, row["id"], declared, select_tags, "sync", commit=False)
    output.line(f"{', '.join(declared.files)}: valid")


# The steps that the commands share


def _wishes(flags: dict[str, Any]) -> Wishes:
    return Wishes(**{**flags, "select_tags": tuple(flags["select_tags"])})


def _write(output: Output, files: Sequence[str], asked: Asked, wishes: Wishes, mode: Mode) -> None:
    with _reported(output, wishes.json_output):
        declared, connection = _inputs(output, files, asked)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            with output.working(f"applying {', '.join(declared.files)} to {connection.control_plane_name}"):
                outcome = apply_declared(plane, row["id"], declared, wishes.select_tags, mode, commit=True)
            _finish(output, plane, row["id"], outcome, wishes)


def _inputs(output: Output, files: Sequence[str], asked: Asked) -> tuple[Declared, Connection]:
    """The files and where they shall go; from here on, nothing of the environment is shown."""
    output.mask.add(*environment_values(os.environ))
    declared = read_files(files)
    output.mask.add(*declared.used.values())
    return declared, _connection(output, asked, control_plane_name(declared))


def _connection(output: Output, asked: Asked, named_in_file: str | None) -> Connection:
    connection = resolve(asked, named_in_file)
    if connection.token:
        output.mask.add(connection.token)
    return connection


def _show(output: Output, outcome: Outcome, json_output: bool) -> None:
    if json_output:
        output.json(plan_json(outcome.plan, output.mask))
        return
    for text, style in plan_lines(outcome.plan, output.mask):
        output.line(text, style)


def _finish(output: Output, plane: ControlPlane, control_plane_id: str, outcome: Outcome, wishes: Wishes) -> None:
    """Show what was written and, if asked to, wait until it is live. JSON is printed once, with what went wrong."""
    if not wishes.json_output:
        _show(output, outcome, False)
    errors: list[str] = []
    exit_code = EXIT_OK
    try:
        _await(output, plane, control_plane_id, outcome, wishes)
    except NotLive as error:
        if not wishes.json_output:
            raise
        errors, exit_code = error.lines(), error.exit_code
    if wishes.json_output:
        output.json(plan_json(outcome.plan, output.mask, errors))
    if exit_code:
        raise click.exceptions.Exit(exit_code)


def _await(output: Output, plane: ControlPlane, control_plane_id: str, outcome: Outcome, wishes: Wishes) -> None:
    if not wishes.wait:
        return
    with output.working("waiting until every worker runs it"):
        receipts = wait_until_live(plane, control_plane_id, outcome.target, wishes.wait_timeout)
    output.note(f"version {outcome.target.version}: {receipts}")


@contextlib.contextmanager
def _reported(output: Output, json_output: bool) -> Iterator[None]:
    """With --json-output a failure is JSON too, as decK has it; unlike decK's, the exit code tells the truth."""
    try:
        yield
    except CliError as error:
        if not json_output:
            raise
        output.json(plan_json({}, output.mask, error.lines()))
        raise click.exceptions.Exit(error.exit_code) from None


def _confirm(output: Output, count: int, name: str, select_tags: Sequence[str]) -> None:
    what = f"what carries the tags {', '.join(select_tags)}" if select_tags else "everything"
    question = f"this deletes {what} in control plane {name}: {count} entities"
    if not sys.stdin.isatty():
        raise CliError(f"{question}; say --yes to do it without a terminal to ask at")
    if not click.confirm(output.mask.text(f"{question}. Go on?"), err=True):
        raise CliError("nothing was deleted")


def _write_file(path: Path, text: str, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise CliError(f"{path}: exists already; say --yes to overwrite it")
    try:
        write_private(path, text)
    except OSError as error:
        raise CliError(f"{path}: cannot be written: {error.strerror}") from None
