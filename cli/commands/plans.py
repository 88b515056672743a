"""Saved plans: `diff -o FILE` keeps one in the control plane, `sync --plan FILE` or `apply-plan FILE` applies it.

The file says which plan it is and what it would do, secrets masked; the plan itself, with its secrets, stays in the
control plane until it expires. A later `diff -o` may overwrite it, and no other file unless it is told to.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from cli.client import ControlPlane
from cli.commands.steps import (
    Wishes,
    connection_of,
    finish,
    force_option,
    json_output_option,
    never_asks_option,
    reported,
    wait_option,
    wait_timeout_option,
    wishes_of,
)
from cli.connection import Asked, connection_options
from cli.declarative import Outcome, outcome_of, save_plan
from cli.destination import refuse_loss, write
from cli.errors import CliError
from cli.files import Declared
from cli.masking import environment_values
from cli.output import Output
from cli.render import plan_json

plan_file_option = click.option("--plan", "plan_file", metavar="FILE", help="Apply the plan that diff -o FILE kept.")

_MAX_BYTES = 64 * 1024 * 1024


@click.command("apply-plan")
@click.argument("file", metavar="FILE")
@json_output_option
@never_asks_option
@force_option
@wait_option
@wait_timeout_option
@connection_options
@click.pass_obj
def apply_plan(output: Output, /, file: str, yes: bool, asked: Asked, **flags: Any) -> None:
    """Apply a plan that `diff -o FILE` kept.

    Refused when the control plane has changed since.
    """
    carry_out(output, Path(file), asked, wishes_of(flags))


def refuse_destination(path: Path, declared: Declared, overwrite: bool) -> None:
    """Raises CliError for a file that a plan must not take the place of."""
    refuse_loss(path, overwrite or (path.is_file() and _is_plan(path)), declared.files)


def save(
    output: Output, plane: ControlPlane, row: dict[str, Any], declared: Declared, wishes: Wishes, path: Path
) -> Outcome:
    """Have the plan kept, and write the file that names it."""
    saved = save_plan(plane, row["id"], declared, wishes.select_tags, wishes.adopt)
    about = {key: saved[key] for key in ("id", "version", "author", "created_at", "expires_at", "select_tags")}
    content = {
        "_plan": {**about, "control_plane_id": row["id"], "control_plane_name": row["name"]},
        **plan_json(saved["plan"], output.mask),
    }
    write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    output.done = f"plan {saved['id']} is kept"
    output.note(f"plan {saved['id']} for version {saved['version']} is kept until {saved['expires_at']}: {path}")
    return outcome_of({"plan": saved["plan"], "version": saved["version"]})


def carry_out(output: Output, path: Path, asked: Asked, wishes: Wishes) -> None:
    """Apply the plan that a file names."""
    output.mask.add(*environment_values(os.environ))
    with reported(output, wishes.json_output):
        about = _read(path)
        connection = connection_of(output, asked, about["control_plane_name"])
        with ControlPlane(connection) as plane, output.working(f"applying the plan of {path}"):
            answer = plane.apply_plan(about["control_plane_id"], about["id"], wishes.force)
        with ControlPlane(connection) as plane:
            finish(output, plane, about["control_plane_id"], outcome_of(answer), wishes)


def _is_plan(path: Path) -> bool:
    try:
        _read(path)
    except CliError:
        return False
    return True


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_BYTES))
        about = data["_plan"]
        return {key: str(about[key]) for key in ("id", "control_plane_id", "control_plane_name")}
    except OSError as error:
        raise CliError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CliError(f"{path}: not a plan that `recipe diff -o` wrote") from None
