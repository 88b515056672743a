"""analytics: who asked what, how long it took, how many tokens it cost."""

from __future__ import annotations

import datetime
from typing import Any

import click

from cli.analytics import COLLECTIONS, DIMENSIONS, Question, Span, Table, ask, cell, entity_filter, span_of
from cli.client import ControlPlane
from cli.connection import Asked, connection_options, resolve
from cli.output import Output


@click.command()
@click.option("--service", metavar="NAME", help="Only requests to this service.")
@click.option("--route", metavar="NAME", help="Only requests by this route.")
@click.option("--consumer", metavar="NAME", help="Only requests of this consumer.")
@click.option("--model", metavar="NAME", help="Only calls that this model answered.")
@click.option("--by", type=click.Choice(list(DIMENSIONS)), help="Rows; default: service, or model with --model.")
@click.option("--since", metavar="LENGTH", help="How far back: 15m, 1h, 7d; default 1h.")
@click.option("--from", "start", metavar="TIME", help="Start of the range (ISO 8601).")
@click.option("--to", "end", metavar="TIME", help="End of the range; default now.")
@click.option("--json-output", is_flag=True)
@connection_options
@click.pass_obj
def analytics(
    output: Output,
    /,
    by: str | None,
    since: str | None,
    start: str | None,
    end: str | None,
    model: str | None,
    json_output: bool,
    asked: Asked,
    **entities: str | None,
) -> None:
    """Show requests, errors, latencies and tokens.

    Per service, route, consumer, provider or model.
    """
    span = span_of(since, start, end, datetime.datetime.now(datetime.UTC))
    connection = resolve(asked)
    output.mask.add(connection.token)
    with ControlPlane(connection) as plane:
        control_plane_id = str(plane.require(connection.control_plane_name)["id"])
        filters: list[dict[str, Any]] = [{"field": "control_plane", "operator": "in", "value": [control_plane_id]}]
        if model is not None:
            filters.append({"field": DIMENSIONS["model"], "operator": "in", "value": [model]})
        for kind in COLLECTIONS:
            name = entities[kind]
            if name is not None:
                filters.append(entity_filter(plane, control_plane_id, kind, name))
        question = Question(by or ("model" if model else "service"), span, filters)
        with output.working(f"asking for the numbers since {span.start:%Y-%m-%d %H:%M:%S} UTC"):
            table = ask(plane, question)
    _show(output, question, table, json_output)


def _show(output: Output, question: Question, table: Table, json_output: bool) -> None:
    if json_output:
        rows = [{question.by: name, **values} for name, values in table.rows]
        output.json({"by": question.by, **_bounds(question.span), "rows": rows})
        return
    if not table.rows:
        span = question.span
        output.line(f"no request between {span.start:%Y-%m-%d %H:%M:%S} and {span.end:%Y-%m-%d %H:%M:%S} UTC")
        return
    headings = (question.by.upper(), *table.columns.values())
    cells = [(name, *(cell(values.get(key), key) for key in table.columns)) for name, values in table.rows]
    output.table(headings, cells, right=headings[1:])


def _bounds(span: Span) -> dict[str, str]:
    return {"from": span.start.isoformat(), "to": span.end.isoformat()}
