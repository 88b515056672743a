"""The request log: single exchanges, each with its calls to models, filtered and paged.

Pages go by offset, as Konnect's, or by cursor: a cursor names the last row that was seen, so a log that grows meanwhile
neither repeats nor skips any.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Double, and_, case, exists, false, literal, not_, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement

from control_plane.analytics import Filter, InvalidFilter, condition_of
from control_plane.metrics import Dimension
from control_plane.models import LLM_CALLS, REQUEST_EVENTS

E, C = REQUEST_EVENTS.c, LLM_CALLS.c
_EVENT_KEY = ("epoch_id", "sequence", "position")
_PLACE = (E.finished_us, E.epoch_id, E.sequence, E.position)

GROUPS = {
    "control_plane": Dimension((E.control_plane_id,), kind="uuid"),
    "gateway_service": Dimension((E.control_plane_id, E.service_id), kind="scoped"),
    "route": Dimension((E.control_plane_id, E.route_id), kind="scoped"),
    "consumer": Dimension((E.control_plane_id, E.consumer_id), kind="scoped"),
    "data_plane_node": Dimension((E.control_plane_id, E.node_id), kind="scoped"),
    "status_code": Dimension((E.status,), kind="status"),
    "status_code_grouped": Dimension((E.status // 100,), kind="status_class"),
    "upstream_status_code": Dimension((E.upstream_status,), kind="status"),
    "upstream_status_code_grouped": Dimension((E.upstream_status // 100,), kind="status_class"),
    "response_source": Dimension((case((E.source == "upstream", "upstream"), else_="kong"),), kind="source"),
}
"""Fields that are compared as a whole."""

TEXTS = {
    "request_id": E.request_id,
    "request_uri": E.path,
    "http_method": E.method,
    "header_host": E.host,
    "header_user_agent": E.user_agent,
    "client_ip": E.client_ip,
    "service_protocol": E.scheme,
    "error_kind": E.error_kind,
    "plugin_name": E.plugin_name,
    "outcome": E.outcome,
    "decision_id": E.decision_id,
    "parent_request_id": E.parent_request_id,
}
NUMBERS = {
    "latencies_response_ms": (E.total_us, 1000),
    "latencies_upstream_ms": (E.upstream_us, 1000),
    "latencies_kong_gateway_ms": (E.gateway_us, 1000),
    "request_body_size": (E.request_bytes, 1),
    "response_body_size": (E.response_bytes, 1),
    "config_version": (E.config_version, 1),
}
"""Columns and how many of their units make one of the field's."""
CALL_TEXTS = {
    "ai_provider": C.provider,
    "ai_request_model": C.request_model,
    "ai_response_model": C.response_model,
    "finish_reason": C.finish_reason,
}
CALL_NUMBERS = {
    "total_tokens": (C.prompt_tokens + C.completion_tokens, 1),
    "prompt_tokens": (C.prompt_tokens, 1),
    "completion_tokens": (C.completion_tokens, 1),
    "cost": (C.cost_nano_usd, 1_000_000_000),
    "time_to_first_token_ms": (C.ttft_us, 1000),
    "llm_latency_ms": (C.duration_us, 1000),
}
"""Fields of calls to models: an exchange matches when one of its calls does."""

FIELDS = (*GROUPS, *TEXTS, *NUMBERS, *CALL_TEXTS, *CALL_NUMBERS)
_SETS = ("in", "not_in", "=", "!=", "empty", "not_empty")


@dataclass(frozen=True, slots=True)
class LogQuery:
    start_us: int
    end_us: int
    """Exclusive."""
    filters: tuple[Filter, ...]
    descending: bool
    size: int
    offset: int
    cursor: tuple[int, ...] | None


def operators_of(field: str) -> tuple[str, ...]:
    if field in TEXTS or field in CALL_TEXTS:
        return (*_SETS, "starts_with", "ends_with")
    if field in NUMBERS or field in CALL_NUMBERS:
        return (*_SETS, "<", ">", "<=", ">=")
    return _SETS


