"""token, audit: who may do what to the control plane, and who did."""

from __future__ import annotations

import datetime
import re
import uuid
from typing import Any

import click

from cli.analytics import span_of
from cli.client import ControlPlane
from cli.connection import Asked, connection_options, resolve
from cli.errors import CliError, Unwritten
from cli.output import Output

SCOPES = ("read", "write", "reveal", "admin")
_UNITS = {"h": 3_600, "d": 86_400, "w": 604_800}
_PAGE = 1000


@click.group()
def token() -> None:
    """Make, list and revoke access tokens of the control plane.

    This needs a token with the scope `admin`, as that of a local stack.
    """


@token.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it may do; can be repeated. Default: read, write and reveal; without reveal for a system account.",
)
@click.option("--system-account", is_flag=True, help="For a machine (spat_…) instead of a person (kpat_…).")
@click.option("--only", metavar="NAME", help="Limit it to this control plane.")
@click.option("--expires", metavar="WHEN", default="90d", show_default=True, help="30d, 12h, a date or time, or never.")
@click.option("--json-output", is_flag=True)
@connection_options
@click.pass_obj
def create(
    output: Output,
    /,
    name: str,
    scopes: tuple[str, ...],
    system_account: bool,
    only: str | None,
    expires: str,
    json_output: bool,
    asked: Asked,
) -> None:
    """Make a token and print it, once.

    Its value goes to stdout; nobody can show it again. `reveal` lets it see secrets in clear: decK needs that, or its
    diff is never empty.
    """
    connection = resolve(asked)
    output.mask.add(connection.token)
    body: dict[str, Any] = {"name": name, "kind": "system-account" if system_account else "personal"}
    if scopes:
        body["scopes"] = list(scopes)
    if (until := _expiry(expires, datetime.datetime.now(datetime.UTC))) is not None:
        body["expires_at"] = until
    if output.closed:
        raise CliError("standard output is closed: nobody would see the token's value; nothing was made")
    with ControlPlane(connection) as plane:
        if only is not None:
            body["control_plane_id"] = str(plane.require(only)["id"])
        made = plane.create_token(body)
        try:
            output.json(made) if json_output else output.raw(f"{made['token']}\n")
        except Unwritten as error:
            raise _withdrawn(plane, made, error) from None
    if not json_output:
        reach = f"control plane {only}" if only else "every control plane"
        output.note(
            f"made token '{made['name']}' ({', '.join(made['scopes'])}; {reach}; "
            f"expires {made['expires_at'] or 'never'}). Keep it now: it is not shown again."
        )


def _withdrawn(plane: ControlPlane, made: dict[str, Any], error: Unwritten) -> CliError:
    """Revoke a token whose value nobody has seen, and say so."""
    lost = f"the value of the new token '{made['name']}' could not be written ({error})"
    try:
        plane.revoke_token(str(made["id"]))
    except CliError as failure:
        return CliError(f"{lost}, and it is still there: recipe token revoke {made['id']} ({failure.message})")
    return CliError(f"{lost}: it was revoked again")


@token.command("list")
@click.option("--json-output", is_flag=True)
@connection_options
@click.pass_obj
def list_tokens(output: Output, /, json_output: bool, asked: Asked) -> None:
    """List tokens, without their values."""
    connection = resolve(asked)
    output.mask.add(connection.token)
    with ControlPlane(connection) as plane:
        found = plane.tokens()
        names = {} if json_output else plane.control_plane_names()
    if json_output:
        output.json(found)
        return
    rows = [
        (
            str(item["id"]),
            str(item["name"]),
            str(item["kind"]),
            ",".join(item["scopes"]),
            names.get(item["control_plane_id"], item["control_plane_id"]) if item["control_plane_id"] else "all",
            "expired" if item["state"] == "expired" else _short(item["expires_at"]) or "never",
            str(item["created_by"] or "-"),
        )
        for item in found
    ]
    output.table(("ID", "NAME", "KIND", "SCOPES", "CONTROL PLANE", "EXPIRES", "MADE BY"), rows)


@token.command("revoke")
@click.argument("token_or_name", metavar="ID|NAME")
@connection_options
@click.pass_obj
def revoke(output: Output, /, token_or_name: str, asked: Asked) -> None:
    """Revoke a token: the next request with it is refused."""
    connection = resolve(asked)
    output.mask.add(connection.token)
    with ControlPlane(connection) as plane:
        found = _find(plane.tokens(), token_or_name)
        plane.revoke_token(str(found["id"]))
    output.done = f"revoked token '{found['name']}'"
    output.line(f"revoked token '{found['name']}' ({found['id']})")


