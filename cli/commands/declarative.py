"""sync, apply, diff, reset, dump, validate: declarative files, with decK's flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.client import ControlPlane
from cli.commands.plans import carry_out, plan_file_option, refuse_destination, save
from cli.commands.steps import (
    Wishes,
    adopt_option,
    confirm,
    connection_of,
    files_argument,
    finish,
    force_option,
    inputs,
    json_output_option,
    never_asks_option,
    reported,
    select_tag_option,
    show,
    wait_option,
    wait_timeout_option,
    wishes_of,
)
from cli.connection import Asked, connection_options
from cli.declarative import Mode, apply_declared, check, control_plane_name, reset_entities
from cli.destination import refuse_loss, write
from cli.documents import Form, written
from cli.errors import EXIT_CHANGES, CliError, Faults
from cli.files import read_files
from cli.masking import environment_values
from cli.output import Output


@click.command()
@files_argument
@select_tag_option
@json_output_option
@never_asks_option
@adopt_option
@force_option
@plan_file_option
@wait_option
@wait_timeout_option
@connection_options
@click.pass_obj
def sync(output: Output, /, files: Sequence[str], yes: bool, plan_file: str | None, asked: Asked, **flags: Any) -> None:
    """Make the control plane hold what files say.

    Creates, updates and deletes, all at once or not at all.
    """
    wishes = wishes_of(flags)
    if plan_file is None:
        _write(output, files, asked, wishes, "sync")
    elif files or wishes.select_tags or wishes.adopt:
        raise CliError("--plan says all by itself: no files, no --select-tag and no --adopt beside it")
    else:
        carry_out(output, Path(plan_file), asked, wishes)


@click.command()
@files_argument
@select_tag_option
@json_output_option
@never_asks_option
@adopt_option
@wait_option
@wait_timeout_option
@connection_options
@click.pass_obj
def apply(output: Output, /, files: Sequence[str], yes: bool, asked: Asked, **flags: Any) -> None:
    """Create and update what the files say; delete nothing."""
    _write(output, files, asked, wishes_of(flags), "apply")


@click.command()
@files_argument
@select_tag_option
@json_output_option
@adopt_option
@click.option("--non-zero-exit-code", is_flag=True, help="Exit with 2 when something would change.")
@click.option("--output-file", "-o", metavar="FILE", help="Keep the plan, to be applied with sync --plan FILE.")
@click.option("--yes", "-y", is_flag=True, help="Overwrite the file, also when it is not a kept plan.")
@connection_options
@click.pass_obj
def diff(
    output: Output,
    /,
    files: Sequence[str],
    asked: Asked,
    non_zero_exit_code: bool,
    output_file: str | None,
    yes: bool,
    **flags: Any,
) -> None:
    """Show what sync would do."""
    wishes = wishes_of(flags)
    with reported(output, wishes.json_output):
        declared, connection = inputs(output, files, asked)
        if output_file is not None:
            refuse_destination(Path(output_file), declared, yes)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            if output_file is not None:
                outcome = save(output, plane, row, declared, wishes, Path(output_file))
            else:
                tags, consent = wishes.select_tags, wishes.consent
                outcome = apply_declared(plane, row["id"], declared, tags, "sync", commit=False, consent=consent)
        show(output, outcome, wishes.json_output)
    if outcome.changes and non_zero_exit_code:
        raise click.exceptions.Exit(EXIT_CHANGES)


@click.command()
@select_tag_option
@json_output_option
@click.option("--yes", "-y", "--force", "-f", "yes", is_flag=True, help="Do not ask.")
@adopt_option
@wait_option
@wait_timeout_option
@connection_options
@click.pass_obj
def reset(output: Output, /, yes: bool, asked: Asked, **flags: Any) -> None:
    """Delete everything, or everything that carries the tags."""
    wishes = wishes_of(flags)
    tags, consent = wishes.select_tags, wishes.consent
    output.mask.add(*environment_values(os.environ))
    with reported(output, wishes.json_output):
        connection = connection_of(output, asked, None)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            if not yes:
                outcome = reset_entities(plane, row["id"], tags, commit=False, consent=consent)
                confirm(output, outcome.changes, connection.control_plane_name, tags)
            outcome = reset_entities(plane, row["id"], tags, commit=True, consent=consent)
            finish(output, plane, row["id"], outcome, wishes)


@click.command()
@select_tag_option
@click.option("--output-file", "-o", default="-", metavar="FILE", help="Where to write; - is standard output.")
@click.option("--format", "form", type=click.Choice(["yaml", "json"]), default="yaml")
@click.option("--yes", "-y", is_flag=True, help="Overwrite the file without asking.")
@connection_options
@click.pass_obj
def dump(
    output: Output, /, select_tags: tuple[str, ...], output_file: str, form: Form, yes: bool, asked: Asked
) -> None:
    """Write what the control plane holds to a file.

    The file syncs to nothing. It holds secrets in clear.
    """
    if output_file != "-":
        refuse_loss(Path(output_file), yes)
    connection = connection_of(output, asked, None)
    with ControlPlane(connection) as plane:
        row = plane.require(connection.control_plane_name)
        document = plane.document(row["id"], select_tags)
    text = written(document, form)
    if output_file == "-":
        output.raw(text)
    else:
        write(Path(output_file), text)
        output.note(f"written to {output_file}")


@click.command()
@files_argument
@select_tag_option
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
        connection = connection_of(output, asked, control_plane_name(declared))
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            apply_declared(plane, row["id"], declared, select_tags, "sync", commit=False)
    output.line(f"{', '.join(declared.files)}: valid")


def _write(output: Output, files: Sequence[str], asked: Asked, wishes: Wishes, mode: Mode) -> None:
    with reported(output, wishes.json_output):
        declared, connection = inputs(output, files, asked)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            with output.working(f"applying {', '.join(declared.files)} to {connection.control_plane_name}"):
                tags, consent = wishes.select_tags, wishes.consent
                outcome = apply_declared(plane, row["id"], declared, tags, mode, commit=True, consent=consent)
            finish(output, plane, row["id"], outcome, wishes)
