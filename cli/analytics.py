"""Questions to the analytics API and their answers as one table: rows by group, columns by metric.

The API takes three metrics a query, so a table is several queries over the same absolute range, joined on the group.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.client import ControlPlane
from cli.errors import CliError

METRICS_PER_QUERY = 3
MOST_GROUPS = 1000
API, LLM = "api_usage", "llm_usage"

DIMENSIONS: Mapping[str, str] = {
    "provider": "ai_provider",
    "model": "ai_response_model",
    "service": "gateway_service",
    "route": "route",
    "consumer": "consumer",
}
OF_MODELS = frozenset({"provider", "model"})
COLLECTIONS: Mapping[str, str] = {"service": "services", "route": "routes", "consumer": "consumers"}

_STATUSES = {"status_2xx": "2XX", "status_4xx": "4XX", "status_5xx": "5XX"}
_TOKENS = {"prompt_tokens": "PROMPT TOKENS", "completion_tokens": "COMPLETION TOKENS", "cached_tokens": "CACHED TOKENS"}
API_COLUMNS: Mapping[str, str] = {
    "request_count": "REQUESTS",
    "error_count": "ERRORS",
    **_STATUSES,
    "response_latency_average": "AVG MS",
    "response_latency_p50": "P50 MS",
    "response_latency_p95": "P95 MS",
    "response_latency_p99": "P99 MS",
    "upstream_latency_average": "UPSTREAM MS",
}
LLM_COLUMNS: Mapping[str, str] = {
    "ai_request_count": "CALLS",
    "error_count": "ERRORS",
    **_STATUSES,
    "llm_latency_average": "AVG MS",
    "llm_latency_p50": "P50 MS",
    "llm_latency_p95": "P95 MS",
    "llm_latency_p99": "P99 MS",
    "time_to_first_token_average": "FIRST TOKEN MS",
    **_TOKENS,
    "cost": "COST USD",
}
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Span:
    start: datetime.datetime
    end: datetime.datetime

    def as_json(self) -> dict[str, str]:
        return {"type": "absolute", "start": self.start.isoformat(), "end": self.end.isoformat()}


@dataclass(frozen=True, slots=True)
class Question:
    by: str
    span: Span
    filters: Sequence[Mapping[str, Any]] = ()

    @property
    def is_about_models(self) -> bool:
        """Whether only calls to models are counted: requests as such have neither provider nor model."""
        return self.by in OF_MODELS or any(str(f["field"]).startswith("ai_") for f in self.filters)


@dataclass(slots=True)
class Table:
    """Columns (metric → heading) and rows (name of the group, values by metric), largest first."""

    columns: Mapping[str, str]
    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def ask(plane: ControlPlane, question: Question) -> Table:
    """Run the queries that make a table."""
    if question.is_about_models:
        return _table(plane, question, [(LLM, LLM_COLUMNS)])
    return _table(plane, question, [(API, API_COLUMNS), (LLM, _TOKENS)])


def _table(plane: ControlPlane, question: Question, parts: Sequence[tuple[str, Mapping[str, str]]]) -> Table:
    names: dict[str, str] = {}
    values: dict[str, dict[str, Any]] = {}
    for datasource, columns in parts:
        for metrics in _chunks(list(columns)):
            answer = plane.metrics(_query(question, datasource, metrics))
            _collect(answer, DIMENSIONS[question.by], metrics, names, values)
    columns = {key: heading for _, part in parts for key, heading in part.items()}
    first = next(iter(columns))
    ordered = sorted(values.items(), key=lambda item: (-(item[1].get(first) or 0), names[item[0]]))
    return Table(columns, [(names[key], row) for key, row in ordered])


def _chunks(metrics: Sequence[str]) -> list[Sequence[str]]:
    return [metrics[start : start + METRICS_PER_QUERY] for start in range(0, len(metrics), METRICS_PER_QUERY)]


def _query(question: Question, datasource: str, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "datasource": datasource,
        "metrics": list(metrics),
        "dimensions": [DIMENSIONS[question.by]],
        "filters": [dict(f) for f in question.filters],
        "time_range": question.span.as_json(),
        "limit": MOST_GROUPS,
    }


def _collect(
    answer: Mapping[str, Any],
    dimension: str,
    metrics: Sequence[str],
    names: dict[str, str],
    values: dict[str, dict[str, Any]],
) -> None:
    display = ((answer.get("meta") or {}).get("display") or {}).get(dimension) or {}
    for row in answer.get("data") or []:
        event = row["event"]
        key = str(event.get(dimension))
        shown = display.get(key) or {}
        names[key] = _name(str(shown.get("name") or key), bool(shown.get("deleted")))
        values.setdefault(key, {}).update({metric: event.get(metric) for metric in metrics})


def _name(name: str, deleted: bool) -> str:
    name = "(none)" if name == "empty" else name
    return f"{name} (deleted)" if deleted else name


# Ranges and filters


def span_of(since: str | None, start: str | None, end: str | None, now: datetime.datetime) -> Span:
    """`--since 90m`, or `--from` and perhaps `--to`; the last hour when nothing is said. Raises CliError.

    Starts with a whole minute, as the control plane counts: what is told is what was counted.
    """
    if since and (start or end):
        raise CliError("--since and --from/--to exclude one another")
    if end and not start:
        raise CliError("--to needs --from")
    if start:
        span = Span(_whole_minute(_moment("--from", start)), _moment("--to", end) if end else now)
    else:
        span = Span(_whole_minute(_ago(since or "1h", now)), now)
    if span.start >= span.end:
        raise CliError(f"the range is empty: it starts at {span.start.isoformat()} and ends at {span.end.isoformat()}")
    return span


def _whole_minute(moment: datetime.datetime) -> datetime.datetime:
    return moment.replace(second=0, microsecond=0)


def _ago(text: str, now: datetime.datetime) -> datetime.datetime:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise CliError(f"--since {text}: expected a length of time such as 15m, 1h, 7d")
    try:
        return now - datetime.timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise CliError(f"--since {text}: that is before there were dates") from None


def _moment(flag: str, text: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise CliError(f"{flag} {text}: expected a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    try:
        return moment.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise CliError(f"{flag} {text}: that is out of the range of dates") from None


def entity_filter(plane: ControlPlane, control_plane_id: str, kind: str, name: str) -> dict[str, Any]:
    """The filter for an entity by name. Raises CliError when there is none of that name."""
    entity = plane.entity(control_plane_id, COLLECTIONS[kind], name)
    if entity is None:
        raise CliError(f"no {kind} '{name}' in this control plane")
    return {"field": DIMENSIONS[kind], "operator": "in", "value": [f"{control_plane_id}:{entity['id']}"]}


def cell(value: Any, metric: str) -> str:
    """A value as the table shows it."""
    if value is None:
        return "-"
    if metric == "cost":
        return f"{value:.6f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
