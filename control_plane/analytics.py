"""Answers analytics queries from the usage tables: exact counts and sums, percentiles from merged sketches.

Groups beyond the limit are folded into one called OTHER, dimension by dimension: the values of the first are ranked by
the first metric over the whole range, then within each the values of the next. So groups and OTHER always add up to the
total, and which groups are shown does not change from one point of a time series to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, and_, false, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement

from control_plane.metrics import Datasource, Dimension, Sums
from control_plane.timeframe import MINUTE, Frame
from control_plane.totals import shown
from gateway_schema.sketch import Sketch

OTHER = "____OTHER____"
EMPTY = "empty"
_QUARTER = 900
"""Seconds. Zones differ from UTC by whole quarters of an hour, so these slots make up the days of any zone."""

Ids = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition: `in`, `not_in` (with values), `empty`, `not_empty`."""

    field: str
    operator: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    datasource: Datasource
    metrics: tuple[str, ...]
    dimensions: tuple[str, ...]
    """Without `time`, which `frame.granularity` says."""
    filters: tuple[Filter, ...]
    frame: Frame
    limit: int


@dataclass(slots=True)
class Answer:
    """Rows in order of time, then of rank; each has its bucket's start, its ids and its metrics."""

    rows: list[tuple[int, Ids, dict[str, Any]]]
    truncated: bool = False
    seen: list[set[str]] = field(default_factory=list)
    """Per dimension, the ids that occur."""


class InvalidFilter(ValueError):
    """A filter value that its field cannot have."""


async def answer(session: AsyncSession, query: Query) -> Answer:
    """Run a query. Raises InvalidFilter."""
    groups = await _sums(session, query)
    names, truncated = _ranked(query, groups)
    folded: dict[tuple[int, Ids], Sums] = {}
    for (bucket, ids), sums in groups.items():
        folded.setdefault((bucket, _fold(ids, names)), Sums()).add(sums)
    if not query.dimensions:
        for bucket in query.frame.buckets() if query.frame.granularity else [query.frame.start]:
            folded.setdefault((bucket, ()), Sums())
    order = {ids: place for place, ids in enumerate(_order(names, len(query.dimensions)))}
    rows = [
        (bucket, ids, _metrics(query, sums, query.frame.elapsed_minutes(bucket)))
        for (bucket, ids), sums in sorted(folded.items(), key=lambda item: (item[0][0], order[item[0][1]]))
    ]
    seen = [{ids[place] for _, ids, _ in rows} for place in range(len(query.dimensions))]
    return Answer(rows, truncated, seen)


# -- the database's part


async def _sums(session: AsyncSession, query: Query) -> dict[tuple[int, Ids], Sums]:
    wanted = [query.datasource.metrics[name] for name in query.metrics]
    facts = sorted({fact for metric in wanted for fact in metric.facts})
    sketches = sorted({metric.sketch for metric in wanted if metric.sketch})
    groups: dict[tuple[int, Ids], Sums] = {}
    if facts or not sketches:
        columns = [query.datasource.facts[name].label(f"fact_{name}") for name in facts]
        await _collect_facts(session, query, facts, columns, groups)
    if sketches:
        await _collect_sketches(session, query, sketches, groups)
    return groups


async def _collect_facts(
    session: AsyncSession,
    query: Query,
    names: Sequence[str],
    columns: Sequence[ColumnElement[Any]],
    groups: dict[tuple[int, Ids], Sums],
) -> None:
    keys = _key_columns(query)
    statement = select(*keys, *columns).select_from(query.datasource.table)
    statement = _restrict(statement, query)
    if keys:
        statement = statement.group_by(*(key.name for key in keys))
    read_key = _KeyReader(query)
    for row in await session.execute(statement):
        values = row[len(keys) :]
        if any(value is not None for value in values):
            facts = {name: int(value or 0) for name, value in zip(names, values, strict=True)}
            groups.setdefault(read_key(row), Sums()).add(Sums(facts))


async def _collect_sketches(
    session: AsyncSession, query: Query, names: Sequence[str], groups: dict[tuple[int, Ids], Sums]
) -> None:
    keys = _key_columns(query)
    table = query.datasource.table
    statement = _restrict(select(*keys, *(table.c[name] for name in names)), query)
    read_key = _KeyReader(query)
    async for row in await session.stream(statement):
        merged = groups.setdefault(read_key(row), Sums()).sketches
        for name, data in zip(names, row[len(keys) :], strict=True):
            if data:
                merged.setdefault(name, Sketch()).merge(Sketch.decode(data))


def _key_columns(query: Query) -> list[Any]:
    columns: list[Any] = []
    if query.frame.granularity is not None:
        bucket, slot = query.datasource.table.c.bucket, _slot(query.frame.granularity)
        columns.append((bucket - bucket % slot).label("slot"))
    for name in query.dimensions:
        for place, column in enumerate(query.datasource.dimensions[name].columns):
            columns.append(column.label(f"{name}_{place}"))
    return columns


def _slot(granularity: int) -> int:
    """Seconds: the coarsest step in which the minutes of any bucket, in any zone, can be added up."""
    return _QUARTER if granularity >= 2 * _QUARTER else min(granularity, 300) if granularity >= 300 else MINUTE


