"""The metrics and api-requests paths: exact sums, percentiles within one percent, groups that add up, refusals."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import update

from control_plane.app import create_app
from control_plane.ingest import Ingest, Reporter
from control_plane.models import ANALYTICS_EPOCHS, API_USAGE, LLM_USAGE
from control_plane.plane import ControlPlane
from control_plane.rollups import MAX_INT
from control_plane.settings import Settings
from gateway_schema.wire import analytics_pb2
from tests.control_plane.usage import CONSUMERS, CONTROL_PLANE, SERVICES, START, event, fold

TOKEN = "kpat_test"
DAY = {"type": "absolute", "start": "2023-11-14T00:00:00Z", "end": "2023-11-16T00:00:00Z"}


class Api:
    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.ingest = Ingest(plane.database)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(plane)),
            base_url="http://control-plane",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        self._sequence = 0

    async def store(
        self, events: list[Any], deltas: Sequence[Any] = (), control_plane: str = CONTROL_PLANE, dropped: int = 0
    ) -> None:
        self._sequence += 1
        batch = analytics_pb2.Batch(sequence=self._sequence, events=events, deltas=deltas, dropped_events=dropped)
        await self.ingest.apply(Reporter(control_plane, "33333333-3333-4333-8333-333333333333", "e"), batch)

    async def metrics(self, **query: Any) -> dict[str, Any]:
        answer = await self.http.post("/v2/metrics", json={"time_range": DAY, **query})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def one(self, **query: Any) -> dict[str, Any]:
        """The metrics of a query without dimensions."""
        (row,) = (await self.metrics(**query))["data"]
        event: dict[str, Any] = row["event"]
        return event

    async def log(self, **query: Any) -> dict[str, Any]:
        answer = await self.http.post("/v2/api-requests", json={"time_range": DAY, **query})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    settings = Settings(state_dir=tmp_path / "state", database_url=database_url, grpc_port=0, admin_token=TOKEN)
    plane = ControlPlane(settings)
    async with plane.running():
        api = Api(plane)
        yield api
        await api.http.aclose()


@pytest.fixture
async def events(api: Api) -> list[analytics_pb2.RequestEvent]:
    """Some hundred exchanges, a third of which arrived folded."""
    chance = random.Random(11)
    made = [event(chance) for _ in range(450)]
    await api.store(made[:300], [fold(one) for one in made[300:]])
    return made


def calls(events: Iterable[analytics_pb2.RequestEvent]) -> list[analytics_pb2.LlmCall]:
    return [call for one in events for call in one.llm_calls]


async def test_counts_and_sums_are_exact(api: Api, events: list[analytics_pb2.RequestEvent]) -> None:
    names = ["request_count", "error_count", "error_rate", "incomplete_count", "request_size_sum", "response_size_sum"]
    found = await api.one(metrics=[*names, *(f"status_{n}xx" for n in range(1, 6))])
    errors = sum(one.status >= 400 for one in events)
    assert found == {
        "request_count": len(events),
        "error_count": errors,
        "error_rate": pytest.approx(100 * errors / len(events)),
        "incomplete_count": sum(one.outcome != "complete" for one in events),
        "request_size_sum": sum(one.request_size for one in events),
        "response_size_sum": sum(one.response_size for one in events),
        **{f"status_{n}xx": sum(one.status // 100 == n for one in events) for n in range(1, 6)},
    }


async def test_tokens_and_cost_are_exact_per_provider(api: Api, events: list[analytics_pb2.RequestEvent]) -> None:
    names = ["ai_request_count", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "cost"]
    names += ["unpriced_request_count", "estimated_request_count", "error_count"]
    answer = await api.metrics(datasource="llm_usage", metrics=names, dimensions=["ai_provider"])
    assert {row["event"]["ai_provider"] for row in answer["data"]} == {"openai", "bedrock"}
    for row in answer["data"]:
        mine = [one for one in calls(events) if one.provider == row["event"]["ai_provider"]]
        priced = sum(one.cost_nano_usd for one in mine)
        assert row["event"] == {
            "ai_provider": row["event"]["ai_provider"],
            "ai_request_count": len(mine),
            "prompt_tokens": sum(one.prompt_tokens for one in mine),
            "completion_tokens": sum(one.completion_tokens for one in mine),
            "total_tokens": sum(one.prompt_tokens + one.completion_tokens for one in mine),
            "cached_tokens": sum(one.cached_tokens for one in mine),
            "cost": priced / 1e9 if priced else None,
            "unpriced_request_count": sum(not one.HasField("cost_nano_usd") for one in mine),
            "estimated_request_count": sum(one.token_source == "estimated" for one in mine),
            "error_count": sum(one.status >= 400 or one.status == 0 for one in mine),
        }


LATENCIES: list[Any] = [
    ("api_usage", "response_latency", lambda events: [one.total_us for one in events]),
    ("api_usage", "kong_latency", lambda events: [one.gateway_us for one in events]),
    (
        "api_usage",
        "upstream_latency",
        lambda events: [one.upstream_us for one in events if one.HasField("upstream_us")],
    ),
    ("llm_usage", "llm_latency", lambda events: [one.duration_us for one in calls(events)]),
    (
        "llm_usage",
        "time_to_first_token",
        lambda events: [one.ttft_us for one in calls(events) if one.HasField("ttft_us")],
    ),
]


async def test_averages_are_exact_and_percentiles_within_one_percent(
    api: Api, events: list[analytics_pb2.RequestEvent]
) -> None:
    for datasource, prefix, values in LATENCIES:
        measured = sorted(values(events))
        names = [f"{prefix}_{kind}" for kind in ("average", "p50", "p95", "p99")]
        found = await api.one(datasource=datasource, metrics=names)
        assert found[f"{prefix}_average"] == pytest.approx(sum(measured) / len(measured) / 1000, abs=1e-5)
        for q in (50, 95, 99):
            exact = measured[math.ceil(q / 100 * len(measured)) - 1] / 1000
            assert found[f"{prefix}_p{q}"] == pytest.approx(exact, rel=0.0101), prefix


@pytest.mark.parametrize("limit", [1, 2, 50])
async def test_groups_and_other_add_up_to_the_total(
    api: Api, events: list[analytics_pb2.RequestEvent], limit: int
) -> None:
    answer = await api.metrics(
        metrics=["request_count", "response_size_sum"],
        dimensions=["consumer", "status_code", "time"],
        granularity="thirtyMinutely",
        limit=limit,
    )
    rows = [row["event"] for row in answer["data"]]
    assert sum(row["request_count"] for row in rows) == len(events)
    assert sum(row["response_size_sum"] for row in rows) == sum(one.response_size for one in events)
    assert len({row["consumer"] for row in rows} - {"____OTHER____"}) == min(limit, len(CONSUMERS))
    assert answer["meta"]["truncated"] is (limit < 50)
    if limit < 50:
        assert answer["meta"]["display"]["consumer"]["____OTHER____"]["is_other_group"] is True
    largest = Counter(one.consumer_id for one in events).most_common(1)[0][0]
    shown = f"{CONTROL_PLANE}:{largest}" if largest else "empty"
    assert shown in {row["consumer"] for row in rows}


async def test_every_zone_and_granularity_has_the_same_total_in_its_own_buckets(api: Api) -> None:
    chance = random.Random(12)
    change = int(datetime(2023, 9, 30, 15, 30, tzinfo=UTC).timestamp())  # Lord Howe's clocks go on by half an hour
    made = [event(chance, finished_us=(change + 1800 * number) * 1_000_000) for number in range(-48, 48)]
    await api.store(made)
    for zone in ("Etc/UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "America/New_York"):
        tz = ZoneInfo(zone)
        span = {"type": "absolute", "start": "2023-09-29T00:00:00Z", "end": "2023-10-03T00:00:00Z", "tz": zone}
        for granularity in ("minutely", "fiveMinutely", "tenMinutely", "hourly", "twoHourly", "weekly"):
            answer = await api.metrics(dimensions=["time"], granularity=granularity, time_range=span)
            assert sum(row["event"]["request_count"] for row in answer["data"]) == len(made)
        answer = await api.metrics(dimensions=["time"], granularity="daily", time_range=span)
        starts = [datetime.fromisoformat(row["timestamp"]).astimezone(tz) for row in answer["data"]]
        assert {f"{start:%H:%M}" for start in starts} == {"00:00"}
        counts = [row["event"]["request_count"] for row in answer["data"]]
        days = Counter(datetime.fromtimestamp(one.finished_us / 1e6, tz).date() for one in made)
        assert {start.date(): count for start, count in zip(starts, counts, strict=True) if count} == dict(days)


async def test_a_range_without_traffic_has_counts_of_zero_and_no_rates(api: Api) -> None:
    names = ["request_count", "error_rate", "response_latency_average", "response_latency_p99", "request_per_minute"]
    assert await api.one(metrics=names) == {
        "request_count": 0,
        "error_rate": None,
        "response_latency_average": None,
        "response_latency_p99": None,
        "request_per_minute": 0,
    }
    hours = await api.metrics(dimensions=["time"], granularity="hourly")
    assert [row["event"]["request_count"] for row in hours["data"]] == [0] * 48
    assert (await api.metrics(dimensions=["gateway_service"]))["data"] == []
    llm = await api.one(datasource="llm_usage", metrics=["ai_request_count", "time_to_first_token_p50", "error_rate"])
    assert llm == {"ai_request_count": 0, "time_to_first_token_p50": None, "error_rate": None}


async def test_requests_that_were_never_proxied_have_no_upstream_latency(api: Api) -> None:
    await api.store([event(random.Random(1), source="plugin", status=401)])
    refused = analytics_pb2.RequestEvent(finished_us=START * 1_000_000, status=401, source="plugin", total_us=5)
    await api.store([refused])
    filters = [{"field": "gateway_service", "operator": "empty"}]
    found = await api.one(metrics=["request_count", "error_rate", "upstream_latency_average"], filters=filters)
    assert found == {"request_count": 1, "error_rate": 100, "upstream_latency_average": None}


async def test_filters_choose_as_their_words_say(api: Api, events: list[analytics_pb2.RequestEvent]) -> None:
    async def count(*filters: tuple[str, str, Any], datasource: str = "api_usage") -> int:
        listed = [{"field": field, "operator": operator, "value": value} for field, operator, value in filters]
        (found,) = (await api.one(datasource=datasource, filters=listed)).values()
        return int(found)

    first = f"{CONTROL_PLANE}:{SERVICES[0]}"
    assert await count(("gateway_service", "in", [first])) == sum(one.service_id == SERVICES[0] for one in events)
    assert await count(("gateway_service", "not_in", [first])) == sum(one.service_id != SERVICES[0] for one in events)
    assert await count(("consumer", "empty", None)) == sum(not one.consumer_id for one in events)
    assert await count(("consumer", "not_empty", None)) == sum(bool(one.consumer_id) for one in events)
    assert await count(("status_code", "in", [200, 404])) == sum(one.status in (200, 404) for one in events)
    assert await count(("status_code_grouped", "in", ["5xx", "4XX"])) == sum(one.status >= 400 for one in events)
    assert await count(("response_source", "in", ["kong"])) == sum(one.source != "upstream" for one in events)
    assert await count(("control_plane", "in", [CONTROL_PLANE])) == len(events)
    assert await count(("control_plane", "not_in", [CONTROL_PLANE])) == 0
    both = (("gateway_service", "in", [first]), ("status_code", "in", [200]))
    assert await count(*both) == sum(one.service_id == SERVICES[0] and one.status == 200 for one in events)
    streamed = [one for one in calls(events) if one.stream]
    assert await count(("stream", "in", ["true"]), datasource="llm_usage") == len(streamed)
    openai = sum(one.provider == "openai" for one in calls(events))
    assert await count(("ai_provider", "in", ["openai"]), datasource="llm_usage") == openai


async def test_ids_of_an_answer_can_be_pasted_into_a_filter(api: Api, events: list[analytics_pb2.RequestEvent]) -> None:
    for dimension in ("gateway_service", "consumer", "status_code", "status_code_grouped", "response_source"):
        for row in (await api.metrics(dimensions=[dimension]))["data"]:
            filters = [{"field": dimension, "operator": "in", "value": [row["event"][dimension]]}]
            assert (await api.one(filters=filters))["request_count"] == row["event"]["request_count"]


async def test_names_outlive_what_they_name(api: Api) -> None:
    created = await api.http.post("/v2/control-planes", json={"name": "shop"})
    control_plane = created.json()["id"]
    services = f"/v2/control-planes/{control_plane}/core-entities/services"
    service = (await api.http.post(services, json={"name": "orders", "host": "orders.internal"})).json()["id"]
    made = event(random.Random(1), service_id=service)
    await api.store([made], control_plane=control_plane)
    scoped = f"{control_plane}:{service}"

    async def shown() -> Any:
        answer = await api.metrics(dimensions=["control_plane", "gateway_service"])
        return answer["meta"]["display"]

    assert (await shown())["gateway_service"][scoped] == {"id": scoped, "name": "orders", "deleted": False}
    assert (await api.http.patch(f"{services}/{service}", json={"name": "shipping"})).status_code == 200
    assert (await shown())["gateway_service"][scoped]["name"] == "shipping"
    assert (await api.http.delete(f"{services}/{service}")).status_code == 204
    assert (await shown())["gateway_service"][scoped] == {"id": scoped, "name": "orders", "deleted": True}
    assert (await shown())["control_plane"][control_plane]["name"] == "shop"


async def test_recent_traffic_shows_in_relative_ranges(api: Api) -> None:
    now = time.time()
    await api.store([event(random.Random(1), finished_us=int((now - age) * 1e6)) for age in (0, 30, 3000, 50_000)])
    for name, expected in (("15m", 2), ("1h", 3), ("24h", 4), ("7d", 4), ("365d", 4), ("previous_month", 0)):
        span = {"type": "relative", "time_range": name}
        assert (await api.one(time_range=span))["request_count"] == expected
    answer = await api.metrics(time_range={"time_range": "1h"}, dimensions=["time"], granularity="tenSecondly")
    assert answer["meta"]["granularity_ms"] == 60_000
    assert sum(row["event"]["request_count"] for row in answer["data"]) == 3


WRONG_QUERIES: list[Any] = [
    ({"datasource": "weather"}, "datasource"),
    ({"metrics": ["request_count", "requests"]}, "metrics.1"),
    ({"metrics": ["prompt_tokens"]}, "metrics.0"),
    ({"dimensions": ["ai_provider"]}, "dimensions.0"),
    ({"dimensions": ["time", "consumer", "route", "status_code"]}, "dimensions"),
    ({"granularity": "yearly"}, "granularity"),
    ({"limit": 0}, "limit"),
    ({"limit": 1001}, "limit"),
    ({"colour": "red"}, "colour"),
    ({"time_range": {"type": "relative", "time_range": "soon"}}, "time_range.time_range"),
    ({"time_range": {"type": "absolute", "start": "yesterday"}}, "time_range.start"),
    ({"time_range": {"type": "absolute", "start": "2024-01-02", "end": "2024-01-01"}}, "time_range.end"),
    ({"time_range": {"tz": "Mars/Olympus"}}, "time_range.tz"),
    ({"time_range": {"tz": "../../etc/passwd"}}, "time_range.tz"),
    ({"filters": [{"field": "colour", "value": ["red"]}]}, "filters.0.field"),
    ({"filters": [{"field": "consumer", "operator": "like", "value": ["x"]}]}, "filters.0.operator"),
    ({"filters": [{"field": "consumer", "operator": "in", "value": "x"}]}, "filters.0.value"),
    ({"filters": [{"field": "consumer", "operator": "in", "value": []}]}, "filters.0.value"),
    ({"filters": [{"field": "consumer", "operator": "in", "value": [{}]}]}, "filters.0.value"),
    ({"filters": [{"field": "consumer", "operator": "in", "value": ["\0"]}]}, "filters.0.value"),
    ({"filters": [{"field": "status_code", "operator": "in", "value": ["many"]}]}, "filters"),
    ({"filters": [{"field": "status_code_grouped", "operator": "in", "value": ["5"]}]}, "filters"),
]


async def test_what_is_wrong_with_a_query_is_named(api: Api) -> None:
    for query, field in WRONG_QUERIES:
        answer = await api.http.post("/v2/metrics", json=query)
        assert answer.status_code == 400, (query, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["invalid_parameters"][0]["field"] == field


async def test_without_a_token_nothing_is_answered(api: Api) -> None:
    for path in ("/v2/metrics", "/v2/api-requests"):
        answer = await api.http.post(path, json={}, headers={"Authorization": "Bearer nothing"})
        assert answer.status_code == 401


# -- the request log


async def test_the_log_shows_requests_newest_first_with_their_calls(api: Api) -> None:
    chance = random.Random(13)
    made = sorted((event(chance) for _ in range(40)), key=lambda one: -one.finished_us)
    await api.store(made)
    found = (await api.log())["results"]
    assert [row["request_id"] for row in found] == [one.request_id.hex() for one in made]
    for row, one in zip(found, made, strict=True):
        assert [call["prompt_tokens"] for call in row["llm_calls"]] == [c.prompt_tokens for c in one.llm_calls]
        assert row["response_http_status"] == str(one.status)
        assert row["latencies_response_ms"] == one.total_us / 1000
        assert row["gateway_service"] == f"{CONTROL_PLANE}:{one.service_id}"
        assert (row["latencies_upstream_ms"] is None) is not one.HasField("upstream_us")
    oldest = (await api.log(order="ascending", size=1))["results"]
    assert oldest[0]["request_id"] == made[-1].request_id.hex()


@pytest.mark.parametrize("order", ["ascending", "descending"])
async def test_pages_by_cursor_neither_repeat_nor_skip(api: Api, order: str) -> None:
    chance = random.Random(14)
    made = [event(chance, finished_us=(START + number // 5) * 1_000_000) for number in range(50)]
    await api.store(made)
    seen: list[str] = []
    cursor = None
    while True:
        page = await api.log(size=7, order=order, cursor=cursor)
        seen += [row["request_id"] for row in page["results"]]
        cursor = page["meta"]["cursor"]
        if cursor is None:
            break
        await api.store([event(chance, finished_us=(START + (3600 if order == "descending" else -3600)) * 1_000_000)])
    assert len(seen) == len(set(seen)) == 50
    offset = [row["request_id"] for at in (0, 25, 50) for row in (await api.log(size=25, offset=at))["results"]]
    assert len(offset) == len(set(offset))


CONDITIONS: list[Any] = [
    (("status_code", "=", 404), lambda one: one.status == 404),
    (("status_code_grouped", "not_in", ["2XX"]), lambda one: one.status // 100 != 2),
    (("consumer", "empty", None), lambda one: not one.consumer_id),
    (("latencies_response_ms", ">", 1000.5), lambda one: one.total_us > 1_000_500),
    (("latencies_response_ms", "<=", 0.0005), lambda one: False),
    (("latencies_upstream_ms", "empty", None), lambda one: not one.HasField("upstream_us")),
    (("latencies_upstream_ms", "!=", 5), lambda one: not one.HasField("upstream_us") or one.upstream_us != 5000),
    (("request_uri", "starts_with", "/ch"), lambda one: True),
    (("request_uri", "ends_with", "%"), lambda one: False),
    (("http_method", "!=", "POST"), lambda one: False),
    (("ai_provider", "in", ["bedrock"]), lambda one: any(c.provider == "bedrock" for c in one.llm_calls)),
    (("ai_provider", "not_in", ["bedrock"]), lambda one: all(c.provider != "bedrock" for c in one.llm_calls)),
    (("ai_provider", "empty", None), lambda one: not one.llm_calls),
    (
        ("total_tokens", ">=", 3000),
        lambda one: any(c.prompt_tokens + c.completion_tokens >= 3000 for c in one.llm_calls),
    ),
    (("cost", ">", 0.0003), lambda one: any(c.cost_nano_usd > 300_000 for c in one.llm_calls)),
    (("cost", ">", 1e14), lambda one: False),
    (("time_to_first_token_ms", "<", 300), lambda one: any(0 < c.ttft_us < 300_000 for c in one.llm_calls)),
]


async def test_the_log_is_filtered(api: Api) -> None:
    chance = random.Random(15)
    made = [event(chance) for _ in range(120)]
    await api.store(made)
    for (field, operator, value), matches in CONDITIONS:
        found = await api.log(filters=[{"field": field, "operator": operator, "value": value}], size=1000)
        expected = {one.request_id.hex() for one in made if matches(one)}
        assert {row["request_id"] for row in found["results"]} == expected, (field, operator, value)


WRONG_LOG_QUERIES: list[Any] = [
    ({"size": 0}, "size"),
    ({"cursor": "nonsense"}, "cursor"),
    ({"order": "sideways"}, "order"),
    ({"filters": [{"field": "consumer", "operator": "<", "value": 1}]}, "filters.0.operator"),
    ({"filters": [{"field": "total_tokens", "operator": "<", "value": "many"}]}, "filters"),
    ({"filters": [{"field": "total_tokens", "operator": "<", "value": 1e300}]}, "filters"),
]


async def test_what_is_wrong_with_a_log_query_is_named(api: Api) -> None:
    for query, field in WRONG_LOG_QUERIES:
        answer = await api.http.post("/v2/api-requests", json=query)
        assert answer.status_code == 400, (query, answer.text)
        assert answer.json()["invalid_parameters"][0]["field"] == field


async def test_losses_are_those_of_the_control_planes_that_are_asked_about(api: Api) -> None:
    created = await api.http.post("/v2/control-planes", json={"name": "mine"})
    mine, other = created.json()["id"], CONTROL_PLANE
    await api.store([], control_plane=mine, dropped=3)
    await api.store([], control_plane=other, dropped=4)
    assert (await api.metrics())["meta"]["loss"] == {"dropped": 7}
    asked = [{"field": "control_plane", "operator": "in", "value": [other]}]
    assert (await api.metrics(filters=asked))["meta"]["loss"] == {"dropped": 4}
    limited = {"name": "limited", "scopes": ["read"], "control_plane_id": mine}
    token = (await api.http.post("/v2/tokens", json=limited)).json()["token"]
    api.http.headers["authorization"] = f"Bearer {token}"
    assert (await api.metrics())["meta"]["loss"] == {"dropped": 3}
    assert (await api.metrics(filters=asked))["meta"]["loss"] == {"dropped": 0}


async def test_absurd_numbers_that_were_stored_once_break_no_answer(
    api: Api, events: list[analytics_pb2.RequestEvent]
) -> None:
    async with api.plane.database.writing() as session:
        await session.execute(update(API_USAGE).values(request_bytes=MAX_INT))
        await session.execute(update(LLM_USAGE).values(prompt_tokens=MAX_INT, cost_nano_usd=-MAX_INT))
        await session.execute(update(ANALYTICS_EPOCHS).values(dropped_events=MAX_INT))
    answer = await api.one(metrics=["request_count", "request_size_sum"])
    assert answer["request_count"] == len(events)
    assert answer["request_size_sum"] == MAX_INT
    tokens = await api.metrics(datasource="llm_usage", metrics=["prompt_tokens", "cost"], dimensions=["ai_provider"])
    assert all(row["event"]["prompt_tokens"] >= MAX_INT for row in tokens["data"])
