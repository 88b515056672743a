from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from cli.analytics import METRICS_PER_QUERY, span_of
from cli.errors import CliError
from tests.cli.conftest import Recipe
from tests.cli.fakes import FakeControlPlane

NOW = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


def metrics(plane: FakeControlPlane, dimension: str, groups: dict[str, dict[str, Any]], names: dict[str, str]) -> None:
    """Answer every query with all the values there are; the command takes those that it asked for."""
    plane.answers["POST", "/v2/metrics"] = (
        200,
        {
            "data": [{"timestamp": "2026-01-31T11:00:00Z", "event": {dimension: k, **v}} for k, v in groups.items()],
            "meta": {"display": {dimension: {k: {"id": k, "name": n, "deleted": False} for k, n in names.items()}}},
        },
    )


def test_numbers_by_provider_are_one_table_largest_first(recipe: Recipe, plane: FakeControlPlane) -> None:
    groups = {
        "openai": {"ai_request_count": 7, "prompt_tokens": 70, "llm_latency_p50": 1.25, "cost": 0.001},
        "bedrock": {"ai_request_count": 9, "prompt_tokens": 90, "cost": None},
    }
    metrics(plane, "ai_provider", groups, {"openai": "openai", "bedrock": "bedrock"})
    result = recipe("analytics", "--by", "provider")
    assert result.code == 0
    head, first, second = result.out.splitlines()
    assert head.split()[:3] == ["PROVIDER", "CALLS", "ERRORS"]
    assert first.split()[:2] == ["bedrock", "9"]
    assert second.split()[:2] == ["openai", "7"]
    assert second.split()[-1] == "0.001000"
    queries = plane.sent("POST", "/v2/metrics")
    assert {query["datasource"] for query in queries} == {"llm_usage"}
    assert max(len(query["metrics"]) for query in queries) <= METRICS_PER_QUERY
    assert len({json.dumps(query["time_range"]) for query in queries}) == 1
    assert queries[0]["filters"] == [
        {"field": "control_plane", "operator": "in", "value": [plane.control_planes["default"]]}
    ]


def test_requests_and_tokens_of_a_service_are_joined(recipe: Recipe, plane: FakeControlPlane) -> None:
    cp = plane.control_planes["default"]
    plane.answers["GET", "/core-entities/services/chat"] = (200, {"id": "s-1", "name": "chat"})
    metrics(plane, "gateway_service", {f"{cp}:s-1": {"request_count": 3, "prompt_tokens": 30}}, {f"{cp}:s-1": "chat"})
    result = recipe("analytics", "--service", "chat", "--json-output")
    (row,) = json.loads(result.out)["rows"]
    assert (row["service"], row["request_count"], row["prompt_tokens"]) == ("chat", 3, 30)
    queries = plane.sent("POST", "/v2/metrics")
    assert {query["datasource"] for query in queries} == {"api_usage", "llm_usage"}
    assert {"field": "gateway_service", "operator": "in", "value": [f"{cp}:s-1"]} in queries[0]["filters"]


def test_a_model_as_filter_asks_about_models_only(recipe: Recipe, plane: FakeControlPlane) -> None:
    metrics(plane, "ai_response_model", {}, {})
    result = recipe("analytics", "--model", "gpt-4o-mini", "--from", "2026-01-01", "--to", "2026-01-02")
    assert result.out.startswith("no request between 2026-01-0")
    queries = plane.sent("POST", "/v2/metrics")
    assert {query["datasource"] for query in queries} == {"llm_usage"}
    assert {"field": "ai_response_model", "operator": "in", "value": ["gpt-4o-mini"]} in queries[0]["filters"]


def test_an_unknown_name_is_an_error(recipe: Recipe, plane: FakeControlPlane) -> None:
    assert "no consumer 'x' in this control plane" in recipe("analytics", "--consumer", "x").err


def test_ranges_are_absolute() -> None:
    assert span_of("90m", None, None, NOW).start == NOW - datetime.timedelta(minutes=90)
    assert span_of(None, None, None, NOW).start == NOW - datetime.timedelta(hours=1)
    assert span_of(None, "2026-01-01T10:05:59Z", None, NOW).start.isoformat() == "2026-01-01T10:05:00+00:00"
    span = span_of(None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00+02:00", NOW)
    assert span.as_json() == {
        "type": "absolute",
        "start": "2026-01-01T00:00:00+00:00",
        "end": "2026-01-01T22:00:00+00:00",
    }


@pytest.mark.parametrize(
    ("since", "start", "end", "message"),
    [
        ("1y", None, None, "expected a length of time"),
        ("1h", "2026-01-01", None, "exclude one another"),
        (None, None, "2026-01-01", "--to needs --from"),
        (None, "0001-01-01T00:00:00+02:00", None, "that is out of the range of dates"),
        (None, "2026-01-01", "9999-12-31T23:59:59-02:00", "--to 9999-12-31T23:59:59-02:00: that is out"),
        (None, "soon", None, "expected a date or time"),
        (None, "2026-01-02", "2026-01-01", "the range is empty"),
        ("999999w", None, None, "--since 999999w"),
    ],
)
def test_wrong_ranges_say_what_would_be_right(
    since: str | None, start: str | None, end: str | None, message: str
) -> None:
    with pytest.raises(CliError, match=message):
        span_of(since, start, end, NOW)
