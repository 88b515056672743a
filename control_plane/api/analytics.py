"""Analytics in the shape of Konnect's metrics and api-requests APIs, with more metrics and with calls to models.

Ids of services, routes and consumers are `<control plane>:<entity>`, in answers as in filters, so that one can be
pasted from the former into the latter.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.analytics import EMPTY, OTHER, Answer, Filter, InvalidFilter, condition_of
from control_plane.analytics import Query as MetricsQuery
from control_plane.analytics import answer as run
from control_plane.api import own_answers
from control_plane.api.exchange import AnyReader, Body, Plane, answer, parameters
from control_plane.api.openapi import accepts, shows
from control_plane.api.stems import StemRouter
from control_plane.auth import Principal
from control_plane.errors import ControlPlaneError, InvalidParameters
from control_plane.ingest import live_names
from control_plane.metrics import API, DATASOURCES, Datasource, Dimension
from control_plane.models import ANALYTICS_EPOCHS, ENTITY_NAMES, ENTITY_TABLES, ControlPlane
from control_plane.request_log import FIELDS, LogQuery, iso, operators_of, read_cursor, read_log
from control_plane.rollups import chunks
from control_plane.timeframe import GRANULARITIES, InvalidRange, Span, absolute, frame_of, relative, zone_of
from control_plane.totals import Total, shown

router = StemRouter(prefix="/v2", tags=["analytics"])

QUERY_SECONDS = 10.0
MAX_METRICS, MAX_DIMENSIONS, MAX_FILTERS, MAX_VALUES = 32, 3, 50, 1000
_SLOW: dict[int | str, dict[str, Any]] = {408: {"description": "The query took too long"}}
_NO_VALUE = ("empty", "not_empty")


class QueryTimeout(ControlPlaneError):
    status: ClassVar[int] = 408


class TimeRange(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["relative", "absolute"] = "relative"
    time_range: str = "1h"
    start: str | None = None
    end: str | None = None
    tz: str | None = None


class FilterBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    field: str
    operator: str = "in"
    value: Any = None


class MetricsBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    datasource: str = API.name
    metrics: Annotated[list[str], Field(max_length=MAX_METRICS)] | None = None
    dimensions: Annotated[list[str], Field(max_length=MAX_DIMENSIONS)] = []
    filters: Annotated[list[FilterBody], Field(max_length=MAX_FILTERS)] = []
    granularity: str | None = None
    time_range: TimeRange = TimeRange()
    limit: Annotated[int, Field(ge=1, le=1000)] = 50


class RequestsBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    filters: Annotated[list[FilterBody], Field(max_length=MAX_FILTERS)] = []
    time_range: TimeRange = TimeRange()
    order: Literal["ascending", "descending"] = "descending"
    size: Annotated[int, Field(ge=1, le=1000)] = 100
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    cursor: str | None = None


@router.post("/metrics", responses=shows(own_answers.MetricsShown) | _SLOW, openapi_extra=accepts(MetricsBody))
async def query_metrics(body: Body, plane: Plane, caller: AnyReader) -> Response:
    """Counts, rates, sums and latencies of requests (`api_usage`) or of calls to models (`llm_usage`)."""
    given = parameters(MetricsBody, body)
    now = time.time()
    query = _metrics_query(given, now, caller)
    try:
        async with asyncio.timeout(QUERY_SECONDS), plane.database.reading() as session:
            result = await run(session, query)
            display = await _display(session, query, result)
            dropped = await _dropped(session, query)
    except TimeoutError:
        raise QueryTimeout("the query took longer than 10 s: add filters or shorten the range") from None
    except InvalidFilter as error:
        raise InvalidParameters([_parameter("filters", "invalid", str(error))]) from None
    return answer(_metrics_answer(query, result, display, dropped))


@router.post("/api-requests", responses=shows(own_answers.RequestsShown) | _SLOW, openapi_extra=accepts(RequestsBody))
async def query_requests(body: Body, plane: Plane, caller: AnyReader) -> Response:
    """Single requests, newest first unless asked otherwise, each with its calls to models."""
    given = parameters(RequestsBody, body)
    span = _span(given.time_range, time.time())
    query = _log_query(given, span, caller)
    try:
        async with asyncio.timeout(QUERY_SECONDS), plane.database.reading() as session:
            results, cursor = await read_log(session, query)
    except TimeoutError:
        raise QueryTimeout("the query took longer than 10 s: add filters or shorten the range") from None
    except InvalidFilter as error:
        raise InvalidParameters([_parameter("filters", "invalid", str(error))]) from None
    meta = {
        "time_range": {"start": iso(query.start_us), "end": iso(query.end_us)},
        "query_id": str(uuid.uuid4()),
        "size": given.size,
        "offset": given.offset,
        "cursor": cursor,
    }
    return answer({"results": results, "meta": meta})


# -- reading queries


def _metrics_query(given: MetricsBody, now: float, caller: Principal) -> MetricsQuery:
    datasource = DATASOURCES.get(given.datasource)
    if datasource is None:
        raise InvalidParameters([_choice("datasource", given.datasource, DATASOURCES)])
    metrics = given.metrics or [datasource.default_metric]
    dimensions = list(dict.fromkeys(given.dimensions))
    faults = [
        *_unknown("metrics", metrics, datasource.metrics),
        *_unknown("dimensions", dimensions, ["time", *datasource.dimensions]),
    ]
    if given.granularity is not None and given.granularity not in GRANULARITIES:
        faults.append(_choice("granularity", given.granularity, GRANULARITIES))
    if faults:
        raise InvalidParameters(faults)
    return MetricsQuery(
        datasource=datasource,
        metrics=tuple(dict.fromkeys(metrics)),
        dimensions=tuple(name for name in dimensions if name != "time"),
        filters=(*_metric_filters(datasource, given.filters), *_reach(caller)),
        frame=frame_of(_span(given.time_range, now), given.granularity, "time" in dimensions),
        limit=given.limit,
    )


def _metric_filters(datasource: Datasource, filters: Sequence[FilterBody]) -> tuple[Filter, ...]:
    operators = ("in", "not_in", *_NO_VALUE)
    return _filters(filters, tuple(datasource.dimensions), lambda _: operators)


def _log_query(given: RequestsBody, span: Span, caller: Principal) -> LogQuery:
    try:
        cursor = read_cursor(given.cursor) if given.cursor else None
    except ValueError:
        raise InvalidParameters([_parameter("cursor", "invalid", "is not a cursor of an earlier answer")]) from None
    return LogQuery(
        start_us=int(span.start * 1e6),
        end_us=int(span.end * 1e6),
        filters=(*_filters(given.filters, FIELDS, operators_of), *_reach(caller)),
        descending=given.order == "descending",
        size=given.size,
        offset=given.offset,
        cursor=cursor,
    )


def _reach(caller: Principal) -> tuple[Filter, ...]:
    """A token that is limited to one control plane sees that one's traffic, whatever it asks for."""
    limit = caller.control_plane_id
    return () if limit is None else (Filter("control_plane", "in", (limit,)),)