async def read_log(session: AsyncSession, query: LogQuery) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of a page, and the cursor of the next one if this one is full. Raises InvalidFilter."""
    statement = select(REQUEST_EVENTS).where(E.finished_us >= query.start_us, E.finished_us < query.end_us)
    for condition in query.filters:
        statement = statement.where(_condition(condition))
    place = tuple_(*_PLACE)
    if query.cursor is not None:
        statement = statement.where(place < query.cursor if query.descending else place > query.cursor)
    order = [column.desc() if query.descending else column.asc() for column in _PLACE]
    statement = statement.order_by(*order).limit(query.size).offset(query.offset)
    events = [dict(row) for row in (await session.execute(statement)).mappings()]
    calls = await _calls(session, events)
    results = [_result(event, calls.get(tuple(event[name] for name in _EVENT_KEY), [])) for event in events]
    cursor = _cursor(events[-1]) if len(events) == query.size else None
    return results, cursor


async def _calls(
    session: AsyncSession, events: Sequence[dict[str, Any]]
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    if not events:
        return {}
    keys = [tuple(event[name] for name in _EVENT_KEY) for event in events]
    columns = tuple_(*(C[name] for name in _EVENT_KEY))
    found = await session.execute(select(LLM_CALLS).where(columns.in_(keys)).order_by(*LLM_CALLS.primary_key))
    calls: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found.mappings():
        calls.setdefault(tuple(row[name] for name in _EVENT_KEY), []).append(_call(dict(row)))
    return calls


def _condition(condition: Filter) -> ColumnElement[bool]:
    field = condition.field
    if field in GROUPS:
        return condition_of(GROUPS[field], _as_set(condition))
    if field in TEXTS:
        return _compare(TEXTS[field], condition, str)
    if field in NUMBERS:
        column, scale = NUMBERS[field]
        return _compare(column, condition, lambda value: _scaled(value, scale))
    # A call is meant: "not in" means that the exchange has no call that is in, not that it has one that is not.
    negative = condition.operator in ("not_in", "!=", "empty")
    positive = {"not_in": "in", "!=": "=", "empty": "not_empty"}.get(condition.operator, condition.operator)
    wanted = Filter(field, positive, condition.values)
    if field in CALL_TEXTS:
        inner = _compare(CALL_TEXTS[field], wanted, str)
    else:
        number, unit = CALL_NUMBERS[field]
        inner = _compare(number, wanted, lambda value: _scaled(value, unit))
    same = and_(*(C[name] == E[name] for name in _EVENT_KEY))
    found = exists().where(same, inner)
    return not_(found) if negative else found


def _as_set(condition: Filter) -> Filter:
    operator = {"=": "in", "!=": "not_in"}.get(condition.operator, condition.operator)
    return Filter(condition.field, operator, condition.values)


def _compare(column: Any, condition: Filter, convert: Any) -> ColumnElement[bool]:
    values = [convert(value) for value in condition.values]
    match condition.operator:
        case "empty" | "not_empty":
            nothing: ColumnElement[bool] = column.is_(None) if convert is not str else column == ""
            return nothing if condition.operator == "empty" else not_(nothing)
        case "in" | "=":
            return or_(false(), *(column == value for value in values))
        case "not_in" | "!=":
            return not_(or_(false(), *(and_(column.is_not(None), column == value) for value in values)))
        case "starts_with":
            return or_(false(), *(column.startswith(value, autoescape=True) for value in values))
        case "ends_with":
            return or_(false(), *(column.endswith(value, autoescape=True) for value in values))
    bounds = {"<": column.__lt__, ">": column.__gt__, "<=": column.__le__, ">=": column.__ge__}
    return and_(*(bounds[condition.operator](value) for value in values))


def _scaled(value: Any, scale: int) -> int | ColumnElement[float]:
    """A bound in the column's unit; one that is no whole number stays a float, which only some databases guess."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidFilter("expected a number")
    if not -1e15 < value < 1e15:
        raise InvalidFilter("expected a number of at most 15 digits")
    scaled = value * scale
    return int(scaled) if scaled == int(scaled) and abs(scaled) < 1 << 62 else literal(float(scaled), Double)


