"""Thousands of rows into one table, in few statements, without holding up the loop.

PostgreSQL takes each column as one array: a row of an executemany costs its server as much as a statement. SQLite, in
this process, is fastest row by row. Either way a piece at a time, so that others get their turn in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import JSON, Insert, Table, Text, bindparam, cast, column, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

_PIECE = 500
"""Rows in one statement."""


async def insert_rows(
    session: AsyncSession, table: Table, rows: Sequence[dict[str, Any]], *, overwrite: bool = False
) -> None:
    """All rows have the same columns. `overwrite`: where the primary key is there already, the others are set anew;
    then no two rows may have the same."""
    if not rows:
        return
    dialect = session.get_bind().dialect
    connection = await session.connection()
    names = tuple(rows[0])
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        if dialect.name == "sqlite":
            await connection.execute(_one_by_one(table, overwrite), piece)
        else:
            serialize = dialect._json_serializer
            await connection.execute(_by_column(table, names, overwrite), _columns(table, names, piece, serialize))


@cache
def _one_by_one(table: Table, overwrite: bool) -> Insert:
    if not overwrite:
        return insert(table)
    statement = sqlite.insert(table)
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=_replaced(table, statement))


@cache
def _by_column(table: Table, names: tuple[str, ...], overwrite: bool) -> Insert:
    kinds = {name: Text() if _is_json(table, name) else table.c[name].type for name in names}
    arrays = [bindparam(name, type_=postgresql.ARRAY(kind)) for name, kind in kinds.items()]
    given = func.unnest(*arrays).table_valued(*(column(name, kind) for name, kind in kinds.items()), name="given")
    given = given.render_derived()
    chosen = [cast(given.c[name], JSON) if _is_json(table, name) else given.c[name] for name in names]
    statement = postgresql.insert(table).from_select(names, select(*chosen))
    if not overwrite:
        return statement
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=_replaced(table, statement))


def _columns(
    table: Table, names: Sequence[str], rows: Sequence[dict[str, Any]], serialize: Any
) -> dict[str, list[Any]]:
    return {
        name: [serialize(row[name]) for row in rows] if _is_json(table, name) else [row[name] for row in rows]
        for name in names
    }


def _is_json(table: Table, name: str) -> bool:
    return isinstance(table.c[name].type, JSON)


def _replaced(table: Table, statement: Any) -> dict[str, Any]:
    return {each.name: statement.excluded[each.name] for each in table.columns if not each.primary_key}
