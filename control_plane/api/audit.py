"""The audit log, newest first: `GET /v2/audit-logs`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Response

from control_plane import audit
from control_plane.api import own_answers
from control_plane.api.exchange import AnyAdmin, Plane, answer
from control_plane.api.openapi import shows
from control_plane.api.stems import StemRouter
from control_plane.audit import AuditQuery
from control_plane.auth import Principal, beyond
from control_plane.errors import InvalidParameters
from control_plane.request_log import iso

router = StemRouter(prefix="/v2", tags=["audit"])

_Text = Annotated[str | None, Query(max_length=256)]


@router.get("/audit-logs", responses=shows(own_answers.AuditLines))
async def list_audit_logs(
    plane: Plane,
    caller: AnyAdmin,
    control_plane_id: _Text = None,
    principal: Annotated[str | None, Query(max_length=256, description="Id or name of a token")] = None,
    action: Annotated[str | None, Query(max_length=32, description="create, update, delete, apply, …")] = None,
    outcome: Annotated[str | None, Query(max_length=16, description="done, refused, throttled, denied")] = None,
    entity_type: Annotated[str | None, Query(max_length=64, description="Plural: services, tokens, …")] = None,
    entity_id: _Text = None,
    entity_name: _Text = None,
    start: Annotated[str | None, Query(max_length=64, description="RFC 3339; from here on")] = None,
    end: Annotated[str | None, Query(max_length=64, description="RFC 3339; before this")] = None,
    size: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int | None, Query(ge=0, lt=1 << 63, description="`next` of the page before")] = None,
) -> Response:
    """Who changed what, when, from where. `next` is the cursor of the next page."""
    named = {
        "action": action,
        "outcome": outcome,
        "entity_type": entity_type,
        "entity_id": entity_id,
        "entity_name": entity_name,
    }
    query = AuditQuery(
        equals={name: _clean(value) for name, value in named.items() if value is not None},
        control_plane_id=_reach(caller, control_plane_id),
        principal=None if principal is None else _clean(principal),
        start_us=_microseconds("start", start),
        end_us=_microseconds("end", end),
        before=cursor,
        size=size,
    )
    async with plane.database.reading() as session:
        lines, further = await audit.read(session, query)
    return answer({"data": [_shown(line) for line in lines], "next": further})


def _reach(caller: Principal, asked: str | None) -> str | None:
    limit = caller.control_plane_id
    if limit is None:
        return None if asked is None else _clean(asked).lower()
    if asked is not None and not caller.sees(asked.lower()):
        raise beyond(limit)
    return limit


def _clean(text: str) -> str:
    """Without NUL, which PostgreSQL does not take, not even to compare."""
    return text.replace("\0", "")


def _microseconds(field: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign that nobody encoded arrives as a space
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        reason = "must be a time such as 2030-01-31T12:00:00Z"
        raise InvalidParameters(
            [{"field": field, "rule": "is_date_time", "reason": reason, "source": "query"}]
        ) from None
    return int(seconds * 1_000_000)


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": line["id"],
        "at": iso(line["at_us"]),
        "principal": {"id": line["principal_id"], "name": line["principal_name"]},
        "client_address": line["client_address"],
        "action": line["action"],
        "outcome": line["outcome"],
        "control_plane_id": line["control_plane_id"] or None,
        "entity": {"type": line["entity_type"], "id": line["entity_id"], "name": line["entity_name"]},
        "details": line["details"],
    }
