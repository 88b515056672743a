"""Made-up telemetry for tests: events, batches, and the same folded."""

from __future__ import annotations

import random
import uuid
from typing import Any

from gateway_schema.sketch import Sketch
from gateway_schema.wire import analytics_pb2

MINUTE = 60
START = 1_700_000_040
"""Unix seconds at the start of a minute: 2023-11-14T22:14:00Z."""

CONTROL_PLANE = "11111111-1111-4111-8111-111111111111"
SERVICES = [str(uuid.UUID(int=number)) for number in range(1, 4)]
CONSUMERS = ["", *(str(uuid.UUID(int=number)) for number in range(10, 14))]
MODELS = [("openai", "gpt-4o-mini"), ("bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0")]


def call(chance: random.Random) -> analytics_pb2.LlmCall:
    provider, model = chance.choice(MODELS)
    prompt = chance.randrange(1, 4000)
    made = analytics_pb2.LlmCall(
        provider=provider,
        request_model=model,
        response_model=model,
        stream=chance.random() < 0.5,
        status=chance.choice([200, 200, 200, 429, 0]),
        role="selected",
        duration_us=chance.randrange(1000, 9_000_000),
        prompt_tokens=prompt,
        completion_tokens=chance.randrange(0, 900),
        cached_tokens=prompt // 3,
        token_source=chance.choice(["provider", "estimated"]),
    )
    if made.stream:
        made.ttft_us = chance.randrange(500, 900_000)
    if provider == "openai":
        made.cost_nano_usd = prompt * 150
    return made


def event(chance: random.Random, minutes: int = 90, **fields: Any) -> analytics_pb2.RequestEvent:
    finished = START * 1_000_000 + chance.randrange(minutes * 60_000_000)
    total = chance.randrange(100, 3_000_000)
    source = chance.choice(["upstream", "upstream", "plugin", "no_route", "gateway_error"])
    made = analytics_pb2.RequestEvent(
        request_id=chance.randbytes(16),
        started_us=finished - total,
        finished_us=finished,
        service_id=chance.choice(SERVICES),
        consumer_id=chance.choice(CONSUMERS),
        method="POST",
        path="/chat",
        status=chance.choice([200, 201, 301, 401, 404, 429, 500, 504]),
        source=source,
        request_size=chance.randrange(1, 9000),
        response_size=chance.randrange(1, 90_000),
        total_us=total,
        gateway_us=chance.randrange(1, 900),
        outcome=chance.choice(["complete", "complete", "client_closed"]),
        llm_calls=[call(chance) for _ in range(chance.choice([0, 1, 1, 2]))],
    )
    if source == "upstream":
        made.upstream_us = chance.randrange(50, total + 50)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def batches(chance: random.Random, count: int, size: int) -> list[analytics_pb2.Batch]:
    return [
        analytics_pb2.Batch(sequence=number + 1, events=[event(chance) for _ in range(size)]) for number in range(count)
    ]


def fold(one: analytics_pb2.RequestEvent) -> analytics_pb2.UsageDelta:
    """An event as a node folds it that may no longer keep it whole."""
    delta = analytics_pb2.UsageDelta(
        minute=one.finished_us // 60_000_000 * 60,
        service_id=one.service_id,
        route_id=one.route_id,
        consumer_id=one.consumer_id,
        status=one.status,
        source=one.source,
        requests=1,
        request_size=one.request_size,
        response_size=one.response_size,
        total=_distribution(one.total_us),
        gateway=_distribution(one.gateway_us),
        incomplete=int(one.outcome != "complete"),
        llm=[_fold_call(each) for each in one.llm_calls],
    )
    if one.HasField("upstream_us"):
        delta.upstream.CopyFrom(_distribution(one.upstream_us))
    return delta


def _fold_call(one: analytics_pb2.LlmCall) -> analytics_pb2.LlmDelta:
    priced = one.HasField("cost_nano_usd")
    delta = analytics_pb2.LlmDelta(
        provider=one.provider,
        request_model=one.request_model,
        response_model=one.response_model,
        status=one.status,
        stream=one.stream,
        calls=1,
        prompt_tokens=one.prompt_tokens,
        completion_tokens=one.completion_tokens,
        cached_tokens=one.cached_tokens,
        cache_write_tokens=one.cache_write_tokens,
        reasoning_tokens=one.reasoning_tokens,
        estimated_calls=int(one.token_source == "estimated"),
        unpriced_calls=int(not priced),
        cost_nano_usd=one.cost_nano_usd if priced else 0,
        duration=_distribution(one.duration_us),
    )
    if one.HasField("ttft_us"):
        delta.ttft.CopyFrom(_distribution(one.ttft_us))
    return delta


def _distribution(value_us: int) -> analytics_pb2.Distribution:
    sketch = Sketch()
    sketch.add(value_us)
    return analytics_pb2.Distribution(count=1, sum_us=value_us, max_us=value_us, sketch=sketch.encode())