def _cursor(event: dict[str, Any]) -> str:
    place = [event[column.name] for column in _PLACE]
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def read_cursor(text: str) -> tuple[int, ...]:
    """Raises ValueError for a text that is no cursor of ours."""
    try:
        place = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, orjson.JSONDecodeError):
        raise ValueError("not a cursor") from None
    if not isinstance(place, list) or len(place) != len(_PLACE) or not all(type(one) is int for one in place):
        raise ValueError("not a cursor")
    if not all(abs(one) < 1 << 63 for one in place):
        raise ValueError("not a cursor")
    return tuple(place)


def iso(us: int) -> str:
    """Unix microseconds as RFC 3339 with milliseconds."""
    try:
        return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00.000Z"  # a node's clock said something no calendar has


def _result(event: dict[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    control_plane_id = event["control_plane_id"]
    return {
        "request_start": iso(event["started_us"]),
        "request_end": iso(event["finished_us"]),
        "request_id": event["request_id"],
        "parent_request_id": event["parent_request_id"] or None,
        "decision_id": event["decision_id"] or None,
        "http_method": event["method"],
        "request_uri": event["path"],
        "header_host": event["host"],
        "header_user_agent": event["user_agent"],
        "client_ip": event["client_ip"],
        "control_plane": control_plane_id,
        "data_plane_node": f"{control_plane_id}:{event['node_id']}",
        "gateway_service": _scoped(control_plane_id, event["service_id"]),
        "route": _scoped(control_plane_id, event["route_id"]),
        "consumer": _scoped(control_plane_id, event["consumer_id"]),
        "service_protocol": event["scheme"],
        "request_body_size": event["request_bytes"],
        "response_body_size": event["response_bytes"],
        "response_http_status": str(event["status"]),
        "upstream_status": event["upstream_status"] or None,
        "response_source": "upstream" if event["source"] == "upstream" else "kong",
        "source": event["source"],
        "error_kind": event["error_kind"] or None,
        "plugin_name": event["plugin_name"] or None,
        "outcome": event["outcome"],
        "config_version": event["config_version"],
        "latencies_response_ms": _ms(event["total_us"]),
        "latencies_upstream_ms": _ms(event["upstream_us"]),
        "latencies_kong_gateway_ms": _ms(event["gateway_us"]),
        "latencies_callout_ms": _ms(event["callout_us"]),
        "latencies_receive_ms": _ms(event["receive_us"]),
        "llm_calls": calls,
    }


def _call(row: dict[str, Any]) -> dict[str, Any]:
    cost = row["cost_nano_usd"]
    return {
        "ai_provider": row["provider"],
        "ai_request_model": row["request_model"],
        "ai_response_model": row["response_model"],
        "model_alias": row["model_alias"] or None,
        "ai_plugin": row["plugin_id"] or None,
        "role": row["role"],
        "stream": row["stream"],
        "status_code": row["status"] or None,
        "error_kind": row["error_kind"] or None,
        "finish_reason": row["finish_reason"] or None,
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        "cached_tokens": row["cached_tokens"],
        "cache_write_tokens": row["cache_write_tokens"],
        "reasoning_tokens": row["reasoning_tokens"],
        "token_source": row["token_source"],
        "cost": None if cost is None else cost / 1_000_000_000,
        "llm_latency_ms": _ms(row["duration_us"]),
        "time_to_first_token_ms": _ms(row["ttft_us"]),
    }


def _scoped(control_plane_id: str, entity_id: str) -> str | None:
    return f"{control_plane_id}:{entity_id}" if entity_id else None


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000
