"""Builders of analytics events, and the sums by which tests compare what went in with what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import strategies as st

from data_plane.agent.framing import batch_of
from data_plane.agent.spool_state import Intake
from gateway_schema.sketch import Sketch
from gateway_schema.wire import analytics_pb2 as pb

MINUTE_US = 60_000_000


def event(number: int = 0, *, minute: int = 0, status: int = 200, tokens: int = 0, padding: int = 0) -> pb.RequestEvent:
    """An event that can be told from others by its id."""
    made = pb.RequestEvent(
        request_id=number.to_bytes(16, "big"),
        finished_us=minute * MINUTE_US + number,
        service_id="s",
        status=status,
        source="upstream",
        total_us=1000 + number,
        gateway_us=100,
        outcome="complete",
        user_agent="x" * padding,
    )
    if tokens:
        made.llm_calls.add(provider="openai", request_model="m", prompt_tokens=tokens, status=200, duration_us=5)
    return made


def intake(worker: str, number: int, events: Iterable[pb.RequestEvent], dropped: int = 0) -> Intake:
    serialised = [each.SerializeToString() for each in events]
    return Intake(worker, number, len(serialised), dropped, batch_of(serialised))


def worker_name(index: int) -> str:
    return f"{index:032x}"


calls = st.builds(
    pb.LlmCall,
    provider=st.sampled_from(["openai", "bedrock"]),
    request_model=st.sampled_from(["a", "b"]),
    response_model=st.sampled_from(["", "a-1"]),
    stream=st.booleans(),
    status=st.sampled_from([0, 200, 429]),
    duration_us=st.integers(0, 10**8),
    ttft_us=st.none() | st.integers(0, 10**7),
    prompt_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
    cached_tokens=st.integers(0, 10**5),
    reasoning_tokens=st.integers(0, 10**5),
    token_source=st.sampled_from(["provider", "estimated", "none"]),
    cost_nano_usd=st.none() | st.integers(0, 10**12),
)
events = st.builds(
    pb.RequestEvent,
    request_id=st.binary(min_size=16, max_size=16),
    finished_us=st.integers(0, 3 * 3600).map(lambda second: second * 1_000_000),
    service_id=st.sampled_from(["", "s1", "s2"]),
    route_id=st.sampled_from(["", "r1"]),
    consumer_id=st.sampled_from(["", "c1", "c2", "c3"]),
    status=st.sampled_from([200, 401, 499, 502]),
    source=st.sampled_from(["upstream", "plugin"]),
    request_size=st.integers(0, 10**6),
    response_size=st.integers(0, 10**6),
    total_us=st.integers(0, 10**8),
    upstream_us=st.none() | st.integers(0, 10**8),
    gateway_us=st.integers(0, 10**6),
    outcome=st.sampled_from(["complete", "client_closed"]),
    llm_calls=st.lists(calls, max_size=3),
)


def totals(batches: Iterable[pb.Batch]) -> Counter[str]:
    """What must be the same whether events travel whole or folded: sums, and latencies as counted in bins."""
    sums: Counter[str] = Counter()
    for batch in batches:
        for each in batch.events:
            _add_event(sums, each)
        for delta in batch.deltas:
            _add_delta(sums, delta)
    return +sums


def _add_event(sums: Counter[str], each: pb.RequestEvent) -> None:
    sums[f"requests {each.status}"] += 1
    sums["bytes"] += each.request_size + each.response_size
    sums["incomplete"] += each.outcome != "complete"
    _add_value(sums, "total", each.total_us)
    _add_value(sums, "gateway", each.gateway_us)
    if each.HasField("upstream_us"):
        _add_value(sums, "upstream", each.upstream_us)
    for call in each.llm_calls:
        name = f"{call.provider} {call.request_model} {call.stream}"
        sums[f"{name} calls"] += 1
        for field in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_nano_usd"):
            sums[f"{name} {field}"] += getattr(call, field)
        sums[f"{name} estimated"] += call.token_source == "estimated"
        sums[f"{name} unpriced"] += not call.HasField("cost_nano_usd")
        _add_value(sums, f"{name} duration", call.duration_us)
        if call.HasField("ttft_us"):
            _add_value(sums, f"{name} ttft", call.ttft_us)


def _add_value(sums: Counter[str], name: str, value: int) -> None:
    sketch = Sketch()
    sketch.add(value)
    _add_distribution(sums, name, pb.Distribution(count=1, sum_us=value, max_us=value, sketch=sketch.encode()))


def _add_delta(sums: Counter[str], delta: pb.UsageDelta) -> None:
    sums[f"requests {delta.status}"] += delta.requests
    sums["bytes"] += delta.request_size + delta.response_size
    sums["incomplete"] += delta.incomplete
    for name in ("total", "gateway", "upstream"):
        _add_distribution(sums, name, getattr(delta, name))
    for llm in delta.llm:
        name = f"{llm.provider} {llm.request_model} {llm.stream}"
        sums[f"{name} calls"] += llm.calls
        for field in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_nano_usd"):
            sums[f"{name} {field}"] += getattr(llm, field)
        sums[f"{name} estimated"] += llm.estimated_calls
        sums[f"{name} unpriced"] += llm.unpriced_calls
        _add_distribution(sums, f"{name} duration", llm.duration)
        _add_distribution(sums, f"{name} ttft", llm.ttft)


def _add_distribution(sums: Counter[str], name: str, distribution: pb.Distribution) -> None:
    sums[f"{name} count"] += distribution.count
    sums[f"{name} sum"] += distribution.sum_us
    for key, count in Sketch.decode(distribution.sketch).bins.items():
        sums[f"{name} bin {key}"] += count
