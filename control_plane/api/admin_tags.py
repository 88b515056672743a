"""`/tags` and `/tags/{tag}` of Kong's Admin API: which entities carry which tags, in pages."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import Response
from sqlalchemy import select, tuple_

from control_plane.api.admin_calls import Call
from control_plane.api.entities import read_size
from control_plane.api.exchange import answer
from control_plane.api.segments import own_path
from control_plane.errors import InvalidOffset
from control_plane.models import ENTITY_TAGS

_ORDER = (ENTITY_TAGS.c.tag, ENTITY_TAGS.c.entity_type, ENTITY_TAGS.c.entity_id)


async def list_tags(call: Call) -> Response:
    query = call.request.query_params
    size, after = read_size(query), _read_offset(query)
    wanted = select(*_ORDER).where(ENTITY_TAGS.c.control_plane_id == call.control_plane_id)
    if (tag := call.request.path_params.get("tag")) is not None:
        wanted = wanted.where(ENTITY_TAGS.c.tag == tag)
    if after is not None:
        wanted = wanted.where(tuple_(*_ORDER) > tuple_(*after))
    async with call.plane.database.reading() as session:
        found = (await session.execute(wanted.order_by(*_ORDER).limit(size + 1))).all()
    data = [{"tag": row.tag, "entity_name": row.entity_type, "entity_id": row.entity_id} for row in found[:size]]
    body: dict[str, Any] = {"data": data, "next": None}
    if len(found) > size:
        body["offset"] = _write_offset(found[size - 1])
        body["next"] = f"{own_path(call.request)}?{urlencode({'offset': body['offset'], 'size': size})}"
    return answer(body)


def _read_offset(query: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The row behind which a page starts. Raises InvalidOffset."""
    text = query.get("offset")
    if not text:
        return None
    try:
        tag, entity_type, entity_id = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError):  # no base64, no JSON, not three of them
        raise InvalidOffset(text) from None
    if not all(isinstance(part, str) and "\x00" not in part for part in (tag, entity_type, entity_id)):
        raise InvalidOffset(text)
    return tag, entity_type, entity_id


def _write_offset(row: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(list(row))).decode().rstrip("=")
