"""Sums in the database that no stored number can break.

SQLite's `sum` fails for good once whole numbers add up to more than 2⁶³; its `total` goes on in floating point, which
is exact up to 2⁵³. PostgreSQL's `sum` has no such limit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Numeric
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_MAX_SHOWN = (1 << 63) - 1


def shown(number: int | float | None) -> int | float | None:
    """As an answer may hold it: what reads JSON knows no whole numbers beyond 64 bits."""
    return max(-_MAX_SHOWN, min(number, _MAX_SHOWN)) if isinstance(number, int) else number


class Total(FunctionElement[Any]):
    """Of a column or an expression, over the rows of a group."""

    type = Numeric(asdecimal=False)
    inherit_cache = True


@compiles(Total, "postgresql")
def _on_postgresql(element: Total, compiler: SQLCompiler, **options: Any) -> str:
    return f"sum({compiler.process(element.clauses, **options)})"


@compiles(Total, "sqlite")
def _on_sqlite(element: Total, compiler: SQLCompiler, **options: Any) -> str:
    return f"total({compiler.process(element.clauses, **options)})"
