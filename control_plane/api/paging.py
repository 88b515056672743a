"""Pages by cursor, as Konnect's newer resources have them: `page[size]`, `page[after]`, `page[before]`.

A cursor is opaque to clients: it names the item at a page's edge, so that deletions between pages move nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Query, Request
from sqlalchemy import ColumnElement, Select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.errors import InvalidParameters

_WHOLE = re.compile(r"-?[0-9]+")
_ENDLESS = 10**18
"""Fits into 64 bits, and is beyond every limit."""
_Cursor = Annotated[str, Query(max_length=4096)]


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page is asked for."""

    request: Request
    size: int
    after: str | None
    before: str | None

    async def rows(
        self, session: AsyncSession, query: Select[Any], column: ColumnElement[str]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The page's rows in the order of `column`, which is unique, and `meta.page` of the answer."""
        if self.before is not None:
            query = query.where(column < self.before).order_by(column.desc())
        elif self.after is not None:
            query = query.where(column > self.after).order_by(column)
        else:
            query = query.order_by(column)
        found = (await session.execute(query.limit(self.size + 1))).all()
        more, rows = len(found) > self.size, found[: self.size]
        if self.before is not None:
            rows = list(reversed(rows))
            earlier, later = more, True
        else:
            earlier, later = self.after is not None, more
        return rows, self._meta(rows, earlier, later, str(column.key))

    def _meta(self, rows: Sequence[Any], earlier: bool, later: bool, name: str) -> dict[str, Any]:
        def uri(**cursor: str) -> str:
            url = self.request.url.remove_query_params(["page[after]", "page[before]"])
            return str(url.include_query_params(**{f"page[{key}]": value for key, value in cursor.items()}))

        def edge(row: Any) -> str:
            return write_cursor(str(row._mapping[name]))

        return {
            "size": self.size,
            "first": uri(),
            "next": uri(after=edge(rows[-1])) if rows and later else None,
            "previous": uri(before=edge(rows[0])) if rows and earlier else None,
        }


def _read_paging(
    request: Request,
    size: Annotated[int, Query(alias="page[size]", ge=1, le=1000)] = 100,
    after: Annotated[_Cursor, Query(alias="page[after]", description="From `next` of the page before")] = "",
    before: Annotated[_Cursor, Query(alias="page[before]", description="From `previous` of the page after")] = "",
) -> Paging:
    return Paging(request, size, _read_cursor("page[after]", after), _read_cursor("page[before]", before))


def read_number(text: str) -> int | None:
    """A whole number in a query; None for any other text. One of more than 18 digits counts as one of 19: Python does
    not even read thousands of them, and no answer could show more than 64 bits."""
    if not _WHOLE.fullmatch(text):
        return None
    digits = text.lstrip("-").lstrip("0")
    number = int(digits or "0") if len(digits) <= 18 else _ENDLESS
    return -number if text.startswith("-") else number


Page = Annotated[Paging, Depends(_read_paging)]


def write_cursor(key: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def _read_cursor(name: str, text: str) -> str | None:
    """The item's key; an empty cursor is none at all. Raises InvalidParameters."""
    if not text:
        return None
    try:
        found = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        found = None
    if not isinstance(found, str) or "\0" in found:
        reason = "is not a cursor of another page"
        raise InvalidParameters([{"field": name, "rule": "invalid", "reason": reason, "source": "query"}])
    return found