def _filters(filters: Sequence[FilterBody], fields: Sequence[str], operators: Any) -> tuple[Filter, ...]:
    found: list[Filter] = []
    for index, one in enumerate(filters):
        place = f"filters.{index}"
        if one.field not in fields:
            raise InvalidParameters([_choice(f"{place}.field", one.field, fields)])
        allowed = operators(one.field)
        if one.operator not in allowed:
            raise InvalidParameters([_choice(f"{place}.operator", one.operator, allowed)])
        found.append(Filter(one.field, one.operator, _values(one, f"{place}.value")))
    return tuple(found)


def _values(one: FilterBody, place: str) -> tuple[Any, ...]:
    if one.operator in _NO_VALUE:
        return ()
    values = one.value if isinstance(one.value, list) else [one.value]
    if one.operator in ("in", "not_in") and not isinstance(one.value, list):
        raise InvalidParameters([_parameter(place, "is_array", "must be an array")])
    if not 0 < len(values) <= MAX_VALUES:
        raise InvalidParameters([_parameter(place, "invalid", f"must have 1 to {MAX_VALUES} values")])
    for value in values:
        if not isinstance(value, str | int | float | bool) or (isinstance(value, str) and "\0" in value):
            raise InvalidParameters([_parameter(place, "invalid", "must be text or a number")])
    return tuple(values)


def _span(given: TimeRange, now: float) -> Span:
    try:
        zone = zone_of(given.tz)
        if given.type == "relative":
            return relative(given.time_range, zone, now)
        return absolute(given.start, given.end, zone, now)
    except InvalidRange as error:
        raise InvalidParameters([_parameter(error.field, "invalid", error.reason)]) from None


def _unknown(field: str, names: Sequence[str], known: Iterable[str]) -> list[dict[str, Any]]:
    choices = list(known)
    return [_choice(f"{field}.{place}", name, choices) for place, name in enumerate(names) if name not in choices]


def _choice(field: str, given: str, choices: Iterable[str]) -> dict[str, Any]:
    listed = list(choices)
    reason = f"'{given[:64]}' is not one of: {', '.join(listed)}"
    return {**_parameter(field, "enum", reason), "choices": listed}