class _KeyReader:
    """Turns the first columns of a row into bucket and ids."""

    def __init__(self, query: Query) -> None:
        self._frame = query.frame
        self._dimensions = [query.datasource.dimensions[name] for name in query.dimensions]
        self._buckets: dict[int, int] = {}

    def __call__(self, row: Any) -> tuple[int, Ids]:
        place, bucket = 0, self._frame.start
        if self._frame.granularity is not None:
            slot, place = int(row[0]), 1
            if slot not in self._buckets:
                self._buckets[slot] = self._frame.bucket_of(slot)
            bucket = self._buckets[slot]
        ids: list[str] = []
        for dimension in self._dimensions:
            width = len(dimension.columns)
            ids.append(identify(dimension, row[place : place + width]))
            place += width
        return bucket, tuple(ids)


def identify(dimension: Dimension, values: Sequence[Any]) -> str:
    """The id that an answer shows for a group, the same that a filter takes."""
    match dimension.kind:
        case "scoped":
            return f"{values[0]}:{values[1]}" if values[1] else EMPTY
        case "status_class":
            return f"{int(values[0])}XX" if values[0] else EMPTY
        case "status":
            return str(values[0]) if values[0] else EMPTY
        case "flag":
            return "true" if values[0] else "false"
        case _:
            return str(values[0]) if values[0] else EMPTY


def _restrict(statement: Select[Any], query: Query) -> Select[Any]:
    bucket = query.datasource.table.c.bucket
    statement = statement.where(bucket >= query.frame.start, bucket < query.frame.last_minute)
    for condition in query.filters:
        statement = statement.where(condition_of(query.datasource.dimensions[condition.field], condition))
    return statement


def condition_of(dimension: Dimension, condition: Filter) -> ColumnElement[bool]:
    """A filter as SQL. Raises InvalidFilter."""
    match condition.operator:
        case "empty":
            return _is_empty(dimension)
        case "not_empty":
            return not_(_is_empty(dimension))
        case "in":
            return or_(false(), *(_equals(dimension, value) for value in condition.values))
        case "not_in":
            return not_(or_(false(), *(_equals(dimension, value) for value in condition.values)))
    raise InvalidFilter(f"unknown operator '{condition.operator}'")


def _is_empty(dimension: Dimension) -> ColumnElement[bool]:
    if dimension.kind in ("source", "flag", "uuid"):
        return false()
    return dimension.columns[-1] == (0 if dimension.kind in ("status", "status_class") else "")


def _equals(dimension: Dimension, value: Any) -> ColumnElement[bool]:
    if value == EMPTY:
        return _is_empty(dimension)
    columns = dimension.columns
    match dimension.kind:
        case "scoped":
            scope, _, entity = str(value).lower().rpartition(":")
            return and_(columns[0] == scope, columns[1] == entity) if scope else columns[1] == entity
        case "uuid":
            return columns[0] == str(value).lower()
        case "status":
            return columns[0] == _number(value, 0, 999)
        case "status_class":
            text = str(value)
            if len(text) != 3 or text[1:].upper() != "XX":
                raise InvalidFilter("expected a class such as 4XX")
            return columns[0] == _number(text[0], 0, 9)
        case "flag":
            if str(value).lower() not in ("true", "false"):
                raise InvalidFilter("expected true or false")
            return columns[0].is_(str(value).lower() == "true")
        case _:
            return columns[0] == str(value)


def _number(value: Any, low: int, high: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not low <= number <= high:
        raise InvalidFilter(f"expected a whole number from {low} to {high}")
    return number


# -- groups


@dataclass(slots=True)
class _Names:
    """The ids that are shown at one level, in order of rank, each with those below it."""

    below: dict[str, _Names] = field(default_factory=dict)


def _ranked(query: Query, groups: Mapping[tuple[int, Ids], Sums]) -> tuple[_Names, bool]:
    totals: dict[Ids, Sums] = {}
    for (_, ids), sums in groups.items():
        totals.setdefault(ids, Sums()).add(sums)
    return _rank_level(query, totals, 0)


def _rank_level(query: Query, totals: Mapping[Ids, Sums], level: int) -> tuple[_Names, bool]:
    names = _Names()
    if level == len(query.dimensions):
        return names, False
    by_id: dict[str, Sums] = {}
    members: dict[str, dict[Ids, Sums]] = {}
    for ids, sums in totals.items():
        by_id.setdefault(ids[level], Sums()).add(sums)
        members.setdefault(ids[level], {})[ids] = sums
    ranked = sorted(by_id, key=lambda one: (-_weight(query, by_id[one]), one))
    rest: dict[Ids, Sums] = {}
    for name in ranked[query.limit :]:
        rest |= members[name]
    shown = {name: members[name] for name in ranked[: query.limit]} | ({OTHER: rest} if rest else {})
    truncated = bool(rest)
    for name, within in shown.items():
        names.below[name], more = _rank_level(query, within, level + 1)
        truncated = truncated or more
    return names, truncated


def _weight(query: Query, sums: Sums) -> float:
    value = query.datasource.metrics[query.metrics[0]].compute(sums, 1.0)
    return -1.0 if value is None else float(value)


def _fold(ids: Ids, names: _Names) -> Ids:
    folded: list[str] = []
    for one in ids:
        name = one if one in names.below else OTHER
        folded.append(name)
        names = names.below[name]
    return tuple(folded)


def _order(names: _Names, depth: int) -> Iterable[Ids]:
    if depth == 0:
        yield ()
        return
    for name, below in names.below.items():
        for rest in _order(below, depth - 1):
            yield (name, *rest)


def _metrics(query: Query, sums: Sums, minutes: float) -> dict[str, Any]:
    return {name: shown(query.datasource.metrics[name].compute(sums, minutes)) for name in query.metrics}