@click.command()
@click.option("--since", metavar="LENGTH", help="How far back: 15m, 1h, 7d; default 1h.")
@click.option("--from", "start", metavar="TIME", help="Start of the range (ISO 8601).")
@click.option("--to", "end", metavar="TIME", help="End of the range; default now.")
@click.option("--by", "principal", metavar="TOKEN", help="Only what this token did (name or id).")
@click.option("--action", metavar="VERB", help="Only create, update, delete, apply, revoke, login, …")
@click.option("--kind", metavar="PLURAL", help="Only this kind: services, plugins, tokens, control_planes, …")
@click.option("--name", metavar="NAME", help="Only what bears this name.")
@click.option("--all-control-planes", is_flag=True, help="Also other control planes, and what belongs to none.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Lines at most.")
@click.option("--json-output", is_flag=True)
@connection_options
@click.pass_obj
def audit(
    output: Output,
    /,
    since: str | None,
    start: str | None,
    end: str | None,
    all_control_planes: bool,
    limit: int,
    json_output: bool,
    asked: Asked,
    **filters: str | None,
) -> None:
    """Show who changed what, when and from where; newest first."""
    span = span_of(since, start, end, datetime.datetime.now(datetime.UTC))
    connection = resolve(asked)
    output.mask.add(connection.token)
    columns = {"principal": "principal", "action": "action", "kind": "entity_type", "name": "entity_name"}
    query = {columns[flag]: value for flag, value in filters.items() if value is not None}
    query["start"] = _rfc3339(span.start)
    if end is not None:
        query["end"] = _rfc3339(span.end)
    with ControlPlane(connection) as plane:
        if not all_control_planes:
            query["control_plane_id"] = str(plane.require(connection.control_plane_name)["id"])
        lines, further = _lines(plane, query, limit)
    if json_output:
        output.json(lines)
        return
    if not lines:
        output.line(f"no change since {span.start:%Y-%m-%d %H:%M:%S} UTC")
        return
    output.table(("TIME", "WHO", "FROM", "ACTION", "WHAT", "NAME", "DETAILS"), [_row(line) for line in lines])
    if further:
        output.note(f"there are more: --limit {limit} cut them off")


def _lines(plane: ControlPlane, query: dict[str, str], limit: int) -> tuple[list[dict[str, Any]], bool]:
    lines: list[dict[str, Any]] = []
    cursor: Any = None
    while len(lines) < limit:
        wanted = {**query, "size": str(min(_PAGE, limit - len(lines)))}
        if cursor is not None:
            wanted["cursor"] = str(cursor)
        page = plane.audit_logs(wanted)
        lines += page["data"]
        cursor = page["next"]
        if cursor is None:
            return lines, False
    return lines, True


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    entity = line["entity"]
    action = line["action"] if line["outcome"] == "done" else f"{line['action']} ({line['outcome']})"
    return (
        _short(line["at"]),
        line["principal"]["name"] or "-",
        line["client_address"] or "-",
        action,
        entity["type"] or "-",
        entity["name"] or entity["id"] or "-",
        _details(line["details"]),
    )


def _details(details: dict[str, Any]) -> str:
    if list(details) == ["fields"]:
        return ", ".join(details["fields"])
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in details.items()
        if value not in (None, 0, [], "")
    )


def _find(tokens: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    try:
        by_id = [item for item in tokens if item["id"] == str(uuid.UUID(wanted))]
    except ValueError:
        by_id = []
    found = by_id or [item for item in tokens if item["name"] == wanted]
    if not found:
        raise CliError(f"no token '{wanted}'; `recipe token list` shows all")
    if len(found) > 1:
        ids = ", ".join(str(item["id"]) for item in found)
        raise CliError(f"{len(found)} tokens have the name '{wanted}': give the id of one ({ids})")
    return found[0]


def _expiry(text: str, now: datetime.datetime) -> str | None:
    """`never`, a length of time from now, or a moment. Raises CliError."""
    if text == "never":
        return None
    if (length := re.fullmatch(r"(\d{1,5})([hdw])", text)) is not None:
        return _rfc3339(now + datetime.timedelta(seconds=int(length[1]) * _UNITS[length[2]]))
    try:
        moment = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise CliError(f"--expires {text}: expected 30d, 12h, a date such as 2030-01-31, or never") from None
    if moment <= now:
        raise CliError(f"--expires {text}: this has passed")
    return _rfc3339(moment)


def _rfc3339(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")


def _short(moment: str | None) -> str:
    """An API's time, to the second, as people read it."""
    return "" if moment is None else moment[:19].replace("T", " ")
