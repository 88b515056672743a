"""The database's clock, by which all replicas tell how long a node has been silent: their own may be apart.

An expression in the statement that needs it, so that asking costs no round trip. On SQLite there is one process, and
its clock is the database's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class DatabaseTime(FunctionElement[int]):
    """Whole Unix seconds, at the moment when the statement needs them: its transaction may have begun long before."""

    type = BigInteger()
    inherit_cache = True


@compiles(DatabaseTime, "postgresql")
def _on_postgresql(_element: DatabaseTime, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(floor(extract(epoch FROM clock_timestamp())) AS BIGINT)"


@compiles(DatabaseTime, "sqlite")
def _on_sqlite(_element: DatabaseTime, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(strftime('%s', 'now') AS INTEGER)"