def _parameter(field: str, rule: str, reason: str) -> dict[str, Any]:
    return {"field": field, "rule": rule, "reason": reason, "source": "body"}


# -- writing answers


def _metrics_answer(query: MetricsQuery, result: Answer, display: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    frame = query.frame
    start, end = frame.start, frame.last_minute
    width = (end - start) * 1000 if frame.granularity is None else frame.granularity * 1000
    data = [
        {"timestamp": iso(bucket * 1_000_000), "event": {**dict(zip(query.dimensions, ids, strict=True)), **metrics}}
        for bucket, ids, metrics in result.rows
    ]
    meta = {
        "start": iso(start * 1_000_000),
        "end": iso(int(frame.end * 1e6) if frame.end < end else end * 1_000_000),
        "granularity_ms": width,
        "limit": query.limit,
        "truncated": result.truncated,
        "query_id": str(uuid.uuid4()),
        "metric_names": list(query.metrics),
        "metric_units": {name: query.datasource.metrics[name].unit for name in query.metrics},
        "display": display,
        "source": "1m",
        "loss": {"dropped": shown(dropped)},
    }
    return {"data": data, "meta": meta}


async def _display(session: AsyncSession, query: MetricsQuery, result: Answer) -> dict[str, Any]:
    display: dict[str, Any] = {}
    for name, ids in zip(query.dimensions, result.seen, strict=True):
        dimension = query.datasource.dimensions[name]
        shown: dict[str, Any] = {one: {"id": one, "name": one} for one in ids if one not in (EMPTY, OTHER)}
        if dimension.entity_type == "control_planes":
            shown = await _control_plane_names(session, list(shown))
        elif dimension.entity_type is not None:
            shown = await _entity_names(session, dimension.entity_type, list(shown))
        if EMPTY in ids:
            shown[EMPTY] = {"id": EMPTY, "name": "Empty"}
        if OTHER in ids:
            shown[OTHER] = {"id": OTHER, "name": "Other", "is_other_group": True}
        display[name] = shown
    return display


async def _control_plane_names(session: AsyncSession, ids: list[str]) -> dict[str, Any]:
    found = await session.execute(select(ControlPlane.id, ControlPlane.name).where(ControlPlane.id.in_(ids)))
    names = {row[0]: row[1] for row in found}
    return {one: {"id": one, "name": names.get(one, one), "deleted": one not in names} for one in ids}


async def _entity_names(session: AsyncSession, kind: str, scoped: list[str]) -> dict[str, Any]:
    """Names of today, and of those that are gone the last that was known."""
    by_control_plane: dict[str, list[str]] = {}
    for one in scoped:
        control_plane_id, _, entity_id = one.partition(":")
        by_control_plane.setdefault(control_plane_id, []).append(entity_id)
    shown: dict[str, Any] = {}
    for control_plane_id, every in by_control_plane.items():
        for ids in chunks(every, 500):
            names = await _known_names(session, kind, control_plane_id, ids)
            for one, (name, deleted) in names.items():
                scope = f"{control_plane_id}:{one}"
                shown[scope] = {"id": scope, "name": name, "deleted": deleted}
    return shown


async def _known_names(
    session: AsyncSession, kind: str, control_plane_id: str, ids: Sequence[str]
) -> dict[str, tuple[str, bool]]:
    table = ENTITY_TABLES[kind]
    here = select(table.c.id).where(table.c.control_plane_id == control_plane_id, table.c.id.in_(ids))
    exists = set((await session.execute(here)).scalars())
    remembered = select(ENTITY_NAMES.c.entity_id, ENTITY_NAMES.c.name).where(
        ENTITY_NAMES.c.control_plane_id == control_plane_id, ENTITY_NAMES.c.entity_id.in_(ids)
    )
    names = {row[0]: row[1] for row in await session.execute(remembered)}
    names |= {row["entity_id"]: row["name"] for row in await live_names(session, kind, control_plane_id, ids)}
    return {one: (names.get(one, one), one not in exists) for one in ids}


async def _dropped(session: AsyncSession, query: MetricsQuery) -> int:
    """Events that nodes heard of since the start could neither send nor fold. Of what they were about nobody knows more
    than whose node it was."""
    table = ANALYTICS_EPOCHS
    total = select(Total(table.c.dropped_events)).where(table.c.updated_us >= query.frame.start * 1_000_000)
    owner = Dimension((table.c.control_plane_id,), "control_planes", "uuid")
    ours = [condition_of(owner, one) for one in query.filters if one.field == "control_plane"]
    return int((await session.execute(total.where(*ours))).scalar_one() or 0)
