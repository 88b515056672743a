"""history, rollback: what a control plane held before, and the way back."""

from __future__ import annotations

import os
from typing import Any

import click

from cli.client import ControlPlane
from cli.commands.steps import (
    adopt_option,
    connection_of,
    finish,
    force_option,
    json_output_option,
    reported,
    select_tag_option,
    show,
    wait_option,
    wait_timeout_option,
    wishes_of,
)
from cli.connection import Asked, connection_options
from cli.declarative import outcome_of, told_apart
from cli.masking import environment_values
from cli.output import Output

_COLUMNS = ("VERSION", "WHEN", "BY", "WHAT", "CREATED", "UPDATED", "DELETED", "HASH")
_NUMBERS = ("VERSION", "CREATED", "UPDATED", "DELETED")


@click.command()
@click.argument("version", type=click.IntRange(min=0), required=False)
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, help="How many, newest first.")
@json_output_option
@connection_options
@click.pass_obj
def history(output: Output, /, version: int | None, limit: int, json_output: bool, asked: Asked) -> None:
    """List the versions that are kept: who made them, when.

    With a VERSION: what that one changed.
    """
    output.mask.add(*environment_values(os.environ))
    connection = connection_of(output, asked, None)
    with ControlPlane(connection) as plane:
        row = plane.require(connection.control_plane_name)
        if version is not None:
            show(output, outcome_of({"plan": plane.snapshot_diff(row["id"], version)}), json_output)
            return
        items = plane.snapshots(row["id"], limit)
    if json_output:
        output.json({"snapshots": items})
        return
    output.table(_COLUMNS, [_line(item) for item in items], right=_NUMBERS)


@click.command()
@click.argument("version", type=click.IntRange(min=0))
@select_tag_option
@json_output_option
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@adopt_option
@force_option
@wait_option
@wait_timeout_option
@connection_options
@click.pass_obj
def rollback(output: Output, /, version: int, dry_run: bool, asked: Asked, **flags: Any) -> None:
    """Go back to what was held at VERSION.

    That becomes a new version; `recipe history` lists them.
    """
    wishes = wishes_of(flags)
    output.mask.add(*environment_values(os.environ))
    with reported(output, wishes.json_output):
        connection = connection_of(output, asked, None)
        with ControlPlane(connection) as plane:
            row = plane.require(connection.control_plane_name)
            with told_apart():
                answer = plane.rollback(row["id"], version, wishes.select_tags, not dry_run, wishes.consent)
            if dry_run:
                show(output, outcome_of(answer), wishes.json_output)
            else:
                finish(output, plane, row["id"], outcome_of(answer), wishes)


def _line(item: dict[str, Any]) -> list[str]:
    summary = item["summary"]
    counts = [str(summary.get(name, 0)) for name in ("creating", "updating", "deleting")]
    return [str(item["version"]), item["created_at"], item["author"], item["action"], *counts, item["hash"][:12]]
